"""The sections of the report of a comparison. Here: all arms, what is missing, Pareto fronts, accuracy over rows."""

import collections

from lmtrain.compare.pages import analyses, choice, pareto, plots, protocol, values
from lmtrain.compare.pages.blocks import (
    HIGHER,
    LOWER,
    Bullets,
    Cell,
    Column,
    Figures,
    Paragraph,
    Section,
    Table,
    arm_cell,
    lowest,
    table,
)
from lmtrain.compare.pages.recommendation import Recommendation
from lmtrain.compare.pages.values import NOT_MEASURED, Results, listed
from lmtrain.report import terminal

# (field of the ledger, title, unit of `values.amount`)
COSTS = (
    ('query_seconds', 'latency of a query', 's'),
    ('query_seconds_cached', 'latency, shared tokens cached', 's'),
    ('create_flops', 'compute to create', 'FLOP'),
    ('device_seconds', 'time to create', 's'),
    ('price', 'price to create', 'money'),
    ('query_flops', 'compute of a query', 'FLOP'),
    ('query_flops_cached', 'the same, shared tokens cached', 'FLOP'),
    ('decode_flops', 'of it, decoding', 'FLOP'),
    ('query_tokens', 'tokens of a query', ''),
    ('update_seconds', 'time to update', 's'),
    ('stored_bytes', 'stored', 'B'),
    ('cache_bytes', 'cache of shared tokens', 'B'),
    ('trainable_parameters', 'trained parameters', ''),
    ('peak_bytes', 'peak memory to create', 'B'),
    ('joules', 'energy to create', 'J'),
)
FRONTS = (
    ('rows', 'training rows', ''),
    ('create_flops', 'compute to create, FLOP', 'FLOP'),
    ('trainable_parameters', 'trained parameters', ''),
    ('peak_bytes', 'peak memory to create, bytes', 'B'),
    ('query_seconds', 'latency of a query', 's'),
    ('query_flops', 'compute of a query, FLOP', 'FLOP'),
)


def sections(results: Results, advice: Recommendation) -> list[Section]:
    """The sections after the recommendation, in their order. Those without results are listed as missing."""
    size = advice.choice.size
    measured = [
        Section('fronts', 'What accuracy costs', fronts(results, size)),
        Section('rows', 'How many rows it takes', efficiency(results)),
        Section('sensitivity', 'How much the prompt matters', analyses.sensitivity(results)),
        Section('description-length', 'Description length of the labels', analyses.description_length(results)),
        Section('forgetting', 'What the base forgets', analyses.forgetting(results)),
        Section('break-even', 'Break-even', analyses.break_even(results, advice)),
        Section('pairs', 'Differences between arms', analyses.pairs(results, advice)),
    ]
    empty = [section.title for section in measured if not section.blocks]
    return [
        Section('trade-offs', 'All arms', trade_offs(results, advice)),
        Section('missing', 'What is missing', missing(results, size, empty)),
        *(section for section in measured if section.blocks),
        Section('protocol', 'Protocol', protocol.protocol(results)),
        Section('provenance', 'Provenance', protocol.provenance(results)),
        Section('trials', 'Trials', protocol.trials(results)),
    ]


def trade_offs(results: Results, advice: Recommendation) -> list:
    """The table of all arms at the largest size: accuracy and every measured cost."""
    size = advice.choice.size
    arms = values.scored(results, size)
    if not arms:
        return [Paragraph('No arm has a result.')]
    columns = [('accuracy (95 % interval)' + HIGHER, _accuracies(results, arms, size))]
    for field, title, unit in COSTS:
        numbers = [values.cost(results, arm, size, field) for arm in arms]
        if any(numbers):  # a cost that is 0 for every arm has no column
            cells = lowest([(number, values.amount(results, number, unit)) for number in numbers])
            columns.append((title + LOWER, cells))
    changes = [values.forgotten(results, arm) for arm in arms]
    if any(change is not None for change in changes):
        cells = lowest([(change, values.change(change)) for change in changes])
        columns.append(('forgetting, bits per byte' + LOWER, cells))
    marked = arms.index(advice.choice.arm) if advice.choice.arm in arms else None
    text = f'With {values.labelled(results, [size])}, the most accurate arm first; costs are means over the '
    text += 'seeds. Arrows show which direction is better, and the best of a column is bold. The creation of an arm '
    text += 'includes everything that selected it: the grid of learning rates, the search over prompts, calibration. '
    text += 'The time to create includes compilation, except of train steps: it is longer for the arms that run first.'
    return [Paragraph(text), table(results, arms, columns, marked=marked)]


def _accuracies(results: Results, arms: list[str], size: int) -> list[Cell]:
    """Accuracies with intervals, drawn on a common axis."""
    entries = [values.summary(results, arm, size) for arm in arms]
    spans = [values.ends(entry) for entry in entries]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    best, scale = max(entry['accuracy'] for entry in entries), 100 / (high - low or 1.0)
    cells = []
    for entry, (left, right) in zip(entries, spans):
        span = tuple((end - low) * scale for end in (left, entry['accuracy'], right))
        cells.append(Cell(values.accuracy(entry), entry['accuracy'] == best, span=span))
    return cells


