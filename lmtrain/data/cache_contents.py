"""What the cache directory holds: prepared text and rows, and compiled programs; and how to remove what is not used."""

import fcntl
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import NamedTuple

# Names that lmtrain writes; everything else in the directory belongs to others. The first match counts.
KINDS = (
    (r'(tokens|rows|task|tokenizer|baselines|python_docs)-[^/]*\.[0-9a-f]{8}\.tmp', 'incomplete'),
    (r'python_docs-[^/]+', 'embedded text'),
    (r'tokens-[0-9a-f]{32}', 'tokens of texts'),
    (r'rows-[0-9a-f]{32}', 'packed rows'),
    (r'task-[0-9a-f]{32}', 'encoded rows of tasks'),
    (r'tokenizer-[0-9a-f]{32}', 'tokenizers'),
    (r'baselines-[0-9a-f]{32}', 'baselines'),
    (r'seen/[^/]+', 'notes on sources'),
    (r'xla/[^/]+/[^/]+', 'compiled programs'),
)


class CacheEntry(NamedTuple):
    """A file or directory that is used as a whole. `used`: when it was last read or written, in POSIX seconds."""

    path: Path
    kind: str
    size: int  # bytes
    used: float


def entries(directory: Path) -> list[CacheEntry]:
    """The entries of a cache directory, sorted by path. [] if it does not exist."""
    paths = [path for pattern in ('*', 'seen/*', 'xla/*/*') for path in directory.glob(pattern)]
    result = []
    for path in sorted(paths):
        name = path.relative_to(directory).as_posix()
        kind = next((kind for pattern, kind in KINDS if re.fullmatch(pattern, name)), None)
        if kind and not path.is_symlink():
            files = [path] if path.is_file() else [file for file in path.rglob('*') if not file.is_dir()]
            facts = [file.lstat() for file in files] or [path.lstat()]
            used = max(max(fact.st_atime, fact.st_mtime) for fact in facts)
            result.append(CacheEntry(path, kind, sum(fact.st_size for fact in facts) if files else 0, used))
    return result


def prune(directory: Path, days: float) -> list[CacheEntry]:
    """Removes the entries that were not used for so many days, and incomplete ones; returns those removed.

    An entry that a process is writing is left.
    """
    limit = time.time() - 86_400 * days
    return [entry for entry in entries(directory) if _is_due(entry, limit) and _remove(directory, entry)]


def _is_due(entry: CacheEntry, limit: float) -> bool:
    return entry.kind == 'incomplete' or entry.used <= limit


def _remove(directory: Path, entry: CacheEntry) -> bool:
    """Whether the entry was removed: no process holds its lock (`cache.build`)."""
    if entry.path.is_file():
        entry.path.unlink(missing_ok=True)
        return True
    locks = directory / 'locks'
    locks.mkdir(exist_ok=True)
    built = re.sub(r'\.[0-9a-f]{8}\.tmp$', '', entry.path.name)
    with open(locks / built, 'ab') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # One rename: no process sees a directory with a part of its files.
        doomed = entry.path.with_name(f'{built}.{secrets.token_hex(4)}.tmp')
        entry.path.rename(doomed)
        shutil.rmtree(doomed)
    return True
