"""Rows of named fields from local files: jsonl, json, csv, tsv, parquet, conll, and lines of text with one label."""

import collections
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.data.source import decode, lines
from lmtrain.errors import InputError, MissingPackage
from lmtrain.files import json_type, local_path, parse_json, parse_json_object


class Row(NamedTuple):
    """A row and where it stands, for errors: 'train.csv:12'."""

    place: str
    fields: dict[str, Any]
    places: tuple[str, ...] = ()  # of its words, where each has a line of its own


CELL = 2**31 - 1  # characters of a csv cell; Python's own limit is 131,072


def read_rows(source, root: str, text: str = 'text', label: str = 'label', notes: list[str] | None = None) -> list[Row]:
    """The rows of one file.

    Args:
      source: a path, whose ending says how it is read: .jsonl(.gz), .json (an array of objects, or SQuAD's), .csv
        (separated by commas, semicolons or tabs), .tsv (no quoting), .parquet, .conll or .annotated (fields `tokens`
        and `tags`). Or (path, label): every line of the file that is not blank is a row with the fields `text` and
        `label`, whatever the ending.
      root: where relative paths start.
      notes: gets a line about each choice that the reader made and about what it skipped.

    Raises FileNotFoundError, ImportError or ValueError naming file, line and reason.
    """
    name, of = (source, None) if isinstance(source, str) else source
    path = local_path(name, 'config.task', root)
    if not path.is_file():
        kind = 'a directory' if path.is_dir() else 'no such file'
        start = f'data.root, {root!r}' if root else 'the current directory (in a recipe, at data.root)'
        raise FileNotFoundError(f'{path}: {kind}; relative paths start at {start}')
    if of is not None:
        rows = [Row(place, {text: line, label: of}) for place, line in _texts(path) if line.strip()]
    else:
        readers = [reader for ending, reader in READERS.items() if path.name.endswith(ending)]
        if not readers:
            known = ', '.join(READERS)
            raise InputError(f'{path}: its name must end in {known}; or give (path, label): lines of one label')
        rows = list(readers[0](path, [] if notes is None else notes))
    if not rows:
        raise InputError(f'{path}: it holds no row')
    return rows


def place_of(row: Row, word: int) -> str:
    """Where the word of that number stands."""
    return row.places[word] if row.places else row.place


def value_of(row: Row, name: str, field: str) -> Any:
    """The field `name` of a row. Raises ValueError naming what is there, and `field` of the config as the way out."""
    if name not in row.fields or row.fields[name] is None:
        there = ', '.join(repr(key) for key, value in row.fields.items() if value is not None) or 'none'
        raise InputError(f'{row.place}: no field {name!r}; the fields there are: {there}. Set {field} to one of them')
    return row.fields[name]


def text_of(row: Row, name: str, field: str = 'config.task.text') -> str:
    """The text in a row's field. Raises ValueError where it is something else."""
    return check_text(value_of(row, name, field), f'{row.place}: {name!r}')


def check_text(value: Any, place: str) -> str:
    """`value`, which stands at `place`. Raises ValueError where it is no text, or holds half of a character."""
    if not isinstance(value, str):
        raise InputError(f'{place} must be text, here it is {json_type(value)}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{place} holds half of a surrogate pair at character {error.start}') from None
    return value


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for number, offset, line in lines(path):
        yield f'{path}:{number}', decode(line, path, offset, number)


def _jsonl(path: Path, notes: list[str]) -> Iterator[Row]:
    return (Row(place, parse_json_object(text, place)) for place, text in _texts(path) if text.strip())


def _json(path: Path, notes: list[str]) -> Iterator[Row]:
    whole = parse_json(decode(path.read_bytes(), path), path)
    if isinstance(whole, dict) and isinstance(whole.get('data'), list):
        yield from _squad(path, whole['data'])
        return
    if not isinstance(whole, list):
        raise InputError(
            f'{path}: an array of objects is expected, or SQuAD\'s {{"data": [...]}}; here is {json_type(whole)}'
        )
    for number, row in enumerate(whole):
        if not isinstance(row, dict):
            raise InputError(f'{path}: [{number}]: an object {{...}} is expected, here is {json_type(row)}')
        yield Row(f'{path}: [{number}]', row)


def _squad(path: Path, articles: list) -> Iterator[Row]:
    """A row with `id`, `question`, `context` and `answers` for every question of SQuAD's nested file."""
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_part(article, 'paragraphs', f'{path}: data[{a}]')):
            place = f'{path}: data[{a}].paragraphs[{p}]'
            for q, question in enumerate(_part(paragraph, 'qas', place)):
                if not isinstance(question, dict):
                    raise InputError(f'{place}.qas[{q}]: an object is expected, here is {json_type(question)}')
                yield Row(f'{place}.qas[{q}]', question | {'context': paragraph.get('context')})


def _part(value: Any, name: str, place: str) -> list:
    part = value.get(name) if isinstance(value, dict) else None
    if not isinstance(part, list):
        raise InputError(f'{place}: no array {name!r}, which a file with "data" must have as SQuAD\'s has it')
    return part


