import math

import numpy as np
import pytest

from lmtrain.report import terminal
from lmtrain.training import evaluate

SUMS = {'loss': 20.0, 'nats': 10 * math.log(2), 'targets': 5.0, 'bytes': 20.0}


class Rows:
    """A stream whose batch is its index."""

    steps_per_epoch = num_rows = 4

    def batch(self, index):
        return {'index': np.float32(index)}


def test_in_bits_of_known_sums():
    result = evaluate.in_bits(SUMS)
    assert result['bits_per_token'] == pytest.approx(2.0)
    assert result['perplexity'] == pytest.approx(4.0)
    assert result['bits_per_byte'] == pytest.approx(0.5)


def test_no_bits_per_byte_without_bytes():
    result = evaluate.in_bits(SUMS | {'bytes': 0.0})
    assert 'bits_per_byte' not in result and result['bits_per_token'] == pytest.approx(2.0)
    assert terminal.evaluation_line(result, {'xz': 2.0}) == 'loss 1.3863, perplexity 4.0000, bits per token 2.0000'


def test_no_targets_is_an_error_and_a_huge_loss_is_not():
    with pytest.raises(ValueError, match='no targets'):
        evaluate.in_bits(SUMS | {'targets': 0.0})
    assert evaluate.in_bits(SUMS | {'nats': 1e9})['perplexity'] > 1e300


def counted(seen):
    """An eval step whose sums are the batch's."""

    def step(params, batch):
        seen.append(float(batch['index']))
        return {'nats': np.float32(1.0), 'targets': np.float32(2.0), 'bytes': np.float32(4.0)}

    return step


def test_evaluation_reads_every_batch_once():
    seen = []
    result = evaluate.evaluate(counted(seen), None, {'a': (1.0, Rows())}, lambda batch: batch)
    assert seen == [0, 1, 2, 3]
    assert result['targets'] == 8.0 and result['loss'] == 0.5 and 'sources' not in result


def test_sums_are_added_in_float64():
    """A float32 of 2^24 and more holds no odd number."""
    nats = iter([2.0**24, 1.0, 1.0, 1.0])

    def step(params, batch):
        return {'nats': np.float32(next(nats)), 'targets': np.float32(1.0), 'bytes': np.float32(4.0)}

    assert evaluate.evaluate(step, None, {'a': (1.0, Rows())}, lambda batch: batch)['loss'] == (2**24 + 3) / 4


def test_evaluation_stops_between_two_batches():
    seen, stopped = [], iter([False, False, True])
    assert evaluate.evaluate(counted(seen), None, {'a': (1.0, Rows())}, lambda x: x, lambda: next(stopped)) is None
    assert len(seen) == 2


class Source(Rows):
    """Batches of a source, each with the sums `of`; it has `num_rows` rows in all."""

    def __init__(self, num_rows, steps, **of):
        self.num_rows, self.steps_per_epoch = num_rows, steps
        self.of = {name: np.float32(value) for name, value in of.items()}

    def batch(self, index):
        return self.of


def test_mixture_is_weighted_like_its_training_batches():
    """Against a long stream: 3 of 4 rows are of `a`, and a row of `a` has 2 targets, one of `b` 5."""
    a = Source(8, 4, nats=6.0, targets=4.0, bytes=10.0)  # 2 rows a batch
    b = Source(9, 3, nats=45.0, targets=15.0, bytes=30.0)  # 3 rows a batch
    result = evaluate.evaluate(lambda _, batch: batch, None, {'a': (0.75, a), 'b': (0.25, b)}, lambda x: x)
    rows = [(3.0, 2.0, 5.0)] * 3 + [(15.0, 5.0, 10.0)]  # nats, targets, bytes
    nats, targets, spelled = map(sum, zip(*rows))
    assert result['loss'] == pytest.approx(nats / targets) and result['loss'] == pytest.approx(24 / 11)
    assert result['bits_per_byte'] == pytest.approx(nats / math.log(2) / spelled)
    assert result['perplexity'] == pytest.approx(math.exp(24 / 11))
    assert (result['targets'], result['bytes']) == (16 + 45, 40 + 90)  # what was measured
    assert {name: own['loss'] for name, own in result['sources'].items()} == {'a': 1.5, 'b': 3.0}
    assert result['sources']['b']['bits_per_byte'] == pytest.approx(1.5 / math.log(2))


def test_mixture_with_members_of_a_sweep():
    a = Source(2, 1, nats=[2.0, 4.0], targets=[2.0, 2.0], bytes=[4.0, 4.0])
    b = Source(2, 1, nats=[6.0, 6.0], targets=[2.0, 2.0], bytes=[4.0, 4.0])
    for source in (a, b):
        source.of = {name: np.asarray(value, np.float32) for name, value in source.of.items()}
    result = evaluate.evaluate(lambda _, batch: batch, None, {'a': (0.5, a), 'b': (0.5, b)}, lambda x: x)
    assert result['loss_members'] == [2.0, 2.5] and result['loss'] == 2.25
    assert result['sources']['a']['loss_members'] == [1.0, 2.0]
