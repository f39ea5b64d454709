"""Models, batches and states that are too large are refused by name."""

import types

import jax
import pytest

from launch import recipe
from lmtrain.models import Transformer
from lmtrain.runtime import preflight

NEEDED = {'parameters': 4e9, 'gradients': 4e9, 'moments': 8e9, 'activations': 10e9, 'total': 26e9}


def model(**fields):
    return Transformer(**recipe.load('tiny', {f'model.{name}': str(value) for name, value in fields.items()}).model)


@pytest.mark.parametrize(
    ('fields', 'word'),
    [
        ({'width': 2**40}, r'model\.width = 1099511627776.* parameters, more than any machine'),
        ({'vocab_size': 2**40}, r'model\.vocab_size = 1099511627776'),
        ({'mlp_dim': 2**40}, r'model\.mlp_dim = 1099511627776'),
        ({'max_len': 2**40, 'positions': 'learned'}, 'parameters, more than'),
        ({'num_layers': 10**9}, r'model\.num_layers = 1000000000: it must be at most 65,536'),
    ],
)
def test_too_large_model_is_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        preflight.check_sizes(model(**fields), 8, 32)


@pytest.mark.parametrize('size', ['pretrain_llama:70B', 'pretrain_gpt2:1558M'])
def test_largest_recipes_pass(size):
    config = recipe.load(size)
    preflight.check_sizes(Transformer(**config.model), config.data.batch_size, config.data.seq_len)


def test_too_large_batch_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r'data\.batch_size = 1000000000000 rows of data\.seq_len = 32 tokens are'):
        preflight.check_sizes(model(), 10**12, 32)
    monkeypatch.setattr(preflight, 'host_memory', lambda: 8 * 32 * 20)
    preflight.check_sizes(model(), 8, 32)
    with pytest.raises(ValueError, match='5.76e-06 GB a batch, and this machine has 5.12e-06 GB'):
        preflight.check_sizes(model(), 9, 32)


@pytest.mark.parametrize(('there', 'enough'), [(30e9, True), (16e9, True), (15.9e9, False)])
def test_state_is_compared_with_the_memory_of_a_device(there, enough):
    device = types.SimpleNamespace(memory_stats=lambda: {'bytes_limit': there}, platform='gpu')
    if enough:
        preflight.check_memory(NEEDED, device)
    else:
        word = r'needs 16 GB on each device \(parameters 4 GB.*a device has 15.9 GB.*mesh.fsdp.*MEM_FRACTION=.92'
        with pytest.raises(ValueError, match=word):
            preflight.check_memory(NEEDED, device)


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(preflight, 'host_memory', lambda: 8 * 16_000_000_000)
    preflight.check_memory(NEEDED, jax.devices()[0])
    monkeypatch.setattr(preflight, 'host_memory', lambda: 8 * 15_000_000_000)
    with pytest.raises(ValueError, match='has 15 GB'):
        preflight.check_memory(NEEDED, jax.devices()[0])
