"""Standard errors of a split: those of ratios of sums over rows, computed here row by row."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.training import evaluate, split_errors


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose evaluation step sums the values of its objective over a batch."""

    objective: Any
    programs: Any = None

    def eval_step(self):
        def step(params, batch):
            values, weights = self.objective(None, batch)
            sums = {name: jnp.sum(value * weights) for name, value in values.items()} | {'targets': jnp.sum(weights)}
            return sums | ({'bytes': jnp.sum(batch['bytes'] * batch['loss_mask'])} if 'bytes' in batch else {})

        return step


class Stream:
    """Batches of 4 rows, of which the last has one empty row."""

    def __init__(self, rng, steps, measures):
        self.steps_per_epoch, self.num_rows = steps, 4 * steps - 1
        self.columns = {name: rng.normal(2, 1, (4 * steps, *shape)).astype(np.float32) for name, shape in measures}
        self.columns['loss_mask'] = rng.integers(0, 2, (4 * steps, *measures[0][1])).astype(np.float32)
        self.columns['loss_mask'][-1] = 0

    def batch(self, index):
        return {name: values[4 * index : 4 * index + 4] for name, values in self.columns.items()}


def measured(streams):
    def objective(forward, batch):
        return {name: batch[name] for name in ('loss', 'nats', 'accuracy') if name in batch}, batch['loss_mask']

    recorder = split_errors.Recorder(Run(objective))
    result = evaluate.evaluate(recorder, None, streams, lambda batch: batch)
    return recorder.with_errors(result, streams)


def ratio_error(a, b):
    """Cochran's formula for sum(a) / sum(b), row by row."""
    residuals = a - a.sum() / b.sum() * b
    return math.sqrt(len(a) / (len(a) - 1) * np.sum(residuals**2)) / b.sum()


def test_rows_with_many_targets_count_as_rows():
    stream = Stream(np.random.default_rng(0), 5, [('nats', (7,)), ('loss', (7,)), ('bytes', (7,))])
    result = measured({'': (1.0, stream)})
    mask = stream.columns['loss_mask'][:-1]
    nats, num_bytes = ((stream.columns[name][:-1] * mask).sum(1) for name in ('nats', 'bytes'))
    assert result['loss'] == pytest.approx(nats.sum() / mask.sum(), rel=1e-6)
    assert result['loss_stderr'] == pytest.approx(ratio_error(nats, mask.sum(1)), rel=1e-4)
    assert result['bits_per_byte_stderr'] == pytest.approx(ratio_error(nats, num_bytes) / math.log(2), rel=1e-4)


def test_the_error_of_an_accuracy_is_that_of_a_proportion():
    stream = Stream(np.random.default_rng(1), 6, [('accuracy', ()), ('loss', ())])
    stream.columns['loss_mask'][:-1] = 1
    hits = stream.columns['accuracy'] = (stream.columns['accuracy'] > 1.7).astype(np.float32)
    result = measured({'': (1.0, stream)})
    p = hits[:-1].mean()
    assert result['accuracy_stderr'] == pytest.approx(math.sqrt(p * (1 - p) / (23 - 1)), rel=1e-5)
    assert result['loss_stderr'] == pytest.approx(np.std(stream.columns['loss'][:-1], ddof=1) / 23**0.5, rel=1e-4)


def test_each_source_is_a_stratum_with_its_share():
    rng = np.random.default_rng(2)
    streams = {name: (share, Stream(rng, steps, [('nats', (1,)), ('bytes', (1,))])) for name, share, steps in
               (('a', 0.8, 9), ('b', 0.2, 3))}  # fmt: skip
    for _, stream in streams.values():
        stream.columns['loss_mask'][:-1] = 1
    result = measured(streams)
    alone = {name: np.std(stream.columns['nats'][:-1], ddof=1) / stream.num_rows**0.5 for name, (_, stream) in
             streams.items()}  # fmt: skip
    for name, error in alone.items():
        assert result['sources'][name]['loss_stderr'] == pytest.approx(error, rel=1e-4)
    both = math.sqrt((0.8 * alone['a']) ** 2 + (0.2 * alone['b']) ** 2)
    assert result['loss_stderr'] == pytest.approx(both, rel=1e-4)


def test_one_row_has_no_error():
    stream = Stream(np.random.default_rng(3), 1, [('loss', ())])
    stream.columns['loss_mask'][:] = [1, 0, 0, 0]
    stream.num_rows = 1
    assert measured({'': (1.0, stream)})['loss_stderr'] is None
