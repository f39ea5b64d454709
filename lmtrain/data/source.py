"""Where text comes from: files, directories, globs, TFDS datasets and the embedded corpus, one document at a time."""

import glob
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lmtrain.data import cache, python_docs
from lmtrain.data.document import Document

LINE_LIMIT = 16 << 20  # bytes of one line
GZ_RATIO, GZ_FLOOR = 200, 64 << 20  # text this many times its .gz, and above the floor, is refused


class Source(NamedTuple):
    name: str  # as it was asked for
    files: tuple[Path, ...]  # what is read; a change of any means that the text is read again
    documents: Callable[[], Iterator[Document]]


def open_source(source: str, root: str, directory: Path, text_field: str, document: str) -> Source:
    """The source that config.data names. Its files are looked up now and read by `documents()`.

    Args:
      source: 'python', 'tfds:NAME', or a file, directory or glob; relative paths start at `root`.
      directory: data.cache, where TFDS datasets are prepared; no other directory or glob may reach into it.
      text_field: the column of jsonl, parquet and TFDS rows; document: 'file' | 'line' | 'paragraph', of .txt.

    Raises FileNotFoundError where nothing is there, ValueError where it cannot be text; both say what to do.
    """
    if source == 'python':
        place = cache.build(directory / python_docs.directory_name(), python_docs.prepare)
        return _tfds_source(source, next(place.glob('python_docs/*')), 'text', own=True)
    if source.startswith('tfds:'):
        return _tfds_source(source, _prepare_tfds(source.removeprefix('tfds:'), directory / 'tfds'), text_field)
    if document not in TXT:
        raise ValueError(f'data.document is {document!r}; it is one of {", ".join(map(repr, TXT))}')
    files = _find(source, root, directory)

    def documents() -> Iterator[Document]:
        for path in files:
            for text in _reader(path)(path, text_field, document):
                yield Document(text)

    return Source(source, files, documents)


# --- finding files


def _find(source: str, root: str, cache: Path) -> tuple[Path, ...]:
    if not source.strip():
        raise ValueError(f"data.source is {source!r}; it is 'python', 'tfds:NAME', or a file, directory or glob")
    path = Path(root).expanduser() / Path(source).expanduser()
    known = ', '.join(READERS)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f'{path} is a link to {os.readlink(path)}, which does not exist')
    if path.is_dir():
        found = sorted(Path(place) / name for place, _, names in os.walk(path) for name in names)
        found = [file for file in found if file.name.endswith(tuple(READERS))]
        if not found:
            raise FileNotFoundError(f'{path}: no file in this directory ends in {known}')
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if not os.path.isdir(name)]
        if not found:
            kind = 'no file matches this glob' if glob.has_magic(str(path)) else 'no such file or directory'
            start = repr(root) if root else 'the current directory'
            raise FileNotFoundError(
                f'{path}: {kind} (relative paths start at data.root, {start}; '
                "data.source is 'python', 'tfds:NAME', or a file, directory or glob)"
            )
    seen: dict[Path, Path] = {}
    for file in found:
        _reader(file)
        if file != path and file.resolve().is_relative_to(cache.resolve()):  # one that is named is meant
            raise ValueError(
                f'{file} lies in data.cache={str(cache)!r}, where what was made of texts is kept, and '
                f'data.source={source!r} would read it as text: put data.cache outside of data.source'
            )
        if file.is_symlink() and not file.exists():
            raise FileNotFoundError(f'{file} is a link to {os.readlink(file)}, which does not exist')
        if not stat.S_ISREG(file.stat().st_mode):
            raise ValueError(f'{file} is not a regular file: write its text to a file first')
        if file.stat().st_size == 0:
            raise ValueError(f'{file} is empty: remove it from data.source, or fill it')
        twice = seen.setdefault(file.resolve(), file)
        if twice is not file:
            raise ValueError(f'{file} and {twice} are one file: its text would be counted twice, name it once')
    return tuple(file.absolute() for file in found)


def _reader(path: Path) -> Callable[[Path, str, str], Iterator[str]]:
    for ending, reader in READERS.items():
        if path.name.endswith(ending):
            return reader
    raise ValueError(f'{path}: its name must end in one of {", ".join(READERS)}, which says how to read it')


# --- reading files: (path, text_field, document) -> texts


