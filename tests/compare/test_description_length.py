"""Prequential code lengths against closed forms."""

import math

import numpy as np
import pytest

from lmtrain.compare.description_length import code_length
from lmtrain.errors import InputError


def test_code_of_a_coin_by_laplace_is_that_of_its_closed_form():
    """Laplace's rule gives a sequence with k of n heads the probability 1 / ((n + 1) C(n, k)), whatever its order."""
    for sequence in ([1, 1, 0, 1, 1, 1, 0, 1, 1, 1], [0] * 12, [0, 1] * 5):
        probabilities = [(sequence[:n].count(label) + 1) / (n + 2) for n, label in enumerate(sequence)]
        code = code_length(range(1, len(sequence) + 1), [-math.log(p) for p in probabilities[1:]], 2)
        n, k = len(sequence), sum(sequence)
        assert code.bits == pytest.approx(math.log2((n + 1) * math.comb(n, k)))
        assert code.uniform_bits == n
        assert code.compression == pytest.approx(n / code.bits)


def test_blocks_add_up():
    code = code_length([4, 16, 64], [12 * 0.7, 48 * 0.1], 77)
    assert [end for end, _ in code.blocks] == [4, 16, 64]
    assert [bits for _, bits in code.blocks] == pytest.approx(
        [4 * math.log2(77), 12 * 0.7 / math.log(2), 48 * 0.1 / math.log(2)]
    )
    assert sum(bits for _, bits in code.blocks) == code.bits
    assert code.uniform_bits == pytest.approx(64 * math.log2(77))
    uniform = code_length([4, 16, 64], [12 * math.log(77), 48 * math.log(77)], 77)
    assert uniform.compression == pytest.approx(1)


def test_code_of_a_source_approaches_its_entropy():
    """By Laplace's estimator in doubling blocks: 20,000 draws of three classes, entropy 1.157 bits."""
    draws, ends = np.random.default_rng(0).choice(3, 20000, p=[0.7, 0.2, 0.1]), [2**n for n in range(4, 15)]
    nats = []
    for begin, end in zip(ends, ends[1:], strict=False):
        probabilities = (np.bincount(draws[:begin], minlength=3) + 1) / (begin + 3)
        nats.append(float(-np.log(probabilities[draws[begin:end]]).sum()))
    entropy = -sum(p * math.log2(p) for p in (0.7, 0.2, 0.1))
    assert code_length(ends, nats, 3).bits / ends[-1] == pytest.approx(entropy, rel=0.02)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (([8, 8], [1.0], 3), r'\[8, 8\]: they must increase'),
        (([], [], 3), 'they must increase'),
        (([0, 8], [1.0], 3), 'at least 1'),
        (([8, 32], [], 3), '2 subsets and 0 losses'),
        (([8, 32], [math.nan], 3), 'the loss of a block is nan'),
        (([8, 32], [math.inf], 3), 'the loss of a block is inf'),
        (([8, 32], [-0.1], 3), 'the loss of a block is -0.1'),
        (([8, 32], [1.0], 1), 'num_classes=1'),
    ],
)
def test_losses_that_are_no_code(arguments, message):
    with pytest.raises(InputError, match=message):
        code_length(*arguments)
