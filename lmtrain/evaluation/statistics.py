"""Uncertainty of measured scores: standard errors, intervals, paired tests, and the power of a test set.

A score is the mean over test rows [N], or over seeds and the same test rows [W, N]: 1 or 0 for right or wrong, or any
number per row, such as nats. Seeds and rows are both samples, so that an interval over [W, N] is one for new seeds on
new rows. Letters: W seeds, N rows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lmtrain.errors import InputError

CONFIDENCE = 0.95
LEVEL = 0.05  # of tests
CHANCE = 0.05  # probability up to which the agreement of a few seeds is taken for chance
RESAMPLES = 4000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Estimate(NamedTuple):
    """A mean, its standard error, and the ends of its interval; None for what a single value does not tell."""

    mean: float
    stderr: float | None
    low: float | None
    high: float | None


class Components(NamedTuple):
    """Mean squares of a two-way table without repetitions, and the variances that they estimate (`components`)."""

    seeds: float
    rows: float
    residual: float
    mean_squares: tuple[float, float, float]  # of seeds, rows, residual


class Difference(NamedTuple):
    """The mean difference between two arms (`compare`).

    Attributes:
      p: two-sided, of the hypothesis that the arms are equal.
      detectable: the smallest difference that these rows and seeds detect with a power of 80 % at p < 5 %; None if even
        the largest possible one is not detected, or if the differences do not vary, so that there is no estimate.
    """

    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None


def standard_error(values: ArrayLike) -> float | None:
    """The standard error of the mean of independent values; None for fewer than two.

    >>> round(standard_error([True, False, True, True, False]), 4)  # sqrt(0.6 x 0.4 / 4)
    0.2449
    """
    numbers = np.asarray(values, np.float64)
    return float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else None


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Student's t interval of the mean of independent repetitions, such as one score per seed."""
    mean, error = float(np.mean(np.asarray(values, np.float64))), standard_error(values)
    if error is None:
        return Estimate(mean, None, None, None)
    half = _t(np.size(values) - 1, confidence) * error
    return Estimate(mean, error, mean - half, mean + half)


def proportion(hits: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The Wilson interval of a proportion, such as an accuracy. It lies in [0, 1], and has a width at 0 and 1 as well.

    Over seeds and rows, N is replaced by the effective sample size p (1 - p) / stderr^2, and the normal quantile by
    that of Student's t, both of `crossed_mean`, as for surveys of a complex design (Franco, Little, Louis and Slud
    2019, Journal of Survey Statistics and Methodology 7(3)). At 0 and 1, where no variance can be estimated, the rows
    of one seed count.

    Args:
      hits: [N] or [W, N] of 0 and 1.

    >>> [round(x, 3) for x in proportion([True] * 8 + [False] * 2)[2:]]
    [0.49, 0.943]
    """
    values = _binary(hits)
    mean = float(values.mean())
    if values.ndim == 1 or len(values) == 1 or mean in (0.0, 1.0) or values.shape[1] < 2:
        from scipy import stats  # late: a second

        row = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else np.atleast_2d(values)[0]
        low, high = stats.binomtest(int(row.sum()), row.size).proportion_ci(confidence, method='wilson')
        return Estimate(mean, standard_error(row), float(low), float(high))
    stderr, freedom = crossed_error(components(values), *values.shape)
    z2 = _t(freedom, confidence) ** 2
    size = mean * (1 - mean) / stderr**2
    centre = (mean + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2 * mean * (1 - mean) / size + (z2 / (2 * size)) ** 2) / (1 + z2 / size)
    return Estimate(mean, stderr, centre - half, centre + half)


def components(values: ArrayLike) -> Components:
    """Variance components of crossed random effects, by the method of moments on the analysis of variance.

    The model is value[s, r] = mean + seed[s] + row[r] + residual[s, r], all four independent. The expectations of the
    mean squares are residual + N seeds, residual + W rows, and residual (Searle, Casella and McCulloch 1992, Variance
    Components, chapter 4, the two-way crossed classification, random model). An estimate below 0 is 0.

    Args:
      values: [W, N], at least 2 x 2.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise InputError(f'the shape is {values.shape}: variance components need at least 2 seeds and 2 rows')
    num_seeds, num_rows = values.shape
    mean, of_seeds, of_rows = values.mean(), values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    seeds = num_rows * np.sum((of_seeds - mean) ** 2) / (num_seeds - 1)
    rows = num_seeds * np.sum((of_rows - mean) ** 2) / (num_rows - 1)
    residual = np.sum((values - of_seeds - of_rows + mean) ** 2) / ((num_seeds - 1) * (num_rows - 1))
    squares = float(seeds), float(rows), float(residual)
    excess = (max(squares[0] - squares[2], 0.0) / num_rows, max(squares[1] - squares[2], 0.0) / num_seeds)
    return Components(*excess, squares[2], squares)


