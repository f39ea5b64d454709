"""Where text comes from: files, directories, globs, TFDS datasets and the embedded corpus, one document at a time."""

import codecs
import collections
import glob
import gzip
import io
import os
import re
import shlex
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmtrain.data import cache, python_docs
from lmtrain.data.document import Document
from lmtrain.errors import InputError, MissingPackage
from lmtrain.files import json_type, local_path, parse_json_object

LINE_LIMIT = 16 << 20  # bytes of one line
GZ_RATIO, GZ_FLOOR = 200, 64 << 20  # text this many times its .gz, and above the floor, is refused
# Endings that are read of a directory without files that READERS names; a README beside data is not part of it.
TEXT_ENDINGS = ('.md', '.rst', '.tex', '.html', '.py')
# Byte order marks and their encodings; that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
# Magic numbers of binary formats, and how to get their text.
BINARY = {
    b'\x1f\x8b': 'gzip: unpack it with gunzip',
    b'\x28\xb5\x2f\xfd': 'Zstandard: unpack it with unzstd',
    b'\xfd7zXZ\x00': 'xz: unpack it with unxz',
    b'PK\x03\x04': 'a zip archive, as .docx, .odt and .epub are: unpack it or save its text as .txt',
    b'%PDF': 'PDF: extract its text, for instance with pdftotext',
}


class Source(NamedTuple):
    name: str  # as it was asked for
    files: tuple[Path, ...]  # what is read; a change of any means that the text is read again
    documents: Callable[[], Iterator[Document]]
    skipped: dict[str, int] = {}  # files of a directory or a glob that are not read, by reason: {'.png': 3}


def open_source(source: str, root: str, directory: Path, text_field: str, document: str) -> Source:
    """The source that config.data names. Its files are looked up now and read by `documents()`.

    Args:
      source: 'python', 'tfds:NAME', or a file, directory or glob; relative paths start at `root`. A file whose ending
        READERS does not name is text. Of a directory, files whose ending it names are read, else those of TEXT_ENDINGS.
      directory: data.cache, where TFDS datasets are prepared; no other directory or glob may reach into it.
      text_field: the column of jsonl, parquet and TFDS rows; document: 'file' | 'line' | 'paragraph', of text.

    Raises FileNotFoundError if there is no file, ValueError if one is not text.
    """
    if source == 'python':
        place = cache.build(directory / python_docs.directory_name(), python_docs.prepare)
        return _tfds_source(source, next(place.glob('python_docs/*')), 'text', own=True)
    if source.startswith('tfds:'):
        return _tfds_source(source, _prepare_tfds(source.removeprefix('tfds:'), directory / 'tfds'), text_field)
    if document not in TXT:
        raise InputError(f'data.document is {document!r}; it is one of {", ".join(map(repr, TXT))}')
    files, skipped = _find(source, root, directory)

    def documents() -> Iterator[Document]:
        for path in files:
            for text in _reader(path)(path, text_field, document):
                yield Document(text)

    return Source(source, files, documents, skipped)


# --- finding files


def _find(source: str, root: str, cache: Path) -> tuple[tuple[Path, ...], dict[str, int]]:
    """The files to read, and the count of those to skip by their ending or another reason."""
    if not source.strip():
        raise InputError(f"data.source is {source!r}; it is 'python', 'tfds:NAME', or a file, directory or glob")
    path = local_path(source, 'data.source', root)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f'{path} is a link to {os.readlink(path)}, which does not exist')
    if path.is_dir():
        files, skipped = _of_directory(path)
    elif path.exists():
        files, skipped = [path], collections.Counter()
    else:
        # data.root is a folder, not a pattern.
        pattern = os.path.join(glob.escape(str(local_path(root, 'data.root'))), local_path(source, 'data.source'))
        names = sorted(glob.glob(pattern if root else str(path), recursive=True))
        files = [Path(name) for name in names if not os.path.isdir(name)]
        skipped = collections.Counter(directories=0 if '**' in source else len(names) - len(files))
        if not files:
            kind = 'no file matches this glob' if glob.has_magic(source) else 'no such file or directory'
            start = repr(root) if root else 'the current directory'
            raise FileNotFoundError(
                f'{path}: {kind} (relative paths start at data.root, {start}; '
                "data.source is 'python', 'tfds:NAME', or a file, directory or glob)"
            )
    kept: list[Path] = []
    seen: set[Path] = set()
    for file in files:
        if file != path and file.resolve().is_relative_to(cache.resolve()):  # one that is named is meant
            raise InputError(
                f'{file} lies in data.cache={str(cache)!r}, where tokenised text is kept, and '
                f'data.source={source!r} would read it as text: put data.cache outside of data.source'
            )
        if file.is_symlink() and not file.exists():
            raise FileNotFoundError(f'{file} is a link to {os.readlink(file)}, which does not exist')
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f'{file} is not a regular file: write its text to a file first')
        if file.stat().st_size == 0:  # such as the __init__.py of a package
            skipped['empty'] += 1
            continue
        if file.resolve() in seen:
            skipped['second name of a file'] += 1
            continue
        seen.add(file.resolve())
        kept.append(file.absolute())
    if not kept:
        raise InputError(f'{path}{"" if files == [path] else ": each of its files"} is empty: there is no text')
    return tuple(kept), {reason: count for reason, count in sorted(skipped.items()) if count}


