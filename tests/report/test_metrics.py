import json
import math

import numpy as np

from lmtrain.report import metrics


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_meter_speeds():
    clock = Clock()
    meter = metrics.Meter(1000, 5e6, peak=1e7, clock=clock)
    meter.restart(0, progress=0.0, waited=0.0)
    clock.now += 10.0
    speed = meter.read(20, progress=0.2, waited=1.0)
    assert speed['seconds_per_step'] == 0.5
    assert speed['tokens_per_second'] == 2000.0
    assert speed['flops_per_second'] == 1e7
    assert speed['mfu'] == 1.0
    assert speed['data_wait'] == 0.1
    assert speed['seconds_left'] == 40.0
    assert 1e7 < speed['memory'] < 1e13
    # Half the speed from here, after an evaluation, which counts in seconds_left but not in the window.
    clock.now += 100.0
    meter.restart(20, 0.2, 1.0)
    clock.now += 20.0
    speed = meter.read(40, progress=0.4, waited=1.0)
    assert speed['tokens_per_second'] == 1000.0
    assert speed['data_wait'] == 0.0
    np.testing.assert_allclose(speed['seconds_left'], 0.6 * 130 / 0.4)


def test_meter_of_resumed_run_and_unknown_chip():
    clock = Clock()
    meter = metrics.Meter(1, 1.0, peak=None, clock=clock)
    meter.restart(900, progress=0.9, waited=0.0)
    clock.now += 5.0
    speed = meter.read(950, progress=0.95, waited=0.0)
    np.testing.assert_allclose(speed['seconds_left'], 5.0)
    assert 'mfu' not in speed
    assert meter.read(950, progress=0.95, waited=0.0)['tokens_per_second'] == 0.0
    assert math.isinf(metrics_left_at_start())


def test_clock_counts_earlier_starts(monkeypatch):
    seconds = Clock()
    monkeypatch.setattr(metrics.time, 'monotonic', seconds)
    clock = metrics.Clock(total_steps=None, hours=0.5, before=300.0)
    assert clock.elapsed == 300.0  # compilation does not count
    assert clock.spent(step=7) == 300 / 1800
    clock.start()
    seconds.now += 600.0
    assert clock.elapsed == 900.0
    assert clock.spent(step=8) == 0.5 and clock.seconds_left == 900.0
    seconds.now += 3600.0
    assert clock.spent(step=9) == 1.0 and clock.seconds_left == 0.0  # at most, and at least
    steps = metrics.Clock(total_steps=40, hours=None, before=300.0)
    assert steps.spent(step=10) == 0.25 and steps.seconds_left is None


def metrics_left_at_start():
    clock = Clock()
    meter = metrics.Meter(1, 1.0, None, clock)
    meter.restart(0, 0.0, 0.0)
    clock.now += 1.0
    return meter.read(1, progress=0.0, waited=0.0)['seconds_left']


def test_means_are_weighted_by_targets_and_resume():
    steps = [
        {'loss': 2.0, 'nats': 1.5, 'targets': 10.0, 'grad_norm': 7.0, 'skipped': 0},
        {'loss': math.nan, 'nats': 1.0, 'targets': 10.0, 'grad_norm': math.nan, 'skipped': 1},
        {'loss': 4.0, 'nats': 3.0, 'targets': 30.0, 'grad_norm': 1.0, 'skipped': 1},
    ]
    means = metrics.Means()
    for step in steps[:2]:
        means.add(step)
    means = metrics.Means(json.loads(json.dumps(means.state)))  # the state in a checkpoint
    means.add(steps[2])
    assert means.take() == {'loss': (2.0 * 10 + 4.0 * 30) / 40, 'nats': (15.0 + 10.0 + 90.0) / 50}
    means.add(steps[0])
    assert means.take()['loss'] == 2.0
    means.add(steps[1])
    assert math.isnan(means.take()['loss'])


def test_means_per_sweep_member():
    means = metrics.Means()
    for losses, targets in (([1.0, 3.0], [4.0, 2.0]), ([2.0, math.inf], [4.0, 6.0])):
        means.add({'loss': losses[0], 'targets': 4.0, 'loss_members': losses, 'targets_members': targets})
    assert means.take() == {'loss': 1.5, 'loss_members': [1.5, 3.0]}
