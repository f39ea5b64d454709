"""Sections about prompts, description length, forgetting, break-even, and all pairs; [] for what was not measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmtrain.compare.pages import plots, values
from lmtrain.compare.pages.blocks import LOWER, Cell, Column, Figures, Paragraph, Table, arm_cell, lowest, table
from lmtrain.compare.pages.recommendation import Recommendation
from lmtrain.compare.pages.values import NOT_MEASURED, Results, interval, points
from lmtrain.evaluation.statistics import LEVEL
from lmtrain.report import terminal


def sensitivity(results: Results) -> list:
    """The spread of accuracy over demonstration sets, over their orders, and over templates, on the selection rows."""
    blocks: list = []
    for name, repeated in (
        ('sensitivity', 'other sets and orders of demonstrations'),
        ('order_sensitivity', 'other orders of the same demonstrations'),
        ('template_sensitivity', 'other templates, and the same demonstrations'),
    ):
        spreads = {arm: own for arm, own in (results.get(name) or {}).items() if own.get('mean') is not None}
        if not spreads:
            continue
        text = f'Each arm was repeated with {repeated}.'
        if name == 'sensitivity':
            text += ' Dots are means, thick bars the middle half, thin bars 5 to 95 %, lines the worst and the best.'
        if name == 'order_sensitivity':
            text += ' Each seed has its own demonstrations: the standard deviation within a seed is that of the order.'
        text += ' ' + _covered(results)
        blocks += [Paragraph(text), *([Figures(plots.sensitivity(results, spreads))] if name == 'sensitivity' else [])]
        blocks.append(_spreads(results, spreads))
    return blocks


def _covered(results: Results) -> str:
    """What the intervals of `statistics.spread` cover here: prompts of all seeds are one sample, rows are fixed."""
    count = values.selection_rows(results)
    rows = terminal.counted(count, 'selection row') if count else 'selection rows'
    return (
        f'Intervals cover the choice of the prompts alone, on these {rows}: they do not cover other rows, and prompts '
        "of several seeds count as independent. Those of the mean are by Student's t, the others by the bootstrap over "
        'prompts. Only the intervals of the worst and the best are over rows: Wilson intervals of this one prompt, '
        'which do not cover that it is the worst or the best of several.'
    )


def _spreads(results: Results, spreads: Mapping[str, Mapping[str, Any]]) -> Table:
    arms = sorted(spreads, key=lambda arm: -spreads[arm]['mean'])
    means = [values.accuracy(spreads[arm] | {'accuracy': spreads[arm]['mean']}) for arm in arms]
    columns = [
        ('prompts', [Cell(values.count(spreads[arm].get('n'))) for arm in arms]),
        ('mean (95 % interval)', [Cell(text) for text in means]),
        ('standard deviation (95 %)', [Cell(_deviation(spreads[arm])) for arm in arms]),
        ('within a seed', [Cell(_points(spreads[arm].get('stdev_within'))) for arm in arms]),
        ('worst (95 % over rows)', [Cell(_extreme(spreads[arm], 'worst')) for arm in arms]),
        *((f'{title} (95 %)', [Cell(_quantile(spreads[arm], name)) for arm in arms]) for name, title in QUANTILES),
        ('best (95 % over rows)', [Cell(_extreme(spreads[arm], 'best')) for arm in arms]),
    ]
    return table(results, arms, columns)


def _extreme(spread: Mapping[str, Any], name: str) -> str:
    value = spread.get(name)
    limits = spread.get(f'{name}_interval')  # None in results of earlier versions
    return NOT_MEASURED if value is None else values.accuracy({'accuracy': value, 'interval': limits})


def _deviation(spread: Mapping[str, Any]) -> str:
    limits = (spread.get('intervals') or {}).get('stdev')
    text = _points(spread.get('stdev'))
    return f'{text} ({100 * limits[0]:.1f} to {100 * limits[1]:.1f})' if limits else text


def _quantile(spread: Mapping[str, Any], name: str) -> str:
    value = (spread.get('quantiles') or {}).get(name)
    limits = (spread.get('intervals') or {}).get(name)
    return NOT_MEASURED if value is None else values.accuracy({'accuracy': value, 'interval': limits})


QUANTILES = (('0.05', '5 % quantile'), ('0.5', 'median'), ('0.95', '95 % quantile'))


def _points(difference: float | None) -> str:
    """A difference without a sign."""
    return NOT_MEASURED if difference is None else f'{100 * difference:.1f} points'


def description_length(results: Results) -> list:
    """Bits of the labels."""
    every = results.get('description_length') or {}
    lengths = {arm: own for arm, own in every.items() if own.get('bits') is not None}
    if not lengths:
        return []
    text = 'The prequential code length of the labels: each block of rows is coded by the arm that was trained on, or '
    text += 'prompted with, the blocks before it. An arm that needs fewer rows needs fewer bits. No test set is used.'
    arms = sorted(lengths, key=lambda arm: lengths[arm]['bits'])
    bits, uniform = ([lengths[arm].get(name) for arm in arms] for name in ('bits', 'uniform_bits'))
    cells = [cell._replace(bar=100 * own / max(bits)) for cell, own in zip(_bits(bits), bits)]
    shares = [Cell(f'{100 * own / whole:.0f} %' if whole else NOT_MEASURED) for own, whole in zip(bits, uniform)]
    columns = [('bits' + LOWER, cells), ('of a uniform code', shares)]
    blocks = {arm: dict(map(tuple, lengths[arm].get('blocks') or [])) for arm in arms}
    for end in sorted({end for own in blocks.values() for end in own}):
        columns.append((f'bits to row {end:,}', _bits([blocks[arm].get(end) for arm in arms])))
    return [Paragraph(text), table(results, arms, columns)]


def _bits(numbers: Sequence[float | None]) -> list[Cell]:
    return lowest([(number, '–' if number is None else f'{number:,.0f}') for number in numbers])


def forgetting(results: Results) -> list:
    """Bits per byte on the base's own text, and the divergence from the base."""
    own = results.get('forgetting') or {}
    if not own:
        return []
    named = (results.get('base') or {}).get('text')
    which = f'{named}, a text like that of the base,' if named else "the base's own text"
    text = f'Bits per byte on {which} before and after, and the KL divergence of the predictions from those of the '
    text += 'base. A prompt changes no parameter.'
    known = {arm: change for arm in own if (change := values.forgotten(results, arm)) is not None}
    arms = sorted(own, key=lambda arm: known.get(arm, float('inf')))
    widest = max(map(abs, known.values()), default=0.0) or 1.0
    bars = [Cell(values.change(known.get(arm)), bar=100 * max(0.0, known.get(arm, 0.0)) / widest) for arm in arms]
    ends = [
        (when, [Cell(_decimal(own[arm].get(f'bits_per_byte_{when}'), 3)) for arm in arms])
        for when in ('before', 'after')
    ]
    divergences = [(own[arm].get('kl'), _decimal(own[arm].get('kl'), 4)) for arm in arms]
    columns = [*ends, ('change' + LOWER, bars), ('KL to the base, nats' + LOWER, lowest(divergences))]
    return [Paragraph(text), table(results, arms, columns)]


