"""Every figure a README shows is the one its experiment measured."""

import json
import pathlib
import re

from experiments import record

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = sorted((ROOT / 'experiments').glob('*/results.json'))


def test_figures_are_rendered_from_results():
    texts = record.readmes()
    outdated = [str(readme) for readme, text in texts.items() if readme.read_text(encoding='utf-8') != text]
    assert len(texts) > 2 and not outdated, 'run python -m experiments.record'


def test_headlines_are_eight_rows_of_results():
    lines = [line for line in record.headlines().splitlines() if line.startswith('|')]
    assert len(lines) == 2 + len(record.HEADLINES) == 10
    assert lines[2].startswith('| [quickstart](experiments/quickstart): validation, bits per byte | 1.')


def test_headlines_name_every_experiment_that_missed_a_target():
    """Counted in the rendered tables, not in the results."""
    overview = record.overview()
    sections = re.findall(r'^## \[(\w+)\].*?(?=^## |\Z)', overview, re.MULTILINE | re.DOTALL)
    texts = re.split(r'^## .*$', overview, flags=re.MULTILINE)[1:]
    missed = {name: text.count('| **no** |') for name, text in zip(sections, texts, strict=True) if '**no**' in text}
    said = record.headlines()
    assert missed and f'{sum(missed.values())} were missed: ' in said
    assert {name: int(count) for count, name in re.findall(r'(\d+) of \[(\w+)\]', said)} == missed


def test_results_state_where_they_come_from():
    for path in RESULTS:
        results = json.loads(path.read_text(encoding='utf-8'))
        assert results['name'] == path.parent.name
        assert results['trials'], f'{path} lacks its raw trials'
        keys = {'commit', 'command', 'machine', 'versions', 'figures', 'not_shown'}
        assert keys <= results.keys(), path
        readme = (path.parent / 'README.md').read_text(encoding='utf-8')
        assert f'<!-- results: {results["name"]} -->' in readme


def test_edited_figure_is_detected():
    name = RESULTS[0].parent.name
    text = record.render(f'<!-- results: {name} -->\n<!-- end -->')
    forged = text.replace('| what |', '| what changed |')
    assert record.render(forged) == text != forged


def test_readme_of_every_experiment_has_its_current_command():
    for path in sorted((ROOT / 'experiments').glob('*/__main__.py')):
        text = record.BLOCK.sub('', (path.parent / 'README.md').read_text(encoding='utf-8'))
        modules = re.findall(r'python -m experiments\.(\w+)', text)
        scripts = re.findall(r'bash ((?:experiments/\w+|launch)/\w+\.sh)', text)
        assert modules or scripts, f'{path.parent / "README.md"} has no command'
        files = [f'experiments/{name}/__main__.py' for name in modules if name != 'record'] + scripts
        assert all((ROOT / file).is_file() for file in files), files