def crossed_mean(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The interval of a mean over seeds and rows, both random and crossed: for new seeds on new rows.

    The squared standard error is seeds / W + rows / N + residual / (W N) with the variances of `components`, that is
    a sum of mean squares over W N (`square_of_seeds`). Its degrees of freedom are Satterthwaite's (1946, Biometrics
    Bulletin 2(6)), at least W - 1. The interval covers in 93 to 97 % of cases, with 3 seeds and with 5
    (experiments/intervals).

    Args:
      values: [W, N]; of one seed the interval is `t_interval` over rows, of one row that over seeds.
    """
    values = np.asarray(values, np.float64)
    if min(values.shape) == 1:
        return t_interval(values.reshape(-1), confidence)
    mean = float(values.mean())
    stderr, freedom = crossed_error(components(values), *values.shape)
    half = _t(freedom, confidence) * stderr
    return Estimate(mean, stderr, mean - half, mean + half)


def crossed_error(variances: Components, num_seeds: int, num_rows: int) -> tuple[float, float]:
    """(the standard error of the mean, its degrees of freedom, at least those of the seeds)."""
    _, rows, residual = variances.mean_squares
    squares = square_of_seeds(variances, num_seeds, num_rows), rows, residual
    # A sum of mean squares; rows whose variance is truncated at 0 drop out.
    signs = 1, rows > residual, -(rows > residual)
    counts = num_seeds - 1, num_rows - 1, (num_seeds - 1) * (num_rows - 1)
    total = sum(sign * square for sign, square in zip(signs, squares, strict=True))
    if not total:
        return 0.0, float(counts[0])
    terms = zip(signs, squares, counts, strict=True)
    freedom = total**2 / sum((sign * square) ** 2 / count for sign, square, count in terms)
    return math.sqrt(total / (num_seeds * num_rows)), max(freedom, float(counts[0]))


def square_of_seeds(variances: Components, num_seeds: int, num_rows: int) -> float:
    """The mean square of seeds, whose expectation is residual + N seeds.

    It is not replaced by that of the residual where it is smaller, as if seeds had no effect: that would be a test with
    little power, after which intervals of few seeds are too narrow if seeds matter. A few seeds may agree by chance,
    so it is at least the CHANCE point of its distribution without an effect of seeds, residual times F.
    """
    from scipy.special import fdtri  # late

    seeds, _, residual = variances.mean_squares
    counts = num_seeds - 1, (num_seeds - 1) * (num_rows - 1)
    return max(seeds, float(fdtri(*counts, CHANCE)) * residual)


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Estimate:
    """The paired bootstrap's percentile interval of the mean of `first - second` (Efron and Tibshirani 1993, ch. 13).

    Rows are resampled, each with the values of both arms under all seeds. Seeds are too few to be resampled: a
    percentile interval over 3 of them covers at most 75 %, and resampling both axes has no correct variance (Owen 2007,
    The pigeonhole bootstrap, Annals of Applied Statistics 1(2)). So each resample adds the deviation of W new seeds,
    from Student's t distribution with W - 1 degrees of freedom and the standard error sqrt(MS_seeds / (W N)), with the
    mean square of `square_of_seeds`. It holds the residual variance, which is taken out of the deviations of the
    resampled rows.

    Args:
      first, second: [N] or [W, N] of the same rows; an arm of one seed is compared with every seed of the other.
      seed: of the resampling.
    """
    values = paired(first, second)
    num_seeds, num_rows = values.shape
    mean = float(values.mean())
    if num_rows < 2:
        return Estimate(mean, None, None, None)
    rng = np.random.default_rng(seed)
    drawn = _resampled_means(values.mean(0), rng, resamples)
    if num_seeds > 1:
        variances = components(values)
        _, rows, residual = variances.mean_squares
        drawn = mean + (math.sqrt(max(rows - residual, 0.0) / rows) if rows else 0.0) * (drawn - mean)
        error = math.sqrt(square_of_seeds(variances, *values.shape) / values.size)
        drawn += error * rng.standard_t(num_seeds - 1, size=resamples)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    stderr = crossed_error(components(values), *values.shape)[0] if num_seeds > 1 else standard_error(values[0])
    return Estimate(mean, stderr, float(low), float(high))


def _resampled_means(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """The means of `resamples` draws of len(values) values with replacement.

    Equal values are counted, so that a draw is multinomial over the distinct ones: of right and wrong rows, three.
    """
    distinct, counts = np.unique(values, return_counts=True)
    chunk = max(1, 2**22 // len(distinct))  # draws of at most 32 MiB
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    sums = [rng.multinomial(len(values), counts / len(values), size=size) @ distinct for size in sizes]
    return np.concatenate(sums) / len(values)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """The two-sided p of McNemar's exact test that two arms are right equally often on the same rows [N].

    Of the rows that one arm alone has right, each is the first arm's with probability one half (McNemar 1947,
    Psychometrika 12(2)).

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0, 1])  # 5 rows against 1: 2 (1 + 6) / 2^6
    0.21875
    """
    first, second = _binary(first), _binary(second)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f'the arms have shapes {first.shape} and {second.shape}: McNemar compares the same rows')
    only_first, only_second = int(np.sum(first > second)), int(np.sum(first < second))
    if not only_first + only_second:
        return 1.0
    from scipy import stats  # late: a second

    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def compare(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Difference:
    """The difference between two arms on the same rows: interval, p and the smallest detectable difference.

    Of one seed: paired bootstrap, and for right or wrong McNemar's exact test and its power, else the paired t test. If
    both seeds and rows vary: `crossed_mean` of the difference, its t test, and (t(97.5 %) + t(80 %)) standard errors as
    the smallest detectable difference (Bloom 1995, Evaluation Review 19(5)).

    Args:
      first, second: [N] or [W, N] of the same rows; seed s of both has the same training rows.
      seed: of the bootstrap.
    """
    values = paired(first, second)
    if values.shape[1] < 2:
        return Difference(float(values.mean()), None, None, None, None, None)
    if len(values) == 1:
        estimate = bootstrap_difference(first, second, seed=seed)
        if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
            rows, discordance = values.shape[1], float(np.mean(values != 0))
            p = mcnemar(np.reshape(first, -1), np.reshape(second, -1))
            return Difference(*estimate, p, detectable_difference(rows, discordance))
        stderr, freedom = standard_error(values[0]) or 0.0, values.shape[1] - 1
    else:
        estimate = crossed_mean(values)
        stderr, freedom = crossed_error(components(values), *values.shape)
    from scipy.special import stdtr, stdtrit  # late

    if not stderr:
        return Difference(*estimate, float(estimate.mean == 0), None)
    p = float(2 * stdtr(freedom, -abs(estimate.mean) / stderr))
    detectable = float(stdtrit(freedom, 0.975) + stdtrit(freedom, 0.8)) * stderr
    return Difference(*estimate, p, detectable)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in their order: rejecting those below 5 % has a family-wise error of 5 %.

    Holm 1979, Scandinavian Journal of Statistics 6(2). `p_values` are those of all claimed comparisons.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind='stable')
    factors = len(order) - np.arange(len(order))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * factors))
    result = np.empty(len(order))
    result[order] = adjusted
    return result.tolist()


def mcnemar_power(rows: int, discordance: float, difference: float, alpha: float = 0.05) -> float:
    """The probability that McNemar's exact test has p < alpha.

    The number of discordant rows m is binomial (rows, discordance). The number of those that the better arm has
    right is binomial (m, (1 + difference / discordance) / 2). Duffy 1984, Biometrics 40(4); Connor 1987, Biometrics
    43(1).

    Args:
      rows: N of the test set.
      discordance: the probability that exactly one arm is right on a row.
      difference: of the accuracies, at most `discordance`.

    >>> round(mcnemar_power(500, 0.16, 0.05), 3)
    0.774
    """
    if not 0 < discordance <= 1 or not 0 <= difference <= discordance:
        raise InputError(f'difference={difference}, discordance={discordance}: 0 <= difference <= discordance <= 1')
    from scipy import stats  # late: a second

    # Numbers of discordant rows, without those more than 10 standard deviations from their mean.
    mean, margin = rows * discordance, 10 * math.sqrt(rows * discordance * (1 - discordance)) + 1
    count = np.arange(max(0, math.floor(mean - margin)), min(rows, math.ceil(mean + margin)) + 1)
    # The largest k with P(X <= k) < alpha / 2: p < alpha if and only if an arm has at most k of the m rows.
    critical = stats.binom.ppf(alpha / 2, count, 0.5) - 1
    critical -= 2 * stats.binom.cdf(critical, count, 0.5) >= alpha
    share = (1 + difference / discordance) / 2
    rejected = stats.binom.cdf(critical, count, share) + stats.binom.cdf(critical, count, 1 - share)
    return float(stats.binom.pmf(count, rows, discordance) @ rejected)


def detectable_difference(rows: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest difference of two accuracies for which `mcnemar_power` is `power`; None if there is none.

    A difference above `discordance` has a larger discordance: all rows on which the arms differ are then won by one.
    """
    from scipy import optimize  # late

    def missing(difference: float) -> float:
        return mcnemar_power(rows, max(discordance, difference), difference, alpha) - power

    if missing(1.0) < 0:
        return None
    return float(optimize.brentq(missing, 1e-9, 1.0, xtol=1e-6))


