"""The recommendation of a comparison in words: which arm, what that rests on, and what would change it.

No sentence claims more than the statistics: `choice` decides, and this module reads its outcome.
"""

from typing import NamedTuple

from lmtrain.compare.pages import values
from lmtrain.compare.pages.choice import Choice, baseline, choose, costs_of, is_above_baseline
from lmtrain.compare.pages.values import Results, interval, listed, percent, points
from lmtrain.report import terminal


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
        evidence += _bias(results, choice)
        return Recommendation(choice, _headline(results, choice), evidence, _changes(results, choice))
    return Recommendation(choice, _headline(results, choice), _evidence(results, choice), _changes(results, choice))


def _rows(size: int) -> str:
    return f'with {terminal.counted(size, "training row")}' if size else 'without training rows'


def _headline(results: Results, choice: Choice) -> str:
    arm, rows = choice.arm, _rows(choice.size)
    if choice.outcome == 'nothing':
        return 'No recommendation: no arm has a result.'
    if choice.outcome == 'majority':
        floor, name = baseline(results)
        others = any(is_above_baseline(results, other, choice.size) for other in values.scored(results, choice.size))
        subject = f'{choice.leader}, the most accurate one, is not' if others else 'none is'
        return f'No arm is recommended: {rows}, {subject} shown to be better than {name} ({percent(floor)}).'
    if choice.outcome == 'alone':
        return f'{arm} is the only arm with a result {rows}: there is nothing to compare it with.'
    if choice.outcome == 'best':
        others = 'with a result' if _without_result(results, choice) else 'of this comparison'
        return f'Use {arm}: {rows} it is more accurate than every other arm {others}.'
    if choice.outcome == 'undecided':
        text = f'Use {arm}, with reservations: {rows} it is the most accurate arm'
        if choice.undecided:
            text += f', but its lead over {_some(choice.undecided)} is neither proven nor shown to be '
            text += _within(results)
        return f'{text}; {_at_baseline(results, choice)}.' if choice.baseline else f'{text}.'
    return _cheapest_in_words(results, choice)


def _cheapest_in_words(results: Results, choice: Choice) -> str:
    arm, others, several = choice.arm, _some(choice.equivalent), len(choice.equivalent) > 1
    text = f'Use {arm}: {_rows(choice.size)} '
    costs = {each: costs_of(results, each, choice.size) for each in (choice.leader, *choice.equivalent)}
    if unknown := [each for each, cost in costs.items() if cost is None]:
        text += f'it is the most accurate arm. Its lead over {others} is {_within(results)}, and the '
        return f'{text}costs of {listed(unknown)} were not measured.'
    if arm == choice.leader:
        text += f'it is the most accurate arm. Its lead over {others} is {_within(results)}, '
        dearer = all(costs[each][0] > costs[arm][0] for each in choice.equivalent)
        verb = ('cost more' if several else 'costs more') if dearer else 'cost no less' if several else 'costs no less'
        text += f'which {verb} to create'
    else:
        text += f'its accuracy is {_within(results)} of that of {choice.leader}, the most accurate arm, and it costs '
        text += f'the least of {len(choice.equivalent) + 1} such arms to create' if several else 'less to create'
    cached = _cached(results, choice.size, *(each for _, each in choice.plan))
    later = [
        f'from about {_queries(count)} on, {other} costs less in total{cached}' for count, other in choice.plan[1:]
    ]
    return '; '.join([text, *later]) + '.'


def _cached(results: Results, size: int, *arms: str) -> str:
    """What a number of queries rests on (`costs_of`), if the queries of one of the arms share tokens."""
    fields = ('query_flops_cached', 'query_flops')
    costs = [[values.cost(results, arm, size, field) for field in fields] for arm in arms]
    return ', with shared tokens cached' if any(cached not in (None, whole) for cached, whole in costs) else ''


def _within(results: Results) -> str:
    """
    >>> _within({'margin': 0.025}), _within({})
    ('within 2.5 points', 'within a margin')
    """
    margin = results.get('margin')
    return 'within a margin' if margin is None else f'within {100 * margin:g} points'


def _at_baseline(results: Results, choice: Choice) -> str:
    """What is shown of the arms that are as accurate as the leader, and not above the baseline."""
    floor, name = baseline(results)
    verb = 'is' if len(choice.baseline) == 1 else 'are'
    text = f'{_some(choice.baseline)} {verb} {_within(results)} of {choice.leader}, but not shown to be better than'
    return f'{text} {name} ({percent(floor)})'


def _some(arms: tuple[str, ...]) -> str:
    """Up to four names."""
    return listed(list(arms)) if len(arms) <= 4 else f'{", ".join(arms[:3])} and {len(arms) - 3} others'


def _queries(number: float) -> str:
    """About how many queries, in two digits.

    >>> _queries(581.4), _queries(58_140.0), _queries(2.94e6)
    ('580 queries', '58,000 queries', '2.9M queries')
    """
    rounded = float(f'{number:.2g}')
    return f'{rounded:,.0f} queries' if rounded < 1e6 else f'{terminal.number(rounded, significant=2)} queries'


