"""The chunked head equals the dense formula, and its compiled program contains no array of all logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.models import lm_head
from lmtrain.models.hooks import ShardingHooks


def inputs(B, T, D, V):
    random = np.random.default_rng(0)
    hidden, kernel, bias = (random.normal(size=shape).astype(np.float32) for shape in ((B, T, D), (D, V), (V,)))
    targets = random.integers(0, V, (B, T), np.int32)
    return jnp.asarray(hidden), jnp.asarray(targets), jnp.asarray(kernel / np.float32(D**0.5)), jnp.asarray(bias)


def dense(hidden, targets, kernel, bias, softcap):
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    log_z = np.log(np.exp(logits).sum(-1))
    return np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0] - log_z, log_z


@pytest.mark.parametrize('whole', [2**22, 64, 1], ids=['whole', 'some chunks', 'most chunks'])
@pytest.mark.parametrize('softcap', [0.0, 3.0])
def test_equals_the_dense_formula(monkeypatch, whole, softcap):
    monkeypatch.setattr(lm_head, 'MAX_SAVED_LOGITS', whole)
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)
    outputs = jax.jit(lambda *operands: lm_head.log_likelihood(*operands, softcap))(hidden, targets, kernel, bias)
    for ours, exact in zip(outputs, dense(hidden, targets, kernel, bias, softcap), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, atol=1e-5)


@pytest.mark.parametrize('softcap', [0.0, 3.0])
def test_gradients_of_chunks_equal_those_of_all_logits(monkeypatch, softcap):
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)

    def total(hidden, kernel, bias):
        logprob, log_z = lm_head.log_likelihood(hidden, targets, kernel, bias, softcap)
        return jnp.sum(logprob * jnp.arange(14.0).reshape(2, 7)) + 0.1 * jnp.sum(log_z**2)

    def plain(hidden, kernel, bias):
        logits = lm_head.logits(hidden, kernel, bias, softcap)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        logprob = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] - log_z
        return jnp.sum(logprob * jnp.arange(14.0).reshape(2, 7)) + 0.1 * jnp.sum(log_z**2)

    expected = jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(hidden, kernel, bias)
    for whole in (2**22, 40):
        monkeypatch.setattr(lm_head, 'MAX_SAVED_LOGITS', whole)
        grads = jax.jit(jax.grad(lambda *operands: total(*operands), argnums=(0, 1, 2)))(hidden, kernel, bias)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize(('dtype', 'keep'), [('float32', False), ('bfloat16', False), ('float32', True)])
def test_the_compiled_program_contains_no_array_of_all_logits(dtype, keep):
    """For every dtype and setting, no float32 logits."""
    B, T, D, V = 8, 1024, 32, 4096  # 8 chunks
    hidden, kernel = jax.ShapeDtypeStruct((B, T, D), dtype), jax.ShapeDtypeStruct((D, V), jnp.float32)
    targets = jax.ShapeDtypeStruct((B, T), jnp.int32)
    step = jax.jit(
        jax.grad(
            lambda h, k, t: sum(
                x.sum() for x in lm_head.log_likelihood(h, t, k, hooks=ShardingHooks(keep_logits=keep))
            ),
            argnums=(0, 1),
        )
    )
    compiled = step.lower(hidden, kernel, targets).compile()
    shapes = re.findall(r'(?:f32|bf16)\[([\d,]+)\]', compiled.as_text())
    assert max(np.prod([int(n) for n in shape.split(',')]) for shape in shapes) <= lm_head.MAX_SAVED_LOGITS < B * T * V
    # A CPU widens bfloat16 operands, the cotangent's chunk with them.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * lm_head.MAX_SAVED_LOGITS * 3


def exact(hidden, targets, kernel, bias, softcap, size, weights, z_loss, rounded=None):
    """Gradients {'hidden', 'kernel', 'bias'} of `loss` in float64, by the formulas; `rounded` is applied to logits."""
    hidden, kernel, bias = (np.asarray(x, np.float64) for x in (hidden, kernel, bias))
    logits = hidden @ kernel + bias
    logits = softcap * np.tanh(logits / softcap) if softcap else logits
    logits = rounded(logits) if rounded else logits
    top = logits[..., :size].max(-1)
    log_z = np.log(np.exp(logits[..., :size] - top[..., None]).sum(-1)) + top
    softmax = np.exp(logits - log_z[..., None])
    softmax[..., size:] = 0
    one_hot = np.eye(kernel.shape[1])[targets]
    g = weights[..., None] * (softmax - one_hot) + (2 * z_loss * log_z)[..., None] * softmax
    g = g * (1 - (logits / softcap) ** 2) if softcap else g
    flat = g.reshape(-1, g.shape[-1])
    grads = {'hidden': g @ kernel.T, 'kernel': hidden.reshape(len(flat), -1).T @ flat, 'bias': flat.sum(0)}
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return np.sum(weights * (log_z - picked) + z_loss * log_z**2), grads


def to_bfloat16(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize('softcap', [0.0, 3.0])
@pytest.mark.parametrize(
    ('dtype', 'keep', 'whole'),
    [
        ('float32', False, 2**22),
        ('float32', False, 1),
        ('float32', True, 1),
        ('bfloat16', False, 2**22),
        ('bfloat16', False, 1),
        ('bfloat16', True, 1),
    ],
)
def test_gradients_equal_a_float64_reference(monkeypatch, dtype, keep, whole, softcap):
    """The operands are rounded once and so is each logit's cotangent; sums over positions are float32.

    Rounding the kernel's gradient of a chunk to bfloat16 has an error of 2e-3 of the largest entry.
    """
    tolerances = {'hidden': 8e-3, 'kernel': 5e-4, 'bias': 1e-6}
    monkeypatch.setattr(lm_head, 'MAX_SAVED_LOGITS', whole)
    B, T, D, V, size, z_loss = 4, 256, 8, 24, 21, 0.01
    random = np.random.default_rng(1)
    hidden = (random.normal(size=(B, T, D)) + 1).astype(dtype)
    kernel, bias = random.normal(size=(D, V)).astype(dtype).astype(np.float32), random.normal(size=V).astype(np.float32)
    weights = (0.5 + np.arange(B * T).reshape(B, T) % 3).astype(np.float32)
    targets = np.minimum(random.integers(0, size, (B, T), np.int32), 5)

    def loss(hidden, kernel, bias):
        logprob, log_z = lm_head.log_likelihood(
            hidden, targets, kernel, bias, softcap, size, ShardingHooks(keep_logits=keep)
        )
        return jnp.sum(z_loss * log_z**2 - weights * logprob)

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(hidden, kernel, bias)
    rounded = to_bfloat16 if keep and dtype == 'bfloat16' else None
    expected, wanted = exact(hidden, targets, kernel, bias, softcap, size, weights, z_loss, rounded)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name, ours in zip(wanted, grads, strict=True):
        assert ours.dtype == {'hidden': dtype}.get(name, jnp.float32)
        scale = np.abs(wanted[name]).max()
        error = np.abs(np.asarray(ours, np.float64) - wanted[name]).max() / scale
        assert error < (1e-6 if dtype == 'float32' else tolerances[name]), name
    assert not np.any(grads[1][:, size:]) and not np.any(grads[2][size:])


def test_frozen_operands_have_no_gradient_and_no_product():
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)
    frozen = jax.make_jaxpr(jax.grad(lambda h: lm_head.log_likelihood(h, targets, kernel, bias)[0].sum()))(hidden)
    assert str(frozen).count('dot_general') == 2
    low = jax.grad(lambda k: lm_head.log_likelihood(hidden, targets, k)[0].sum())(kernel.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_only_log_z_or_only_logprob():
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)
    both = [jax.grad(lambda k, i=i: lm_head.log_likelihood(hidden, targets, k)[i].sum())(kernel) for i in (0, 1)]
    one_hot = jnp.einsum('btd,btv->dv', hidden, jax.nn.one_hot(targets, 11))
    np.testing.assert_allclose(both[0] + both[1], one_hot, atol=1e-5)


def test_bfloat16_products_are_summed_in_float32():
    """With the operands rounded, the result is exact in float32; a sum in bfloat16 would end at 256."""
    x, kernel = jnp.ones((1, 600), jnp.bfloat16), jnp.ones((600, 1), jnp.bfloat16)
    assert lm_head.product(x, kernel)[0, 0] == 600
    assert lm_head.logits(x, kernel.astype(jnp.float32))[0, 0] == 600


def test_values_without_gradient_are_those_of_float32_logits(monkeypatch):
    monkeypatch.setattr(lm_head, 'MAX_SAVED_LOGITS', 1)
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)
    hidden, kernel = hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16).astype(jnp.float32)

    def value(hidden):
        return lm_head.log_likelihood(hidden, targets, kernel, bias, hooks=ShardingHooks(keep_logits=True))[1]

    _, log_z = dense(hidden, targets, kernel, bias, 0.0)
    np.testing.assert_allclose(value(hidden), log_z, rtol=1e-6)
    rounded, _ = jax.vjp(value, hidden)
    assert 1e-4 < np.abs(rounded - log_z).max() < 0.03
