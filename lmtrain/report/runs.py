"""A table of many runs: what differs between their configs, state, scores and costs; needs no jax.

The records come from `run_records.read`.
"""

import collections
import csv
import io
import json
import math
import operator
import pathlib
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import write_atomic
from lmtrain.report import terminal
from lmtrain.report.run_records import Record

WIDTH = 80
NAME, CELL = 28, 18  # characters of a name, and of a value of the config
OPERATORS = {
    '<=': operator.le,
    '>=': operator.ge,
    '!=': operator.ne,
    '<': operator.lt,
    '>': operator.gt,
    '=': operator.eq,
}
NOT_CONFIG = re.compile(
    r'(validation|test|cost|trial|selection|ledger)\..*|name|folder|state|reason|step|flops|seconds'
)
NO_EFFECT = {'log', 'evaluate', 'checkpoint', 'sample', 'plan', 'watchdog'}  # sections without effect on the model
FORMATS = {
    'flops': lambda value: terminal.number(value),
    'seconds': terminal.duration,
    'step': '{:,}'.format,
    'loss': '{:.4f}'.format,
}


def field(name: str, records: Sequence[Record]) -> str:
    """The full name of a field; its last part is enough if it is the only one.

    Raises InputError naming the fields that are meant, or the most similar one.
    """
    names = {known: None for record in records for known in record}
    if name in names:
        return name
    matches = [known for known in names if known.endswith(f'.{name}')]
    if len(matches) > 1:
        raise InputError(f'{name!r} is the end of several fields: {", ".join(matches[:6])}: write the whole name')
    if not matches:
        raise InputError(f'no run has a field {name!r}{did_you_mean(name, names)}')
    return matches[0]


def select(records: Sequence[Record], conditions: Sequence[str]) -> list[Record]:
    """The records for which every condition holds, such as 'adapt.method=lora' or 'validation.loss<2'.

    A run without the field does not fulfil a condition, except '!='. Raises InputError naming the condition.
    """
    result = list(records)
    for condition in conditions:
        match = re.fullmatch(r'\s*([\w./-]+)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*', condition)
        if not match:
            raise InputError(f'{condition!r} is no condition: FIELD=VALUE, or one of != < <= > >= in place of =')
        name, symbol, limit = field(match[1], records), match[2], _value(match[3])
        values = [record.get(name) for record in result]
        ordered = symbol not in ('=', '!=')
        if ordered and not all(_is_number(value) for value in [limit, *values] if value is not None):
            raise InputError(f'{condition!r}: {symbol} compares numbers, and a value is not one')
        holds = OPERATORS[symbol]
        absent = symbol == '!='
        result = [
            record
            for record, value in zip(result, values, strict=True)
            if (absent if value is None else holds(_comparable(value), limit))
        ]
    return result


def _value(text: str) -> Any:
    """The value of a condition: a number, true, false, or the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, str)) else text


def _comparable(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def order(records: Sequence[Record], by: str) -> list[Record]:
    """The records in ascending order of a field, '-FIELD' descending; those without it, or with nan, are last."""
    name = field(by.removeprefix('-'), records)
    is_known = [record.get(name) is not None and record[name] == record[name] for record in records]  # nan != nan
    having = [record for record, known in zip(records, is_known, strict=True) if known]
    others = [record for record, known in zip(records, is_known, strict=True) if not known]
    key = (lambda record: record[name]) if all(_is_number(record[name]) for record in having) else _natural(name)
    return sorted(having, key=key, reverse=by.startswith('-')) + others


def _natural(name: str):
    """The key of texts in which numbers are ordered as numbers: n8 before n32."""

    def key(record: Record):
        parts = re.split(r'(\d+)', str(record[name]))
        return [(int(part), '') if part.isdigit() else (-1, part) for part in parts]

    return key


def differences(records: Sequence[Record]) -> list[str]:
    """The fields of the configs that differ, the task first; last those that differ between the same runs as another.

    A field is compared among the runs that have it; prompts have no config. The fields of a trial are in its name.
    """
    scores = {name for record in records for name in record if f'validation.{name}' in record}
    scores |= {name for record in records for name in record if f'selection.{name}' in record}
    first: dict[tuple, str] = {}
    others = []
    names = dict.fromkeys(name for record in records for name in record)
    # The order is kept otherwise.
    for name in sorted(names, key=lambda name: (name != 'task.name', name.partition('.')[0] in NO_EFFECT)):
        values = [json.dumps(record[name]) if name in record else None for record in records]
        different = dict.fromkeys(value for value in values if value is not None)
        if len(different) > 1 and not NOT_CONFIG.fullmatch(name) and name not in scores:
            numbers = {value: number for number, value in enumerate(different)}
            if first.setdefault(tuple(numbers.get(value) for value in values), name) != name:
                others.append(name)
    return [*first.values(), *others]


def results(records: Sequence[Record]) -> list[str]:
    """The names of the columns of results: state, loss, scores, FLOPs, time; then scores that most runs do not have."""
    scores: dict[str, None] = {}
    for record in records:
        splits = ('validation', 'selection')
        scores |= {name: None for name in record if name != 'loss' and any(f'{s}.{name}' in record for s in splits)}
    tested = ['test.accuracy'] if any('trial.arm' in record and 'test.accuracy' in record for record in records) else []
    few = [name for name in scores if 2 * sum(name in record for record in records) <= len(records)]
    usual = [name for name in scores if name not in few]
    names = ['state', 'loss', *usual, *tested, 'flops', 'seconds', *few]
    return [name for name in names if any(name in record for record in records)]


def table(records: Sequence[Record], columns: Sequence[str] = (), width: int = WIDTH) -> list[str]:
    """Lines of at most `width` columns, one for each run under a line of headings.

    What does not fit is written below the run; of the config only what most other runs do not have, in two lines.

    Args:
      columns: fields beside the name; () is `differences`, then `results`.
    """
    config = [] if columns else differences(records)
    shown = list(columns) or results(records)
    names = ['', *(_shortened(_text(record, 'name'), NAME) for record in records)]
    cells = {
        name: [_heading(name, shown + config), *(_text(record, name) for record in records)] for name in config + shown
    }
    placed = _that_fit(cells, [*shown, *config], width - max(map(len, names)))
    numeric = [i for i, name in enumerate(placed, 1) if all(_is_number(record.get(name, 0)) for record in records)]
    head, *lines = terminal.table(
        list(zip(names, *(cells[name] for name in placed), strict=True)), right=tuple(numeric)
    )
    usual = {name: _usual(records, name) for name in config}
    result = [head]
    for record, line in zip(records, lines, strict=True):
        below = [name for name in cells if name not in placed and name in record]
        below = [name for name in below if name not in usual or json.dumps(record[name]) != usual[name]]
        result += [line, *_notes(record, below, width)]
    return result


def _that_fit(cells: dict[str, list[str]], preferred: Sequence[str], room: int) -> list[str]:
    """The columns that fit into `room` characters, chosen in the order `preferred`, in the order of `cells`."""
    placed = set()
    for name in preferred:
        needed = len(terminal.GAP) + max(map(len, cells[name]))
        if needed <= room:
            room -= needed
            placed.add(name)
    return [name for name in cells if name in placed]


def _notes(record: Record, names: Sequence[str], width: int) -> list[str]:
    """The lines below a run: why it is broken, and fields for which the table has no room."""
    indent = ' ' * 4
    options = {'initial_indent': indent, 'subsequent_indent': indent, 'break_on_hyphens': False}
    reason = textwrap.wrap(terminal.printable(record.get('reason', '')), width, **options)
    parts = [f'{name}={_text(record, name)}' for name in names]
    for count in range(len(parts), -1, -1):
        more = [f'{len(parts) - count} more'] if count < len(parts) else []
        lines = textwrap.wrap('; '.join(parts[:count] + more), width, **options)
        if len(lines) <= 2:
            break
    return reason + lines


def _usual(records: Sequence[Record], name: str) -> str | None:
    """The value of more than half of the runs, as JSON."""
    values = collections.Counter(json.dumps(record[name]) for record in records if name in record)
    (value, count), total = values.most_common(1)[0], sum(values.values())
    return value if 2 * count > total else None


def _heading(name: str, names: Sequence[str]) -> str:
    """The last part of a field's name if no other column has it."""
    short = {'flops': 'FLOPs', 'seconds': 'time', 'bits_per_byte': 'bits/byte'}.get(name)
    last = name.rpartition('.')[2]
    return short or (last if sum(other.rpartition('.')[2] == last for other in names) == 1 else name)


