"""Writes rows with their columns as jsonl or csv; `rows.py` reads them."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError

ENDINGS = ('.jsonl', '.csv')


def check_ending(path: str | Path) -> None:
    """Raises InputError if no format belongs to the ending of a file's name."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f'{path}: rows are written as {" or ".join(ENDINGS)}, which the ending of the name selects')


def encoded(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Iterator[bytes]:
    """The lines of a file of rows in UTF-8; the ending of `path` selects the format.

    In csv, every name of any row is a column. If all its values are objects, each of their entries is a column
    `name.entry`; other objects and lists are written as JSON. A missing value is an empty cell.
    Values that JSON does not have (dates, decimals and bytes of parquet) are written as text, in both formats. Half of
    a surrogate pair, which UTF-8 does not have, is written as its escape.

    >>> rows = [{'text': 'a, b', 'p': {'x': 0.25, 'y': 0.75}}, {'text': 'c', 'p': None}]
    >>> print(b''.join(encoded(rows, 'rows.csv')).decode(), end='')
    text,p.x,p.y
    "a, b",0.25,0.75
    c,,
    """
    check_ending(path)
    if Path(path).suffix == '.jsonl':
        yield from map(_json_line, rows)
        return
    columns = [
        (name, entry)
        for name in dict.fromkeys(name for row in rows for name in row)
        for entry in _entries([row.get(name) for row in rows])
    ]
    yield _line([f'{name}.{entry}' if entry else name for name, entry in columns])
    for row in rows:
        yield _line([_cell(row.get(name), entry) for name, entry in columns])


def _entries(values: Sequence[Any]) -> Sequence[str]:
    """The names in all objects of a column; ('',) if other values are among them."""
    objects = [value for value in values if value is not None]
    if not objects or not all(isinstance(value, Mapping) and value for value in objects):
        return ('',)
    return list(dict.fromkeys(name for value in objects for name in value))


def _cell(value: Any, entry: str) -> str:
    value = value.get(entry) if entry and value is not None else value
    if value is None:
        return ''
    return _json(value) if isinstance(value, bool | int | float | list | tuple | Mapping) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _json_line(row: Mapping[str, Any]) -> bytes:
    try:
        return (_json(row) + '\n').encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON escapes are read as the same row
        return (json.dumps(row, default=str) + '\n').encode()


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerow(cells)
    return text.getvalue().encode(errors='backslashreplace')


def free_names(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{name: the name, or the first of name_2, name_3, ... that no row has}.

    >>> free_names(['prediction', 'probability'], [{'text': 'a', 'prediction': 'b'}])
    {'prediction': 'prediction_2', 'probability': 'probability'}
    """
    taken = {name for row in rows for name in row}
    free = {}
    for name in names:
        number = 1
        while (chosen := name if number == 1 else f'{name}_{number}') in taken:
            number += 1
        free[name] = chosen
    return free