def _decimal(value: float | None, digits: int) -> str:
    return NOT_MEASURED if value is None else f'{value:.{digits}f}'


def break_even(results: Results, advice: Recommendation) -> list:
    """The number of queries from which a trained arm costs less than a prompt."""
    size = advice.choice.size
    entries = [entry for entry in results.get('break_even') or [] if entry.get('size') in (size, None)]
    if not entries:
        return []
    text = 'The number of queries after which a trained arm has cost less than a prompt, creation included, if a FLOP '
    text += (
        'of creation costs as much as a FLOP of a query, and every query reads the whole prompt. The quality is equal '
    )
    text += 'only if the accuracies do not differ.'
    names = {name for entry in entries for name in (entry['prompt'], entry['trained'])}
    ranked = [advice.choice.arm, *values.scored(results, size), *names]
    anchor = next(arm for arm in ranked if arm in names)
    own = [entry for entry in entries if anchor in (entry['prompt'], entry['trained'])]
    order = sorted(entries, key=lambda entry: anchor not in (entry['prompt'], entry['trained']))
    columns = [Column(name, numeric=False) for name in ('trained arm', 'prompt')]
    columns += [
        Column('difference in accuracy, points (95 %, not corrected)'),
        Column('queries'),
        Column('shared tokens cached'),
    ]
    columns += [Column(f'creation at {ratio} the price') for ratio in ('a tenth of', 'ten times')]
    rows = [_even(results, entry, size) for entry in order]
    folded = Table(columns, rows, summary='All pairs of a prompt and a trained arm')
    return [Paragraph(text), Figures(plots.break_even(results, own, anchor)), folded]


