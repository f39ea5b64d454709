"""Files that a verb writes: their paths are checked before the work, and they are written atomically."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from lmtrain.files import write_atomic


def check(path: str | None, flag: str) -> None:
    """Raises FileNotFoundError or IsADirectoryError if the file that --`flag` names cannot be written."""
    if not path:
        return
    file = pathlib.Path(path)
    if file.is_dir():
        raise IsADirectoryError(f'--{flag}={path} is a directory: name a file in it, such as {file / "results.json"}')
    if not file.parent.is_dir():
        raise FileNotFoundError(f'--{flag}={path}: there is no directory {file.parent}: create it, or name another')


def write(path: str | None, content: bytes | Iterable[bytes]) -> None:
    """Writes a file if it is named, and says so."""
    if path:
        write_atomic(pathlib.Path(path), content)
        print(f'written: {path}')


def as_json(value: Any) -> bytes:
    """A value as the content of a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + '\n').encode()
