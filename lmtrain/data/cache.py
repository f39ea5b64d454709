"""Directories that are computed once: written under a temporary name, described by a manifest, renamed into place."""

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmtrain import files
from lmtrain.errors import InputError

MANIFEST = 'manifest.json'
FULL_HASH_LIMIT = 32 << 20  # bytes; larger files are hashed in WINDOWS evenly spaced windows of WINDOW bytes
WINDOWS, WINDOW = 256, 64 << 10
WRITE_ERRORS = {getattr(errno, name) for name in 'ENOSPC EDQUOT EFBIG EROFS EACCES EPERM ENOTDIR EEXIST ENOENT'.split()}


def cache_directory(cache: str) -> Path:
    """The directory that config.data.cache names; '' is `lmtrain` in the user's cache directory.

    If the latter cannot be written, a line on stderr says so, and a temporary directory is used until this process
    ends.
    """
    return files.local_path(cache, 'data.cache').absolute() if cache else _default_directory(files.user_cache())


@functools.cache
def _default_directory(user_cache: Path | None) -> Path:
    reason = 'there is no home directory'
    if user_cache:
        directory = user_cache / 'lmtrain'
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError as error:
            reason = f'{directory}: {error.strerror}'
    print(f'tokenised text is not kept for the next run ({reason}): set data.cache to a directory', file=sys.stderr)
    temporary = Path(tempfile.mkdtemp(prefix='lmtrain-'))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def key(*parts: Any) -> str:
    """Hex SHA-256 of JSON values: the name under which a result is stored.

    >>> key('tokens', 3)[:12]
    '93bddc5c4a7e'
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build(directory: Path, write: Callable[[Path], None]) -> Path:
    """Returns `directory` after checking it, or creates it by `write(empty directory)`.

    If two processes call this at the same time, the second waits for the first. A damaged directory is deleted, with a
    line on stderr, and created again. An incomplete one never has its final name.
    """
    if directory.exists() and _is_intact(directory):
        return directory
    with _writing(directory):
        if directory.exists() and _is_intact(directory):
            return directory
        # Left by a process that was killed: we hold the lock, so nobody is writing there.
        for remnant in directory.parent.glob(f'{directory.name}.*.tmp'):
            shutil.rmtree(remnant)
        if directory.exists():
            print(f'{directory} is damaged (its files differ from its manifest): it is created again', file=sys.stderr)
            shutil.rmtree(directory)
        temporary = directory.with_name(f'{directory.name}.{secrets.token_hex(4)}.tmp')
        try:
            temporary.mkdir()
            write(temporary)
            files.write_json(temporary / MANIFEST, _describe(temporary), indent=1, sort_keys=True)
            temporary.rename(directory)
        except BaseException:  # also for an interrupt: no incomplete directory is left
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return directory


def write_note(path: Path, value: Any) -> None:
    """Writes a small JSON file atomically; several processes may write the same one."""
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, value, sort_keys=True)


def read_note(path: Path) -> Any:
    """The value of a JSON file; None if it is missing or broken."""
    try:
        return files.read_json(path)
    except (FileNotFoundError, NotADirectoryError, InputError):
        return None


def _is_intact(directory: Path) -> bool:
    manifest = read_note(directory / MANIFEST)
    try:
        return manifest is not None and manifest == _describe(directory)
    except OSError:  # a file disappeared between listing and reading
        return False


def _describe(directory: Path) -> dict[str, list]:
    """{relative path: [bytes, digest]} of the files of a directory."""
    names = [name for name in files.list_files(directory) if name != MANIFEST]
    return files.describe_files(directory, names, _size_and_digest)


def _size_and_digest(path: Path) -> list:
    """[bytes, hex SHA-256]. Of a large file, windows are hashed: a start must not read gigabytes of tokens."""
    size = path.stat().st_size
    if size <= FULL_HASH_LIMIT:
        return [size, files.sha256(path)]
    digest = hashlib.sha256()
    with path.open('rb') as file:
        for window in range(WINDOWS):
            file.seek((size - WINDOW) * window // (WINDOWS - 1))
            digest.update(file.read(WINDOW))
    return [size, digest.hexdigest()]


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Held by one process at a time for a directory of the cache; the kernel releases it however that process ends.

    Adds the way out to an error of the system about writing in the cache; other errors pass unchanged.
    """
    cache = directory.parent
    lock = cache / 'locks' / directory.name
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open('ab') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        file = Path(error.filename or cache)
        inside = file.is_relative_to(cache) or cache.is_relative_to(file)
        if error.errno not in WRITE_ERRORS or not inside:
            raise
        way_out = f'{error.strerror}: data.cache must be a directory that is writable and has free space'
        raise type(error)(error.errno, way_out, str(cache)) from error
