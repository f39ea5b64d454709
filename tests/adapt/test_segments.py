"""Training some layers of a model that has segments already (ModernBERT's first layer lacks a norm)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import adapt, tree
from lmtrain.models import Transformer


@functools.cache
def modernbert():
    config = base.get_config()
    config.model.update({'vocab_size': 31, 'max_len': 8, 'num_layers': 4, 'width': 8, 'num_heads': 2, 'unroll': 1})
    config.model.update({'norm': 'layernorm', 'causal': False, 'first_norm': False})
    model = Transformer(**config.model)
    return model, jax.jit(model.init)(jax.random.key(0), {'tokens': jnp.ones((1, 4), jnp.int32)})['params']


@pytest.mark.parametrize(
    ('settings', 'cut', 'trained'),
    [
        ({'last': 1}, (1, 2, 1), {'layers_2'}),
        ({'last': 3}, (1, 3), {'layers_1'}),
        ({'last': 4}, (1, 3), {'layers_0', 'layers_1'}),
        ({'trainable': 'layers/[01]/mlp/.*'}, (1, 1, 2), {'layers_0', 'layers_1'}),
    ],
)
def test_trainable_layers_are_in_segments_of_their_own(settings, cut, trained):
    model, params = modernbert()
    method = adapt.method('layers', model, params, **settings)
    assert method.cut == cut
    started = method.start(jax.random.key(1), params)
    trainable, _ = tree.split(started, method.trainable)
    assert set(trainable) == trained
    batch = {'tokens': jnp.arange(8, dtype=jnp.int32)[None]}
    whole, pieces = (jax.jit(model.apply)({'params': x}, batch)['logits'] for x in (params, started))
    np.testing.assert_allclose(whole, pieces, atol=1e-6)
