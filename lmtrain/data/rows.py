"""Rows of named fields from local files: jsonl, json, csv, tsv, parquet, conll, and lines of text with one label."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain import paths
from lmtrain.data.source import decode, json_object, kind_of, lines


class Row(NamedTuple):
    """A row and where it stands, for errors: 'train.csv:12'."""

    place: str
    fields: dict[str, Any]
    places: tuple[str, ...] = ()  # of its words, where each has a line of its own


def read_rows(source, root: str, text: str = 'text', label: str = 'label') -> list[Row]:
    """The rows of one file.

    Args:
      source: a path, whose ending says how it is read: .jsonl(.gz), .json (an array of objects, or SQuAD's), .csv, .tsv
        (no quoting), .parquet, .conll or .annotated (fields `tokens` and `tags`). Or (path, label): every line of the
        file that is not blank is a row with the fields `text` and `label`, whatever the ending.
      root: where relative paths start.

    Raises FileNotFoundError, ImportError or ValueError naming file, line and reason.
    """
    name, of = (source, None) if isinstance(source, str) else source
    path = paths.local(name, 'config.task', root)
    if not path.is_file():
        kind = 'a directory' if path.is_dir() else 'no such file'
        start = repr(root) if root else 'the current directory'
        raise FileNotFoundError(f'{path}: {kind}; config.task names files, relative paths start at data.root, {start}')
    if of is not None:
        rows = [Row(place, {text: line, label: of}) for place, line in _texts(path) if line.strip()]
    else:
        readers = [reader for ending, reader in READERS.items() if path.name.endswith(ending)]
        if not readers:
            known = ', '.join(READERS)
            raise ValueError(f'{path}: its name must end in {known}; or give (path, label): lines of one label')
        rows = list(readers[0](path))
    if not rows:
        raise ValueError(f'{path}: it holds no row')
    return rows


def place_of(row: Row, word: int) -> str:
    """Where the word of that number stands."""
    return row.places[word] if row.places else row.place


def value_of(row: Row, name: str, field: str) -> Any:
    """The field `name` of a row. Raises ValueError naming what is there, and `field` of the config as the way out."""
    if name not in row.fields or row.fields[name] is None:
        there = ', '.join(repr(key) for key, value in row.fields.items() if value is not None) or 'none'
        raise ValueError(f'{row.place}: no field {name!r}; the fields there are: {there}. Set {field} to one of them')
    return row.fields[name]


def text_of(row: Row, name: str, field: str = 'config.task.text') -> str:
    """The text in a row's field. Raises ValueError where it is something else."""
    return check_text(value_of(row, name, field), f'{row.place}: {name!r}')


def check_text(value: Any, place: str) -> str:
    """`value`, which stands at `place`. Raises ValueError where it is no text, or holds half of a character."""
    if not isinstance(value, str):
        raise ValueError(f'{place} must be text, here it is {kind_of(value)}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'{place} holds half of a surrogate pair at character {error.start}') from None
    return value


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for number, offset, line in lines(path):
        yield f'{path}:{number}', decode(line, path, offset, number)


def _jsonl(path: Path) -> Iterator[Row]:
    return (Row(place, json_object(text, place)) for place, text in _texts(path) if text.strip())


def _json(path: Path) -> Iterator[Row]:
    try:
        whole = json.loads(decode(path.read_bytes(), path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}: JSON that cannot be read ({error})') from None
    if isinstance(whole, dict) and isinstance(whole.get('data'), list):
        yield from _squad(path, whole['data'])
        return
    if not isinstance(whole, list):
        raise ValueError(
            f'{path}: an array of objects is expected, or SQuAD\'s {{"data": [...]}}; here is {kind_of(whole)}'
        )
    for number, row in enumerate(whole):
        if not isinstance(row, dict):
            raise ValueError(f'{path}: [{number}]: an object {{...}} is expected, here is {kind_of(row)}')
        yield Row(f'{path}: [{number}]', row)


def _squad(path: Path, articles: list) -> Iterator[Row]:
    """A row with `id`, `question`, `context` and `answers` for every question of SQuAD's nested file."""
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_part(article, 'paragraphs', f'{path}: data[{a}]')):
            place = f'{path}: data[{a}].paragraphs[{p}]'
            for q, question in enumerate(_part(paragraph, 'qas', place)):
                if not isinstance(question, dict):
                    raise ValueError(f'{place}.qas[{q}]: an object is expected, here is {kind_of(question)}')
                yield Row(f'{place}.qas[{q}]', question | {'context': paragraph.get('context')})


def _part(value: Any, name: str, place: str) -> list:
    part = value.get(name) if isinstance(value, dict) else None
    if not isinstance(part, list):
        raise ValueError(f'{place}: no array {name!r}, which a file with "data" must have as SQuAD\'s has it')
    return part


def _csv(path: Path, **dialect) -> Iterator[Row]:
    table = csv.reader((f'{text}\n' for _, text in _texts(path)), strict=True, **dialect)
    header: list[str] | None = None
    begun = 1
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise ValueError(f'{path}:{table.line_num}: no csv that can be read ({error})') from None
        if cells is None:
            return
        place, begun = f'{path}:{begun}', table.line_num + 1  # of a row whose quotes run over lines, the first
        if not cells:
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise ValueError(f'{place}: a field stands twice in the first line, which names them: {header}')
        elif len(cells) != len(header):
            raise ValueError(f'{place}: {len(cells)} fields, and the first line names {len(header)}: {header}')
        else:
            yield Row(place, dict(zip(header, cells)))


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, delimiter='\t', quoting=csv.QUOTE_NONE)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f'{path}: parquet needs pyarrow: pip install -e ".[parquet]"') from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f'{path}: row {number}', fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path}: not a parquet file that can be read ({str(error).splitlines()[0]})') from error


def _conll(path: Path) -> Iterator[Row]:
    """A word a line, its tag in the last column; blank lines end a sentence, '-DOCSTART-' lines are passed over."""
    sentence: list[tuple[str, str, str]] = []

    def whole() -> Row:
        places, words, tags = zip(*sentence)
        return Row(places[0], {'tokens': list(words), 'tags': list(tags)}, places)

    for place, text in _texts(path):
        cells = text.split('\t') if '\t' in text else text.split()
        if text.strip() and cells[0] != '-DOCSTART-':
            if len(cells) < 2 or not cells[0].strip() or not cells[-1].strip():
                raise ValueError(f'{place}: a word and its tag are expected, here is {text[:60]!r}')
            sentence.append((place, cells[0], cells[-1].strip()))
        elif sentence:
            yield whole()
            sentence.clear()
    if sentence:
        yield whole()


READERS = {
    '.jsonl': _jsonl,
    '.jsonl.gz': _jsonl,
    '.json': _json,
    '.csv': _csv,
    '.tsv': _tsv,
    '.parquet': _parquet,
    '.conll': _conll,
    '.annotated': _conll,
}
