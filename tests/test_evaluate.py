import math

import numpy as np
import pytest

from lmtrain import display, evaluate

SUMS = {'loss': 20.0, 'nats': 10 * math.log(2), 'targets': 5.0, 'bytes': 20.0}


class Rows:
    """A stream whose batch is its index."""

    steps_per_epoch = 4

    def batch(self, index):
        return {'index': np.float32(index)}


def test_in_bits():
    result = evaluate.in_bits(SUMS)
    assert result['bits_per_token'] == pytest.approx(2.0)
    assert result['perplexity'] == pytest.approx(4.0)
    assert result['bits_per_byte'] == pytest.approx(0.5)


def test_without_a_byte_of_text_there_are_no_bits_per_byte():
    result = evaluate.in_bits(SUMS | {'bytes': 0.0})
    assert 'bits_per_byte' not in result and result['bits_per_token'] == pytest.approx(2.0)
    assert display.evaluation_line(result, {'xz': 2.0}) == 'loss 1.3863, perplexity 4.0000, bits per token 2.0000'


def test_an_evaluation_of_nothing_is_an_error_and_a_huge_loss_is_not():
    with pytest.raises(ValueError, match='0 targets'):
        evaluate.in_bits(SUMS | {'targets': 0.0})
    assert evaluate.in_bits(SUMS | {'nats': 1e9})['perplexity'] > 1e300


@pytest.mark.parametrize(('limit', 'batches'), [(0, 4), (2, 2), (9, 4)])
def test_one_pass_or_the_first_batches(limit, batches):
    seen = []

    def step(params, batch):
        seen.append(float(batch['index']))
        return {'nats': np.float32(1.0), 'targets': np.float32(2.0), 'bytes': np.float32(4.0)}

    result = evaluate.evaluate(step, None, Rows(), lambda batch: batch, max_batches=limit)
    assert seen == list(range(batches))
    assert result['targets'] == 2.0 * batches
