"""The loop, observed from outside: phases of the watchdog, learning rates, metrics of checkpoints."""

import json
import math
import re
import types

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import checkpoint
from lmtrain.report import metrics
from lmtrain.runtime import lifecycle
from lmtrain.training import evaluate, loop, train

STEPS = 7


@pytest.fixture
def config(text):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(text.parent / 'cache'), 0.2
    config.model.num_layers = 1
    config.budget.steps, config.log.every_steps, config.log.tensorboard = STEPS, 1, False
    config.evaluate.every_steps, config.checkpoint.every_steps, config.sample.prompts = 3, 2, ()
    return config


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]


def test_phases_rates_and_metrics_of_a_run(config, tmp_path, monkeypatch, capsys):
    config.optimizer.learning_rate = 0.02
    config.schedule.update({'name': 'cosine', 'warmup': 0.4, 'start': 0.1, 'final': 0.2})
    phases, during, saved = [], [], []
    expect, run_evaluation = lifecycle.Watchdog.expect, evaluate.evaluate
    save = checkpoint.Checkpoints.save

    def expected(self, phase):
        phases.append(phase)
        expect(self, phase)

    def evaluated(*arguments):
        during.append(('evaluation', phases[-1]))
        return run_evaluation(*arguments)

    def saving(self, state, step, extra, metric):
        saved.append((step, metric))
        during.append(('save', phases[-1]))
        return save(self, state, step, extra, metric)

    monkeypatch.setattr(lifecycle.Watchdog, 'expect', expected)
    monkeypatch.setattr(evaluate, 'evaluate', evaluated)
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', saving)
    monkeypatch.setattr(loop.Loop, 'log', spied(loop.Loop.log, lambda: during.append(('step', phases[-1]))))
    results = train.train(config, tmp_path / 'run')
    assert (results['cost']['steps'], results['cost']['tokens']) == (STEPS, STEPS * 8 * config.data.seq_len)
    shown = [line for line in capsys.readouterr().out.splitlines() if 'tok/s' not in line and str(tmp_path) not in line]
    assert any('perplexity' in line for line in shown) and max(map(len, shown)) <= 80

    # An evaluation and a save have limits of their own, and the step after them has its own again.
    assert set(during) == {('evaluation', 'evaluate'), ('save', 'save'), ('step', 'step')}

    # A checkpoint is ranked by the loss of its own state or not at all.
    validation = {x['step']: x['validation_loss'] for x in lines(tmp_path / 'run') if 'validation_loss' in x}
    assert list(validation) == [3, 6, 7]
    assert saved == [(2, None), (4, None), (6, validation[6]), (7, validation[7])]

    def rate(step):
        """Linear from a tenth of the peak over 40 % of the run, then half a cosine down to a fifth of it."""
        spent = step / STEPS
        if spent < 0.4:
            return 0.02 * (0.1 + 0.9 * spent / 0.4)
        return 0.02 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (spent - 0.4) / 0.6)))

    rates = {x['step']: x['learning_rate'] for x in lines(tmp_path / 'run') if 'loss' in x}
    np.testing.assert_allclose(list(rates.values()), [rate(step) for step in range(1, STEPS + 1)], rtol=1e-5)


def spied(function, before):
    def call(*arguments):
        before()
        return function(*arguments)

    return call


@pytest.mark.slow
def test_logged_line_has_the_means_since_the_previous_one(config, tmp_path):
    config.data.isolate = True
    train.train(config, tmp_path / 'each')
    config.log.every_steps = 3
    train.train(config, tmp_path / 'third')
    each, third = ({x['step']: x for x in lines(tmp_path / name) if 'loss' in x} for name in ('each', 'third'))
    assert list(third) == [1, 3, 6, 7]
    for stop, line in third.items():
        steps = {1: [1], 3: [2, 3], 6: [4, 5, 6], 7: [7]}[stop]
        weights = [each[step]['targets'] for step in steps]
        np.testing.assert_allclose(
            line['loss'], np.average([each[step]['loss'] for step in steps], weights=weights), rtol=1e-12
        )
        assert line['grad_norm'] == each[stop]['grad_norm'] and line['batch'] == each[stop]['batch']


@pytest.mark.slow
def test_a_resumed_run_shows_its_first_step(config, tmp_path, capsys):
    config.budget.steps, config.schedule.name, config.evaluate.every_steps = 4, 'constant', 1000
    train.train(config, tmp_path / 'run')
    config.budget.steps, config.log.every_steps = STEPS, 100
    capsys.readouterr()
    train.train(config, tmp_path / 'run')
    assert re.search('^ *5/7 .*loss', capsys.readouterr().out, re.MULTILINE)
    assert [x['step'] for x in lines(tmp_path / 'run') if 'loss' in x] == [1, 2, 3, 4, 7]


def test_budget_in_hours_includes_earlier_starts(config, tmp_path):
    config.budget.steps, config.budget.hours = None, 0.5 / 3600
    config.evaluate.every_steps = config.checkpoint.every_steps = 1000
    first = train.train(config, tmp_path / 'run')
    again = train.train(config, tmp_path / 'run')
    assert again['cost']['steps'] == first['cost']['steps'] > 0
    clock = metrics.Clock(None, hours=1.0, before=1800.0)
    assert clock.spent(1) == 0.5
    clock.start()
    assert 0.5 < clock.spent(1) < 0.51


