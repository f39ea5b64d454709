"""Prepares the process before jax is imported: log levels, an allocator that keeps freed memory, a compilation cache.

Imports no library. Environment variables that the user has set take precedence.
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


def configure() -> None:
    """Sets environment variables and the allocator before jax starts."""
    os.environ.update(environment())
    gc.set_threshold(10_000, 10, 10)  # objects of imports and tracing stay: collecting them costs a tenth of start-up
    if not accelerated():
        keep_memory()


def accelerated() -> bool:
    """Whether a GPU or a TPU is attached, by Linux's device files."""
    devices = pathlib.Path('/dev')
    return any(any(devices.glob(pattern)) for pattern in ('nvidia[0-9]*', 'dxg', 'kfd', 'accel*', 'vfio/[0-9]*'))


def keep_memory() -> None:
    """Makes glibc keep freed memory: XLA:CPU allocates its temporaries anew in each step.

    If they are returned to the system, the kernel clears them page by page, more than a tenth of a step: 10.7M
    parameters on 12 x 256 tokens cost 250,000 page faults per step. No effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt:
        # M_ARENA_MAX: one heap for all threads. M_MMAP_MAX: no separate blocks. M_TRIM_THRESHOLD: never trim.
        for parameter, value in ((-8, 1), (-4, 0), (-1, -1)):
            mallopt(parameter, value)


def environment() -> dict[str, str]:
    """The variables that the user has not set. Creates the compilation cache unless the user has named one."""
    defaults = {
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        'TF_CPP_MIN_LOG_LEVEL': '2',  # XLA: errors only
        'TPU_MIN_LOG_LEVEL': '2',
        'GRPC_VERBOSITY': 'ERROR',
    }
    configured = {'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'} & os.environ.keys()
    if not configured and (programs := compiled()):
        defaults['JAX_COMPILATION_CACHE_DIR'] = programs
    if not accelerated() and importlib.util.find_spec('libtpu'):
        defaults['JAX_PLATFORMS'] = 'cpu'  # libtpu, installed for plans, would search for a TPU and print errors
    return {name: value for name, value in defaults.items() if name not in os.environ}


def compiled() -> str | None:
    """The folder of the compilation cache; None, with a note on stderr, if it cannot be created."""
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
    print(f'no compilation cache for the next run ({reason}): set JAX_COMPILATION_CACHE_DIR', file=sys.stderr)
    return None


def processor() -> str:
    """A name for this kind of processor: programs compiled for other instructions must not be loaded."""
    try:
        text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
        features = next((line for line in text.splitlines() if line.startswith(('flags', 'Features'))), '')
    except OSError:  # not Linux
        features = platform.processor()
    return f'{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}'