def _of_directory(path: Path) -> tuple[list[Path], collections.Counter]:
    """The files of a directory to read, by their endings, and the count of the others."""
    files, skipped = [], collections.Counter()
    for place, directories, names in os.walk(path):
        files += [Path(place) / name for name in names]
        skipped['links to directories'] += sum(os.path.islink(os.path.join(place, name)) for name in directories)
    files.sort()
    endings = next((each for each in (tuple(READERS), TEXT_ENDINGS) if any(f.name.endswith(each) for f in files)), ())
    kept = [file for file in files if file.name.endswith(endings)]
    skipped.update(file.suffix or 'no ending' for file in files if not file.name.endswith(endings))
    if not kept:
        other = ', '.join(f'{count} {ending}' for ending, count in sorted(skipped.items()) if count) or 'no file'
        raise FileNotFoundError(
            f'{path}: no file in this directory ends in {", ".join((*READERS, *TEXT_ENDINGS))} (it holds {other}): '
            f"a glob names text files of any ending, such as data.source='{path}/**/*.ENDING'"
        )
    return kept, skipped


def _reader(path: Path) -> Callable[[Path, str, str], Iterator[str]]:
    return next((reader for ending, reader in READERS.items() if path.name.endswith(ending)), _txt)


# --- reading files: (path, text_field, document) -> texts


def decode(raw: bytes, path: Path, offset: int = 0, line: int = 1) -> str:
    """The text of UTF-8 bytes that stand at byte `offset` and in line `line` of a file; a byte order mark is removed.

    UTF-16 and UTF-32 with a byte order mark are read as well, if `raw` is the whole file.

    Raises ValueError naming file, line and byte.
    """
    raw = raw if offset else utf8(raw, path)
    try:
        text = raw.decode('utf-8')
    except UnicodeDecodeError as error:
        line += raw.count(b'\n', 0, error.start)
        bad = raw[error.start : error.start + 4].hex(' ')
        raise InputError(
            f'{path}:{line}: not UTF-8 at byte {offset + error.start} ({bad}: {error.reason}). '
            + (_binary(path) or _convert(path, 'ENCODING') + ', with the ENCODING in which it was written')
        ) from None
    return text if offset else text.removeprefix('\ufeff')


def utf8(raw: bytes, path: Path) -> bytes:
    """The bytes of a file in UTF-8, if its byte order mark says UTF-16 or UTF-32; else `raw`.

    Raises ValueError if it is not what its mark says, or if it looks like UTF-16 without a mark.
    """
    encoding = _marked(raw[:4096], path)
    try:
        return raw.decode(encoding).encode('utf-8') if encoding else raw
    except UnicodeError as error:
        at = getattr(error, 'start', 0)
        raise InputError(f'{path}: begins as {encoding.upper()} does, but is not at byte {at} ({error})') from None


