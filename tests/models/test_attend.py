"""Attention against its formula, in every backend that this machine can run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.models import attend
from lmtrain.models.share import Share

CASES = {
    'causal': {},
    'bidirectional': {'causal': False},
    'window': {'window': 70},
    'bidirectional window': {'causal': False, 'window': 9},
    'softcap': {'softcap': 2.0},
}


def inputs(B=2, T=140, H=4, G=2, K=8, dtype='float32'):
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (B, T, n, K), dtype) for k, n in zip(keys, (H, G, G), strict=True))
    cuts = np.array([[60, 130], [7, 140]])
    segments = (np.arange(T)[None] >= cuts[:, :1]).astype(np.int32) + 1
    segments = np.where(np.arange(T)[None] < cuts[:, 1:], segments, 0)
    return query, key, value, jnp.asarray(segments)


def formula(query, key, value, segments, causal=True, window=0, softcap=0.0):
    B, T, H, K = query.shape
    key, value = (np.repeat(np.asarray(x, np.float64), H // key.shape[2], axis=2) for x in (key, value))
    scores = np.einsum('BTHK,BSHK->BHTS', np.asarray(query, np.float64), key) / np.sqrt(K)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    mask = (distance >= 0) | (not causal)
    if window:
        mask &= np.abs(distance) < window
    mask = mask[None] & (np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None])
    weights = np.exp(scores) * mask[:, None]
    return np.einsum('BHTS,BSHK->BTHK', weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_formula(case):
    query, key, value, segments = inputs()
    function = jax.jit(functools.partial(attend.attend, **{'causal': True} | case))
    out = function(query, key, value, segments, segments)
    np.testing.assert_allclose(out, formula(query, key, value, segments, **case), atol=1e-5)


def test_rows_of_padding_are_finite_and_without_gradient():
    query, key, value, segments = inputs(T=12)
    segments = jnp.zeros_like(segments).at[0, :5].set(1)

    def total(query, key, value):
        out = attend.attend(query, key, value, segments, segments, causal=True)
        return jnp.sum(jnp.where((segments > 0)[..., None, None], out, 0) ** 2)

    for grad in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value):
        assert np.all(np.isfinite(grad))
        assert np.all(np.asarray(grad)[np.asarray(segments) == 0] == 0)
        assert np.any(grad)


OBSTACLES = {
    'length': ('splash', {'T': 12}, {}, '128 divides, not 12'),
    'dtype': ('cudnn', {}, {}, "needs dtype 'bfloat16' or 'float16', not 'float32'"),
    'softcap': ('cudnn', {'dtype': 'bfloat16'}, {'softcap': 2.0}, 'no softcap'),
    'heads': ('cudnn', {'dtype': 'bfloat16', 'K': 12}, {}, 'multiple of 8, not 12'),
    'window': ('splash', {'T': 128}, {'window': np.int32(9)}, 'window that is known'),
    'cache': ('splash', {'T': 128}, {'query_index': np.zeros((2, 128), np.int32)}, 'no cache'),
}


@pytest.mark.parametrize(('kernel', 'of', 'options', 'words'), OBSTACLES.values(), ids=OBSTACLES)
def test_a_named_kernel_says_what_it_cannot_do_and_auto_takes_xla(kernel, of, options, words):
    query, key, value, _ = inputs(**of)
    options |= {'causal': True, 'share': Share(kernel=kernel)}
    with pytest.raises(ValueError, match=f"attention='{kernel}' .*{words}.*'auto' or 'xla'"):
        attend.attend(query, key, value, **options, backend=kernel)
    found = attend.attend(query, key, value, **options, backend='auto')
    np.testing.assert_array_equal(found, attend.attend(query, key, value, **options, backend='xla'))


def test_nobody_offers_a_kernel_where_nobody_says_so():
    query, key, value, _ = inputs(T=128)
    found = attend.attend(query, key, value, causal=True, backend='splash')
    np.testing.assert_array_equal(found, attend.attend(query, key, value, causal=True))


def test_splash_equals_xla_with_gradients(monkeypatch):
    """The TPU kernel, interpreted here."""
    monkeypatch.setitem(attend.KERNELS, 'splash', functools.partial(attend.splash, interpret=True))
    query, key, value, segments = inputs(T=128)
    options = {'causal': True, 'window': 9, 'softcap': 2.0, 'share': Share(kernel='splash')}

    def run(backend):
        def total(*operands):
            out = attend.attend(*operands, segments, segments, **options, backend=backend)
            return jnp.sum(out**2)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, key, value)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-5), run('splash'), run('xla'))
