"""Which arm a comparison recommends: a pure function of results.json.

The most accurate arm is compared with every other one. Another arm is
  * equivalent, if the difference is shown to be within the margin of the comparison, after Holm's correction,
  * less accurate, if its difference is significant after Holm's correction, and the most accurate arm is ahead,
  * at the baseline, if it is shown to be within the margin, but its interval reaches down to the accuracy of chance or
    of always answering the most frequent class,
  * undecided otherwise, and if the difference was not tested.
Of the arms that are equivalent to the most accurate one, the cheapest in FLOPs is recommended. No arm is recommended
whose interval reaches down to the accuracy of chance or of always answering the most frequent class.
"""

from typing import NamedTuple

from lmtrain.compare.pages import values
from lmtrain.compare.pages.values import Results
from lmtrain.evaluation.statistics import LEVEL


class Choice(NamedTuple):
    """The arm to use with `size` training rows.

    outcome: 'best' (significantly more accurate than every other arm), 'cheapest' (of several equivalent arms),
      'undecided' (no arm is equivalent, and one is undecided or at the baseline), 'alone' (no other arm has a result),
      'majority' (the most accurate arm is not shown to be better than `baseline`) or 'nothing' (no arm has a result).
    plan: [(number of queries, the cheapest arm from there on)]; the first is `arm`, from 0 queries.
    leader: the most accurate arm.
    equivalent: arms within the margin of the leader, without it, the most accurate first.
    undecided: likewise, arms about which more test rows would decide.
    baseline: likewise, arms within the margin of the leader that are not shown to be better than `baseline`.
    """

    outcome: str
    size: int
    arm: str | None = None
    plan: tuple[tuple[float, str], ...] = ()
    leader: str | None = None
    equivalent: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()


def choose(results: Results, size: int) -> Choice:
    """The choice for one number of training rows."""
    arms = values.scored(results, size)
    if not arms:
        return Choice('nothing', size)
    leader = arms[0]
    if not is_above_baseline(results, leader, size):
        return Choice('majority', size, leader=leader)
    relations = {other: _relation(results, leader, other, size) for other in arms[1:]}
    equivalent, undecided, at_baseline = (
        tuple(arm for arm in relations if relations[arm] == name) for name in ('equivalent', 'undecided', 'baseline')
    )
    costs = {arm: own for arm in (leader, *equivalent) if (own := costs_of(results, arm, size))}
    plan = cheapest(costs) if len(costs) == 1 + len(equivalent) else ((0.0, leader),)
    has_doubt = undecided or at_baseline
    outcome = 'alone' if not relations else 'cheapest' if equivalent else 'undecided' if has_doubt else 'best'
    return Choice(outcome, size, plan[0][1], plan, leader, equivalent, undecided, at_baseline)


def costs_of(results: Results, arm: str, size: int) -> tuple[float, float] | None:
    """FLOPs to create an arm, and of a query whose shared tokens are cached; None if one of them is not known.

    Results of earlier versions may have the FLOPs of a whole query alone.
    """
    fields = ('create_flops', 'query_flops_cached', 'query_flops')
    create, query, whole = (values.cost(results, arm, size, field) for field in fields)
    query = whole if query is None else query
    return None if create is None or query is None else (create, query)


def cheapest(costs: dict[str, tuple[float, float]]) -> tuple[tuple[float, str], ...]:
    """The arm of the lowest total cost over the number of queries.

    Args:
      costs: {arm: (cost to create, cost of a query)}, not empty.

    Returns [(number of queries, the cheapest arm from there on)], the first from 0. An arm that is the cheapest for
    less than one query is left out.

    >>> cheapest({'prompt': (0, 10), 'train': (1000, 2), 'waste': (2000, 3)})
    ((0.0, 'prompt'), (125.0, 'train'))
    """
    queries, arm = 0.0, min(costs, key=lambda name: costs[name])
    plan = []
    while arm is not None:
        plan.append((queries, arm))
        create, query = costs[arm]
        crossings = [
            ((other_create - create) / (query - other_query), other_query, other)
            for other, (other_create, other_query) in costs.items()
            if other_query < query
        ]
        queries, _, arm = min(crossings, default=(0.0, 0.0, None))
    while len(plan) > 1 and plan[1][0] < 1:
        plan = [(0.0, plan[1][1]), *plan[2:]]
    return tuple(plan)


def is_above_baseline(results: Results, arm: str, size: int) -> bool:
    """Whether the interval of an arm lies above `baseline`."""
    floor, entry = baseline(results), values.summary(results, arm, size)
    return floor is None or values.ends(entry)[0] > floor[0]


def baseline(results: Results) -> tuple[float, str] | None:
    """The accuracy without any model and its name: the most frequent class or chance, whichever is higher."""
    task = results.get('task') or {}
    names = (('majority', 'always answering the most frequent class'), ('chance', 'chance'))
    return max(((task[name], text) for name, text in names if task.get(name) is not None), default=None)


def _relation(results: Results, leader: str, other: str, size: int) -> str:
    """'equivalent', 'worse', 'baseline' or 'undecided', see the docstring of the module."""
    tested = values.pair(results, leader, other, size) or {}
    within, differs = (tested.get(name) for name in ('p_equivalent_holm', 'p_holm'))
    is_close = within is not None and within < LEVEL
    if is_close and is_above_baseline(results, other, size):
        return 'equivalent'
    # Over the seeds that both arms have finished: there, another arm than the leader may be ahead.
    is_ahead = differs is not None and differs < LEVEL and tested['difference'] > 0
    return 'worse' if is_ahead else 'baseline' if is_close else 'undecided'
