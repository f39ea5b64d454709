"""The attention module equals its equations in float64, for every option of the families; a case is one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain.models import Transformer
from lmtrain.models.attention import Attention, AttentionInputs
from lmtrain.models.rotary import rotary_angles

B, T, D, H, K, P = 2, 9, 12, 4, 6, 3
CASES = {
    'plain': {},
    'grouped': {'num_kv_heads': 2, 'bias': True},
    'norm of heads': {'qk_norm': True, 'norm_eps': 0.3},
    'norm of heads, gemma': {'qk_norm': True, 'norm': 'rmsnorm1p', 'norm_eps': 0.3},
    'norm of projections': {'qk_norm': True, 'qk_norm_over': 'projection', 'num_kv_heads': 2, 'norm_eps': 0.3},
    'a scale, a cap and one bias': {'attention_scale': 0.9, 'attention_softcap': 1.5, 'biased': ('key',)},
    'a window in an encoder': {'causal': False, 'window': 3},
    'a prefix': {'prefix': True, 'num_kv_heads': 1},
    'a prefix in a window': {'prefix': True, 'window': 5},
}


def build(prefix=False, **settings):
    config = base.get_config()
    small = {'vocab_size': 7, 'max_len': 32, 'num_layers': 1, 'width': D, 'num_heads': H, 'head_dim': K, 'unroll': 1}
    config.model.update(small | {'rotary_dim': 4, 'rope_theta': 50.0} | settings)
    return Transformer(**config.model)


def attention_inputs(model, start=0, length=T):
    positions = jnp.broadcast_to(start + jnp.arange(length)[None], (B, length))
    rotary = rotary_angles(positions, model.rotary_dim, model.rope_theta)
    return AttentionInputs(rotary, None, positions, model.window, None, None, None, None, jnp.arange(B))


def random_params(model, prefix):
    """Parameters, every one random: the scales of norms around 1, projections large enough for uneven weights."""
    module = Attention(model, 0.02, 0.02)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((B, T, D)), attention_inputs(model)))[
        'params'
    ]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0.6, 0.5, leaf.shape), shapes)
    if prefix:
        front = {f'prefix_{name}': random.normal(size=(P, model.num_kv_heads, K)) for name in ('key', 'value')}
        params = params | front
    return params


def reference(model, params, x):
    def project(name, heads):
        y = x @ params[name]['kernel'] + params[name].get('bias', 0)
        scale = params.get(f'{name}_norm', {}).get('scale')
        y = y if model.qk_norm_over == 'projection' else y.reshape(B, T, heads, K)
        if scale is not None:
            y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + model.norm_eps)
            y = y * (1 + scale if model.norm == 'rmsnorm1p' else scale)
        return y.reshape(B, T, heads, K)

    def turn(y):
        R = model.rotary_dim
        angle = np.arange(T)[:, None] * model.rope_theta ** (-np.arange(0, R, 2) / R)
        pairs = (y[..., : R // 2] + 1j * y[..., R // 2 : R]) * np.exp(1j * angle)[None, :, None]
        return np.concatenate([pairs.real, pairs.imag, y[..., R:]], axis=-1)

    query, key, value = (
        turn(project('query', H)),
        turn(project('key', model.num_kv_heads)),
        project('value', model.num_kv_heads),
    )
    count = 0
    if 'prefix_key' in params:  # the first keys of the text, which all queries are behind
        count = P
        key, value = (
            np.concatenate(
                [np.broadcast_to(params[f'prefix_{name}'], (B, *params[f'prefix_{name}'].shape)), own], axis=1
            )
            for name, own in (('key', key), ('value', value))
        )
    out = np.zeros((B, T, H, K))
    for h in range(H):
        g = h // (H // model.num_kv_heads)
        score = np.einsum('btk,bsk->bts', query[:, :, h], key[:, :, g]) * (model.attention_scale or K**-0.5)
        if model.attention_softcap:
            score = model.attention_softcap * np.tanh(score / model.attention_softcap)
        distance = count + np.arange(T)[:, None] - np.arange(count + T)[None]
        seen = (distance >= 0) | (not model.causal)
        seen &= (np.abs(distance) < model.window) | (model.window == 0)
        weights = np.exp(score) * seen
        out[:, :, h] = weights / weights.sum(-1, keepdims=True) @ value[:, :, g]
    return out.reshape(B, T, H * K) @ params['output']['kernel'] + params['output'].get('bias', 0)


@functools.cache
def compiled(model):
    return jax.jit(
        lambda params, x: Attention(model, 0.02, 0.02).apply({'params': params}, x, attention_inputs(model))[0]
    )


@pytest.mark.parametrize('settings', CASES.values(), ids=CASES)
def test_attention_equals_its_equations(settings):
    model = build(**settings)
    params = random_params(model, settings.get('prefix', False))
    norms = {name for name in params if name.endswith('_norm')}
    assert norms == ({'query_norm', 'key_norm'} if model.qk_norm else set())
    x = np.random.default_rng(1).normal(size=(B, T, D))
    actual = compiled(model)(jax.tree.map(jnp.float32, params), jnp.float32(x))
    np.testing.assert_allclose(actual, reference(model, params, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layers', [False, True])
@pytest.mark.parametrize(('window', 'slot'), [(0, 3), (6, 3), (2, 1)])
def test_a_cache_update_changes_one_slot_of_one_layer(layers, window, slot):
    """Layer 1 of 3, token 3 of every row; a cache of 2 tokens is a ring."""
    model = build(num_kv_heads=2, window=window)
    params = jax.tree.map(jnp.float32, random_params(model, False))
    x = jax.random.normal(jax.random.key(0), (B, 1, D))
    S = min(6, window or 6)
    empty = jnp.full((3, B, 2, S, K), 7.0)
    at = attention_inputs(model, start=3, length=1)._replace(cached=jnp.int32(3))
    module, stack = Attention(model, 0.02, 0.02), tuple(empty) if layers else empty
    _, (key, value, layer) = module.apply({'params': params}, x, at, (stack, stack, 1))
    assert layer == 1
    for new in (key, value):
        changed = np.any(np.asarray(new) != 7, axis=(-1, -3))
        untouched = np.ones((3, B, S), bool)
        untouched[1, :, slot] = False
        np.testing.assert_array_equal(changed, ~untouched)
    expected = (x @ params['value']['kernel']).reshape(B, 2, K)
    np.testing.assert_allclose(value[1][:, :, slot], expected, atol=1e-5)
