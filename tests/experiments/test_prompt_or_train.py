"""Figures of an experiment from the results.json of a comparison."""

import json
import pathlib
import types

import pytest

from configs import compare
from experiments.prompt_or_train import __main__ as default
from experiments.prompt_or_train import comparison
from experiments.prompt_or_train_decoder import __main__ as decoder
from experiments.prompt_or_train_encoder import __main__ as encoder

TASK = {'name': 'classify', 'classes': ['re', 'json'], 'rows': {'train': 90, 'selection': 20, 'test': 50}}
RESULTS = {
    'task': TASK | {'chance': 0.5, 'majority': 0.6},
    'base': {'directory': 'base', 'parameters': 1000, 'context': 64, 'causal': True},
    'arms': {
        'lora': {'kind': 'train', 'description': '', 'overrides': {}, 'status': 'done', 'reason': ''},
        'nearest': {'kind': 'prompt', 'description': '', 'overrides': {}, 'status': 'failed', 'reason': 'no room'},
    },
    'summary': [
        {'arm': 'lora', 'size': 8, 'seeds': 2, 'accuracy': 0.5, 'interval': [0.4, 0.6], 'loss': 0.7},
        {'arm': 'lora', 'size': 32, 'seeds': 2, 'accuracy': 0.82, 'interval': [0.75, 0.88], 'loss': 0.4},
    ],
    'trials': [
        {
            'arm': 'lora',
            'kind': 'train',
            'size': 32,
            'seed': seed,
            'status': 'done',
            'ledger': {'train_flops': 1e9, 'selection_flops': 2e9, 'device_seconds': 2.0, 'query_flops': 5e6},
            'test': {'accuracy': 0.82},
        }
        for seed in (1, 2)
    ],
}


GPU_HOST = {'processor': 'Xeon', 'cores': 16}


def test_figures_are_those_of_the_largest_size_and_name_arms_without_a_result():
    about, lora, failed = comparison.figures('docs', RESULTS)
    assert '50 test rows, 2 classes' in about['figure'] and '60.0 %' in about['figure']
    assert lora['what'] == 'docs, lora, 32 rows: accuracy (95 % interval)'
    assert (
        lora['figure'].startswith('82.0 % (75.0 to 88.0 %)')
        and 'to create 3.00 GFLOP, 2 s; for a query 5.00 MFLOP' in lora['figure']
    )
    assert failed['what'] == 'docs, nearest' and failed['figure'] == 'failed: no room'


def test_figures_have_price_and_energy_if_they_are_known():
    ledger = RESULTS['trials'][0]['ledger'] | {'price': 0.0012, 'joules': 130.0}
    results = RESULTS | {'trials': [each | {'ledger': ledger} for each in RESULTS['trials']]}
    _, lora, _ = comparison.figures('docs', results | {'prices': {'currency': 'EUR'}})
    assert 'to create 3.00 GFLOP, 2 s, 0.0012 EUR, 130 J; for a query' in lora['figure']