@pytest.mark.slow
def test_cost_is_the_sum_over_starts(config, tmp_path, monkeypatch):
    """A run that continues on fewer devices, in a process that needs less memory."""
    config.budget.steps, config.schedule.name = 4, 'constant'
    config.mesh.data = 8
    monkeypatch.setattr(metrics, 'peak_memory', lambda: 5000)
    first = train.train(config, tmp_path / 'run')['cost']
    _, _, saved = checkpoint.inspect(tmp_path / 'run' / 'checkpoints', 'last')
    before = saved['measured']['device_seconds']
    assert before == pytest.approx(8 * saved['elapsed'], rel=0.01)

    half = jax.devices()[:4]
    monkeypatch.setattr(jax, 'devices', lambda: half)
    monkeypatch.setattr(metrics, 'peak_memory', lambda: 3000)
    config.mesh.data, config.budget.steps = 4, STEPS
    cost = train.train(config, tmp_path / 'run')['cost']
    assert cost['seconds'] > first['seconds'] and cost['peak_memory'] == 5000
    own = cost['device_seconds'] - before
    assert own == pytest.approx(4 * (cost['seconds'] - saved['elapsed']), rel=0.01)
    for name in ('tokens', 'flops', 'executed_flops'):
        assert cost[name] == pytest.approx(STEPS / 4 * first[name])
    assert cost['executed_flops'] >= cost['flops']
    assert cost['step_memory'] > first['step_memory'] > 4 * cost['parameters']  # fewer devices, more rows on each


@pytest.mark.parametrize('resumed', [True, False])
def test_compilation_after_an_evaluation_has_the_limit_of_a_start(config, text, tmp_path, monkeypatch, resumed):
    """After that of a resumed step, or of the sources before the first step."""
    phases, expect, compiled_bytes = [], lifecycle.Watchdog.expect, loop.hlo.compiled_bytes

    class Killed(Exception):
        pass

    def killed_at_five(step):
        if step == 5:
            raise Killed

    if resumed:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop.faults, 'inject', lambda point, step: killed_at_five(step))
            train.train(config, tmp_path / 'run')
        config.evaluate.every_steps = 4
    else:
        config.evaluate.sources = (str(text),)
    monkeypatch.setattr(lifecycle.Watchdog, 'expect', lambda self, phase: phases.append(phase) or expect(self, phase))
    compiled = spied(compiled_bytes, lambda: phases.append('compiled'))
    monkeypatch.setattr(loop.hlo, 'compiled_bytes', compiled)
    train.train(config, tmp_path / 'run')
    assert phases[:5] == ['start', 'evaluate', 'start', 'compiled', 'step']


@pytest.mark.parametrize('sweep', [{}, {'seeds': (0, 1)}])
def test_skipped_updates_are_reported(config, tmp_path, monkeypatch, sweep):
    config.sdc_check_every = STEPS - 1
    config.sweep.update(sweep)
    broken = lambda train_step, _: lambda state, batch, _: train_step(state, batch, np.float32(math.nan))  # noqa: E731
    monkeypatch.setattr(loop.sdc, 'run_twice', broken)
    results, skipped = train.train(config, tmp_path / 'run'), max(len(sweep.get('seeds', ())), 1)
    assert results['cost']['skipped'] == skipped
    report = (tmp_path / 'run' / 'report.md').read_text(encoding='utf-8')
    assert f'| updates skipped because of a non-finite gradient | {skipped} |' in report


def test_run_ends_at_the_fifth_skipped_step_in_a_row():
    class Aborted(Exception):
        pass

    def abort(reason):
        raise Aborted(reason)

    def logged(skipped):
        one = loop.Loop.__new__(loop.Loop)
        one.abort, one.live, values = abort, types.SimpleNamespace(empty=False), []
        one.means = types.SimpleNamespace(add=values.append)
        one.run = types.SimpleNamespace(config=types.SimpleNamespace(log=types.SimpleNamespace(every_steps=100)))
        one.log(7, 0.5, {'skipped_in_a_row': np.int32(skipped)}, 'digest', 0.0, {})
        return values

    assert logged(4) == [{'skipped_in_a_row': 4}]
    with pytest.raises(Aborted, match='no finite loss or gradient in 5 steps, to step 7 on batch digest'):
        logged(5)


def test_overfitting_is_reported_when_it_begins(config, tmp_path, monkeypatch, capsys):
    """The validation loss of every evaluation is given; that of training falls."""
    config.budget.steps, config.evaluate.every_steps, config.checkpoint.every_steps = 10, 2, 10
    losses = iter([3.0, 2.0, 2.1, 2.2, 2.3])
    measured = evaluate.evaluate
    monkeypatch.setattr(evaluate, 'evaluate', lambda *given: measured(*given) | {'loss': next(losses)})
    results = train.train(config, tmp_path / 'run')
    printed = ' '.join(capsys.readouterr().out.split())
    assert printed.count('overfits from step 4') == 2  # once when it begins, once at the end
    assert re.search(r'overfits from step 4 \([\d.]+ epochs\) to 8 \([\d.]+ epochs\) the validation loss rose', printed)
    assert results['remarks']['overfits'].startswith('from step 4') and 'to 10 (' in results['remarks']['overfits']
