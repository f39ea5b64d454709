"""Rows of named fields from local files: jsonl, json, csv, tsv, parquet, CoNLL, and lines of text with one label."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.data import conll, verifiable_task
from lmtrain.data.text_files import decode, text_lines
from lmtrain.errors import InputError, MissingPackage
from lmtrain.files import json_type, local_path, parse_json, parse_json_object

CELL_LIMIT = 2**31 - 1  # characters of a csv cell; Python's own limit is 131,072
OWN_KEYS = ('tool_calls', 'tools')  # fields whose objects have different keys: arguments, and schemas of arguments


class Row(NamedTuple):
    """A row and its place for errors: 'train.csv:12'."""

    place: str
    fields: dict[str, Any]
    places: tuple[str, ...] = ()  # of its words, if each has a line of its own


def read_rows(
    source, root: str, text: str = 'text', label: str = 'label', notes: list[str] | None = None, split: str = ''
) -> list[Row]:
    """The rows of one file, or those that a generator writes (`verifiable_task`).

    Args:
      source: a path, whose ending, in letters of any case, selects the reader: .jsonl or .ndjson (also with .gz), .json
        (an array of objects, or SQuAD's format; a .jsonl that is such an array, and a .json that is an object in every
        line, are read as what they are), .csv (separated by commas, semicolons or tabs), .tsv (its quotes are text,
        unless the file has quoted cells), .parquet, .conll or .annotated (fields `tokens` and `tags`). Or (path,
        label): every line of the file that is not blank is a row with the fields `text` and `label`, whatever the
        ending. Or 'generated:NAME': rows that `verifiable_task` generates.
      root: the start of relative paths.
      notes: a line is appended for each choice that the reader made and for what it skipped.
      split: of generated rows, 'train', 'validation' or 'test'; '' is all of them.

    Raises FileNotFoundError, MissingPackage or InputError naming file, line and reason.
    """
    name, line_label = (source, None) if isinstance(source, str) else source
    if name.startswith(verifiable_task.PREFIX):
        return [Row(*row) for row in verifiable_task.generate(name, split)]
    path = local_path(name, 'config.task', root)
    if not path.is_file():
        kind = 'a directory' if path.is_dir() else 'no such file'
        start = f'data.root, {root!r}' if root else 'the current directory (in a recipe, at data.root)'
        raise FileNotFoundError(f'{path}: {kind}; relative paths start at {start}')
    if line_label is not None:
        rows = [Row(place, {text: line, label: line_label}) for place, line in text_lines(path) if line.strip()]
    else:
        reader = next((reader for ending, reader in ROW_READERS.items() if path.name.lower().endswith(ending)), None)
        if reader is None:
            endings = ', '.join(ROW_READERS)
            raise InputError(
                f'{path}: expected a name that ends in {endings}; or give (path, label): lines of one label'
            )
        rows = list(reader(path, [] if notes is None else notes))
    if not rows:
        raise InputError(f'{path}: it has no rows')
    return rows


def place_of(row: Row, word: int) -> str:
    """The place of word number `word`."""
    return row.places[word] if row.places else row.place


def value_of(row: Row, name: str, field: str) -> Any:
    """The value of the field `name`.

    Raises InputError if it is missing or null. `field` is the field of the config that names it, '' if none does.
    """
    if name not in row.fields:
        names = [key for key, value in row.fields.items() if value is not None]
        raise missing_field(row.place, name, names, field)
    if row.fields[name] is None:
        raise InputError(f'{row.place}: the field {name!r} is null: write its value, or leave out the row')
    return row.fields[name]


def missing_field(place: str, name: str, names: Iterable[str], field: str) -> InputError:
    """The error for a row without the field `name`; the way out is `field`, if it is not ''."""
    known = ', '.join(map(repr, names)) or 'none'
    way_out = f'. Set {field} to one of them' if field else ''
    return InputError(f'{place}: no field {name!r}; the fields there are: {known}{way_out}')


def text_of(row: Row, name: str, field: str = 'config.task.text') -> str:
    """The text in a field; null is '', as an empty cell of csv. Raises InputError if it is missing or not text."""
    value = '' if name in row.fields and row.fields[name] is None else value_of(row, name, field)
    return check_text(value, f'{row.place}: {name!r}')


def check_text(value: Any, place: str) -> str:
    """`value`. Raises InputError naming `place` if it is not text, or has half of a character."""
    if not isinstance(value, str):
        way_out = ': store the column as text (UTF-8) and not as binary' if isinstance(value, bytes) else ''
        raise InputError(f'{place} must be text, not {json_type(value)}{way_out}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{place} has half of a surrogate pair at character {error.start}') from None
    return value


def jsonl_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """An object in every line; blank lines are skipped."""
    return (Row(place, parse_json_object(text, place)) for place, text in text_lines(path) if text.strip())


def _json_lines(path: Path, notes: list[str]) -> Iterator[Row]:
    """An object in every line; or, as in a .json, one array of objects."""
    lines = (text.strip() for _, text in text_lines(path))
    first = next(filter(None, lines), '')
    if first.startswith('[') and not (_is_json(first) and any(lines)):
        notes.append(f'{path}: one JSON array, as in a .json')
        return json_rows(path, notes)
    return jsonl_rows(path, notes)


def json_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """One array of objects, or SQuAD's format; or, as in a .jsonl, an object in every line."""
    text = decode(path.read_bytes(), path)
    first, _, others = text.lstrip().partition('\n')
    if first.startswith('{') and others.strip() and _is_json(first):
        notes.append(f'{path}: an object in every line, as in a .jsonl')
        yield from jsonl_rows(path, notes)
        return
    content = parse_json(text, path)
    if isinstance(content, dict) and isinstance(content.get('data'), list):
        yield from _squad_rows(path, content['data'])
        return
    if not isinstance(content, list):
        raise InputError(
            f'{path}: expected an array of objects, or SQuAD\'s {{"data": [...]}}, not {json_type(content)}'
        )
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise InputError(f'{path}: [{number}]: expected an object {{...}}, not {json_type(row)}')
        yield Row(f'{path}: [{number}]', row)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _squad_rows(path: Path, articles: list) -> Iterator[Row]:
    """A row with `id`, `question`, `context` and `answers` for every question of SQuAD's nested format."""
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_array(article, 'paragraphs', f'{path}: data[{a}]')):
            place = f'{path}: data[{a}].paragraphs[{p}]'
            for q, question in enumerate(_array(paragraph, 'qas', place)):
                if not isinstance(question, dict):
                    raise InputError(f'{place}.qas[{q}]: expected an object, not {json_type(question)}')
                yield Row(f'{place}.qas[{q}]', question | {'context': paragraph.get('context')})


