"""Figures of an experiment from the results.json of a comparison."""

import pathlib

from experiments.prompt_or_train import comparison

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


def test_figures_are_those_of_the_largest_size_and_name_arms_without_a_result():
    about, lora, failed = comparison.figures('docs', RESULTS)
    assert '50 test rows, 2 classes' in about['figure'] and '60.0 %' in about['figure']
    assert lora['what'] == 'docs, lora, 32 rows: accuracy (95 % interval)'
    assert (
        lora['figure'].startswith('82.0 % (75.0 to 88.0 %)')
        and 'to create 3.00 GFLOP, 2 s; for a query 5.00 MFLOP' in lora['figure']
    )
    assert failed['what'] == 'docs, nearest' and failed['figure'] == 'failed: no room'


def test_results_name_no_folder_of_a_machine():
    folder = pathlib.Path('/here/runs/which')
    text = '"/here/runs/which/base", "/here/models/x", "/here/rows/a.csv"'
    config = {'init.base': '/here/models/x', 'data.root': '/here/rows'}
    assert comparison.portable(text, folder, config) == '"WORKDIR/base", "BASE", "ROOT/a.csv"'
