"""Which arms are worth their cost: the Pareto front of accuracy against a cost, and what its uncertainty allows."""

from collections.abc import Mapping
from typing import NamedTuple

from lmtrain.compare.pages import values
from lmtrain.compare.pages.values import Results
from lmtrain.evaluation.statistics import LEVEL

FRONT, CLOSE, DOMINATED = 'front', 'close', 'dominated'


class Point(NamedTuple):
    """An arm, trained on or prompted with `size` rows."""

    arm: str
    size: int
    cost: float
    accuracy: float
    interval: tuple[float, float] | None


def points(results: Results, size: int, field: str) -> list[Point]:
    """The arms at a size with a known cost.

    Args:
      field: of the ledger, 'create_flops', or 'rows': the number of training rows, then of all sizes.
    """
    if field == 'rows':
        keys = {(entry['arm'], entry['size']): float(entry['size']) for entry in results.get('summary') or []}
    else:
        keys = {(arm, size): values.cost(results, arm, size, field) for arm in values.scored(results, size)}
    entries = {key: values.summary(results, *key) for key in keys}
    return [
        Point(*key, cost, entries[key]['accuracy'], tuple(entries[key].get('interval') or ()) or None)
        for key, cost in keys.items()
        if cost is not None and entries[key]
    ]


def front(costs: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names that no other one dominates: none has a cost as low and an accuracy as high, and is better in one.

    Args:
      costs: {name: (cost, accuracy)}.

    >>> sorted(front({'a': (1, 0.5), 'b': (2, 0.7), 'c': (3, 0.6)}))
    ['a', 'b']
    """
    return {name for name, own in costs.items() if not any(_dominates(other, own) for other in costs.values())}


def classes(results: Results, scored: list[Point]) -> dict[Point, str]:
    """'front', 'dominated', or 'close': dominated only by arms that are not significantly more accurate."""
    named = {point: (point.cost, point.accuracy) for point in scored}
    best = front(named)
    result = {}
    for point in scored:
        above = [other for other in scored if _dominates(named[other], named[point])]
        surely = any(_surpasses(results, other, point) for other in above)
        result[point] = FRONT if point in best else DOMINATED if surely else CLOSE
    return result


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]


def _surpasses(results: Results, one: Point, other: Point) -> bool:
    """Whether `one` is significantly more accurate: by their test or, if they were not tested, by their intervals."""
    tested = values.pair(results, one.arm, other.arm, one.size) if one.size == other.size else None
    if tested and tested.get('p_holm') is not None:
        return tested['p_holm'] < LEVEL and tested['difference'] > 0
    return bool(one.interval and other.interval and one.interval[0] > other.interval[1])
