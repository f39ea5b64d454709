"""Whether two arms differ by less than a margin: two one-sided tests, and the test rows that would decide."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lmtrain.evaluation.statistics import LEVEL, components, crossed_error, paired


class Equivalence(NamedTuple):
    """Whether two arms differ by less than a margin (`equivalence`).

    Attributes:
      p: of the hypothesis that the difference is the margin or more, in either direction.
      rows: about how many test rows decide: with them the difference, if it stays as it is, is significant or within
        the margin. None if no number of rows does, because the seeds vary too much.
    """

    p: float | None
    rows: int | None


def equivalence(first: ArrayLike, second: ArrayLike, margin: float, *, alpha: float = LEVEL) -> Equivalence:
    """Whether the accuracies of two arms are equal within a margin: two one-sided t tests of the paired difference.

    A difference that is not significant shows no equality; one whose interval lies within the margin does (Schuirmann
    1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6)). The standard error is that of `compare`, and at least
    1 / (N + 2), that of arms that agree on all rows (Agresti and Min 2005, Statistics in Medicine 24(5), which adds 1/2
    to each cell of the table): few rows show nothing.

    Args:
      first, second: right or wrong, [N] or [W, N] of the same rows; seed s of both has the same training rows.
      alpha: of the tests that `Equivalence.rows` are to pass; divided by the number of pairs if several are tested.

    >>> agree = [1, 0] * 100
    >>> equivalence(agree, agree, 0.02).p < 1e-4, equivalence(agree[:20], agree[:20], 0.02).p > 0.3
    (True, True)
    """
    values = paired(first, second)
    num_seeds, num_rows = values.shape
    if num_rows < 2:
        return Equivalence(None, None)
    from scipy.special import stdtr, stdtrit  # late

    if num_seeds == 1:
        of_seeds, of_rows, freedom = 0.0, float(np.var(values, ddof=1)), num_rows - 1.0
    else:
        variances = components(values)
        stderr, freedom = crossed_error(variances, *values.shape)
        of_seeds = variances.seeds / num_seeds
        of_rows = num_rows * (stderr**2 - of_seeds)
    difference, least = abs(float(values.mean())), 1 / (num_rows + 2)
    p = float(stdtr(freedom, (difference - margin) / max(math.sqrt(of_seeds + of_rows / num_rows), least)))
    # The largest standard error at which the difference is significant, and that at which it is within the margin.
    significant, within = (
        difference / stdtrit(freedom, 1 - alpha / 2),
        (margin - difference) / stdtrit(freedom, 1 - alpha),
    )
    needed = []
    for largest, least_rows in ((significant, 0.0), (within, 1 / within - 2 if within > 0 else 0.0)):
        room = largest**2 - of_seeds
        if largest > 0 and room > 0:
            needed.append(max(of_rows / room, least_rows))
    return Equivalence(p, math.ceil(min(needed)) if needed else None)
