"""The page of `lmtrain cost`: the table of `plan.costs`, what it assumes, and when training breaks even."""

import pathlib

from lmtrain import tree
from lmtrain.cost import hardware, ledger
from lmtrain.plan.costs import ANSWER, Costs, Way, Workload, machine
from lmtrain.report import terminal


def page(config, workload: Workload, target: hardware.Target | None) -> str:
    """The page of `lmtrain cost`. Raises what `Costs` and `machine` raise."""
    costs = Costs(config, workload, machine(target, config.model.dtype))
    queries, created = list(costs.queries()), list(costs.created())
    return '\n\n'.join([_heading(costs), _table(costs, queries, created), _notes(costs, queries, created)])


def _heading(costs: Costs) -> str:
    model, on = costs.model, costs.machine
    base = f'{pathlib.Path(costs.config.init.base).name}, ' if costs.base else ''
    size = f'{terminal.number(tree.count(costs.params))} parameters, context of {model.max_len:,} tokens, {model.dtype}'
    speed = f'{terminal.unit(on.peak, "FLOP/s")}{" measured by a product" if on.measured else ""}'
    used = f'{on.chips} x {on.name} of {speed}' if on.measured else f'{on.name}, {speed} a device'
    lines = [
        ('model', base + size),
        ('machine', f'{used}, of which {terminal.percent(costs.config.plan.mfu)} are used'),
    ]
    return '\n'.join(['what each way costs', *(terminal.note(*line) for line in lines)])


def _table(costs: Costs, queries: list[Way], created: list[Way]) -> str:
    price, limit = costs.config.plan.price, costs.machine.memory

    def cells(way: Way) -> tuple[str, ...]:
        size = terminal.number(way.memory, terminal.SI) + ('!' if way.memory > limit else '')
        figures = (way.create, way.query, way.stored)
        money = price * way.devices * way.seconds / 3600
        return (
            f'  {way.name}',
            terminal.number(way.trained),
            *(terminal.number(figure, terminal.SI) for figure in figures),
            size,
            _time(way.seconds),
            f'{money:.1e}' if money < 0.01 else terminal.number(money),
        )

    blank = ('',) * 7
    rows = [('', 'train', 'create', 'query', 'store', 'memory', 'time', 'money')]
    rows.append(('', '', 'FLOP', 'FLOP', 'B', 'B', '', ''))
    if queries:
        rows += [('nothing is trained', *blank), *map(cells, queries)]
    rows += [('created first', *blank), *map(cells, created)]
    if not price:
        rows = [row[:-1] for row in rows]
    return '\n'.join(terminal.table(rows, right=tuple(range(1, len(rows[0])))))


def _time(seconds: float) -> str:
    """A time from microseconds to years.

    >>> _time(0.0123), _time(4e-6), _time(90), _time(1e12)
    ('12.3 ms', '4 us', '1m 30s', '31,688 y')
    """
    if seconds < 1:
        return f'{terminal.number(1e6 * seconds)} us' if seconds < 1e-3 else f'{terminal.number(1e3 * seconds)} ms'
    years = seconds / 86400 / 365.25
    return f'{years:,.0f} y' if years > 3 else terminal.duration(seconds)


def _break_even(queries: list[Way], created: list[Way]) -> str:
    """The queries until each way that is created has cost fewer FLOPs than the demonstrations; '' without any."""
    shots = [way for way in queries if way.stored]
    if not shots:
        return ''
    whole, cached = shots
    prompt = {'train_flops': 0.0, 'selection_flops': 0.0}
    prompt |= {'query_flops': whole.query, 'query_flops_cached': cached.query}
    parts = []
    for way in created[1:-2]:  # without the search before the methods and the pretraining after them
        own = {'train_flops': way.create, 'selection_flops': 0.0}
        own |= dict.fromkeys(('query_flops', 'query_flops_cached'), way.query)
        counts = (ledger.break_even(prompt, own, cached=kept) for kept in (False, True))
        first, second = ('never' if count is None else terminal.number(count) for count in counts)
        parts.append(f'{way.name} {first} ({second})' if second != first else f'{way.name} {first}')
    return f'queries until it has cost less than {whole.name} (cached): {", ".join(parts)}'


def _notes(costs: Costs, queries: list[Way], created: list[Way]) -> str:
    """What the numbers assume, and when training breaks even."""
    w = costs.workload

    def tokens(training) -> str:
        return f'{terminal.number(training.tokens)} tokens: {training.source}'

    answers = f'{w.classes} answers of {ANSWER}; a demonstration has {costs.row + ANSWER}'
    search = f'{w.candidates} prompts on {w.selection} rows, demonstrations encoded once for all rows'
    lines = [
        ('query', f'{costs.row} tokens, {answers if costs.model.causal else f"{w.classes} classes"}'),
        *([('search', search)] if queries else []),
        ('methods', tokens(costs.adaptation())),
        ('continual', tokens(costs.continual())),
        ('base', tokens(costs.pretraining())),
        ('time', 'of one query if nothing is trained, else to create; so is the money'),
    ]
    if even := _break_even(queries, created):
        lines.append(('break-even', even))
    if any(way.memory > costs.machine.memory for way in queries + created):
        limit = terminal.unit(costs.machine.memory, 'B')
        lines.append(('memory', f'if one device holds everything; "!" exceeds the {limit} of a {costs.machine.name}'))
    lines += [('not shown', note) for note in costs.notes]
    return '\n'.join(['assumed', *(terminal.note(*line) for line in lines)])
