"""Values of results.json of a comparison, by arm and number of training rows, and their texts.

A value that was not measured is None.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from lmtrain.report import terminal

NOT_MEASURED = 'not measured'
Results = Mapping[str, Any]


def sizes(results: Results) -> list[int]:
    """The numbers of training rows for which there are accuracies, ascending."""
    scored = (entry for entry in results.get('summary') or [] if entry.get('accuracy') is not None)
    return sorted({entry['size'] for entry in scored if entry.get('size') is not None})


def summary(results: Results, arm: str, size: int) -> dict[str, Any] | None:
    """The accuracy of an arm over rows and seeds; None if there is none.

    The entry of 0 rows holds for every size: such an arm reads no training rows.
    """
    scored = {
        entry['size']: entry
        for entry in results.get('summary') or []
        if entry['arm'] == arm and entry.get('accuracy') is not None
    }
    return scored.get(size, scored.get(0))


def scored(results: Results, size: int) -> list[str]:
    """The arms with an accuracy at a size, the most accurate first."""
    entries = {name: summary(results, name, size) for name in results.get('arms') or {}}
    return sorted((name for name, entry in entries.items() if entry), key=lambda name: -entries[name]['accuracy'])


def labelled(results: Results, counts: list[int]) -> str:
    """How many labelled rows an arm reads: of the training, and of the selection, which all sizes share.

    >>> labelled({'task': {'rows': {'selection': 96}}}, [16, 64]), labelled({}, [1])
    ('16 and 64 training rows + 96 selection rows', '1 training row')
    """
    noun = 'training row' if counts == [1] else 'training rows'
    parts = [f'{listed([f"{count:,}" for count in counts])} {noun}'] if counts else []
    if selection := selection_rows(results):
        parts.append(terminal.counted(selection, 'selection row'))
    return ' + '.join(parts)


def selection_rows(results: Results) -> int | None:
    return ((results.get('task') or {}).get('rows') or {}).get('selection')


def pair(results: Results, one: str, other: str, size: int) -> dict[str, Any] | None:
    """The test of the difference accuracy(one) - accuracy(other) at a size; None if the pair was not tested."""
    for tested in results.get('pairs') or []:
        if tested.get('size') == size and set(tested['arms']) == {one, other} and tested.get('difference') is not None:
            return dict(tested) if tested['arms'][0] == one else _reversed(tested)
    return None


def rows_to_decide(results: Results, tested: Mapping[str, Any]) -> int | None:
    """About how many test rows would decide about an undecided pair, more than there are; None: no number does."""
    present = ((results.get('task') or {}).get('rows') or {}).get('test') or 0
    return None if tested['rows_to_decide'] is None else max(tested['rows_to_decide'], present + 1)


def positive(tested: Mapping[str, Any]) -> dict[str, Any]:
    """The test with the more accurate arm first."""
    return dict(tested) if tested['difference'] >= 0 else _reversed(tested)


def _reversed(tested: Mapping[str, Any]) -> dict[str, Any]:
    limits = tested.get('interval')
    turned = {'arms': tested['arms'][::-1], 'difference': -tested['difference']}
    return dict(tested) | turned | {'interval': [-limits[1], -limits[0]] if limits else None}


def trials(results: Results, arm: str, size: int) -> list[dict[str, Any]]:
    """The finished trials of an arm at a size; those of 0 rows hold for every size."""
    own = [trial for trial in results.get('trials') or [] if trial['arm'] == arm and trial.get('status') == 'done']
    return [trial for trial in own if trial['size'] == size] or [trial for trial in own if trial['size'] == 0]


def rate_notes(results: Results) -> list[str]:
    """Sentences about each arm that chose an end of its grid, or lost a learning rate, at the largest size.

    A rate beyond the grid may do better: such an arm may lose for the grid alone.
    """
    lines = []
    for name, arm in (results.get('arms') or {}).items():
        rates = sorted(set((arm or {}).get('learning_rates') or ()))
        own = trials(results, name, max(sizes(results), default=0))
        chosen = [(trial.get('chosen') or {}).get('learning_rate') for trial in own]
        ends = [('highest', rates[-1]), ('lowest', rates[0])] if len(rates) > 1 else []
        parts = [f'the {end} ({rate:g}) in {count}' for end, rate in ends if (count := chosen.count(rate))]
        if parts:
            total = terminal.counted(len(chosen), 'trial')
            text = f'the chosen learning rate is an end of the grid, {" and ".join(parts)} of {total}'
            lines.append(f'{name}: {text}; a wider grid may do better.')
        diverged = {rate for trial in own for rate in (trial.get('selection') or {}).get('diverged', ())}
        if diverged:
            rates = ('rate ' if len(diverged) == 1 else 'rates ') + listed([f'{rate:g}' for rate in sorted(diverged)])
            lines.append(f'{name}: the learning {rates} diverged.')
    return lines


def step_notes(results: Results) -> list[str]:
    """A sentence about the arms that chose the last evaluated step in most trials of the largest size, if there are.

    They may have been stopped too early. A trial that had only one step to choose from is not counted.
    """
    at_the_end = []
    for name in results.get('arms') or {}:
        chosen = []  # (step, the last one) of each trial
        for trial in trials(results, name, max(sizes(results), default=0)):
            candidates = (trial.get('selection') or {}).get('candidates') or ()
            steps = {each['step'] for each in candidates if each.get('step') is not None}
            if len(steps) > 1:
                chosen.append(((trial.get('chosen') or {}).get('step'), max(steps)))
        ends = [last for step, last in chosen if step == last]
        if 2 * len(ends) > len(chosen):
            texts = listed([f'{step:,}' for step in sorted(set(ends))])
            at_the_end.append(f'{name} (step {texts}, {len(ends)} of {terminal.counted(len(chosen), "trial")})')
    text = f'The chosen step is the last one of the budget in most trials: {listed(at_the_end)}'
    return [f'{text}; a larger config.budget may do better.'] if at_the_end else []


def end_notes(results: Results) -> list[str]:
    """Sentences about choices at an end of what was tried: `rate_notes` and `step_notes`."""
    return rate_notes(results) + step_notes(results)


def cost(results: Results, arm: str, size: int, field: str) -> float | None:
    """The mean over the seeds of a field of the ledger, or of 'create_flops', see `creation`."""
    read = creation if field == 'create_flops' else lambda trial: (trial.get('ledger') or {}).get(field)
    numbers = [value for trial in trials(results, arm, size) if (value := read(trial)) is not None]
    return statistics.fmean(numbers) if numbers else None


def creation(trial: Mapping[str, Any]) -> float | None:
    """FLOPs that a trial needs before its first query: of training, and of the selection with its grid and search."""
    ledger = trial.get('ledger') or {}
    trained = ledger.get('train_flops')
    if trained is None and trial.get('kind') != 'train':
        trained = 0.0
    selected = ledger.get('selection_flops')
    if selected is None and not (trial.get('selection') or {}).get('candidates'):
        selected = 0.0
    return None if trained is None or selected is None else trained + selected


def kind(results: Results, arm: str) -> str:
    """'prompt' or 'train'."""
    return ((results.get('arms') or {}).get(arm) or {}).get('kind') or 'train'


def is_prompt(results: Results, arm: str) -> bool:
    return kind(results, arm) != 'train'


def forgotten(results: Results, arm: str) -> float | None:
    """By how many bits per byte an arm predicts the base's own text worse than the base does; of a prompt 0."""
    measured = results.get('forgetting') or {}
    if measured and arm not in measured and is_prompt(results, arm):
        return 0.0
    entry = measured.get(arm) or {}
    before, after = entry.get('bits_per_byte_before'), entry.get('bits_per_byte_after')
    return None if before is None or after is None else after - before


