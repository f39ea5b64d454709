"""The arithmetic of experiments/bench_decode; neither torch nor transformers is imported."""

import pytest

from experiments.bench_decode import compare


@pytest.mark.parametrize(
    ('ours', 'theirs', 'share'),
    [
        ([[1, 2, 3, 4]], [[1, 2, 3, 4]], 1.0),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]], 0.75),
        ([[1, 2]], [[2, 2]], 0.0),
    ],
)
def test_equal_tokens_count_up_to_the_first_difference(ours, theirs, share):
    assert compare.equal_part(ours, theirs) == share


def test_a_target_is_compared_with_the_median_of_neighbouring_calls():
    seconds = {'lmtrain': [1.0, 1.0, 4.0], 'transformers': [2.0, 2.2, 8.0]}
    assert compare.speed('x', seconds, 2.0)['reached'] is True
    row = compare.speed('x', seconds, 2.1)
    assert row['reached'] is False and row['figure'].startswith('2.00 (best calls 2.00; 1.0 against 0.5 tokens/s)')


def test_the_bandwidth_is_that_of_the_device():
    assert compare.bandwidth('NVIDIA H200') == 4800e9 and compare.bandwidth('cpu') is None