def _array(value: Any, name: str, place: str) -> list:
    array = value.get(name) if isinstance(value, dict) else None
    if not isinstance(array, list):
        raise InputError(f'{place}: no array {name!r}; a file with "data" must have the format of SQuAD')
    return array


def _csv_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """The separator is the one of , ; and tab that splits the first line into the most names."""
    first = next((text for text in _table_lines(path) if text.strip()), '')
    separator = max(',;\t', key=lambda mark: _width(first, mark))
    if separator != ',':
        notes.append(f'{path}: the cells are separated by {separator!r}')
    space_after = all(name.startswith(' ') for name in first.split(separator)[1:])  # "text, label"
    return _table_rows(path, delimiter=separator, skipinitialspace=space_after and separator in first)


def _width(line: str, separator: str) -> int:
    """The cells of a line; 0 if it is invalid, which `_table_rows` reports."""
    try:
        return len(next(csv.reader([line], delimiter=separator)))
    except csv.Error:
        return 0


def _table_lines(path: Path) -> Iterator[str]:
    """The lines of a table without their ends, which are carriage returns alone if the file has no other."""
    lines = (text for _, text in text_lines(path))
    first, second = next(lines, ''), next(lines, None)
    if second is None:
        yield from first.split('\r')
        return
    yield from (first, second)
    yield from lines


def _tsv_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """Quotes are characters of the texts (GLUE), unless the file has quoted cells (pandas, Excel)."""
    if not _has_quoted_cells(path):
        return _table_rows(path, delimiter='\t', quoting=csv.QUOTE_NONE)
    notes.append(f'{path}: cells in quotes are read as in a .csv')
    return _table_rows(path, delimiter='\t')


