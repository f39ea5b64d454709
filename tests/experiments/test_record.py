"""Every figure a README shows is the one its experiment measured."""

import json
import pathlib

import pytest

from experiments import record

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = sorted((ROOT / 'experiments').glob('*/results.json'))


@pytest.mark.parametrize('readme', record.readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_are_rendered_from_results(readme):
    text = readme.read_text()
    assert record.render(text) == text, f'{readme}: run python -m experiments.record'


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.parent.name)
def test_results_say_where_they_come_from(path):
    results = json.loads(path.read_text())
    assert results['name'] == path.parent.name
    assert results['trials'], 'raw trials are kept'
    assert {'commit', 'command', 'machine', 'versions', 'figures', 'not_shown'} <= results.keys()
    readme = (path.parent / 'README.md').read_text()
    assert f'<!-- results: {results["name"]} -->' in readme


def test_a_figure_changed_by_hand_is_seen():
    name = RESULTS[0].parent.name
    text = record.render(f'<!-- results: {name} -->\n<!-- end -->')
    forged = text.replace('| what |', '| what changed |')
    assert record.render(forged) == text != forged
