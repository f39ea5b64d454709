"""The process before jax is imported: quiet logs, memory that is kept, and a compilation cache that survives it.

Nothing heavy is imported here, and what the user has set in the environment wins.
"""

import ctypes
import gc
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys

from lmtrain.files import user_cache


def prepare() -> None:
    """Sets what must be set before jax starts."""
    os.environ.update(environment())
    gc.set_threshold(10_000, 10, 10)  # imports and tracing make what stays: to search it is a tenth of a start
    if not accelerated():
        keep_memory()


def accelerated() -> bool:
    """Whether a GPU or a TPU is attached, as far as Linux's device files tell."""
    devices = pathlib.Path('/dev')
    return any(any(devices.glob(pattern)) for pattern in ('nvidia[0-9]*', 'dxg', 'kfd', 'accel*', 'vfio/[0-9]*'))


def keep_memory() -> None:
    """Has glibc keep what is freed: XLA:CPU allocates its temporaries anew each step.

    Given back and taken again, they are cleared page by page, a tenth of a step and more: 10.7M parameters on
    12 x 256 tokens cost 250,000 page faults a step. Elsewhere than on glibc, nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt:
        # M_ARENA_MAX one heap for all threads, M_MMAP_MAX no block of its own, M_TRIM_THRESHOLD nothing is given back.
        for parameter, value in ((-8, 1), (-4, 0), (-1, -1)):
            mallopt(parameter, value)


def environment() -> dict[str, str]:
    """The variables that the user has not set. Makes the folder of compiled programs, unless the user has named one."""
    wanted = {
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        'TF_CPP_MIN_LOG_LEVEL': '2',  # XLA: errors only
        'TPU_MIN_LOG_LEVEL': '2',
        'GRPC_VERBOSITY': 'ERROR',
    }
    asked = {'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'} & os.environ.keys()
    if not asked and (programs := compiled()):
        wanted['JAX_COMPILATION_CACHE_DIR'] = programs
    if not accelerated() and importlib.util.find_spec('libtpu'):
        wanted['JAX_PLATFORMS'] = 'cpu'  # libtpu, there to plan with, would look for a TPU and complain at length
    return {name: value for name, value in wanted.items() if name not in os.environ}


def compiled() -> str | None:
    """The folder of compiled programs; None, said on stderr, if it cannot be made."""
    caches, reason = user_cache(), 'there is no home directory'
    if caches:
        folder = caches / 'lmtrain' / 'xla' / processor()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds executable code
            if os.access(folder, os.W_OK):
                return str(folder)
            reason = f'{folder}: not writable'
        except OSError as error:
            reason = f'{error.filename or folder}: {error.strerror}'
    print(f'compiled programs are not kept for the next run ({reason}): set JAX_COMPILATION_CACHE_DIR', file=sys.stderr)
    return None


def processor() -> str:
    """A name for this kind of processor; code compiled for another's instructions must not come from a shared home."""
    try:
        text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
        features = next((line for line in text.splitlines() if line.startswith(('flags', 'Features'))), '')
    except OSError:  # not Linux
        features = platform.processor()
    return f'{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}'
