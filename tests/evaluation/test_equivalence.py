"""Equivalence within a margin, against scipy and by resampling."""

import numpy as np
import pytest
from scipy import stats

from lmtrain.evaluation import statistics
from lmtrain.evaluation.equivalence import equivalence


def test_equivalence_is_two_one_sided_tests_of_scipy():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.7
    second = np.where(rng.random(400) < 0.1, ~first, first)
    for one, other in ((first, second), (second, first)):
        difference = one.astype(float) - other
        sides = [
            stats.ttest_1samp(difference, popmean=limit, alternative=side).pvalue
            for limit, side in ((0.05, 'less'), (-0.05, 'greater'))
        ]
        assert equivalence(one, other, 0.05).p == pytest.approx(max(sides))


def test_arms_at_the_margin_are_rarely_called_equivalent():
    rng, count = np.random.default_rng(1), 400
    wrong = 0
    for _ in range(count):
        first, draws = rng.random((3, 300)) < 0.8, rng.random((3, 300))
        second = first & (draws > 0.05 / 0.8)  # 5 points less
        wrong += equivalence(first, second, 0.05).p < 0.05
    assert 0.01 * count < wrong < 0.08 * count


@pytest.mark.parametrize('seeds', [1, 3])
@pytest.mark.parametrize('margin', [0.001, 0.09])  # decided by significance, and by equivalence
def test_rows_to_decide_are_enough_and_hardly_more_than_needed(seeds, margin):
    counts = {1: 60, -1: 44, 0: 296}  # a difference of 4 points in 400 rows
    difference = np.random.default_rng(2).permutation(np.repeat(list(counts), list(counts.values())))
    first, second = (np.stack([difference == sign] * seeds) for sign in (1, -1))
    rows = equivalence(first, second, margin, alpha=0.01).rows

    def decided(count):
        """With so many rows, of which 400 are repeated."""
        one, other = (np.tile(each, (1, round(count / 400))) for each in (first, second))
        return min(statistics.compare(one, other).p, equivalence(one, other, margin).p) < 0.01

    assert rows > 500 and decided(1.4 * rows) and not decided(0.6 * rows)


def test_no_number_of_rows_decides_if_seeds_vary_too_much():
    seeds = np.array([[0.3], [0.9], [0.5]])
    first = np.random.default_rng(3).random((3, 500)) < seeds
    second = np.random.default_rng(4).random((3, 500)) < seeds[::-1]
    assert equivalence(first, second, 0.02).rows is None


def test_arms_that_agree_on_few_rows_are_not_shown_to_be_equivalent():
    agree = np.arange(400) % 3 == 0
    assert equivalence(agree[:20], agree[:20], 0.03).p > 0.2  # one row more could differ
    assert equivalence(agree, agree, 0.03).p < 1e-6
    assert equivalence(agree[:1], agree[:1], 0.03) == (None, None)


@pytest.mark.parametrize('seeds', [1, 3])
def test_arms_that_agree_need_the_rows_of_the_least_standard_error(seeds):
    """With z of p = 5 %, rows + 2 > z / margin."""
    agree = np.tile(np.arange(20) % 3 == 0, (seeds, 1))
    rows = equivalence(agree, agree, 0.03).rows
    quantile = stats.t.ppf(0.95, 19 if seeds == 1 else seeds - 1)
    assert rows == np.ceil(quantile / 0.03 - 2)
    enough = np.tile(np.arange(rows) % 3 == 0, (seeds, 1))
    assert equivalence(enough, enough, 0.03).p < 0.05
    fewer = enough[:, : round(0.9 * rows)]
    assert equivalence(fewer, fewer, 0.03).p > 0.05
