"""Paths that a user names, and the folder of caches. Nothing is looked up on the disk here."""

import os
import re
from pathlib import Path

from lmtrain.errors import InputError

URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')  # 'gs://...', also as pathlib.Path writes it: 'gs:/...'


def local(path: str | os.PathLike, field: str, root: str = '') -> Path:
    """`path` below `root`, with `~` expanded.

    Args:
      field: the flag or config field that names `path`, for errors.
      root: config.data.root, the start of relative paths; '' is the current directory.

    Raises ValueError for a URL such as gs://bucket/run, and for `~` if the home directory is unknown.
    """
    text = os.fspath(path)
    refuse_url(text, field)
    expanded = os.path.expanduser(text)
    if text.split('/')[0] == '~' and expanded == text:
        raise InputError(f'{field}={text!r}: HOME is not set and the user has no home directory: write the whole path')
    return local(root, 'data.root') / expanded if root else Path(expanded)


def refuse_url(text: str, field: str) -> None:
    """Raises ValueError if `text`, the value of `field`, is a URL."""
    if URL.match(text):
        raise InputError(
            f'{field}={text!r} is a URL; lmtrain reads and writes local paths: mount the bucket (gcsfuse, s3fs, '
            'rclone mount) or download the files, and name that folder'
        )


def caches() -> Path | None:
    """The user's folder of caches: $XDG_CACHE_HOME, else ~/.cache; None if there is no home directory.

    https://specifications.freedesktop.org/basedir-spec: a relative XDG_CACHE_HOME is ignored.
    """
    named = os.environ.get('XDG_CACHE_HOME', '')
    place = named if os.path.isabs(named) else os.path.expanduser('~/.cache')
    return Path(place) if os.path.isabs(place) else None
