"""A comparison: its protocol, from the rows to results.json."""

import json

import pytest

import lmtrain
from configs import compare, tiny
from lmtrain.compare import comparison
from lmtrain.files import read_json_lines

CLASSES = ('cats', 'dogs', 'mice')


@pytest.fixture(scope='module')
def base(text):
    """A tiny causal base."""
    config = tiny.get_config()
    config.data.source, config.data.cache = str(text), str(text.parent / 'cache')
    config.data.validation = config.data.test = 0.2
    lmtrain.train(config, text.parent / 'base')
    return text.parent / 'base'


def make_config(base):
    """The config of a small comparison, and its rows."""
    path = base.parent / 'rows.jsonl'
    lines = [{'note': f'{i * i} {CLASSES[i % 3]} sat', 'animal': CLASSES[i % 3]} for i in range(120)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config = compare.get_config()
    config.init.base, config.data.cache = str(base), str(base.parent / 'cache')
    config.task.train, config.task.text, config.task.label = (str(path),), ('note',), 'animal'
    config.data.seq_len, config.data.batch_size, config.data.test = 32, 8, 0.3
    config.budget.steps, config.evaluate.every_steps = 4, 2
    config.compare.sizes, config.compare.seeds, config.compare.selection = (4, 16), 2, 8
    config.compare.only = ('zero_shot', 'few_shot', 'head', 'lora')
    return config


@pytest.fixture(scope='module')
def finished(base):
    """(folder, content of results.json) of a finished comparison."""
    return base.parent / 'run', comparison.run(make_config(base), base.parent / 'run')


def test_every_arm_is_tested_at_every_size(finished):
    folder, results = finished
    assert {arm['status'] for arm in results['arms'].values()} == {'done'}
    cells = {(line['arm'], line['size']): line['seeds'] for line in results['summary']}
    assert cells.pop(('zero_shot', 0)) == 1
    assert cells == {(arm, size): 2 for arm in ('few_shot', 'head', 'lora') for size in (4, 16)}
    for trial in results['trials']:
        lines = read_json_lines(folder / trial['folder'] / 'predictions.jsonl')
        assert sum(line['right'] for line in lines) / len(lines) == pytest.approx(trial['test']['accuracy'])
        assert sum(line['nats'] for line in lines) / len(lines) == pytest.approx(trial['test']['loss'])