def spread(values: ArrayLike, *, seed: int = 0, confidence: float = CONFIDENCE) -> dict[str, Any]:
    """How much a score depends on a choice, such as the order of demonstrations: one value for each draw of it.

    Returns:
      {'n', 'mean', 'stdev', 'worst', 'best', 'interval' of the mean (Student's t), 'quantiles': {'0.05': ...},
      'intervals': {'stdev': [low, high], '0.05': [low, high], ...}}, the last by the percentile bootstrap. 'worst' is
      the smallest value. Without a second value, 'stdev' and intervals are None.
    """
    numbers = np.asarray(values, np.float64)
    _, _, *ends = t_interval(numbers, confidence)
    several, names = len(numbers) > 1, [f'{quantile:g}' for quantile in QUANTILES]
    spans = None
    if several:
        drawn = np.random.default_rng(seed).choice(numbers, (RESAMPLES, len(numbers)))
        statistics = np.vstack([drawn.std(1, ddof=1), np.quantile(drawn, QUANTILES, axis=1)])
        bounds = np.quantile(statistics, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1).T.tolist()
        spans = dict(zip(['stdev', *names], bounds, strict=True))
    return {
        'n': len(numbers),
        'mean': float(numbers.mean()),
        'stdev': float(numbers.std(ddof=1)) if several else None,
        'worst': float(numbers.min()),
        'best': float(numbers.max()),
        'interval': ends if several else None,
        'quantiles': dict(zip(names, np.quantile(numbers, QUANTILES).tolist(), strict=True)),
        'intervals': spans,
    }


def _t(freedom: float, confidence: float) -> float:
    """The quantile of Student's t of a two-sided interval."""
    from scipy.special import stdtrit  # late, and what jax itself depends on

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def _binary(hits: ArrayLike) -> np.ndarray:
    """Hits as floats [N] or [W, N]. Raises InputError for other values and shapes."""
    hits = np.asarray(hits, np.float64)
    if hits.ndim not in (1, 2) or not hits.size or not np.isin(hits, (0, 1)).all():
        raise InputError(f'shape {hits.shape}: a proportion is of values 0 and 1, over rows or over seeds and rows')
    return hits


def paired(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """first - second [W, N]; an arm of one seed is repeated. Raises InputError if the rows or seeds differ."""
    first, second = (np.atleast_2d(np.asarray(arm, np.float64)) for arm in (first, second))
    seeds = {len(first), len(second)} - {1}
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or len(seeds) > 1 or not first.size:
        raise InputError(f'the arms have shapes {first.shape} and {second.shape}: paired values are of the same rows')
    return first - second
