"""What a start of a run ran on: what was typed, the machine, the versions."""

import importlib.metadata
import os
import platform
import shlex
import sys
from typing import Any

import jax

from lmtrain.run import Run


def circumstances(run: Run) -> dict[str, Any]:
    """What was typed, on what, and the versions that decide the numbers."""
    device = run.mesh.devices.flat[0].device_kind
    return {
        'command': shlex.join(['lmtrain', *sys.argv[1:]]),
        'machine': {
            'devices': f'{run.mesh.size} x {device}',
            'cores': os.cpu_count(),
            'processes': jax.process_count(),
        },
        'versions': versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
    found = {name: importlib.metadata.version(name) for name in packages}
    return {'python': platform.python_version()} | found
