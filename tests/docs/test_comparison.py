"""docs/comparison.md: the table of sections is that of the report."""

import inspect
import pathlib
import re

from lmtrain.compare.pages import sections

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'comparison.md').read_text(encoding='utf-8')


def test_sections_of_the_report_are_listed_in_their_order():
    table = TEXT.split('| section | meaning |')[1].split('\n\n')[0]
    listed = re.findall(r'^\| ([^|-]+?(?:-[^|]+?)?) \|', table, re.MULTILINE)
    titles = re.findall(r"Section\('[\w-]+', '(.+?)',", inspect.getsource(sections.sections))
    first = ['All arms', 'What is missing']
    last = ['Protocol', 'Provenance', 'Trials']
    assert set(first + last) <= set(titles)
    assert listed == [*first, *(title for title in titles if title not in first + last), *last]
