"""A strict world: eight simulated devices, no implicit rank promotion, every warning an error."""

import os
import pathlib
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
# Tests compile more than they compute: LLVM's own optimisations cost more time here than they save.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'.strip()

# All workers of one run, and the processes that they start, share one compilation cache.
owns_cache = 'JAX_COMPILATION_CACHE_DIR' not in os.environ
if owns_cache:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='lmtrain-compiled-')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

# The same examples on every machine, however slow it is; `pytest --hypothesis-profile=search` draws new ones.
slow = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile('search', deadline=None, suppress_health_check=slow)
hypothesis.settings.register_profile('same', hypothesis.settings.get_profile('search'), derandomize=True)
hypothesis.settings.load_profile('same')


def pytest_unconfigure(config):
    if owns_cache:
        shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture
def no_compilation_cache():
    """Compiles anew: for tests that count compilations, or read what a program from the cache lacks."""
    jax.config.update('jax_enable_compilation_cache', False)
    yield
    jax.config.update('jax_enable_compilation_cache', True)


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """Real data beside the repository; a test that wants it skips where it is missing."""
    root = pathlib.Path(os.environ.get('LMTRAIN_DATA', pathlib.Path(__file__).parents[2] / 'shared' / 'data'))
    if not root.is_dir():
        pytest.skip(f'no data at {root} (set LMTRAIN_DATA to the folder that holds it)')
    return root


@pytest.fixture(scope='module')
def text(tmp_path_factory) -> pathlib.Path:
    """A folder of small texts, with room for a cache and runs beside it."""
    folder = tmp_path_factory.mktemp('run') / 'text'
    folder.mkdir()
    for i in range(40):
        (folder / f'{i}.txt').write_text(f'{i} cats sat on {i * i} mats. ' * (i % 7 + 3))
    return folder
