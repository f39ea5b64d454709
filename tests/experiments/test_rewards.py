"""The table of experiments/rewards/README.md: its links lead to files, and the tests that it names exist."""

import re

from experiments.record import ROOT

PAGE = ROOT / 'experiments' / 'rewards' / 'README.md'


def test_links_and_tests_exist():
    text = PAGE.read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)#]+)\)', text)
    assert len(links) > 10 and all((PAGE.parent / link).exists() for link in links)
    tests = ''.join(file.read_text(encoding='utf-8') for file in (ROOT / 'tests').rglob('test_*.py'))
    named = re.findall(r'`(test_\w+)`', text)
    assert len(named) > 15 and not [name for name in named if f'def {name}(' not in tests]
