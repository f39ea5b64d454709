"""Which arm a comparison recommends, what that rests on, and what would change it: a pure function of results.json.

The most accurate arm is compared with every other one. Another arm is
  * less accurate, if the difference is significant after Holm's correction,
  * not distinguishable, if the difference is not significant without any correction, and smaller than what the test
    rows can detect,
  * undecided otherwise, and if the difference was not tested.
Of the arms that are not distinguishable from the most accurate one, the cheapest in FLOPs is recommended. No arm is
recommended whose interval reaches down to the accuracy of always answering the most frequent class.
"""

from typing import NamedTuple

from lmtrain.compare.pages import values
from lmtrain.compare.pages.values import Results, interval, listed, percent, points
from lmtrain.report import terminal

LEVEL = 0.05  # of the tests; the intervals are 95 %


class Choice(NamedTuple):
    """The arm to use with `size` training rows.

    outcome: 'best' (significantly more accurate than every other arm), 'cheapest' (of several arms that are not
      distinguishable), 'undecided', 'alone' (no other arm has a result), 'majority' (no arm is shown to be better than
      the most frequent class) or 'nothing' (no arm has a result).
    plan: [(number of queries, the cheapest arm from there on)]; the first is `arm`, from 0 queries.
    leader: the most accurate arm.
    ties: arms not distinguishable from the leader, without it, the most accurate first.
    undecided: likewise.
    """

    outcome: str
    size: int
    arm: str | None = None
    plan: tuple[tuple[float, str], ...] = ()
    leader: str | None = None
    ties: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


class Recommendation(NamedTuple):
    """A choice in words: a sentence, [(label, what it rests on)], and [what would change it]."""

    choice: Choice
    headline: str
    evidence: list[tuple[str, str]]
    changes: list[str]


def recommend(results: Results) -> Recommendation:
    """The recommendation for the largest number of training rows of a comparison."""
    sizes = values.sizes(results)
    choice = choose(results, sizes[-1]) if sizes else Choice('nothing', 0)
    if choice.arm is None:
        evidence = [] if choice.leader is None else [('Highest accuracy', _accuracy(results, choice.leader, choice))]
        return Recommendation(choice, _headline(results, choice), evidence, _changes(results, choice))
    return Recommendation(choice, _headline(results, choice), _evidence(results, choice), _changes(results, choice))


def choose(results: Results, size: int) -> Choice:
    """The choice for one number of training rows."""
    arms = values.scored(results, size)
    if not arms:
        return Choice('nothing', size)
    leader, above = arms[0], _above_majority(results, arms, size)
    if leader not in above:
        return Choice('majority', size, leader=leader)
    relations = {other: _relation(results, leader, other, size) for other in arms[1:]}
    ties = tuple(other for other, relation in relations.items() if relation == 'tie')
    undecided = tuple(other for other, relation in relations.items() if relation == 'undecided')
    plan = cheapest(
        {
            arm: (create, query)
            for arm in (leader, *(other for other in ties if other in above))
            if (create := values.cost(results, arm, size, 'create_flops')) is not None
            and (query := values.cost(results, arm, size, 'query_flops')) is not None
        }
    )
    if not ties or not plan:
        plan = ((0.0, leader),)
    outcome = 'alone' if not relations else 'cheapest' if ties else 'undecided' if undecided else 'best'
    return Choice(outcome, size, plan[0][1], plan, leader, ties, undecided)


def cheapest(costs: dict[str, tuple[float, float]]) -> tuple[tuple[float, str], ...]:
    """The arm of the lowest total cost over the number of queries.

    Args:
      costs: {arm: (cost to create, cost of a query)}.

    Returns [(number of queries, the cheapest arm from there on)], the first from 0. An arm that is the cheapest for
    less than one query is left out.

    >>> cheapest({'prompt': (0, 10), 'train': (1000, 2), 'waste': (2000, 3)})
    ((0.0, 'prompt'), (125.0, 'train'))
    """
    if not costs:
        return ()
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


def _above_majority(results: Results, arms: list[str], size: int) -> list[str]:
    """The arms whose interval lies above the accuracy of always answering the most frequent class."""
    floor = baseline(results)
    if floor is None:
        return arms
    entries = {arm: values.summary(results, arm, size) for arm in arms}
    return [arm for arm, entry in entries.items() if (entry.get('interval') or [entry['accuracy']])[0] > floor]


def baseline(results: Results) -> float | None:
    """The accuracy without any model: of the most frequent class or, if that is not known, of chance."""
    task = results.get('task') or {}
    return task['majority'] if task.get('majority') is not None else task.get('chance')