def _accuracy(results: Results, arm: str, choice: Choice) -> str:
    entry = values.summary(results, arm, choice.size)
    name = '' if arm == choice.arm else f'{arm}: '
    parts = [f'{name}{percent(entry["accuracy"])} (95 % interval {interval(entry.get("interval"))})']
    if (seeds := entry.get('seeds')) and entry['size']:  # an arm of size 0 reads no training rows
        parts.append(
            f'mean over {terminal.counted(seeds, "seed")}'
            if seeds > 1
            else 'one seed, so that the interval leaves out other training rows'
        )
    if rows := ((results.get('task') or {}).get('rows') or {}).get('test'):
        parts.append(terminal.counted(rows, 'test row'))
    return ', '.join(parts)


def _bias(results: Results, choice: Choice) -> list[tuple[str, str]]:
    """The winner's curse: an expected maximum is above the maximum of the expectations."""
    count = len(values.scored(results, choice.size))
    if choice.leader is None or count < 2:
        return []
    text = f'{choice.leader} has the highest of {count} accuracies on the same test rows, so its own is biased upwards'
    return [("Winner's curse", f"{text}. Holm's correction applies to the p values of pairs, not to accuracies.")]


def _rival(choice: Choice, arms: list[str]) -> str | None:
    """The arm whose difference from the recommended one decides: the leader, else the most accurate other one."""
    if choice.arm != choice.leader:
        return choice.leader
    others = choice.equivalent or choice.undecided or choice.baseline or tuple(arm for arm in arms if arm != choice.arm)
    return others[0] if others else None


def _evidence(results: Results, choice: Choice) -> list[tuple[str, str]]:
    arm, size = choice.arm, choice.size
    evidence = [('Accuracy', _accuracy(results, arm, choice)), *_bias(results, choice)]
    rival = _rival(choice, values.scored(results, size))
    tested = values.pair(results, arm, rival, size) if rival else None
    if rival and not tested:
        evidence.append(('Difference', f'The difference from {rival} was not tested.'))
    if tested:
        sentence = f'{points(tested["difference"])} points against {rival}'
        limits = f'95 % interval {interval(tested.get("interval"), points)}, not corrected for the number of pairs'
        evidence.append(('Difference', f'{sentence} ({limits})'))
        holm = f"{values.probability(tested.get('p_holm'))} after Holm's correction over all pairs"
        evidence.append(('p value', f'{values.probability(tested.get("p"))}; {holm}'))
        if tested.get('detectable') is not None:
            text = f'{100 * tested["detectable"]:.1f} points between {arm} and {rival}, with these rows and seeds'
            evidence.append(('Smallest detectable difference', text))
    if choice.equivalent:
        tests = [values.pair(results, choice.leader, other, size) for other in choice.equivalent]
        largest = max(each['p_equivalent_holm'] for each in tests)
        text = f"{listed(list(choice.equivalent))}: p {values.probability(largest)} at most after Holm's correction"
        evidence.append((f'Accuracy {_within(results)} of {choice.leader}', text))
    if choice.undecided and choice.outcome != 'undecided':
        text = f'neither shown to be less accurate than {choice.leader} nor {_within(results)}'
        evidence.append(('Undecided', f'{_some(choice.undecided)}: {text}.'))
    if choice.baseline and choice.outcome != 'undecided':
        evidence.append(('At the baseline', f'{_at_baseline(results, choice)}.'))
    create = _cost(results, choice, ('create_flops', 'FLOP'), ('device_seconds', 's'), ('price', 'money'))
    query = _cost(results, choice, ('query_flops', 'FLOP'), ('query_seconds', 's'))
    if _cached(results, size, arm):
        cached = _cost(results, choice, ('query_flops_cached', 'FLOP'), ('query_seconds_cached', 's'))
        query += f'; with shared tokens cached: {cached}'
    evidence.append(('Cost', f'to create: {create}; of a query: {query}'))
    if floor := baseline(results):
        evidence.append(('Without a model', f'{percent(floor[0])} by {floor[1]}'))
    return evidence


def _cost(results: Results, choice: Choice, *fields: tuple[str, str]) -> str:
    """The measured ones of (field of the ledger, unit) of the recommended arm."""
    numbers = [(values.cost(results, choice.arm, choice.size, field), unit) for field, unit in fields]
    texts = [values.amount(results, number, unit) for number, unit in numbers if number is not None]
    return ', '.join(texts) or values.NOT_MEASURED


def _changes(results: Results, choice: Choice) -> list[str]:
    """What would change the recommendation."""
    lines = [*_other_sizes(results, choice), *_more_rows(results, choice), *_other_queries(results, choice)]
    if choice.arm and choice.arm != choice.leader:
        accuracies = [values.summary(results, arm, choice.size)['accuracy'] for arm in (choice.leader, choice.arm)]
        difference = points(accuracies[0] - accuracies[1])
        lines.append(f'Accuracy above cost: {choice.leader} has {difference} points on these test rows.')
    lines += _more_test_rows(results, choice)
    missing = _without_result(results, choice)
    if missing and choice.outcome != 'nothing':
        lines.append(f'Arms without a result ({listed(missing)}): the recommendation does not cover them.')
    return lines