def _csv(path: Path, notes: list[str]) -> Iterator[Row]:
    """Cells separated by the one of , ; and tab that cuts the first line into the most names."""
    first = next((text for _, text in _texts(path) if text.strip()), '')
    separator = max(',;\t', key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    if separator != ',':
        notes.append(f'{path}: the cells are separated by {separator!r}')
    blank_behind = all(name.startswith(' ') for name in first.split(separator)[1:])  # "text, label"
    return _cells(path, delimiter=separator, skipinitialspace=blank_behind and separator in first)


def _tsv(path: Path, notes: list[str]) -> Iterator[Row]:
    return _cells(path, delimiter='\t', quoting=csv.QUOTE_NONE)


def _cells(path: Path, **dialect) -> Iterator[Row]:
    """The rows of a table whose first line names its fields.

    Rows without any text, empty cells beyond the last name, and columns without a name are left out.
    """
    csv.field_size_limit(CELL)
    table = csv.reader((f'{text}\n' for _, text in _texts(path)), strict=True, **dialect)
    header: list[str] | None = None
    begun = 1
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise InputError(f'{path}:{table.line_num}: no csv that can be read ({error})') from None
        if cells is None:
            return
        place, begun = f'{path}:{begun}', table.line_num + 1  # of a row whose quotes run over lines, the first
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            names = [name for name in header if name]
            if len(set(names)) < len(names):
                raise InputError(f'{place}: a field stands twice in the first line, which names them: {header}')
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            raise InputError(f'{place}: {len(cells)} fields, and the first line names {len(header)}: {header}')
        yield Row(place, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _parquet(path: Path, notes: list[str]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage(f'{path}: parquet needs pyarrow: pip install -e ".[parquet]"') from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f'{path}: row {number}', fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f'{path}: not a parquet file that can be read ({str(error).splitlines()[0]})') from error


def _conll(path: Path, notes: list[str]) -> Iterator[Row]:
    """A word a line, its tag in the last column, between them spaces or tabs; blank lines end a sentence.

    '-DOCSTART-' lines and the comments ahead of a sentence ('# sent_id = 3', '# id 5f2a') are skipped. Raises
    ValueError if the first column counts the words, as in CoNLL-U.
    """
    lines = [(place, text.strip(' \t\r')) for place, text in _texts(path)]
    counts = collections.Counter(len(_columns(text)) for _, text in lines if text and not text.startswith('# '))
    columns = counts.most_common(1)[0][0] if counts else 0
    sentences: list[list[tuple[str, list[str]]]] = [[]]
    comments = 0
    for place, text in lines:
        cells = _columns(text)
        if not text or cells[0] == '-DOCSTART-':
            sentences += [[]] * bool(sentences[-1])
        elif not sentences[-1] and _is_comment(text, cells, columns):
            comments += 1
        elif len(cells) < 2 or not cells[0] or not cells[-1]:
            raise InputError(f'{place}: a word and its tag are expected, here is {text[:60]!r}')
        else:
            sentences[-1].append((place, cells))
    sentences = [sentence for sentence in sentences if sentence]
    if sentences:
        _refuse_counted(sentences, columns)
    if comments:
        notes.append(f'{path}: {comments:,} comment lines (# ...) skipped')
    for sentence in sentences:
        places = tuple(place for place, _ in sentence)
        fields = {'tokens': [cells[0] for _, cells in sentence], 'tags': [cells[-1] for _, cells in sentence]}
        yield Row(places[0], fields, places)


def _columns(text: str) -> list[str]:
    """The columns of a line of CoNLL. No other blank splits: a no-break space is part of a word."""
    return [cell.strip(' ') for cell in text.split('\t')] if '\t' in text else re.split(' +', text)


def _is_comment(text: str, cells: list[str], columns: int) -> bool:
    """Whether the first line of a sentence is a comment: the word '#' has as many columns as the other lines."""
    if '\t' in text:
        return cells[0].startswith('# ')
    if len(cells) == 1:  # '#' or '#id=3': no tag stands beside it
        return text.startswith('#')
    named = re.match(r'# *[\w.:-]+ *=', text)  # '# sent_id = 3', '#id=3 a'
    return bool(named) or text.startswith('# ') and len(cells) != columns


def _refuse_counted(sentences: list[list[tuple[str, list[str]]]], columns: int) -> None:
    place, cells = sentences[0][0]
    if len(cells) == 10 and re.fullmatch(r'\d+([-.]\d+)?', cells[0]):
        raise InputError(
            f'{place}: ten columns with the number of the word in the first one are CoNLL-U, which has several tags: '
            'keep a column of words and one of tags, such as: cut -f2,4'
        )
    counted = all([cells[0] for _, cells in each] == list(map(str, range(1, len(each) + 1))) for each in sentences)
    if columns > 2 and counted and max(map(len, sentences)) > 2:
        raise InputError(
            f'{place}: the first column counts the words: keep a column of words and one of tags, such as: cut -f2,3'
        )


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
