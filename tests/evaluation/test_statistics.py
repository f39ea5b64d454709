"""Intervals, tests and power against scipy, closed forms, enumeration and published examples."""

import numpy as np
import pytest
from scipy import stats

from lmtrain.errors import InputError
from lmtrain.evaluation import statistics


def test_t_interval_is_that_of_scipy():
    estimate = statistics.t_interval([1.0, 2.0, 4.0])
    interval = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert estimate.mean == pytest.approx(7 / 3)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    assert estimate.stderr == pytest.approx(stats.sem([1.0, 2.0, 4.0]))
    assert statistics.t_interval([1.0, 2.0, 3.0]).high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert statistics.t_interval([5.0]) == (5.0, None, None, None)


def test_proportion_has_a_wilson_interval():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, rows), ends in published.items():
        estimate = statistics.proportion([1] * hits + [0] * (rows - hits))
        assert (estimate.low, estimate.high) == pytest.approx(ends, abs=6e-5)
        assert estimate.mean == hits / rows


def test_proportion_over_seeds_counts_the_effective_rows():
    rng = np.random.default_rng(0)
    row = (rng.random(400) < 0.7).astype(int)
    alone = statistics.proportion(row)
    repeated = statistics.proportion([row, row, row])  # no variance between seeds: three seeds tell what one does
    assert repeated == pytest.approx(alone, abs=5e-4)
    own = statistics.proportion(rng.random((3, 400)) < 0.7)
    assert own.stderr < 0.75 * alone.stderr  # rows whose hits differ from seed to seed
    assert statistics.proportion(np.ones((3, 50))) == pytest.approx(statistics.proportion([1] * 50))
    biased = statistics.proportion([[1] * 90 + [0] * 10, [1] * 70 + [0] * 30, [1] * 50 + [0] * 50])
    assert biased.low < 0.4 and biased.high > 0.9  # seeds differ by 20 points
    assert statistics.proportion([[1, 0], [0, 1]]).low > 0  # equal means of seeds and of rows
    assert statistics.proportion([[1], [0], [1]]) == statistics.proportion([1, 0, 1])
    with pytest.raises(InputError, match='values 0 and 1'):
        statistics.proportion([0.5])


def table(rng, shape, seeds, rows, residual):
    """Values of the crossed model with these standard deviations, and mean 0."""
    draw = rng.normal
    return draw(0, seeds, (shape[0], 1)) + draw(0, rows, (1, shape[1])) + draw(0, residual, shape)


def test_components_are_those_of_the_analysis_of_variance():
    """The sums of squares by least squares on indicators, one factor after the other."""
    values = table(np.random.default_rng(3), (4, 7), 0.5, 2.0, 1.0)
    seeds, rows = np.repeat(np.eye(4), 7, axis=0), np.tile(np.eye(7), (4, 1))
    left = [
        np.sum((values.ravel() - design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]) ** 2)
        for design in (np.ones((28, 1)), seeds, np.hstack([seeds, rows]))
    ]
    squares = (left[0] - left[1]) / 3, (left[1] - left[2]) / 6, left[2] / 18
    components = statistics.components(values)
    assert components.mean_squares == pytest.approx(squares)
    assert components.rows == pytest.approx((squares[1] - squares[2]) / 4)
    assert components.residual == pytest.approx(squares[2])
    assert components.seeds == pytest.approx(max(squares[0] - squares[2], 0) / 7)
    with pytest.raises(InputError, match=r'\(1, 7\)'):
        statistics.components(values[:1])


def test_components_are_the_variances_of_the_model():
    values = table(np.random.default_rng(0), (300, 400), 0.5, 2.0, 1.0)
    components = statistics.components(values)
    assert components[:3] == pytest.approx((0.25, 4.0, 1.0), rel=0.1)


@pytest.mark.parametrize(('seeds', 'rows'), [(0.0, 0.0), (0.0, 1.0), (0.2, 0.3), (1.0, 0.5)])
def test_intervals_cover_if_seeds_and_rows_vary(seeds, rows):
    """400 tables of 5 seeds and 40 rows; the standard error of their coverage is 1.1 %."""
    rng, covered = np.random.default_rng(1), np.zeros(2)
    for trial in range(400):
        values = table(rng, (5, 40), seeds, rows, 1.0)
        crossed = statistics.crossed_mean(values)
        bootstrap = statistics.bootstrap_difference(values, np.zeros(40), seed=trial, resamples=400)
        covered += [estimate.low <= 0 <= estimate.high for estimate in (crossed, bootstrap)]
    assert (covered / 400 >= 0.915).all() and (covered / 400 <= 0.985).all()