def _marked(head: bytes, path: Path) -> str | None:
    """The encoding that the byte order mark of a file names, if it has one that is not UTF-8's."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if not encoding and even + odd > 0.4 * len(head):  # NUL is valid in UTF-8, but text has next to none
        if min(even, odd) > 0.02 * len(head):
            raise InputError(f'{path}: {even + odd:,} of its first {len(head):,} bytes are NUL: it is no text')
        kind = 'utf-16be' if even > odd else 'utf-16le'  # of Latin letters one byte of two is NUL
        raise InputError(f'{path}: looks like {kind.upper()} without a byte order mark. {_convert(path, kind)}')
    return encoding


def _convert(path: Path, encoding: str) -> str:
    return f'Convert it: iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > NEW'


def _binary(path: Path) -> str:
    """The binary format of a file, and how to get its text; '' if the format is unknown."""
    if not path.is_file():  # a row of a dataset
        return ''
    with path.open('rb') as file:
        head = file.read(8)
    return next((f'It is {what}' for begin, what in BINARY.items() if head.startswith(begin)), '')


def opened(path: Path) -> BinaryIO:
    """The UTF-8 bytes of a text file, unpacked if its name ends in .jsonl.gz. See `utf8`."""
    if path.name.endswith('.jsonl.gz'):
        return gzip.open(path)
    with path.open('rb') as file:
        encoding = _marked(file.read(4096), path)
    return io.BytesIO(utf8(path.read_bytes(), path)) if encoding else path.open('rb')


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, its byte offset, the line without its end)."""
    packed, offset = path.name.endswith('.jsonl.gz'), 0
    limit = max(GZ_FLOOR, GZ_RATIO * path.stat().st_size)
    with opened(path) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(LINE_LIMIT + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(
                    f'{path}: cut short or damaged after {offset} bytes of text, in line {number} ({error}). '
                    'Fetch it again; `gzip -t` tells whether it is whole'
                ) from None
            if not line:
                return
            if len(line) > LINE_LIMIT:
                raise InputError(f'{path}:{number}: this line is longer than {LINE_LIMIT >> 20} MiB; break it up')
            yield number, offset, line.rstrip(b'\r\n')
            offset += len(line)
            if packed and offset > limit:
                raise InputError(f'{path}: unpacks to more than {GZ_RATIO} times its size; if that is right, unpack it')


def _txt(path: Path, text_field: str, document: str) -> Iterator[str]:
    return TXT[document](path)


def _txt_file(path: Path) -> Iterator[str]:
    yield decode(path.read_bytes(), path)


def _txt_lines(path: Path) -> Iterator[str]:
    for number, offset, line in lines(path):
        yield decode(line, path, offset, number)


def _txt_paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for text in _txt_lines(path):
        if text.strip():
            paragraph.append(text)
        elif paragraph:
            yield '\n'.join(paragraph)
            paragraph = []
    if paragraph:
        yield '\n'.join(paragraph)


def _txt_lines_with_text(path: Path) -> Iterator[str]:
    return (text for text in _txt_lines(path) if text.strip())


def _jsonl(path: Path, text_field: str, document: str) -> Iterator[str]:
    for number, offset, line in lines(path):
        text = decode(line, path, offset, number)
        if text.strip():
            yield _text_of(parse_json_object(text, f'{path}:{number}'), text_field, f'{path}:{number}')


def _parquet(path: Path, text_field: str, document: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackage(f'{path}: parquet needs pyarrow: pip install -e ".[parquet]"') from None
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
        raise InputError(f'{path}: not a parquet file that can be read ({str(error).splitlines()[0]})') from error


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
        raise InputError(f'{place}: {field!r} must be text, here it is {json_type(row[field])}')
    try:
        row[field].encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{place}: {field!r} holds half of a surrogate pair at character {error.start}') from None
    return row[field]


def _missing(field: str, names, place: str) -> ValueError:
    there = ', '.join(repr(name) for name in names) or 'none'
    return InputError(f'{place}: no field {field!r}; the fields there are: {there}. Set data.text_field to one of them')


TXT = {'file': _txt_file, 'line': _txt_lines_with_text, 'paragraph': _txt_paragraphs}
READERS = {'.txt': _txt, '.jsonl': _jsonl, '.jsonl.gz': _jsonl, '.parquet': _parquet, '.pgn': _pgn}


# --- TFDS


def _prepare_tfds(name: str, directory: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=directory, file_format='array_record')
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever the dataset's own code does
        raise InputError(
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
