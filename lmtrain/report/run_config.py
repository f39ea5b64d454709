"""The config of a run's folder as this lmtrain names and completes it; needs no jax."""

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

from lmtrain.errors import InputError

VERSION = 2  # of config.json; folders without a version are of version 1
# Fields that an older run lacks and whose default is not what that run did: the value that it had in effect.
LACKED = {'sweep.zipped': True}


class WrongRun(InputError):
    """The folder belongs to a run of another config, other data or another tokenizer."""


def upgrade(saved: Mapping[str, Any], path: str | os.PathLike) -> dict[str, Any]:
    """The object in config.json of a run as a nested dict of all present fields, without the version.

    A field under a former name gets its present one. A field that the lmtrain of that run did not have takes the value
    that it had in effect: that of `LACKED`, else its default.

    Raises WrongRun naming the file `path` if it is of a newer version, or not the config of a run.
    """
    from configs import base  # late: only a folder that exists needs the defaults

    config = dict(saved)
    version = config.pop('version', 1)
    if type(version) is not int or version > VERSION:
        raise WrongRun(f'{path} has version {version!r}, and this lmtrain reads up to {VERSION}: update lmtrain')
    if missing := [name for name in ('data', 'model', 'optimizer', 'budget') if not isinstance(config.get(name), dict)]:
        raise WrongRun(f'{path} is not the config of a run: it has no section {missing[0]!r}')
    return _filled(_renamed(config, base.RENAMED), json.loads(_defaults()))


@functools.cache
def _defaults() -> str:
    """The defaults as JSON, with the values of `LACKED`. Tables read many runs, and each changes its own copy."""
    from configs import base

    defaults = json.loads(base.get_config().to_json())
    for field, value in LACKED.items():
        section, name = field.split('.')
        defaults[section][name] = value
    return json.dumps(defaults)


def _renamed(config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """`config` with the fields under their present names."""
    return {
        names.get(name, name): _renamed(value, names) if isinstance(value, dict) else value
        for name, value in config.items()
    }


def _filled(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`config` with the fields that only `defaults` has."""
    nested = {
        name: value
        for name, value in config.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | config | {name: _filled(value, defaults[name]) for name, value in nested.items()}