def decode(raw: bytes, path: Path, offset: int = 0) -> str:
    """The UTF-8 text of bytes that stand at `offset` of a file. Raises ValueError naming the byte."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        bad = raw[error.start : error.start + 4].hex(' ')
        raise ValueError(
            f'{path}: not UTF-8 at byte {offset + error.start} ({bad}: {error.reason}). '
            'Convert it, for instance with: iconv -f latin1 -t utf-8'
        ) from None
    return text if offset else text.removeprefix('\ufeff')


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, its byte offset, the line without its end)."""
    packed, offset = path.name.endswith('.gz'), 0
    limit = max(GZ_FLOOR, GZ_RATIO * path.stat().st_size)
    with gzip.open(path) if packed else path.open('rb') as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(LINE_LIMIT + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(
                    f'{path}: cut short or damaged after {offset} bytes of text, in line {number} ({error}). '
                    'Fetch it again; `gzip -t` tells whether it is whole'
                ) from None
            if not line:
                return
            if len(line) > LINE_LIMIT:
                raise ValueError(f'{path}:{number}: this line is longer than {LINE_LIMIT >> 20} MiB; break it up')
            yield number, offset, line.rstrip(b'\r\n')
            offset += len(line)
            if packed and offset > limit:
                raise ValueError(f'{path}: unpacks to more than {GZ_RATIO} times its size; if that is right, unpack it')


def _txt(path: Path, text_field: str, document: str) -> Iterator[str]:
    return TXT[document](path)


def _txt_file(path: Path) -> Iterator[str]:
    yield decode(path.read_bytes(), path)


def _txt_lines(path: Path) -> Iterator[str]:
    for _, offset, line in lines(path):
        yield decode(line, path, offset)


def _txt_paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for text in _txt_lines(path):
        if text.strip():
            paragraph.append(text)
        elif paragraph:
            yield '\n'.join(paragraph)
            paragraph = []
    yield '\n'.join(paragraph)


def _jsonl(path: Path, text_field: str, document: str) -> Iterator[str]:
    for number, offset, line in lines(path):
        text = decode(line, path, offset)
        if text.strip():
            yield _text_of(json_object(text, f'{path}:{number}'), text_field, f'{path}:{number}')


def json_object(text: str, place: str) -> dict:
    """The object that `text`, which stands at `place`, is in JSON. Raises ValueError naming the place."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        what = f'{error.msg} at column {error.colno}'
        raise ValueError(f'{place}: broken JSON, {what}: {text[:60]!r}') from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 100,000 deep
        raise ValueError(f'{place}: JSON that cannot be read ({error}): {text[:60]!r}') from None
    if not isinstance(row, dict):
        raise ValueError(f'{place}: an object {{...}} is expected in every line, here is {kind_of(row)}')
    return row


def _parquet(path: Path, text_field: str, document: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f'{path}: parquet needs pyarrow: pip install -e ".[parquet]"') from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                raise _missing(text_field, names, str(path))
            number = 0
            for batch in table.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text_of({text_field: value}, text_field, f'{path}: row {number}')
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path}: not a parquet file that can be read ({str(error).splitlines()[0]})') from error


def _pgn(path: Path, text_field: str, document: str) -> Iterator[str]:
    """The moves of each game and its result; tags, numbers of moves, comments and annotations are left out."""
    moves: list[str] = []
    for text in _txt_lines(path):
        if not re.match(r'\[\w+ "|%', text):
            moves.append(text)
        elif moves:
            yield _moves(moves)
            moves = []
    yield _moves(moves)


def _moves(lines: list[str]) -> str:
    return ' '.join(re.sub(r'\{[^}]*\}|\b\d+\.+|\$\d+', ' ', ' '.join(lines)).split())


def _text_of(row: dict, field: str, place: str) -> str:
    if field not in row:
        raise _missing(field, row, place)
    if not isinstance(row[field], str):
        raise ValueError(f'{place}: {field!r} must be text, here it is {kind_of(row[field])}')
    try:
        row[field].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'{place}: {field!r} holds half of a surrogate pair at character {error.start}') from None
    return row[field]


def _missing(field: str, names, place: str) -> ValueError:
    there = ', '.join(repr(name) for name in names) or 'none'
    return ValueError(f'{place}: no field {field!r}; the fields there are: {there}. Set data.text_field to one of them')


def kind_of(value) -> str:
    """What JSON calls a value, with its article."""
    named = {dict: 'an object', list: 'an array', str: 'text', bool: 'true or false', type(None): 'null'}
    return named.get(type(value), 'a number')


TXT = {'file': _txt_file, 'line': _txt_lines, 'paragraph': _txt_paragraphs}
READERS = {'.txt': _txt, '.jsonl': _jsonl, '.jsonl.gz': _jsonl, '.parquet': _parquet, '.pgn': _pgn}


# --- TFDS


def _prepare_tfds(name: str, directory: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=directory, file_format='array_record')
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever the dataset's own code does
        raise ValueError(
            f'tfds:{name} could not be prepared in {directory} without TensorFlow: {type(error).__name__}: '
            f'{(str(error).splitlines() or [""])[0].rstrip(".")}. Prepare it elsewhere with '
            f'`tfds build {name} --file_format=array_record` and copy the result there'
        ) from error
    return Path(builder.data_path)


def _tfds_source(name: str, directory: Path, text_field: str, own: bool = False) -> Source:
    """Every example of a prepared dataset. Its own validation and test splits are kept, the rest is divided."""

    def documents() -> Iterator[Document]:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(directory)
        for split in sorted(builder.info.splits):
            fixed = split if split in ('validation', 'test') else ''
            for index, row in enumerate(builder.as_data_source(split=split)):
                place = f'{name}: {split} {index}'
                if text_field in row and isinstance(row[text_field], bytes):
                    row = row | {text_field: decode(row[text_field], Path(place))}
                text = _text_of(row, text_field, place)
                yield python_docs.document(row['module'].decode(), text) if own else Document(text, '', fixed)

    return Source(name, tuple(sorted(path for path in directory.iterdir() if path.is_file())), documents)