@pytest.mark.parametrize(('seeds', 'rows'), [(0.0, 0.0), (0.3, 0.0), (0.1, 0.5)])
def test_intervals_of_three_seeds_cover(seeds, rows):
    """3000 tables of 3 seeds and 40 rows; the standard error of the coverage is 0.4 %.

    If seeds were left out where their mean square is below that of the residual, the second would cover in 93.3 %.
    """
    rng = np.random.default_rng(1)
    estimates = [statistics.crossed_mean(table(rng, (3, 40), seeds, rows, 1.0)) for _ in range(3000)]
    assert 0.945 < np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]) < 0.975


def test_seeds_that_agree_by_chance_do_not_show_that_seeds_have_no_effect():
    """The sums over rows are equal, the rows are not: the interval of 3 x 200 rows is not one of width 0."""
    values = np.zeros((3, 200))
    for seed in range(3):
        values[seed, 20 * seed : 20 * seed + 10], values[seed, 20 * seed + 10 : 20 * seed + 20] = 1, -1
    squares = statistics.components(values).mean_squares
    assert squares[0] == 0.0 and squares[1] == pytest.approx(squares[2])
    least = np.sqrt(stats.f.ppf(0.05, 2, 398) * squares[2] / 600)
    stderr, freedom = statistics.crossed_error(statistics.components(values), 3, 200)
    assert (stderr, freedom) == (pytest.approx(least), 2.0)
    assert statistics.crossed_mean(values).high == pytest.approx(stats.t.ppf(0.975, 2) * least)
    assert statistics.bootstrap_difference(values, np.zeros(200)).high == pytest.approx(4.3 * least, rel=0.1)


def test_crossed_mean_of_one_seed_or_row_is_students_t():
    values = np.random.default_rng(0).normal(size=9)
    assert statistics.crossed_mean(values[None]) == statistics.crossed_mean(values[:, None])
    assert statistics.crossed_mean(values[None]) == statistics.t_interval(values)
    # Seeds that agree on every row: rows alone.
    assert statistics.crossed_mean([values] * 3) == pytest.approx(statistics.t_interval(values))
    # Rows that agree under every seed: seeds alone.
    assert statistics.crossed_mean(np.repeat(values[:, None], 5, axis=1)) == pytest.approx(
        statistics.t_interval(values)
    )


def test_bootstrap_of_one_seed_is_that_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.exponential(size=60), rng.exponential(size=60)
    ours = statistics.bootstrap_difference(first, second, resamples=20000)
    options = {'n_resamples': 20000, 'method': 'percentile', 'rng': np.random.default_rng(1)}
    theirs = stats.bootstrap((first - second,), np.mean, **options).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.mean == pytest.approx(first.mean() - second.mean())
    assert ours == statistics.bootstrap_difference(first, second, resamples=20000)
    assert ours != statistics.bootstrap_difference(first, second, resamples=20000, seed=1)


def test_rows_are_paired():
    """Rows of very different difficulty, on which one arm is always better by 0.1."""
    first = np.arange(50.0)
    estimate = statistics.bootstrap_difference(first + 0.1, first)
    assert (estimate.low, estimate.high) == pytest.approx((0.1, 0.1))
    with pytest.raises(InputError, match=r'\(1, 50\) and \(1, 49\)'):
        statistics.bootstrap_difference(first, first[1:])
    with pytest.raises(InputError, match=r'\(2, 3\) and \(3, 3\)'):
        statistics.compare(np.zeros((2, 3)), np.zeros((3, 3)))


def test_mcnemar_of_a_published_table():
    """Approval of a prime minister, Agresti 2002, Categorical Data Analysis, table 10.1: 150 against 86."""
    first = [1] * 794 + [1] * 150 + [0] * 86 + [0] * 570
    second = [1] * 794 + [0] * 150 + [1] * 86 + [0] * 570
    p = statistics.mcnemar(first, second)
    assert p == pytest.approx(2 * sum(stats.binom.pmf(k, 236, 0.5) for k in range(87)))
    assert p == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.3)  # the book's statistic without a correction
    assert statistics.mcnemar(first, first) == 1.0


