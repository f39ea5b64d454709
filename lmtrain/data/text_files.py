"""Text files as UTF-8: encodings with a byte order mark, binary formats by name, lines, gzip."""

import codecs
import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lmtrain.errors import InputError

LINE_LIMIT = 16 << 20  # bytes of one line
PACKED = ('.jsonl.gz', '.ndjson.gz')  # endings of files that are unpacked as they are read
# A .gz that unpacks to more than GZ_RATIO times its size and more than GZ_FLOOR bytes is rejected.
GZ_RATIO, GZ_FLOOR = 200, 64 << 20
# Encodings by byte order mark. The mark of UTF-32 begins with that of UTF-16, so it comes first.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
# Binary formats by magic number, and how to extract their text.
BINARY_FORMATS = {
    b'\x1f\x8b': 'gzip: unpack it with gunzip',
    b'\x28\xb5\x2f\xfd': 'Zstandard: unpack it with unzstd',
    b'\xfd7zXZ\x00': 'xz: unpack it with unxz',
    b'PK\x03\x04': 'a zip archive, as .docx, .odt and .epub are: unpack it or save its text as .txt',
    b'%PDF': 'PDF: extract its text, for instance with pdftotext',
}


def decode(raw: bytes, path: Path, offset: int = 0, line: int = 1) -> str:
    """The text of UTF-8 bytes at byte `offset`, line `line` of a file, without a byte order mark.

    If `raw` is the whole file, UTF-16 and UTF-32 with a byte order mark are decoded as well.

    Raises InputError naming file, line and byte.
    """
    raw = raw if offset else to_utf8(raw, path)
    try:
        text = raw.decode('utf-8')
    except UnicodeDecodeError as error:
        line += raw.count(b'\n', 0, error.start)
        bad = raw[error.start : error.start + 4].hex(' ')
        way_out = _binary_format(path) or (
            _iconv(path, 'ENCODING') + ', where ENCODING is that of the file, often windows-1252'
        )
        raise InputError(
            f'{path}:{line}: not UTF-8 at byte {offset + error.start} ({bad}: {error.reason}). {way_out}'
        ) from None
    return text if offset else text.removeprefix('\ufeff')


def to_utf8(raw: bytes, path: Path) -> bytes:
    """The bytes of a file, converted to UTF-8 if they begin with a byte order mark of UTF-16 or UTF-32.

    Raises InputError if the bytes contradict the mark, or look like UTF-16 without a mark.
    """
    encoding = _marked_encoding(raw[:4096], path)
    try:
        return raw.decode(encoding).encode('utf-8') if encoding else raw
    except UnicodeError as error:
        at = getattr(error, 'start', 0)
        raise InputError(
            f'{path}: begins with the byte order mark of {encoding.upper()}, but is not {encoding.upper()} at byte '
            f'{at} ({error})'
        ) from None


def _marked_encoding(head: bytes, path: Path) -> str | None:
    """The encoding of a byte order mark; None without one and for UTF-8's."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if not encoding and even + odd > 0.4 * len(head):  # NUL is valid in UTF-8, but text has almost none
        if min(even, odd) > 0.02 * len(head):
            raise InputError(f'{path}: {even + odd:,} of its first {len(head):,} bytes are NUL: it is not text')
        kind = 'utf-16be' if even > odd else 'utf-16le'  # every second byte of Latin letters is NUL
        raise InputError(f'{path}: looks like {kind.upper()} without a byte order mark. {_iconv(path, kind)}')
    return encoding


def _iconv(path: Path, encoding: str) -> str:
    return f'Convert it: iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > NEW'


def _binary_format(path: Path) -> str:
    """The binary format of a file and how to extract its text; '' if the format is unknown."""
    if not path.is_file():  # a row of a dataset
        return ''
    with path.open('rb') as file:
        head = file.read(8)
    return next((f'It is {name}' for magic, name in BINARY_FORMATS.items() if head.startswith(magic)), '')


def open_utf8(path: Path) -> BinaryIO:
    """The UTF-8 bytes of a text file, unpacked if it is PACKED. See `to_utf8`."""
    if path.name.lower().endswith(PACKED):
        return gzip.open(path)
    with path.open('rb') as file:
        encoding = _marked_encoding(file.read(4096), path)
    return io.BytesIO(to_utf8(path.read_bytes(), path)) if encoding else path.open('rb')


def raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line without its end) of a file that is read in pieces of one line."""
    packed, offset = path.name.lower().endswith(PACKED), 0
    limit = max(GZ_FLOOR, GZ_RATIO * path.stat().st_size)
    with open_utf8(path) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(LINE_LIMIT + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                if isinstance(error, gzip.BadGzipFile) and number == 1:
                    raise InputError(f'{path}: it is not compressed ({error}): remove .gz from its name') from None
                raise InputError(
                    f'{path}: truncated or damaged after {offset} bytes of text, in line {number} ({error}). '
                    'Download it again; `gzip -t` checks it'
                ) from None
            if not line:
                return
            if len(line) > LINE_LIMIT:
                raise InputError(f'{path}:{number}: this line is longer than {LINE_LIMIT >> 20} MiB: break it up')
            yield number, offset, line.rstrip(b'\r\n')
            offset += len(line)
            if packed and offset > limit:
                raise InputError(
                    f'{path}: unpacks to more than {GZ_RATIO} times its size; if that is correct, unpack it with gunzip'
                )


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """('file:line', text) of every line, blank ones included."""
    for number, offset, line in raw_lines(path):
        yield f'{path}:{number}', decode(line, path, offset, number)