def _relation(results: Results, leader: str, other: str, size: int) -> str:
    """'worse', 'tie' or 'undecided', see the docstring of the module."""
    tested = values.pair(results, leader, other, size) or {}
    if tested.get('p_holm') is None:
        return 'undecided'
    if tested['p_holm'] < LEVEL:
        return 'worse'
    p, detectable = tested.get('p'), tested.get('detectable')
    if p is None or p < LEVEL or detectable is None:
        return 'undecided'
    return 'tie' if abs(tested['difference']) <= detectable else 'undecided'


def _rows(size: int) -> str:
    return f'with {terminal.counted(size, "training row")}' if size else 'without training rows'


def _headline(results: Results, choice: Choice) -> str:
    arm, rows = choice.arm, _rows(choice.size)
    if choice.outcome == 'nothing':
        return 'No recommendation: no arm has a result.'
    if choice.outcome == 'majority':
        return (
            f'No arm is recommended: {rows}, none is shown to be better than always answering the most frequent class '
            f'({percent(baseline(results))}).'
        )
    if choice.outcome == 'alone':
        return f'{arm} is the only arm with a result {rows}: there is nothing to compare it with.'
    if choice.outcome == 'best':
        return f'Use {arm}: {rows} it is more accurate than every other arm of this comparison.'
    if choice.outcome == 'undecided':
        others = listed(list(choice.undecided))
        return f'Use {arm}, with reservations: it is the most accurate {rows}, but its lead over {others} is unproven.'
    names = f'{len(choice.ties) + 1} arms whose accuracies this test set cannot tell apart'
    if choice.plan[0][1] == choice.leader and len(choice.plan) == 1 and _priced(results, choice):
        return f'Use {arm}: {rows} it is the most accurate arm, and the cheapest of {names}.'
    if not _priced(results, choice):
        return f'Use {arm}: {rows} it is the most accurate of {names}; their costs were not measured.'
    text = f'Use {arm}: {rows} it is the cheapest of {names}'
    if arm != choice.leader:
        text += f' ({choice.leader} is the most accurate)'
    later = [f'{other} from about {_queries(count)} on' for count, other in choice.plan[1:]]
    return f'{text}; {listed(later)}.' if later else f'{text}.'


def _priced(results: Results, choice: Choice) -> bool:
    return values.cost(results, choice.arm, choice.size, 'query_flops') is not None


def _queries(number: float) -> str:
    """About how many queries, in two digits."""
    return f'{terminal.number(float(f"{number:.2g}"), significant=2)} queries'


def _accuracy(results: Results, arm: str, choice: Choice) -> str:
    entry = values.summary(results, arm, choice.size)
    name = '' if arm == choice.arm else f'{arm}: '
    parts = [f'{name}{percent(entry["accuracy"])} (95 % interval {interval(entry.get("interval"))})']
    if seeds := entry.get('seeds'):
        parts.append(f'mean over {terminal.counted(seeds, "seed")}' if seeds > 1 else 'one seed')
    if rows := ((results.get('task') or {}).get('rows') or {}).get('test'):
        parts.append(terminal.counted(rows, 'test row'))
    return ', '.join(parts)


def _rival(choice: Choice, arms: list[str]) -> str | None:
    """The arm whose difference from the recommended one decides: the leader, else the most accurate other one."""
    if choice.arm != choice.leader:
        return choice.leader
    others = choice.ties or choice.undecided or tuple(arm for arm in arms if arm != choice.arm)
    return others[0] if others else None


def _evidence(results: Results, choice: Choice) -> list[tuple[str, str]]:
    arm, size = choice.arm, choice.size
    evidence = [('Accuracy', _accuracy(results, arm, choice))]
    rival = _rival(choice, values.scored(results, size))
    tested = values.pair(results, arm, rival, size) if rival else None
    if rival and not tested:
        evidence.append(('Difference', f'The difference from {rival} was not tested.'))
    if tested:
        sentence = f'{points(tested["difference"])} points against {rival}'
        evidence.append(('Difference', f'{sentence} (95 % interval {interval(tested.get("interval"), points)})'))
        holm = f"after Holm's correction over all pairs {values.probability(tested.get('p_holm'))}"
        evidence.append(('p value', f'{values.probability(tested.get("p"))}; {holm}'))
        if tested.get('detectable') is not None:
            text = f'{100 * tested["detectable"]:.1f} points between {arm} and {rival}, with these rows and seeds'
            evidence.append(('Smallest detectable difference', text))
    if choice.ties:
        widest = [abs(limit) for other in choice.ties for limit in _limits(results, choice.leader, other, size)]
        text = f'{listed([choice.leader, *choice.ties])}. This does not show that they are equal'
        text += f': the intervals allow differences of up to {100 * max(widest):.1f} points' if widest else ''
        evidence.append(('Not distinguishable', f'{text}.'))
    if choice.undecided and choice.outcome != 'undecided':
        evidence.append(('Undecided', f'{listed(list(choice.undecided))}: neither shown to be worse nor within reach.'))
    create, query = (values.cost(results, arm, size, field) for field in ('create_flops', 'query_flops'))
    text = f'{values.quantity(create, "FLOP")} to create, {values.quantity(query, "FLOP")} for each query'
    evidence.append(('Cost', text))
    if (floor := baseline(results)) is not None:
        evidence.append(('Most frequent class', f'{percent(floor)} without any model'))
    return evidence


