"""A strict world: eight simulated devices, no implicit rank promotion, every warning an error."""

import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
# Tests compile more than they compute: LLVM's own optimisations cost more time here than they save.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'.strip()

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

# The same examples on every machine, however slow it is; `pytest --hypothesis-profile=search` draws new ones.
slow = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile('search', deadline=None, suppress_health_check=slow)
hypothesis.settings.register_profile('same', hypothesis.settings.get_profile('search'), derandomize=True)
hypothesis.settings.load_profile('same')


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
