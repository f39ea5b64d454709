"""Provenance of one start: command, commit, machine, versions."""

import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[2]


def provenance(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """The command, the commit, the machine, and the versions of Python and of the packages that determine the results.

    Args:
      devices: those that are used.
    """
    return {
        'command': shlex.join(['lmtrain', *sys.argv[1:]]),
        'commit': commit(),
        'machine': {
            'devices': f'{len(devices)} x {devices[0].device_kind}',
            'cores': os.cpu_count(),
            'processes': jax.process_count(),
        },
        'versions': versions(),
    }


def commit(root: pathlib.Path = ROOT) -> str | None:
    """The git commit of the checkout that lmtrain is imported from, with '-dirty' if it was changed; else None."""
    if not (root / '.git').exists():
        return None
    command = ('git', '-C', root, 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')
    try:
        return subprocess.run(command, capture_output=True, check=True, encoding='utf-8').stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or the checkout belongs to another user
        return None


def versions() -> dict[str, str]:
    """{package: version} of Python and of the packages that determine the results."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
    return {'python': platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