def test_every_experiment_has_the_example_prices(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(comparison, 'run', lambda folder, config: called.append(config) or RESULTS)
    monkeypatch.setattr(comparison, 'page', lambda folder, config: '')
    monkeypatch.setattr(comparison, 'write', lambda *arguments: None)
    monkeypatch.setattr(comparison.record, 'ROOT', tmp_path)
    (tmp_path / 'experiments' / 'prompt_or_train').mkdir(parents=True)
    monkeypatch.setattr('sys.argv', ['prompt_or_train', f'--workdir={tmp_path / "run"}'])
    default.main()
    for module in (decoder, encoder):
        paths = {'base': tmp_path, 'root': tmp_path, 'workdir': tmp_path / 'run', 'test': 0, 'parts': 1}
        options = types.SimpleNamespace(tasks='polarity', **paths)
        comparison._measure(options, module.TASKS, module.SHARED, tmp_path / 'out')
    assert len(called) == 3 and all(config.items() >= comparison.PRICES.items() for config in called)
    config = compare.get_config()
    config.update_from_flattened_dict(comparison.PRICES)
    assert (config.compare.device_hour, config.compare.kwh, config.compare.watts) == (0.1, 0.3, 65.0)


def test_results_name_no_folder_of_a_machine():
    folder = pathlib.Path('/here/runs/which')
    text = '"/here/runs/which/base", "/here/models/x", "/here/rows/a.csv"'
    config = {'init.base': '/here/models/x', 'data.root': '/here/rows'}
    assert comparison.portable(text, folder, config) == '"WORKDIR/base", "BASE", "ROOT/a.csv"'


@pytest.fixture
def measured(tmp_path):
    """A folder as --out writes it: one of two tasks, measured on a GPU with a limit of test rows."""
    results = RESULTS | {'provenance': {'machine': {'devices': '1 x NVIDIA H200'}}}
    task = {'results': results, 'test': 250, 'minutes': 6.5, 'machine': GPU_HOST, 'versions': {'jax': '0.11.2'}}
    (tmp_path / 'docs.json').write_text(json.dumps(task))
    (tmp_path / 'docs.html').write_text('<p>page</p>')
    return tmp_path


def test_parts_are_moved_together_and_reported_by_a_last_call(tmp_path, monkeypatch):
    def start(verb, flag, config):
        folder = pathlib.Path(flag.removeprefix('--workdir='))
        for arm in config['compare.only']:
            (folder / 'trials' / arm).mkdir(parents=True)
        return types.SimpleNamespace(wait=lambda: 0)

    calls = []
    monkeypatch.setattr(comparison.cli, 'start', start)
    monkeypatch.setattr(comparison, 'run', lambda folder, config: calls.append((folder, config)) or {})
    config = {'compare.only': ('lora', 'full', 'head'), 'budget.steps': 2}
    comparison.run_in_parts(tmp_path / 'docs', config, 2)
    assert [path.name for path in tmp_path.iterdir()] == ['docs'] and calls == [(tmp_path / 'docs', config)]
    assert sorted(path.name for path in (tmp_path / 'docs' / 'trials').iterdir()) == ['full', 'head', 'lora']
    comparison.run_in_parts(tmp_path / 'docs', config, 2)  # resumed: no parts again
    assert calls[1:] == [(tmp_path / 'docs', config)]


@pytest.fixture
def root(tmp_path_factory, monkeypatch):
    """A repository in which experiments/here is recorded."""
    root = tmp_path_factory.mktemp('root')
    (root / 'experiments' / 'here').mkdir(parents=True)
    monkeypatch.setattr(comparison.record, 'ROOT', root)
    monkeypatch.setattr(comparison.record, 'git', lambda *words: words[-1] * 2)
    monkeypatch.setattr(comparison.record, 'write_readmes', lambda: None)
    return root


def read(root: pathlib.Path) -> dict:
    return json.loads((root / 'experiments' / 'here' / 'results.json').read_text())


def test_what_another_machine_measured_is_recorded_with_its_commit_and_device(measured, root):
    comparison._record('here', {'docs': {}, 'other': {}}, measured, ('a reason',), 'abc')
    written = read(root)
    assert (written['name'], written['commit'], written['machine']) == ('here', 'abcabc', GPU_HOST)
    assert written['versions'] == {'jax': '0.11.2'} and written['trials'][0]['task'] == 'docs'
    assert written['figures'][-1]['what'] == 'docs: the whole comparison, on 1 x NVIDIA H200'
    assert written['figures'][-1]['figure'] == '6.5 min; commit abcabc, Xeon, 16 cores'
    first, *others = written['not_shown']
    assert first == 'other: not measured' and others[0] == 'docs: test rows beyond 250' and others[-1] == 'a reason'
    assert others[1] == 'docs, two cores: it ran on 1 x NVIDIA H200'
    assert (root / 'experiments' / 'here' / 'docs.html').read_text() == '<p>page</p>'


def test_a_task_of_another_machine_is_added_to_those_that_are_recorded(measured, root, tmp_path_factory):
    tasks = {'docs': {}, 'other': {}}
    comparison._record('here', tasks, measured, (), 'abc')
    before, second = read(root), tmp_path_factory.mktemp('second')
    results = RESULTS | {'provenance': {'machine': {'devices': '1 x cpu'}}}
    other = {'results': results, 'test': 0, 'minutes': None, 'versions': {'jax': '0.10.2'}}
    other['machine'] = {'processor': 'EPYC', 'cores': 2}
    (second / 'other.json').write_text(json.dumps(other))
    (second / 'other.html').write_text('<p>other</p>')
    comparison._record('here', tasks, second, (), 'def')
    after = read(root)
    assert after['comparisons']['docs'] == before['comparisons']['docs']
    assert [trial['task'] for trial in after['trials']] == ['docs', 'docs', 'other', 'other']
    assert after['trials'][:2] == before['trials'] and after['commit'] == 'defdef'
    assert [row['figure'] for row in after['figures'] if 'whole' in row['what']] == [
        '6.5 min; commit abcabc, Xeon, 16 cores',
        'resumed; commit defdef, EPYC, 2 cores',
    ]
    assert after['not_shown'] == ['docs: test rows beyond 250', 'docs, two cores: it ran on 1 x NVIDIA H200']