def ends(entry: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of an accuracy; without one, the accuracy itself at both ends."""
    low, high = entry.get('interval') or [entry['accuracy']] * 2
    return low, high


def accuracy(entry: Mapping[str, Any]) -> str:
    """
    >>> accuracy({'accuracy': 0.84, 'interval': [0.81, 0.87]}), accuracy({'accuracy': 0.84})
    ('84.0 % (81.0 to 87.0)', '84.0 %')
    """
    limits = entry.get('interval')
    return (
        f'{percent(entry["accuracy"])} ({interval(limits).removesuffix(" %")})'
        if limits
        else percent(entry['accuracy'])
    )


def change(bits: float | None) -> str:
    """
    >>> change(0.0123), change(-0.5)
    ('+0.012', '−0.500')
    """
    return NOT_MEASURED if bits is None else f'{bits:+.3f}'.replace('-', '−')


def percent(share: float | None) -> str:
    """
    >>> percent(0.8421), percent(None)
    ('84.2 %', 'not measured')
    """
    return NOT_MEASURED if share is None else f'{100 * share:.1f} %'


def points(difference: float | None) -> str:
    """A difference of accuracies, in percentage points.

    >>> points(0.0312), points(-0.004)
    ('+3.1', '−0.4')
    """
    return NOT_MEASURED if difference is None else f'{100 * difference:+.1f}'.replace('-', '−')


def interval(limits: list[float] | None, scale=percent) -> str:
    """
    >>> interval([0.81, 0.8712]), interval([-0.01, 0.02], points)
    ('81.0 to 87.1 %', '−1.0 to +2.0')
    """
    if not limits or None in limits:
        return NOT_MEASURED
    low, high = map(scale, limits)
    return f'{low.removesuffix(" %")} to {high}'


def probability(p: float | None) -> str:
    """
    >>> probability(0.0123), probability(1e-9), probability(1.0)
    ('0.012', '< 0.001', '1.0')
    """
    if p is None:
        return NOT_MEASURED
    return '< 0.001' if p < 0.001 else f'{p:.3f}' if p < 0.0995 else f'{min(p, 1.0):.2f}' if p < 0.995 else '1.0'


def seconds(value: float | None, significant: int = 3) -> str:
    """
    >>> seconds(0), seconds(0.0204), seconds(2.5), seconds(245)
    ('0 s', '20.4 ms', '2.50 s', '4m 05s')
    """
    if value is None or not value or value >= 60:
        return NOT_MEASURED if value is None else terminal.duration(value) if value else '0 s'
    scaled, name = (1000 * value, 'ms') if value < 1 else (value, 's')
    return f'{terminal.number(scaled, significant=significant)} {name}'


def quantity(value: float | None, unit: str, significant: int = 3) -> str:
    """
    >>> quantity(1.5e12, 'FLOP'), quantity(0, 'B'), quantity(None, 'B')
    ('1.50 TFLOP', '0 B', 'not measured')
    """
    return NOT_MEASURED if value is None else terminal.unit(value, unit, significant)


def count(value: float | None) -> str:
    """
    >>> count(12_345), count(0), count(None)
    ('12.3k', '0', 'not measured')
    """
    return NOT_MEASURED if value is None else terminal.number(value)


def money(value: float | None, currency: str) -> str:
    """Two significant digits.

    >>> money(0.00123, 'EUR'), money(12.3, 'EUR'), money(1e-7, 'EUR'), money(0, 'EUR')
    ('0.0012 EUR', '12 EUR', '< 0.0001 EUR', '0 EUR')
    """
    if value is None or 0 < value < 1e-4:
        return NOT_MEASURED if value is None else f'< 0.0001 {currency}'
    digits = 0 if not value else max(0, 1 - math.floor(math.log10(abs(value))))
    return f'{value:,.{digits}f} {currency}'


def amount(results: Results, value: float | None, unit: str) -> str:
    """A cost as text; `unit` is 's', 'money', '' for a count, or takes an SI prefix."""
    if unit == 's':
        return seconds(value)
    if unit == 'money':
        return money(value, (results.get('prices') or {}).get('currency') or '')
    return quantity(value, unit) if unit else count(value)


def listed(names: list[str]) -> str:
    """
    >>> listed(['a']), listed(['a', 'b', 'c'])
    ('a', 'a, b and c')
    """
    return ' and '.join(filter(None, [', '.join(names[:-1]), *names[-1:]]))
