"""Draws have the requested distribution, and truncation leaves the smallest set with its mass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from configs import base
from lmtrain.inference import decode
from lmtrain.models import Transformer
from lmtrain.models.linear import few_rows

TRUNCATE = jax.jit(decode.truncate)
LOGITS = hnp.arrays(
    np.float32, (2, 11), elements=st.floats(-20, 20, width=32, allow_subnormal=False) | st.integers(-2, 2).map(float)
)


@given(LOGITS, st.integers(0, 12), st.floats(0.01, 1.0))
@settings(max_examples=150, deadline=None)
def test_truncation_leaves_the_smallest_set_with_the_mass(logits, top_k, top_p):
    kept = np.isfinite(TRUNCATE(logits, top_k, top_p))
    for row, keep in zip(logits.astype(np.float64), kept, strict=True):
        order = np.argsort(-row, kind='stable')
        count = keep.sum()
        assert count >= 1 and set(np.flatnonzero(keep)) == set(order[:count])
        few = order[: top_k or None]
        mass = np.cumsum(np.exp(row[few] - row[few].max())) / np.exp(row[few] - row[few].max()).sum()
        assert count <= len(few)
        assert count == len(few) or mass[count - 1] >= top_p - 1e-5
        assert count == 1 or mass[count - 2] < top_p + 1e-5
        assert top_p < 1 or count == len(few)


@pytest.mark.parametrize('V', [1, 7, 60, 64, 8192])
def test_argmax_is_the_first_of_equal_maxima(V):
    x = np.random.default_rng(V).integers(-3, 2, (5, V)).astype(np.float32)
    x[0], x[1, : V // 2] = -np.inf, -np.inf
    np.testing.assert_array_equal(jax.jit(decode.argmax)(x), np.argmax(x, axis=1))


@pytest.mark.parametrize('settings', [(0.5, 0, 1.0), (1.0, 0, 1.0), (2.0, 4, 1.0), (1.0, 0, 0.8)])
def test_draws_follow_the_distribution(settings):
    temperature, top_k, top_p = settings
    n, logits = 20_000, np.array([0.0, 1.0, -1.0, 2.0, 0.5, -np.inf], np.float32)
    keys = jax.random.split(jax.random.key(0), n)
    options = decode.SamplingSettings(None, None, None, *settings, None, None)
    method = decode.DecodingMethod(False, top_k > 0 or top_p < 1)
    tokens = jax.jit(decode.draw, static_argnums=3)(keys, np.tile(logits / temperature, (n, 1)), options, method)
    drawn = np.bincount(tokens, minlength=6)
    wanted = np.exp(logits / temperature)
    order = np.argsort(-wanted)
    count = top_k or 6
    if top_p < 1:
        count = 1 + np.sum(np.cumsum(wanted[order] / wanted.sum()) < top_p)
    wanted[order[count:]] = 0
    wanted *= n / wanted.sum()
    possible = wanted > 0
    assert not drawn[~possible].any()
    chi_square = np.sum((drawn - wanted)[possible] ** 2 / wanted[possible])
    assert chi_square < 18.5  # of 4 degrees of freedom, passed by one in a thousand


def parameters(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)})['params']
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0.0, 0.1, leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize('widened', [False, True])
def test_kernels_are_joined_transposed_and_rounded(monkeypatch, widened):
    """Float32 copies of bfloat16 kernels have their values."""
    config = base.get_config()
    config.model.update({'num_layers': 2, 'width': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 24, 'vocab_size': 31})
    model = dataclasses.replace(Transformer(**config.model), dtype='bfloat16')
    params = parameters(model)
    monkeypatch.setattr(decode, 'widens', lambda *_: widened)
    weights = decode.decoding_params(model, params, 4)
    for layer in range(2):
        for module, names in decode.JOINED.items():
            own = params['layers'][module]
            kernels = [own[name]['kernel'][layer].T.astype(jnp.bfloat16) for name in names if name in own]
            joint = weights[f'layers_{layer}'][module]['joint']
            np.testing.assert_array_equal(joint[0], np.concatenate(kernels), strict=not widened)
            assert joint.dtype == (jnp.float32 if widened else jnp.bfloat16)
            assert names[0] not in weights[f'layers_{layer}'][module]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rows', [1, 2, 8])
def test_a_product_of_few_rows_casts_no_kernel(rows, dtype):
    """A decoding would cast all kernels for every token. The result is not rounded."""
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((rows, 256), (384, 256)))
    if decode.widens(jnp.dtype(dtype), rows):
        kernel = kernel.astype(jnp.float32)
    program = jax.jit(few_rows).lower(x, kernel).compile()
    assert kernel.dtype == jnp.float32 or 'f32[384,256]' not in program.as_text()
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T
    np.testing.assert_allclose(program(x, kernel), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('tied', [True, False])
def test_decoding_copies_the_layers_and_no_embedding(tied):
    config = base.get_config()
    config.model.update({'num_layers': 2, 'width': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 24, 'vocab_size': 31})
    model = dataclasses.replace(Transformer(**config.model), dtype='float32', tied=tied)
    params = parameters(model)
    weights = decode.decoding_params(model, params, 4)
    table = params['embed']['embedding']
    assert weights['embed']['embedding'] is table and (weights['head']['transposed'] is table) == tied
    live = {id(leaf) for leaf in jax.tree.leaves(params)}
    copied = sum(leaf.nbytes for leaf in jax.tree.leaves(weights) if id(leaf) not in live)
    assert copied == sum(leaf.nbytes for leaf in jax.tree.leaves([params['layers'], params.get('head')]))


@pytest.mark.parametrize('widened', [False, True])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
    ('dtype', 'stored'), [('float32', 'float32'), ('bfloat16', 'float32'), ('bfloat16', 'bfloat16')]
)
def test_the_bytes_of_the_copy_are_known_before_it_is_made(monkeypatch, widened, tied, dtype, stored):
    config = base.get_config()
    config.model.update({'num_layers': 2, 'width': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 24, 'vocab_size': 31})
    model = dataclasses.replace(Transformer(**config.model), dtype=dtype, tied=tied)
    params = jax.jit(model.init)(jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)})['params']
    params = jax.tree.map(lambda leaf: leaf.astype(stored), params)
    monkeypatch.setattr(decode, 'widens', lambda *_: widened)
    weights = decode.decoding_params(model, params, 4)
    live = {id(leaf) for leaf in jax.tree.leaves(params)}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights) if id(leaf) not in live)
    assert size == sum(leaf.size * leaf.dtype.itemsize for leaf in decode.copied(model, params, widened))
