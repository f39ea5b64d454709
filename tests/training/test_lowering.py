"""A bfloat16 model multiplies bfloat16, in programs lowered for CUDA and TPU, which needs no such device."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain import optimizer
from lmtrain.models import Transformer, lm_head
from lmtrain.models.hooks import ShardingHooks
from lmtrain.tasks import token_loss
from lmtrain.training import state, step

DOT = re.compile(r'stablehlo\.dot_general.*: \((tensor<\S+>), (tensor<\S+>)\) -> (tensor<\S+>)')


def products(function, platform, *shapes):
    """(left, right, result), the types of each matrix product of a function that is lowered for a platform."""
    text = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    return DOT.findall(text)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('causal', [True, False])
def test_layers_of_a_bfloat16_model_multiply_bfloat16(platform, causal):
    """Forward and backward; a causal row is cut into blocks of queries, which have products of their own."""
    config = base.get_config()
    config.model.update({'vocab_size': 31, 'max_len': 256, 'num_layers': 2, 'width': 32, 'num_heads': 4, 'unroll': 1})
    config.model.update({'num_kv_heads': 2, 'dtype': 'bfloat16', 'attention_softcap': 9.0, 'causal': causal})
    model = Transformer(**config.model)
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), {'tokens': ids})['params']

    def total(params, ids):
        return jnp.sum(model.apply({'params': params}, {'tokens': ids})['hidden'].astype(jnp.float32))

    lowered = products(jax.grad(total), platform, params, ids)
    in_a_layer = 7 + (4 if causal else 2)  # kernels, and two products a block of queries
    assert len(lowered) == 3 * in_a_layer
    assert not [each for each in lowered if 'f32' in each[0] + each[1]]
    assert len([each for each in lowered if 'f32' in each[2]]) == 3 * (in_a_layer - 7)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('keep', [False, True])
def test_head_of_a_bfloat16_model_multiplies_bfloat16(platform, keep):
    B, T, D, V = 4, 64, 32, 40_000  # more logits than are kept in float32

    def total(hidden, kernel, bias, targets):
        hooks = ShardingHooks(keep_logits=keep)
        logprob, log_z = lm_head.log_likelihood(hidden, targets, kernel, bias, softcap=3.0, size=39_999, hooks=hooks)
        return jnp.sum(1e-4 * log_z**2 - logprob)

    floats = [((B, T, D), jnp.bfloat16), ((D, V), jnp.float32), ((V,), jnp.float32)]
    shapes = [jax.ShapeDtypeStruct(*each) for each in floats] + [jax.ShapeDtypeStruct((B, T), jnp.int32)]
    lowered = products(jax.grad(total, argnums=(0, 1, 2)), platform, *shapes)
    assert len(lowered) == (3 if keep else 4)  # logits, perhaps again, and the gradients of hidden and kernel
    assert not [each for each in lowered if 'f32' in each[0] + each[1]]
    assert [each[2] for each in lowered if each[2].startswith(f'tensor<{D}x{V}')] == [f'tensor<{D}x{V}xf32>']


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_train_step_of_a_bfloat16_model_multiplies_bfloat16(platform):
    config = base.get_config()
    config.model.update({'vocab_size': 384, 'max_len': 64, 'num_layers': 1, 'width': 32, 'num_heads': 4, 'unroll': 1})
    config.model.update({'dtype': 'bfloat16', 'logit_softcap': 9.0, 'window': 9})
    model = Transformer(**config.model)
    batch = dict.fromkeys(('tokens', 'targets', 'segment_ids'), jax.ShapeDtypeStruct((2, 64), jnp.int32))
    batch['loss_mask'] = jax.ShapeDtypeStruct((2, 64), jnp.float32)
    tx = optimizer.optimizer(**config.optimizer)

    def create():
        params = model.init(jax.random.key(0), {'tokens': jnp.zeros((1, 8), jnp.int32)})['params']
        return state.create(jax.random.key(0), params, '.*', tx)

    first = jax.eval_shape(create)
    loss = functools.partial(token_loss.loss, z_loss=1e-4)
    one = step.make_train_step(
        step.make_gradient(model, loss),
        tx,
        lambda progress: 1.0,
        learning_rate=1e-3,
        clip=1.0,
        trainable=first.trainable,
    )
    lowered = products(one, platform, first, batch, jax.ShapeDtypeStruct((), jnp.float32))
    assert len(lowered) >= 3 * (7 + 2 + 1)
    assert not [each for each in lowered if 'f32' in each[0] + each[1]]


def test_float32_products_are_detected():
    x = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)
    plain = jax.grad(lambda x, w: jnp.sum(jnp.dot(x, w, preferred_element_type=jnp.float32) ** 2))
    assert [each for each in products(plain, 'cuda', x, x) if 'f32' in each[0] + each[1]]
