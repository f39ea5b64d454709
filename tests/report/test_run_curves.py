"""The plot of validation curves."""

import json
import re

import matplotlib.image
import pytest

from lmtrain.errors import InputError
from lmtrain.report import run_curves


def run(folder, name, losses, bits=True, timed=True):
    """The record of a run whose evaluations are ten steps apart."""
    path = folder / name
    path.mkdir(parents=True)
    lines = [{'step': 10 * (index + 1), 'validation_loss': loss} for index, loss in enumerate(losses)]
    lines = [line | ({'validation_bits_per_byte': line['validation_loss'] / 2} if bits else {}) for line in lines]
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    timings = [{'step': 10 * step, 'seconds_per_step': 0.5, 'flops_per_second': 4e9} for step in range(1, 4)]
    if timed:
        text = ''.join(json.dumps(line) + '\n' for line in timings)
        (path / 'timings.jsonl').write_text(text, encoding='utf-8')
    return {'name': name, 'folder': str(path)}


def drawn(monkeypatch, records, path, x='step'):
    """(names without a curve, {label of a panel: {name: points}}, the label of the x axis)."""
    seen = []
    monkeypatch.setattr(run_curves, '_draw', lambda *arguments: seen.append(arguments))
    absent = run_curves.plot(records, path, x)
    ((panels, _, label),) = seen
    return absent, panels, label


def policy(folder, name):
    """The record of a run whose loss is minus its reward."""
    record = run(folder, name, [], bits=False)
    text = ''.join(
        json.dumps({'step': step, 'validation_loss': -x, 'validation_reward': x, 'validation_reward_error': 0.1}) + '\n'
        for step, x in ((10, 0.25), (20, 0.5))
    )
    (folder / name / 'metrics.jsonl').write_text(text, encoding='utf-8')
    return record | {'task.name': 'policy'}


def test_each_measure_has_a_panel(tmp_path, monkeypatch):
    first, second = run(tmp_path, 'a', [4.0, 2.0]), run(tmp_path, 'b', [3.0, 2.5])
    _, panels, label = drawn(monkeypatch, [first, second], tmp_path / 'a.png')
    bits = {'a': [(10, 2.0), (20, 1.0)], 'b': [(10, 1.5), (20, 1.25)]}
    assert panels == {'bits per byte\n(lower is better)': bits} and label == 'step'
    classes = run(tmp_path, 'c', [0.7, float('nan'), 0.6], bits=False) | {'task.name': 'classify'}
    pairs = run(tmp_path, 'd', [0.5], bits=False) | {'task.name': 'preference'}
    rewarded = policy(tmp_path, 'e')
    _, panels, _ = drawn(monkeypatch, [pairs, classes, rewarded, first, second], tmp_path / 'a.png')
    assert list(panels.items()) == [
        ('bits per byte\n(lower is better)', bits),
        ('mean reward\n(higher is better)', {'e': [(10, 0.25), (20, 0.5)]}),
        ('validation loss of preference\n(lower is better)', {'d': [(10, 0.5)]}),
        ('validation loss of classify\n(lower is better)', {'c': [(10, 0.7), (30, 0.6)]}),
    ]


def test_costs_on_the_axis(tmp_path, monkeypatch):
    records = [run(tmp_path, 'a', [4.0, 2.0, 1.0]), run(tmp_path, 'b', [4.0], timed=False)]
    absent, panels, _ = drawn(monkeypatch, records, tmp_path / 'a.png', 'seconds')
    (curves,) = panels.values()
    assert absent == ['b'] and [x for x, _ in curves['a']] == [5.0, 10.0, 15.0]
    _, panels, label = drawn(monkeypatch, records, tmp_path / 'a.png', 'flops')
    (curves,) = panels.values()
    assert [x for x, _ in curves['a']] == [2e10, 4e10, 6e10] and label == 'FLOPs of the model'


def test_broken_and_empty_runs_are_left_out(tmp_path, monkeypatch):
    broken = run(tmp_path, 'broken', [1.0])
    (tmp_path / 'broken' / 'metrics.jsonl').write_text('x\n', encoding='utf-8')
    records = [run(tmp_path, 'a', [2.0]), broken, {'name': 'gone', 'folder': str(tmp_path / 'gone')}]
    absent, panels, _ = drawn(monkeypatch, records, tmp_path / 'a.png')
    assert absent == ['broken', 'gone'] and [list(curves) for curves in panels.values()] == [['a']]
    with pytest.raises(InputError, match='no run has a validation curve'):
        run_curves.plot([broken], tmp_path / 'a.png')


def test_too_many_curves(tmp_path):
    one = run(tmp_path, 'a', [2.0])
    with pytest.raises(InputError, match='33 curves cannot be told apart'):
        run_curves.plot([one | {'name': str(number)} for number in range(33)], tmp_path / 'a.png')


def test_files(tmp_path):
    records = [run(tmp_path, '_$a$ <b>\x1b', [4.0, 2.0, 1.0]), run(tmp_path, 'b', [3.0])]
    run_curves.plot(records, tmp_path / 'a.png')
    height, width, _ = matplotlib.image.imread(tmp_path / 'a.png').shape
    assert width == 1500 and height >= 600
    run_curves.plot(records, tmp_path / 'a.svg', 'flops')
    text = (tmp_path / 'a.svg').read_text(encoding='utf-8')
    assert text.startswith('<?xml') and '\x1b' not in text and not re.search('<b>', text)


def test_panels_are_one_above_the_other(tmp_path):
    records = [run(tmp_path, 'a', [4.0, 2.0, 1.0]), policy(tmp_path, 'b')]
    run_curves.plot(records, tmp_path / 'a.png')
    height, width, _ = matplotlib.image.imread(tmp_path / 'a.png').shape
    assert (height, width) == (900, 1500)
