"""The compilation cache of a test run: subprocesses share it, it does not change results, and a test can opt out."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def hits():
    """A list to which every program that is read from the cache adds an entry."""
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)  # the programs below compile fast
    events = []

    def listen(event, **_):
        if event == '/jax/compilation_cache/cache_hits':
            events.append(event)

    jax.monitoring.register_event_listener(listen)
    yield events
    jax.monitoring.unregister_event_listener(listen)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)


def compile_and_run() -> bytes:
    """The result of a program that this process has not compiled yet: each call jits a new function."""
    x = jnp.sin(jnp.arange(42.0)).reshape(6, 7)
    return jax.jit(lambda x: jax.nn.softmax(x @ x.T)).lower(x).compile()(x).tobytes()


def test_a_program_from_the_cache_gives_the_same_bits(hits):
    first = compile_and_run()
    hits.clear()
    assert compile_and_run() == first and hits


def test_a_test_that_opts_out_compiles_anew(hits, no_compilation_cache):
    assert compile_and_run() == compile_and_run() and not hits


def test_subprocesses_share_the_cache_and_the_flags():
    code = 'import jax, os; print(jax.config.jax_compilation_cache_dir, os.environ["XLA_FLAGS"], jax.device_count())'
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == f'{jax.config.jax_compilation_cache_dir} {os.environ["XLA_FLAGS"]} 8'
