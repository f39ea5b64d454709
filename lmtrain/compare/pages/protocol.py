"""Sections about how a comparison was run: protocol, provenance, trials."""

import json
from collections.abc import Mapping
from typing import Any

from lmtrain.compare.pages import values
from lmtrain.compare.pages.blocks import Cell, Column, Facts, Paragraph, Table, arm_cell
from lmtrain.compare.pages.values import NOT_MEASURED, Results, listed, percent
from lmtrain.files import flatten_fields
from lmtrain.report import terminal

CLASSES = 12  # that are named
BY = 'by the loss at the temperature that is fitted there'
# (title, numeric) of the table of trials
TRIAL = (
    ('arm', False),
    ('rows', True),
    ('seed', True),
    ('status', False),
    ('chosen on the selection rows', False),
    ('accuracy there', True),
    ('accuracy on the test rows', True),
    ('loss, nats', True),
    ('compute to create', True),
    ('time to create', True),
    ('folder', False),
)


def protocol(results: Results) -> list:
    """Task, rows, seeds, what was selected on which rows, and the arms."""
    facts = [*_task(results), *_rows(results), *_evaluation(results)]
    return [Facts([(label, text) for label, text in facts if text]), *([_arms(results)] if results.get('arms') else [])]


def _task(results: Results) -> list[tuple[str, str]]:
    task, base = results.get('task') or {}, results.get('base') or {}
    classes = list(map(str, task.get('classes') or []))
    named = ', '.join(classes[:CLASSES]) + (', ...' if len(classes) > CLASSES else '')
    parts = [base.get('directory'), base.get('parameters') and f'{terminal.number(base["parameters"])} parameters']
    parts += [base.get('context') and f'a context of {base["context"]:,} tokens']
    floors = (('majority', 'the most frequent class'), ('chance', 'chance'))
    known = [f'{percent(task[name])} by {text}' for name, text in floors if task.get(name) is not None]
    return [
        ('Task', task.get('name') or NOT_MEASURED),
        ('Template', task.get('template') or ''),
        ('Classes', f'{len(classes)}: {named}' if classes else ''),
        ('Without a model', ', '.join(known)),
        ('Base', ', '.join(map(str, filter(None, parts)))),
    ]


def _rows(results: Results) -> list[tuple[str, str]]:
    rows, trials = (results.get('task') or {}).get('rows') or {}, results.get('trials') or []
    uses = (('train', 'training'), ('selection', 'selection'), ('test', 'the test'))
    counts = [f'{rows[name]:,} for {use}' for name, use in uses if rows.get(name) is not None]
    sizes = [f'{size:,}' for size in values.sizes(results) if size]
    seeds = [str(seed) for seed in sorted({trial['seed'] for trial in trials})]
    margin = results.get('margin')
    return [
        ('Labelled rows', listed(counts)),
        ('Training sets', f'{listed(sizes)} rows, each a part of the next; all arms see the same' if sizes else ''),
        ('Seeds', f'{listed(seeds)}; a seed draws the rows as well as the initial values' if seeds else ''),
        ('Selection', f'learning rate, step, prompt and calibration were chosen on the selection rows alone, {BY}'),
        ('Margin', '' if margin is None else f'arms within {100 * margin:g} points count as equivalent'),
        ('Test', _test(trials)),
    ]


def _test(trials: list) -> str:
    """When the trials were tested, and which results were known then (`testing`)."""
    stages: dict[int, list[str]] = {}  # the arms of each
    for trial in trials:
        if trial.get('test'):
            stages.setdefault(trial['test'].get('stage', 1), []).append(trial['arm'])
    first, *later = sorted(stages) or [1]
    if not later:
        return 'each trial was tested once, after every trial had finished'
    parts = [f'in {1 + len(later)} stages, each after its trials had finished']
    for stage in later:
        known = dict.fromkeys(arm for other in sorted(stages) if other < stage for arm in stages[other])
        new = listed(list(dict.fromkeys(stages[stage])))
        parts.append(f'when that of {new} began, the results of {listed(list(known))} were known')
    return '; '.join(parts)


def _evaluation(results: Results) -> list[tuple[str, str]]:
    tests = [trial['test'] for trial in results.get('trials') or [] if trial.get('test')]
    fields = ('engine', 'dtype', 'attention', 'batch_size')
    engines = {', '.join(f'{name.replace("_", " ")} {test.get(name)}' for name in fields) for test in tests}
    prices, price = results.get('prices') or {}, 'not configured: costs are counted in FLOPs'
    if prices.get('device_hour') or prices.get('kwh'):
        unit = prices.get('currency') or ''
        price = f'{prices.get("device_hour") or 0:g} {unit} for an hour of a device, {prices.get("kwh") or 0:g} {unit} '
        price += f'for a kWh, {prices.get("watts") or 0:g} W for a device'
    return [('Evaluated by', '; '.join(sorted(engines))), ('Prices', price)]


def _arms(results: Results) -> Table:
    rows = []
    for name, arm in (results.get('arms') or {}).items():
        own = [trial for trial in results.get('trials') or [] if trial['arm'] == name]
        candidates = {len((trial.get('selection') or {}).get('candidates') or []) for trial in own} - {0}
        texts = [arm.get('kind'), arm.get('description'), _fields(arm.get('overrides') or {})]
        texts.append(', '.join(map(str, sorted(candidates))))
        rows.append([arm_cell(results, name), *(Cell(text or '–') for text in texts)])
    titles = ('arm', 'kind', 'description', 'overrides', 'candidates in each trial')
    return Table([Column(title, numeric=False) for title in titles], rows)


def _fields(fields: Mapping[str, Any]) -> str:
    """The fields of an object as text."""
    flat = flatten_fields(dict(fields))
    return ', '.join(
        f'{name} = {value if isinstance(value, str) else json.dumps(value)}' for name, value in flat.items()
    )


def provenance(results: Results) -> list:
    """Command, commit, machine and versions."""
    facts = flatten_fields(results.get('provenance') or {})
    return [Facts([(name, str(value)) for name, value in facts.items()])] if facts else [Paragraph('Not recorded.')]


def trials(results: Results) -> list:
    """The folded table of all trials."""
    own = results.get('trials') or []
    if not own:
        return [Paragraph('No trial was recorded.')]
    rows = [_trial(results, trial) for trial in own]
    columns = [Column(title, numeric) for title, numeric in TRIAL]
    return [Table(columns, rows, summary=f'All {terminal.counted(len(rows), "trial")}')]


def _trial(results: Results, trial: Mapping[str, Any]) -> list[Cell]:
    test, selection = trial.get('test') or {}, trial.get('selection') or {}
    loss = test.get('loss')
    texts = [
        f'{trial["size"]:,}',
        str(trial['seed']),
        ': '.join(filter(None, [trial.get('status'), trial.get('reason')])),
        _fields(trial.get('chosen') or {}) or '–',
        percent(selection.get('accuracy')),
        values.accuracy(test) if test.get('accuracy') is not None else NOT_MEASURED,
        NOT_MEASURED if loss is None else f'{loss:.3f}',
        values.quantity(values.creation(trial), 'FLOP'),
        values.seconds((trial.get('ledger') or {}).get('device_seconds')),
        trial.get('folder') or '–',
    ]
    return [arm_cell(results, trial['arm']), *map(Cell, texts)]