def _limits(results: Results, one: str, other: str, size: int) -> list[float]:
    return ((values.pair(results, one, other, size) or {}).get('interval')) or []


def _changes(results: Results, choice: Choice) -> list[str]:
    """What would change the recommendation."""
    lines = [*_other_sizes(results, choice), *_more_rows(results, choice), *_other_queries(results, choice)]
    differences = [values.pair(results, choice.leader, other, choice.size) for other in choice.ties + choice.undecided]
    detectable = [tested['detectable'] for tested in differences if tested and tested.get('detectable') is not None]
    if detectable:
        lines.append(
            f'More test rows: differences below {100 * max(detectable):.1f} points are not reliably detected here. '
            'Half of that takes about four times as many rows.'
        )
    missing = [name for name in results.get('arms') or {} if name not in values.scored(results, choice.size)]
    if missing and choice.outcome != 'nothing':
        lines.append(f'Arms without a result ({listed(missing)}): the recommendation does not cover them.')
    return lines


def _other_sizes(results: Results, choice: Choice) -> list[str]:
    """What the same rules recommend at the other sizes, if it differs."""
    others: dict[str, list[str]] = {}
    for size in values.sizes(results):
        if size != choice.size and size and (other := choose(results, size)).arm != choice.arm:
            others.setdefault(other.arm or 'no arm', []).append(f'{size:,}')
    texts = [f'{name} with {listed(sizes)}' for name, sizes in others.items()]
    return [f'Fewer rows: the same rules recommend {listed(texts)} training rows.'] if texts else []


def _more_rows(results: Results, choice: Choice) -> list[str]:
    """Arms whose accuracy rises faster than that of the leader between the two largest sizes."""
    sizes = [size for size in values.sizes(results) if size]
    if len(sizes) < 2 or choice.leader is None:
        return []
    gains = {}
    for arm in values.scored(results, sizes[-1]):
        before, after = (values.summary(results, arm, size) for size in sizes[-2:])
        gains[arm] = after['accuracy'] - before['accuracy'] if before else 0.0
    reference = choice.arm or choice.leader
    faster = sorted((arm for arm in gains if gains[arm] > gains[reference]), key=lambda arm: -gains[arm])[:2]
    text = f'More rows: from {sizes[-2]:,} to {sizes[-1]:,} rows, the accuracy of {reference} changed by '
    text += f'{points(gains[reference])} points'
    if faster:
        text += f', that of {listed([f"{arm} by {points(gains[arm])}" for arm in faster])}'
    return [f'{text}. More than {sizes[-1]:,} rows were not tried.']


def _other_queries(results: Results, choice: Choice) -> list[str]:
    """The numbers of queries at which another arm costs less in total."""
    if choice.arm is None:
        return []
    lines = [
        f'Number of queries: from about {_queries(count)} on, {other} costs less in total, training included.'
        for count, other in choice.plan[1:]
    ]
    own = [
        entry
        for entry in results.get('break_even') or []
        if entry.get('trained') == choice.arm and entry.get('size') == choice.size and (entry.get('queries') or 0) >= 1
    ]
    own = [entry for entry in own if values.summary(results, entry['prompt'], choice.size)]
    if own:
        best = max(own, key=lambda entry: values.summary(results, entry['prompt'], choice.size)['accuracy'])
        accuracies = [values.summary(results, arm, choice.size)['accuracy'] for arm in (best['prompt'], choice.arm)]
        lines.append(
            f'Number of queries: below about {_queries(best["queries"])}, {best["prompt"]} costs less in total, at '
            f'{points(accuracies[0] - accuracies[1])} points of accuracy.'
        )
        lines += _price(best)
    return lines


def _price(entry) -> list[str]:
    """How the break-even moves with the price."""
    curve = [(ratio, count) for ratio, count in entry.get('curve') or [] if count is not None]
    if len(curve) < 2:
        return []
    (low, few), (high, many) = min(curve), max(curve)
    return [
        f'Price: if training costs {low:g} to {high:g} times as much per FLOP as a query, that number is '
        f'{_queries(few).removesuffix(" queries")} to {_queries(many)}.'
    ]