def _more_test_rows(results: Results, choice: Choice) -> list[str]:
    """How many test rows would decide about the undecided arms, if the differences stay as they are."""
    needed, never = {}, []
    for other in choice.undecided:
        tested = values.pair(results, choice.leader, other, choice.size)
        if not tested or 'rows_to_decide' not in tested:
            continue
        rows = values.rows_to_decide(results, tested)
        if rows is None:
            never.append(other)
        else:
            needed[other] = rows
    texts = [
        f'{terminal.number(rows, significant=2)} rows decide about {other}'
        for other, rows in sorted(needed.items(), key=lambda each: each[1])[:4]
    ]
    lines = [f'More test rows: if the differences stay as they are, about {listed(texts)}.'] if texts else []
    few = 'More seeds: those of this comparison vary too much for any number of test rows to decide about'
    return [*lines, f'{few} {_some(tuple(never))}.'] if never else lines


def _without_result(results: Results, choice: Choice) -> list[str]:
    scored = values.scored(results, choice.size)
    return [arm for arm in results.get('arms') or {} if arm not in scored]


def _other_sizes(results: Results, choice: Choice) -> list[str]:
    """What the same rules recommend at the other sizes, if it differs."""
    others: dict[str, list[str]] = {}
    for size in values.sizes(results):
        if size != choice.size and size and (other := choose(results, size)).arm != choice.arm:
            others.setdefault(other.arm or 'no arm', []).append(f'{size:,}')
    texts = [f'{name} with {listed(sizes)}' for name, sizes in others.items()]
    return [f'Fewer rows: the same rules recommend {"; ".join(texts)} training rows.'] if texts else []


def _more_rows(results: Results, choice: Choice) -> list[str]:
    """Arms whose accuracy rises faster than that of the recommended one between the two largest sizes."""
    sizes = [size for size in values.sizes(results) if size]
    if len(sizes) < 2 or choice.leader is None:
        return []
    untried, reference, gains = f'More than {sizes[-1]:,} rows were not tried.', choice.arm or choice.leader, {}
    for arm in values.scored(results, sizes[-1]):
        before, after = (values.summary(results, arm, size) for size in sizes[-2:])
        if before:
            gains[arm] = after['accuracy'] - before['accuracy']
    if reference not in gains:
        return [f'More rows: {untried[0].lower()}{untried[1:]}']
    faster = sorted((arm for arm in gains if gains[arm] > gains[reference]), key=lambda arm: -gains[arm])[:2]
    text = f'More rows: from {sizes[-2]:,} to {sizes[-1]:,} rows, the accuracy of {reference} changed by '
    text += f'{points(gains[reference])} points'
    if faster:
        text += f', that of {listed([f"{arm} by {points(gains[arm])}" for arm in faster])}'
    return [f'{text}. {untried}']


def _other_queries(results: Results, choice: Choice) -> list[str]:
    """The numbers of queries at which another arm costs less in total."""
    if choice.arm is None:
        return []
    cached = _cached(results, choice.size, *(each for _, each in choice.plan))
    lines = [
        f'Number of queries: from about {_queries(count)} on, {other} costs less in total, training included{cached}.'
        for count, other in choice.plan[1:]
    ]
    own = [
        entry
        for entry in results.get('break_even') or []
        if entry.get('trained') == choice.arm and entry.get('size') == choice.size and (_break_even(entry) or 0) >= 1
    ]
    own = [entry for entry in own if values.summary(results, entry['prompt'], choice.size)]
    if own:
        best = max(own, key=lambda entry: values.summary(results, entry['prompt'], choice.size)['accuracy'])
        accuracies = [values.summary(results, arm, choice.size)['accuracy'] for arm in (best['prompt'], choice.arm)]
        cached = _cached(results, choice.size, best['prompt'], choice.arm)
        lines.append(
            f'Number of queries: below about {_queries(_break_even(best))}, {best["prompt"]} costs less in total'
            f'{cached}, at {points(accuracies[0] - accuracies[1])} points of accuracy.'
        )
        lines += _price(best)
    return lines


def _break_even(entry) -> float | None:
    """The number of queries, as in `costs_of`; None if there is none."""
    return entry['queries_cached'] if 'queries_cached' in entry else entry.get('queries')


def _price(entry) -> list[str]:
    """How the break-even moves with the price, to which it is proportional."""
    ratios = [ratio for ratio, _ in entry.get('curve') or []]
    if len(ratios) < 2:
        return []
    low, high = min(ratios), max(ratios)
    few, many = (ratio * _break_even(entry) for ratio in (low, high))
    return [
        f'Price: if a FLOP of creation costs {low:g} to {high:g} times as much as one of a query, that number is '
        f'{_queries(few).removesuffix(" queries")} to {_queries(many)}.'
    ]
