"""The arithmetic of experiments/bench: what is made of seconds. PyTorch is not imported."""

import sys

import pytest

from experiments.bench import bench


def test_a_ratio_is_the_median_over_paired_blocks():
    # The third pair was disturbed on both sides, the last on one: neither moves the median.
    found = bench.ratios([1.0, 1.0, 10.0, 1.0, 1.0], [0.5, 0.6, 5.0, 9.0, 0.4])
    assert found == {'median': 0.5, 'best': 0.4}


def test_blocks_are_paired():
    with pytest.raises(ValueError):
        bench.ratios([1.0, 1.0], [1.0])


@pytest.mark.parametrize(
    ('value', 'bounds', 'reached'),
    [
        (0.6, {'least': 0.6}, True),
        (0.59, {'least': 0.6}, False),
        (1.6, {'most': 1.5}, False),
        (1.0, {'least': 0.97, 'most': 1.03}, True),
        (0.9, {'least': 0.97, 'most': 1.03}, False),
        (float('nan'), {'most': 1e-3}, False),
        (0.1, {}, None),
    ],
)
def test_verdict(value, bounds, reached):
    assert bench.verdict(value, **bounds) is reached


def test_losses_are_compared_step_by_step():
    assert bench.difference({'lmtrain': [4.0, 3.0], 'torch': [4.0, 3.5]}) == 0.5
    assert 'torch' not in sys.modules