def test_compare_of_one_seed():
    rng = np.random.default_rng(0)
    second = rng.random(300) < 0.6
    first = np.where(rng.random(300) < 0.2, True, second)
    result = statistics.compare(first, second)
    assert result[:4] == statistics.bootstrap_difference(first, second)
    assert result.p == statistics.mcnemar(first, second) < 1e-4
    assert result.detectable == statistics.detectable_difference(300, np.mean(first != second))
    nats = statistics.compare(first * 1.5, second)
    assert nats.p == pytest.approx(stats.ttest_rel(first * 1.5, second).pvalue)


def test_compare_over_seeds():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 1, (4, 80)), rng.normal(0, 1, 80)
    result = statistics.compare(first, second)
    assert result[:4] == statistics.crossed_mean(first - second)
    assert (result.p < 0.05) == (result.low > 0)
    assert 2.8 < result.detectable / result.stderr < 4.5  # 1.96 + 0.84 for many seeds
    one = statistics.compare(first[:, :1], second[:1])
    assert one.p is None and one.low is None and one.mean == pytest.approx(np.mean(first[:, 0] - second[0]))


def test_p_agrees_with_the_interval_over_seeds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        result = statistics.compare(table(rng, (3, 20), 0.3, 0.5, 1), np.zeros(20))
        assert (result.p < 0.05) == (result.low > 0 or result.high < 0)


def test_arms_that_are_equal():
    same = np.ones((3, 20))
    assert statistics.compare(same, same) == (0.0, 0.0, 0.0, 0.0, 1.0, None)
    assert statistics.compare(same[0], same[0])[:5] == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert statistics.compare(1.5 * same[0], 1.5 * same[0])[4:] == (1.0, None)
    assert statistics.compare(same, 0 * same)[4:] == (0.0, None)


def test_holm_of_a_known_example():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize(('discordance', 'difference'), [(0.5, 0.4), (0.3, 0.0), (0.6, 0.6)])
def test_power_is_that_of_all_outcomes(discordance, difference):
    rows, power = 14, 0.0
    chances = (discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance
    for won in range(rows + 1):
        for lost in range(rows + 1 - won):
            rejects = won + lost and stats.binomtest(won, won + lost).pvalue < 0.05
            power += rejects * stats.multinomial.pmf([won, lost, rows - won - lost], rows, chances)
    assert statistics.mcnemar_power(rows, discordance, difference) == pytest.approx(power)


def test_detectable_difference_has_the_power():
    difference = statistics.detectable_difference(1000, 0.2)
    assert statistics.mcnemar_power(1000, 0.2, difference) == pytest.approx(0.8, abs=1e-3)
    # Connor 1987, without the test's discreteness: N d^2 = (1.96 sqrt(q) + 0.84 sqrt(q - d^2))^2.
    connor = (1.959964 * 0.2**0.5 + 0.841621 * (0.2 - difference**2) ** 0.5) ** 2 / difference**2
    assert 0.9 * 1000 < connor < 1000
    assert statistics.detectable_difference(4000, 0.2) == pytest.approx(difference / 2, rel=0.05)
    # Arms that agreed on every row of a test set may still differ on other rows.
    assert 0.04 < statistics.detectable_difference(100, 0.0) < 0.1
    assert statistics.detectable_difference(5, 0.4) is None  # five of five rows: p = 0.0625
    with pytest.raises(InputError, match='difference <= discordance'):
        statistics.mcnemar_power(100, 0.1, 0.2)


def test_spread():
    values = np.random.default_rng(0).normal(0.7, 0.05, 200)
    result = statistics.spread(values)
    assert (result['n'], result['worst'], result['best']) == (200, values.min(), values.max())
    assert (result['mean'], result['stdev']) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert result['interval'] == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval())
    assert list(result['quantiles']) == ['0.05', '0.25', '0.5', '0.75', '0.95']
    assert result['quantiles']['0.25'] == pytest.approx(np.percentile(values, 25))
    for name, known in {'stdev': 0.05, '0.5': 0.7, '0.05': 0.7 - 1.645 * 0.05}.items():
        low, high = result['intervals'][name]
        assert low < known < high < low + 0.04
    # The known interval of a deviation: (n - 1) s^2 / sigma^2 is chi-squared.
    ends = [values.std(ddof=1) * (199 / stats.chi2.ppf(share, 199)) ** 0.5 for share in (0.975, 0.025)]
    assert result['intervals']['stdev'] == pytest.approx(ends, rel=0.05)
    one = statistics.spread([0.5])
    assert (one['mean'], one['stdev'], one['interval'], one['intervals']) == (0.5, None, None, None)