def _has_quoted_cells(path: Path) -> bool:
    """Whether the cells of a .tsv that begin with a quote are quoted as in csv.

    A file that is a table only with quoting is quoted. One that is a table either way is quoted if every such cell is
    well-formed, and a quote is written twice in one of them or all names are quoted.
    """
    marked = [cell for text in _table_lines(path) for cell in text.split('\t') if cell.startswith('"')]
    if not marked:
        return False
    if _is_table(path, delimiter='\t', quoting=csv.QUOTE_NONE):
        names = next(filter(None, _table_lines(path))).split('\t')
        needed = any('""' in cell[1:-1] for cell in marked) or all(name.startswith('"') for name in names)
        if not needed or not all(re.fullmatch('"([^"]|"")*"', cell) for cell in marked):
            return False
    return _is_table(path, delimiter='\t')


def _is_table(path: Path, **dialect) -> bool:
    try:
        for _ in _table_rows(path, **dialect):
            pass
    except InputError:
        return False
    return True


def _table_rows(path: Path, **dialect) -> Iterator[Row]:
    """The rows of a table whose first line names its fields.

    Rows without any text, empty cells beyond the last name, and columns without a name are left out.
    """
    csv.field_size_limit(CELL_LIMIT)
    table = csv.reader((f'{text}\n' for text in _table_lines(path)), strict=True, **dialect)
    header: list[str] | None = None
    first_line = 1
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            way_out = 'a quoted cell ends in a quote, and a quote inside of it is written twice: "a ""b"" c"'
            if 'new-line' in str(error):
                way_out = "a cell with a carriage return: quote it in a .csv, or remove it: tr '\\r' ' ' < FILE > NEW"
            raise InputError(
                f'{path}:{first_line}: invalid csv ({error}, in line {table.line_num}): {way_out}'
            ) from None
        if cells is None:
            return
        place, first_line = f'{path}:{first_line}', table.line_num + 1  # the first line of a row with quoted newlines
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            names = [name for name in header if name]
            if len(set(names)) < len(names):
                raise InputError(f'{place}: a name occurs twice in the first line, the names of the fields: {header}')
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            mark, quotes = dialect['delimiter'], dialect.get('quoting') != csv.QUOTE_NONE
            way_out = f'. Quote a cell that contains {mark!r}' if len(cells) > len(header) and quotes else ''
            if not quotes and any('"' in cell for cell in cells):
                way_out = (
                    '. Its quotes are read as text: cells are quoted only if every cell that begins with a quote ends '
                    'in one, with each quote inside of it written twice: "a ""b"" c"'
                )
            raise InputError(f'{place}: {len(cells)} fields, but the first line names {len(header)}: {header}{way_out}')
        yield Row(place, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _parquet_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    return parquet_rows(path)


def parquet_rows(path: Path, columns: Sequence[str] | None = None, field: str = '') -> Iterator[Row]:
    """The rows of a parquet file; of `columns` alone if given, which config.`field` names.

    Null entries of the objects in `tool_calls` and `tools` are left out (`_without_foreign_keys`).
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage(f'{path}: parquet needs pyarrow: pip install -e ".[parquet]"') from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if missing := [name for name in columns or () if name not in names]:
                raise missing_field(str(path), missing[0], names, field)
            for batch in table.iter_batches(columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f'{path}: row {number}', _without_foreign_keys(fields))
    except UnicodeDecodeError as error:
        raise InputError(
            f'{path}: a text after row {number} is not UTF-8 ({error.object[:20]!r}, {error.reason}): write it as UTF-8'
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f'{path}: not a parquet file ({str(error).splitlines()[0]})') from error


def _without_foreign_keys(value: Any, nulls: bool = True) -> Any:
    """A value of parquet without the null entries of objects in OWN_KEYS; `nulls` keeps those of this object.

    All objects of a column have the keys of all rows. A call that has only `city` would be trained with `expr: null`.
    """
    if isinstance(value, list):
        return [_without_foreign_keys(each, nulls) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_foreign_keys(each, nulls and name not in OWN_KEYS)
        for name, each in value.items()
        if nulls or each is not None
    }


def _conll_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    return itertools.starmap(Row, conll.read_sentences(path, notes))


ROW_READERS = {
    '.jsonl': _json_lines,
    '.ndjson': _json_lines,
    '.jsonl.gz': jsonl_rows,
    '.ndjson.gz': jsonl_rows,
    '.json': json_rows,
    '.csv': _csv_rows,
    '.tsv': _tsv_rows,
    '.parquet': _parquet_rows,
    '.conll': _conll_rows,
    '.annotated': _conll_rows,
}
