"""What is computed once: a directory made beside its place, sealed with a manifest, and put there by one rename."""

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lmtrain import files as paths

MANIFEST = 'manifest.json'
WHOLE = 32 << 20  # files up to this many bytes are hashed whole, larger ones in WINDOWS evenly spaced windows
WINDOWS, WINDOW = 256, 64 << 10
REFUSED = {getattr(errno, name) for name in 'ENOSPC EDQUOT EFBIG EROFS EACCES EPERM ENOTDIR EEXIST ENOENT'.split()}


def directory_of(cache: str) -> Path:
    """The directory that config.data.cache names; '' is `lmtrain` in the user's folder of caches.

    If that cannot be written, a line on stderr says so, and a temporary directory takes its place until this process
    ends.
    """
    return paths.local(cache, 'data.cache').absolute() if cache else _default(paths.caches())


@functools.cache
def _default(caches: Path | None) -> Path:
    reason = 'there is no home directory'
    if caches:
        place = caches / 'lmtrain'
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError as error:
            reason = f'{place}: {error.strerror}'
    print(f'tokenised text is not kept for the next run ({reason}): set data.cache to a directory', file=sys.stderr)
    temporary = Path(tempfile.mkdtemp(prefix='lmtrain-'))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def key(*parts) -> str:
    """Hex sha256 of anything JSON can say: the name under which a result is kept."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build(directory: Path, write: Callable[[Path], None]) -> Path:
    """`directory`, intact: as it stands, or made now by `write(empty directory)`.

    Two processes may ask at once: the second waits for the first. A directory that is cut short or damaged is
    thrown away, with a line on stderr, and made anew; one that is being made is never seen under its name.
    """
    if _intact(directory):
        return directory
    with _lock(directory.parent / 'locks' / directory.name), _writing(directory.parent):
        if _intact(directory):
            return directory
        for remnant in directory.parent.glob(f'{directory.name}.*.tmp'):  # of a process that died; we hold the lock
            shutil.rmtree(remnant)
        if directory.exists():
            print(f'{directory} is damaged (its files are not those of its manifest): made anew', file=sys.stderr)
            shutil.rmtree(directory)
        making = directory.with_name(f'{directory.name}.{secrets.token_hex(4)}.tmp')
        try:
            making.mkdir()
            write(making)
            (making / MANIFEST).write_text(json.dumps(_describe(making), indent=1, sort_keys=True), encoding='utf-8')
            making.rename(directory)
        except BaseException:  # an interrupt as well: what is half made is not left behind
            shutil.rmtree(making, ignore_errors=True)
            raise
    return directory


def write_json(path: Path, value) -> None:
    """Writes a small JSON file that is never seen half written."""
    making = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        making.write_text(json.dumps(value, sort_keys=True), encoding='utf-8')
        making.rename(path)


def read_json(path: Path):
    """The value that `write_json` wrote; None where the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _intact(directory: Path) -> bool:
    manifest = read_json(directory / MANIFEST)
    try:
        return manifest is not None and manifest == _describe(directory)
    except OSError:  # a file vanished while we looked
        return False


def _describe(directory: Path) -> dict[str, list]:
    files = sorted(path for path in directory.rglob('*') if path.is_file() and path != directory / MANIFEST)
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, _digest(path)] for path in files}


def _digest(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open('rb') as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for window in range(WINDOWS):
                file.seek((size - WINDOW) * window // (WINDOWS - 1))
                digest.update(file.read(WINDOW))
    return digest.hexdigest()


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """What the system refuses to write there is said with the way out; other errors pass as they are."""
    try:
        yield
    except OSError as error:
        file = Path(error.filename or cache)
        there = file.is_relative_to(cache) or cache.is_relative_to(file)
        if error.errno not in REFUSED or not there:
            raise
        way_out = f'{error.strerror}: data.cache must be a directory that can be written and has room'
        raise type(error)(error.errno, way_out, str(cache)) from error


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Held by one process at a time, let go by the kernel however that process ends."""
    with _writing(file.parent.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
