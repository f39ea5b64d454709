"""Provenance of one start: command, machine, versions."""

import importlib.metadata
import os
import platform
import shlex
import sys
from typing import Any

import jax


def provenance(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The command, the machine, and the versions of Python and of the packages that determine the results."""
    device = mesh.devices.flat[0].device_kind
    return {
        'command': shlex.join(['lmtrain', *sys.argv[1:]]),
        'machine': {
            'devices': f'{mesh.size} x {device}',
            'cores': os.cpu_count(),
            'processes': jax.process_count(),
        },
        'versions': versions(),
    }


def versions() -> dict[str, str]:
    """{package: version} of Python and of the packages that determine the results."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
    return {'python': platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
