"""Local paths that a user names, atomic writes, SHA-256 digests, JSON and JSON lines."""

import datetime
import hashlib
import json
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError

URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')  # 'gs://...', also as pathlib.Path writes it: 'gs:/...'


def local_path(path: str | os.PathLike, field: str, root: str = '') -> Path:
    """`path` below `root`, with `~` expanded. The disk is not read.

    Args:
      field: the flag or config field that names `path`, for errors.
      root: config.data.root, the start of relative paths; '' is the current directory.

    Raises InputError for a URL such as gs://bucket/run, and for `~` if the home directory is unknown.

    >>> local_path('corpus.txt', 'data.source', '/data').as_posix()
    '/data/corpus.txt'
    """
    text = os.fspath(path)
    if URL.match(text):
        raise InputError(
            f'{field}={text!r} is a URL; lmtrain reads and writes local paths: mount the bucket (gcsfuse, s3fs, '
            'rclone mount) or download the files, and name that folder'
        )
    expanded = os.path.expanduser(text)
    if text.split('/')[0] == '~' and expanded == text:
        raise InputError(f'{field}={text!r}: HOME is not set and the user has no home directory: write the whole path')
    return local_path(root, 'data.root') / expanded if root else Path(expanded)


def is_run_folder(names: Iterable[str]) -> bool:
    """Whether a folder with files and folders of these names is that of a run, a trial or a comparison.

    >>> is_run_folder(['config.json', 'lineage.jsonl']), is_run_folder(['config.json', 'model.safetensors'])
    (True, False)
    """
    own = {*names}
    return 'trial.json' in own or 'config.json' in own and bool(own & {'fingerprints.json', 'lineage.jsonl', 'trials'})


def user_cache() -> Path | None:
    """The cache directory of the user: $XDG_CACHE_HOME, else ~/.cache; None if there is no home directory.

    https://specifications.freedesktop.org/basedir-spec: a relative XDG_CACHE_HOME is ignored.
    """
    configured = os.environ.get('XDG_CACHE_HOME', '')
    directory = configured if os.path.isabs(configured) else os.path.expanduser('~/.cache')
    return Path(directory) if os.path.isabs(directory) else None


def write_atomic(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes a file through a temporary file and one rename: a crash leaves the old file or the new one.

    The content is on the disk when the function returns. Only one process may write `path` at a time.

    Args:
      content: the bytes, or chunks of them, so that a large file needs no copy in memory.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    with temporary.open('wb') as file:
        for chunk in [content] if isinstance(content, bytes) else content:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any, **layout: Any) -> None:
    """Writes a JSON file atomically; `layout` are arguments of json.dumps."""
    write_atomic(path, (json.dumps(value, **layout) + '\n').encode())


def sync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk: a rename there then survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative paths of the files in a folder and below, sorted; symbolic links are files."""
    files = (path for path in folder.rglob('*') if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def describe_files(folder: Path, names: Iterable[str], describe: Callable[[Path], Any]) -> dict[str, Any]:
    """{name: describe(folder / name)}, the body of a manifest; by 8 threads, since hashing releases the global lock."""
    import concurrent.futures  # late: the command line imports this module

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(describe, [folder / name for name in names]), strict=True))


def parse_json(text: str | bytes, place: str | os.PathLike, **options: Any) -> Any:
    """The value of a JSON text. `options` are arguments of json.loads.

    Raises InputError naming `place`, a file or 'file:line', and what is wrong.
    """
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        line = error.doc.split('\n')[error.lineno - 1]
        column = f'column {error.colno}' if error.lineno == 1 else f'line {error.lineno}, column {error.colno}'
        what = error.msg.removesuffix(' at')  # 'Unterminated string starting at'
        raise InputError(f'{place}: invalid JSON, {what} at {column}: {line[:60]!r}') from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5,000 digits, brackets 100,000 deep
        raise InputError(f'{place}: invalid JSON ({error}): {text[:60]!r}') from None


def parse_json_object(text: str | bytes, place: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The same for a text that must be an object {...}."""
    value = parse_json(text, place, **options)
    if not isinstance(value, dict):
        raise InputError(f'{place}: expected a JSON object {{...}}, not {json_type(value)}: {text[:60]!r}')
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises FileNotFoundError, and InputError naming the file."""
    return parse_json(path.read_bytes(), path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, and InputError naming the file."""
    return parse_json_object(path.read_bytes(), path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; [] if it is missing. A last line without its newline is left out.

    Raises InputError naming file and line.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b'\n')[:-1]
    return [parse_json_object(line, f'{path}:{number}') for number, line in enumerate(lines, 1)]


def json_type(value: Any) -> str:
    """The JSON type of a value, with its article; or the type of one that only parquet and Python have.

    >>> json_type([1, 2]), json_type(b'a')
    ('an array', 'bytes')
    """
    types: dict[type, str] = {dict: 'an object', list: 'an array', str: 'text', bool: 'true or false'}
    types |= {type(None): 'null', numbers.Number: 'a number', bytes: 'bytes', datetime.date: 'a date'}
    return next((name for kind, name in types.items() if isinstance(value, kind)), f'of type {type(value).__name__}')


def flatten_fields(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'section.field': value} of a nested dict, in its order. An empty section is a value.

    >>> flatten_fields({'data': {'seq_len': 256, 'mix': ()}, 'seed': 1})
    {'data.seq_len': 256, 'data.mix': (), 'seed': 1}
    """
    fields: dict[str, Any] = {}
    for name, value in config.items():
        section = isinstance(value, Mapping) and value
        fields |= flatten_fields(value, f'{prefix}{name}.') if section else {f'{prefix}{name}': value}
    return fields
