import copy
import html.parser
import json
import re
import sys

import pytest

from lmtrain.compare import report
from lmtrain.compare.pages import plots, recommendation, sections
from lmtrain.errors import InputError


def write(folder, results):
    (folder / 'results.json').write_text(json.dumps(results))
    path = report.write(folder)
    return path.read_text(encoding='utf-8'), (folder / 'report.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def pages(comparison, tmp_path_factory):
    """(folder, HTML, markdown) of the report of a whole comparison."""
    folder = tmp_path_factory.mktemp('comparison')
    return folder, *write(folder, comparison())


class Elements(html.parser.HTMLParser):
    """The attributes of every element, and the texts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ('meta', 'link', 'br'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.texts.append(data.strip())


def test_page_is_one_file_without_scripts(pages):
    _, page, _ = pages
    own = Elements(page)
    assert not own.open, 'every element is closed'
    tags = {tag for tag, _ in own.elements}
    assert not tags & {'script', 'img', 'iframe', 'object', 'embed', 'image'} and {'svg', 'table', 'details'} <= tags
    attributes = [(name, value) for _, attributes in own.elements for name, value in attributes.items()]
    assert not [name for name, _ in attributes if name.startswith('on')]
    links = [value for name, value in attributes if name in ('src', 'href', 'xlink:href')]
    assert all(link.startswith('#') or link == 'data:,' for link in links)
    assert not re.findall(r'@import|url\((?!#)', page)
    ids = [value for name, value in attributes if name == 'id']
    assert len(ids) == len(set(ids)), 'ids are unique'
    assert {link[1:] for link in links if link.startswith('#')} <= set(ids)
    assert "default-src 'none'" in page and 'prefers-color-scheme: dark' in page


def test_sections_are_in_order_in_both_formats(pages):
    _, page, markdown = pages
    headings = re.findall(r'^## (.*)$', markdown, re.MULTILINE)
    assert headings[:3] == ['All arms', 'What is missing', 'What accuracy costs'] and headings[-1] == 'Trials'
    assert len(headings) == 12
    assert re.findall(r'<section id="[^"]*">\s*<h2>(.*?)</h2>', page) == headings
    scope = '10 arms; a base of 134M parameters; 8, 32, 128 and 512 training rows + 64 selection rows; '
    scope += '3 seeds; 200 test rows'
    assert scope in page and f'{scope}.' in markdown
    assert markdown.index('Use lora') < markdown.index('What it rests on') < markdown.index('What would change it')


def test_formats_have_the_same_cells(pages):
    _, page, markdown = pages
    texts = set(Elements(page).texts)
    rows = [line.strip('|').split('|') for line in markdown.splitlines() if re.match(r'\| [^-]', line)]
    cells = [
        re.sub(r'\\(.)', r'\1', cell.strip().removeprefix('**').removesuffix('**')) for row in rows for cell in row
    ]
    assert len(cells) > 1000
    assert {cell.replace('&lt;', '<').replace('&amp;', '&') for cell in cells} <= texts


def test_figures_of_the_markdown_exist(pages):
    folder, _, markdown = pages
    names = re.findall(r'!\[[^]]*\]\((.*?)\)', markdown)
    assert len(names) == 6 + 10 + 2  # costs, arms, sensitivity and break-even
    for name in names:
        assert (folder / name).read_text(encoding='utf-8').startswith('<?xml version="1.0" encoding="utf-8"?>\n<svg')
    assert len(names) == len(list((folder / 'figures').iterdir()))


def test_report_is_reproducible(pages, comparison, tmp_path):
    folder, *own = pages
    assert [page.replace(str(tmp_path), str(folder)) for page in write(tmp_path, comparison())] == own


def test_text_of_a_config_is_no_markup(comparison, tmp_path):
    name = '<img src=x onerror=alert(1)>|`a_b`*'
    results = comparison(arms={name: ('train', 0.4, 0.9, 9, 1e12, 1e9), 'b': ('prompt', 0.5, 0.5, 0, 0.0, 1e10)})
    results['task']['classes'] = ['</style><script>alert(1)</script>']
    results['arms'][name]['description'] = '"><svg onload=alert(1)>\x1b[2J'
    results['provenance']['command'] = 'lmtrain --workdir=caf\udce9'  # a name that is not UTF-8, in Python
    page, markdown = write(tmp_path, results)
    own = Elements(page)
    assert not {tag for tag, _ in own.elements} & {'img', 'script'}
    assert not [name for _, attributes in own.elements for name in attributes if name.startswith('on')]
    assert name in own.texts and '</style><script>alert(1)</script>' in ''.join(own.texts)
    assert '<img' not in markdown and '<script' not in markdown and '\\`a\\_b\\`\\*' in markdown
    assert 'caf\\udce9' in page
    assert '\x1b' not in page + markdown


SECTIONS = 'task base arms trials summary pairs description_length sensitivity forgetting break_even prices provenance'
FIELDS = {
    'task': 'rows notes classes majority chance name label text',
    'base': 'directory parameters context',
    'arms.*': 'kind overrides reason description status',
    'summary.*': 'interval stderr seeds loss',
    'trials.*': 'ledger test selection chosen folder reason',
    'trials.*.ledger': 'train_flops selection_flops query_flops query_seconds price',
    'trials.*.test': 'interval loss engine accuracy',
    'pairs.*': 'interval p p_holm detectable difference',
    'description_length.*': 'bits uniform_bits blocks',
    'sensitivity.*': 'n mean stdev stdev_within quantiles worst best worst_interval best_interval interval intervals',
    'forgetting.*': 'kl bits_per_byte_before',
    'break_even.*': 'size curve queries',
    'prices': 'currency device_hour kwh watts',
}
PATHS = SECTIONS.split() + [f'{place}.{name}' for place, names in FIELDS.items() for name in names.split()]


def nulled(value, path):
    """A copy with None at `path`."""
    value = copy.deepcopy(value)
    places = [value]
    *sections, last = path.split('.')
    for name in sections:
        places = [
            child
            for place in places
            for child in ((place.values() if isinstance(place, dict) else place) if name == '*' else [place[name]])
        ]
    for place in places:
        place[last] = None
    return value


@pytest.fixture(scope='module')
def small(comparison):
    """Results of three arms."""
    arms = {'k-shot': ('prompt', 0.6, 0.66, 0, 0.0, 9e10), 'lora': ('train', 0.5, 0.84, 10, 5e15, 4e9)}
    return comparison(arms=arms | {'full': ('train', 0.5, 0.83, 99, 7e15, 4e9)}, sizes=(8, 512))


@pytest.mark.parametrize('path', PATHS)
def test_field_may_be_null(small, path, monkeypatch):
    for name in ('fronts', 'efficiency', 'sensitivity', 'break_even'):
        monkeypatch.setattr(plots, name, lambda *_: [])
    results = nulled(small, path)
    content = sections.sections(results, recommendation.recommend(results))
    texts = [str(block) for section in content for block in section.blocks]
    assert not [text for text in texts if re.search(r"\bnan\b|\bNone %|text=None|text='None", text)]
    assert report.terminal_summary(results) and report.answer_table(results)


@pytest.mark.parametrize('names', ['interval p_holm query_seconds curve quantiles', 'detectable train_flops worst'])
def test_figures_without_some_fields(small, names, tmp_path):
    for path in PATHS:
        if path.split('.')[-1] in names.split():
            small = nulled(small, path)
    page, _ = write(tmp_path, small)
    assert 'not measured' in page and '<svg' in page


def test_everything_may_be_missing(tmp_path):
    page, markdown = write(tmp_path, {})
    assert 'No recommendation: no arm has a result.' in page
    assert 'the section is left out: What accuracy costs; How many rows it takes; How much the prompt' in markdown


def test_broken_and_missing_results_are_named(tmp_path):
    with pytest.raises(InputError, match='results.json does not exist: `lmtrain compare'):
        report.write(tmp_path)
    (tmp_path / 'results.json').write_text('{')
    with pytest.raises(InputError, match='results.json: invalid JSON'):
        report.write(tmp_path)
    (tmp_path / 'results.json').write_text('[]')
    with pytest.raises(InputError, match='results.json'):
        report.write(tmp_path)


def test_report_needs_no_display(pages):
    assert 'matplotlib.pyplot' not in sys.modules, 'pyplot looks for a display and keeps figures'


def test_answer_table(comparison):
    results = comparison()
    results['arms']['full']['description'] = '<b>all|'
    lines = report.answer_table(results).splitlines()
    head = '| arm, 512 training rows + 64 selection rows | accuracy (95 % interval) | to create | for a query |'
    assert lines[0] == head and len(lines) == 2 + 10
    assert lines[2] == '| **lora**: The arm lora. | 84.0 % (78.9 to 89.1) | 25 PFLOP, 4m 10s | 4.0 GFLOP, 28 ms |'
    names = [line.split('|')[1].strip() for line in lines[2:5]]
    assert names == ['**lora**: The arm lora.', 'full: &lt;b>all&#124;', 'last-layers: The arm last-layers.']
    assert report.answer_table({}) == 'No arm has a result.'


def test_answer_table_has_14_rows_and_the_recommended_arm(comparison):
    arms = {f'a{number:02}': ('train', 0.5, 0.75, 9, 1e12, 1e9 - number) for number in range(17)}
    lines = report.answer_table(comparison(arms=arms, sizes=(512,), rows=3000)).splitlines()
    assert [line.split(':')[0] for line in lines[2:]][-4:] == ['| a13', '| **a16**', '', 'Not shown']
    assert lines[-1] == 'Not shown: 2 less accurate arms.' and len(lines) == 2 + 15 + 2


def test_terminal_summary_fits_80_columns(comparison):
    results = comparison()
    results['arms']['an-arm-with-a-name-that-is-far-too-long-for-a-terminal'] = results['arms'].pop('lora')
    for entry in results['summary']:
        entry['arm'] = entry['arm'].replace('lora', 'an-arm-with-a-name-that-is-far-too-long-for-a-terminal')
    results['arms']['head']['learning_rates'] = [1e-3, 1e-2]  # all trials choose one of its ends
    text = report.terminal_summary(results)
    assert max(map(len, text.splitlines())) <= 80
    assert '* head: the chosen learning rate is an end of the grid, the highest (0.01) in 1\n' in text
    assert text.startswith('Use ') and '\nfull ' in text and '\nan-arm-with-a-name-th...  ' in text


def test_headings_without_content_are_left_out(comparison, tmp_path):
    few = {'few': ('prompt', 0.09, 0.09, 0, 1e9, 1e12)}  # as accurate as the most frequent class
    for page in write(tmp_path, comparison(arms=few, sizes=(512,))):
        assert 'No arm is recommended' in page and 'What would change it' not in page


@pytest.mark.parametrize('kind', ['train', 'prompt'])
def test_use_is_a_command_of_predict_for_the_recommended_arm(comparison, kind, tmp_path):
    results = comparison(arms={'best': (kind, 0.3, 0.8, 9, 1e12, 1e9), 'few': ('prompt', 0.2, 0.5, 0, 1e9, 1e12)})
    command = (
        "  lmtrain predict --workdir='runs/a b/trials/best/n512-seed2' --rows=new.csv \\\n      --to=predicted.csv"
    )
    for trial in results['trials']:
        trial['status'] = 'failed' if (trial['arm'], trial['seed']) == ('best', 1) else 'done'
    assert report.use(results, 'runs/a b') == command
    lines = report.ending(results, 'runs/a b', 'runs/a b/report.html')
    assert lines.endswith(f'\n\nThe classes of new rows by best:\n{command}\n\nruns/a b/report.html')
    for page in write(tmp_path, results):
        assert f'lmtrain predict --workdir={tmp_path}/trials/best/n512-seed2' in re.sub(r'\s+(\\\s+)?', ' ', page)


def test_use_of_the_most_accurate_arm_if_none_is_recommended(comparison, tmp_path):
    arms = {'few': ('prompt', 0.08, 0.08, 0, 1e9, 1e12), 'best': ('prompt', 0.09, 0.09, 0, 1e9, 1e12)}
    results = comparison(arms=arms, sizes=(512,))  # as accurate as the most frequent class
    lines = report.ending(results, 'runs/a', 'runs/a/report.html')
    title = 'None is recommended. The classes of new rows by the most accurate arm, best:'
    assert f'\n\n{title}\n  lmtrain predict --workdir=runs/a/trials/best/n512-seed1 ' in lines
    assert max(map(len, lines.splitlines())) <= 80
    assert all(title in page for page in write(tmp_path, results))


def test_use_of_an_arm_that_reads_no_rows(comparison):
    results = comparison(arms={'zero': ('prompt', 0.8, 0.8, 9, 0.0, 1e9), 'few': ('prompt', 0.2, 0.5, 0, 1e9, 1e12)})
    results['trials'] = [trial | {'size': 0} for trial in results['trials'] if trial['size'] == 8]
    assert '/trials/zero/n8-seed1 ' in report.use(results, 'a') and report.use({}, 'a') == ''


def test_terminal_summary_has_only_measured_columns(comparison):
    results = comparison()
    for trial in results['trials']:
        trial['ledger'] = {}
    header = report.terminal_summary(results).split('\n\n')[1].splitlines()[0]
    assert header.split() == 'arm accuracy 95 % interval'.split()