def _text(record: Record, name: str) -> str:
    """A value as a cell."""
    value = record.get(name)
    if value is None:
        return ''
    if name == 'state' and value in ('stopped', 'running') and 'step' in record:
        return f'{value} at {record["step"]:,}'
    if name == 'name':
        return ' '.join(terminal.printable(value).split())
    if not _is_number(value):
        return _shortened(' '.join(terminal.printable(_flat(value)).split()), CELL)
    if name in FORMATS and math.isfinite(value):
        return FORMATS[name](value)
    measured = NOT_CONFIG.fullmatch(name) or f'validation.{name}' in record or f'selection.{name}' in record
    return str(value) if isinstance(value, int) else f'{value:.4f}' if measured and abs(value) < 1e4 else f'{value:g}'


def _flat(value: Any) -> str:
    """A value as text: lists with commas, lists in them with colons.

    >>> _flat([['.*/kernel', 8], ['head', 4]]), _flat([]), _flat(['']), _flat(True)
    ('.*/kernel:8,head:4', '()', "''", 'true')
    """
    if isinstance(value, list):
        parts = [':'.join(map(str, part)) if isinstance(part, list) else str(part) or "''" for part in value]
        return ','.join(parts) or '()'
    return value if isinstance(value, str) else json.dumps(value)


def _shortened(text: str, width: int) -> str:
    """At most `width` characters of a text: its beginning, of a path or a run's name its end."""
    if len(text) <= width:
        return text
    return f'…{text[1 - width :]}' if '/' in text else f'{text[: width - 1]}…'


def counts(records: Sequence[Record]) -> str:
    """How many runs are in which state."""
    states = collections.Counter(record['state'] for record in records)
    parts = ', '.join(f'{count} {state}' for state, count in states.most_common())
    return f'{terminal.counted(len(records), "run")}: {parts}'


def write(records: Sequence[Record], columns: Sequence[str], path: pathlib.Path) -> None:
    """Writes the columns of all runs, with their whole values, as .csv or .json.

    Args:
      columns: () is those of the table; ('all',) is every field of any run.
    """
    if tuple(columns) == ('all',):
        columns = list(dict.fromkeys(name for record in records for name in record))
    names = list(dict.fromkeys(['name', *(columns or [*differences(records), *results(records)])]))
    rows = [{name: record.get(name) for name in names} for record in records]
    if path.suffix == '.json':
        text = json.dumps(rows, indent=1, ensure_ascii=False) + '\n'
    else:
        file = io.StringIO(newline='')
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_csv(row[name]) for name in names] for row in rows)
        text = file.getvalue()
    write_atomic(path, text.encode('utf-8', 'backslashreplace'))


def _csv(value: Any) -> Any:
    """A value as a cell of a spreadsheet; no text begins a formula there."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(('=', '+', '-', '@')) else value
    return value if value is None or isinstance(value, (int, float)) else json.dumps(value)
