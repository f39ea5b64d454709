"""A small language model that the tests of prompts share."""

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.models import Transformer


@pytest.fixture(scope='session')
def computes():
    """(model, params, tokenizer): bytes, 64 positions, parameters that give peaked distributions."""
    model = base.get_config().model.to_dict() | {'num_layers': 2, 'width': 16, 'num_heads': 4, 'max_len': 64}
    model = Transformer(**model | {'vocab_size': 320, 'head_dim': 4, 'mlp_dim': 32, 'unroll': 2})
    params = model.init(jax.random.key(0), {'tokens': jnp.zeros((1, 8), jnp.int32)})['params']
    return model, jax.tree.map(lambda leaf: 5 * leaf, params), Bytes()