def missing(results: Results, size: int, empty: list[str]) -> list:
    """Arms and trials without a result, with the reason, and what was not measured.

    Args:
      empty: titles of sections that have no content.
    """
    rows = []
    for name, arm in (results.get('arms') or {}).items():
        trials = [trial for trial in results.get('trials') or [] if trial['arm'] == name]
        failed = [trial for trial in trials if trial.get('status') != 'done']
        if arm.get('status') == 'done' and not failed:
            continue
        places = [f'{terminal.counted(trial["size"], "row")}, seed {trial["seed"]}' for trial in failed]
        reasons = dict.fromkeys(filter(None, [arm.get('reason'), *(trial.get('reason') for trial in failed)]))
        texts = [arm.get('status') or 'no result', '; '.join(places) or 'all']
        texts.append('; '.join(reasons) or 'no reason was recorded')
        rows.append([arm_cell(results, name), *map(Cell, texts)])
    titles = ('arm', 'status', 'trials', 'reason')
    blocks = [Table([Column(title, numeric=False) for title in titles], rows)] if rows else []
    lines = [*_left_out(results), *_not_measured(results, values.scored(results, size), size)]
    if empty:
        lines.append(f'Not measured, so that the section is left out: {"; ".join(empty)}.')
    if lines:
        blocks.append(Bullets(lines))
    return blocks or [Paragraph('Nothing: every trial of every arm finished, and every cost was measured.')]


def _left_out(results: Results) -> list[str]:
    """Notes about rows and sizes, selection and test rows that an arm read in part, and ends of grids and budgets."""
    lines = [str(note) for note in (results.get('task') or {}).get('notes') or []]
    texts = {'selection': 'Selection rows that were cut to the context'}
    texts['test'] = 'Test rows that were cut, to data.seq_len or to the context'
    for part, text in texts.items():
        cut: dict[str, int] = {}
        for trial in results.get('trials') or []:
            if count := (trial.get(part) or {}).get('cut'):
                cut[trial['arm']] = max(count, cut.get(trial['arm'], 0))
        if counts := [f'{arm} {count:,}' for arm, count in cut.items()]:
            lines.append(f'{text}: {listed(counts)}.')
    stopped = collections.Counter(trial['arm'] for trial in results.get('trials') or [] if trial.get('interrupted'))
    if counts := [f'{arm} {count:,}' for arm, count in stopped.items()]:
        text = 'Time to create is a lower bound of trials that were stopped and continued'
        lines.append(f'{text}: {listed(counts)}.')
    return [*lines, *values.end_notes(results)]


def _not_measured(results: Results, arms: list[str], size: int) -> list[str]:
    fields = {title: [values.cost(results, arm, size, field) for arm in arms] for field, title, _ in COSTS}
    fields['forgetting, bits per byte'] = [values.forgotten(results, arm) for arm in arms]
    gaps = {title: [arm for arm, number in zip(arms, numbers) if number is None] for title, numbers in fields.items()}
    absent = [title for title, own in gaps.items() if own and own == arms]
    lines = [f'Not measured for any arm: {listed(absent)}.'] if absent else []
    return lines + [f'Not measured, {title}: {listed(own)}.' for title, own in gaps.items() if own and own != arms]


def fronts(results: Results, size: int) -> list:
    """Pareto fronts as panels and as a table."""
    panels = plots.fronts(results, size, FRONTS)
    if not panels:
        return []
    text = 'Better is up and to the left. Circles are prompts, squares are trained arms, lines are 95 % intervals. '
    text += 'Filled: no other arm is as cheap and as accurate. Open: there is one, but its lead in accuracy is not '
    text += f'significant. Grey: there is one that is significantly more accurate. Costs are those with {size:,} '
    text += 'training rows, except in the panel of rows.'
    arms, columns = values.scored(results, size), []
    for field, title, _ in FRONTS[1:]:
        ranks = pareto.classes(results, pareto.points(results, size, field))
        own = {point.arm: rank for point, rank in ranks.items()}
        if own:
            ranked = [own.get(arm, NOT_MEASURED) for arm in arms]
            columns.append((title, [Cell(rank, rank == pareto.FRONT) for rank in ranked]))
    return [Paragraph(text), Figures(panels), table(results, arms, columns, summary='The same as a table')]


def efficiency(results: Results) -> list:
    """Accuracy over the number of training rows."""
    sizes = values.sizes(results)
    sizes = [size for size in sizes if size] or sizes  # an arm without rows is shown at every size
    if not sizes:
        return []
    text = 'Accuracy over the number of training rows, with 95 % intervals; the other arms are grey. Smaller sets are '
    text += 'parts of the larger ones.'
    if selection := values.selection_rows(results):
        text += f' All sizes share {terminal.counted(selection, "selection row")}, which are labelled too: an arm with '
        text += f'{terminal.counted(sizes[0], "training row")} uses {sizes[0] + selection:,} labelled rows.'
    panels = plots.efficiency(results)
    arms = list(dict.fromkeys(arm for size in sizes[::-1] for arm in values.scored(results, size)))
    rows = []
    for arm in arms:
        entries = [values.summary(results, arm, size) for size in sizes]
        rows.append([arm_cell(results, arm), *(Cell(values.accuracy(entry) if entry else '–') for entry in entries)])
    advised = [choice.choose(results, size).arm or 'none' for size in sizes]
    rows.append([Cell('recommended', True), *(Cell(arm, True) for arm in advised)])
    columns = [Column('arm', numeric=False), *(Column(terminal.counted(size, 'row')) for size in sizes)]
    return [*([Paragraph(text), Figures(panels, small=True)] if panels else []), Table(columns, rows)]
