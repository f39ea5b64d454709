"""Strict settings for every test: eight simulated devices, no implicit rank promotion, every warning an error."""

import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
# Tests compile more than they compute, so LLVM's optimisations cost more time than they save. The fusion emitters of
# XLA's CPU backend take a third of the compile time; since jaxlib 0.11 they cannot be switched off.
flags = [os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=0']
flags.append('--xla_cpu_parallel_codegen_split_count=1')  # the workers occupy the cores already
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    flags.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(flags).strip()

# The workers of one run, and the processes that tests start, share one compilation cache. It is new for each run, so
# that no run reads what another one compiled; a developer may set the variable to keep it between runs.
owns_cache = 'JAX_COMPILATION_CACHE_DIR' not in os.environ
if owns_cache:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='lmtrain-compiled-')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from lmtrain.runtime import progress  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

# Output that a test compares must not depend on how long a phase takes. tests/runtime/test_progress.py sets it back.
progress.NOTICEABLE = float('inf')

# Tracing allocates many objects, and a collection visits all that are alive: by default it takes a tenth of the time.
gc.freeze()
gc.set_threshold(200_000, 20, 100)

# The same examples on every machine, however slow it is; `pytest --hypothesis-profile=search` draws new ones.
slow = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile('search', deadline=None, suppress_health_check=slow)
hypothesis.settings.register_profile('same', hypothesis.settings.get_profile('search'), derandomize=True)
hypothesis.settings.load_profile('same')


def pytest_unconfigure(config):
    if owns_cache:
        shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture(scope='module', autouse=True)
def limited_mappings():
    """Drops the compiled programs that this process holds if they are many.

    Each takes memory mappings, with jaxlib 0.12 more than twice as many as before, and Linux allows a process 65,530
    (vm.max_map_count). A program that is loaded beyond that ends the process with a segmentation fault.
    """
    yield
    mappings = pathlib.Path('/proc/self/maps')  # of Linux
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > 15_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def no_compilation_cache():
    """Compiles anew: for tests that count compilations, or that read the HLO text or memory of a compiled program."""
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # JAX asks only once per process whether the cache is enabled
    yield
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """The folder of real data beside the repository; tests that need it are skipped if it is missing."""
    root = pathlib.Path(os.environ.get('LMTRAIN_DATA', pathlib.Path(__file__).parents[2] / 'shared' / 'data'))
    if not root.is_dir():
        pytest.skip(f'no data at {root} (set LMTRAIN_DATA to the folder that holds it)')
    return root


@pytest.fixture(scope='module')
def text(tmp_path_factory) -> pathlib.Path:
    """A folder of 40 small texts, in a folder of its own, so that a test can put a cache and runs next to it."""
    folder = tmp_path_factory.mktemp('run') / 'text'
    folder.mkdir()
    for i in range(40):
        (folder / f'{i}.txt').write_text(f'{i} cats sat on {i * i} mats. ' * (i % 7 + 3))
    return folder


@pytest.fixture(scope='module')
def small_recipe(text):
    """Makes configs.tiny fast for the examples of the documentation: small texts."""
    from configs import tiny

    def get_config(original=tiny.get_config):
        config = original()
        config.data.source, config.data.cache = str(text), str(text.parent / 'cache')
        config.data.validation = config.data.test = 0.2
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, 'get_config', get_config)
        yield


@pytest.fixture(scope='session')
def computes():
    """(model, params, tokenizer) of a small language model: bytes, 64 positions, peaked distributions."""
    import jax.numpy as jnp

    from configs import base
    from lmtrain.data.tokenizers.base import Bytes
    from lmtrain.models import Transformer

    model = base.get_config().model.to_dict() | {'num_layers': 2, 'width': 16, 'num_heads': 4, 'max_len': 64}
    model = Transformer(**model | {'vocab_size': 320, 'head_dim': 4, 'mlp_dim': 32, 'unroll': 2})

    @jax.jit
    def init(key):
        return jax.tree.map(lambda leaf: 5 * leaf, model.init(key, {'tokens': jnp.zeros((1, 8), jnp.int32)})['params'])

    return model, init(jax.random.key(0)), Bytes()