def _even(results: Results, entry: Mapping[str, Any], size: int) -> list[Cell]:
    tested = values.pair(results, entry['trained'], entry['prompt'], size)
    difference = (
        f'{points(tested["difference"])} ({interval(tested.get("interval"), points)})' if tested else NOT_MEASURED
    )
    curve = dict(map(tuple, entry.get('curve') or []))
    counts = [entry.get('queries'), entry.get('queries_cached', NOT_MEASURED)]
    counts += [curve.get(ratio, NOT_MEASURED) for ratio in (0.1, 10)]
    texts = [count if isinstance(count, str) else 'never' if count is None else values.count(count) for count in counts]
    return [*(arm_cell(results, entry[name]) for name in ('trained', 'prompt')), Cell(difference), *map(Cell, texts)]


def pairs(results: Results, advice: Recommendation) -> list:
    """The recommended arm against every other one; folded, all pairs of each size."""
    tested = [pair for pair in results.get('pairs') or [] if pair.get('difference') is not None]
    if not tested:
        return []
    text = (
        "Differences on the same test rows. Bold: significant at 5 % after Holm's correction over all pairs of a size. "
    )
    text += 'Intervals are not corrected for the number of pairs. '
    if (margin := results.get('margin')) is not None:
        text += f'Arms are equivalent if p of a difference of {100 * margin:g} points or more is below 5 % after the '
        text += 'same correction. '
    text += 'Detectable is the smallest difference that such a test finds in 80 % of cases. Rows to decide: about how '
    text += 'many test rows would show a difference or equivalence, if the difference stays as it is.'
    columns = [Column('arms', numeric=False), Column('difference, points'), Column('95 % interval')]
    columns += [Column(title) for title in ('p', 'p after Holm', 'p of the margin, after Holm')]
    columns += [Column('detectable'), Column('rows to decide')]
    size, arm = advice.choice.size, advice.choice.arm or advice.choice.leader
    own = [values.pair(results, arm, other, size) for other in values.scored(results, size)]
    blocks: list = [Paragraph(text), Table(columns, [_pair(results, pair) for pair in own if pair])]
    for rows in sorted({pair['size'] for pair in tested}, reverse=True):
        ranked = sorted((pair for pair in tested if pair['size'] == rows), key=lambda pair: -abs(pair['difference']))
        summary = f'{terminal.counted(rows, "training row")}: {terminal.counted(len(ranked), "pair")}'
        blocks.append(Table(columns, [_pair(results, values.positive(pair)) for pair in ranked], summary=summary))
    return blocks


def _pair(results: Results, pair: Mapping[str, Any]) -> list[Cell]:
    holm, within = (pair.get(name) for name in ('p_holm', 'p_equivalent_holm'))
    significant, equivalent = (p is not None and p < LEVEL for p in (holm, within))
    decided = significant or equivalent or 'rows_to_decide' not in pair
    rows = None if decided else values.rows_to_decide(results, pair)
    return [
        Cell(' − '.join(pair['arms']), significant),
        Cell(points(pair['difference']), significant),
        Cell(interval(pair.get('interval'), points)),
        Cell(values.probability(pair.get('p'))),
        Cell(values.probability(holm), significant),
        Cell(values.probability(within), equivalent),
        Cell(_points(pair.get('detectable'))),
        Cell('' if decided else values.count(rows) if rows is not None else 'more seeds'),
    ]
