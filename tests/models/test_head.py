"""The chunked head against the dense formula, and what its compiled program holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.models import head


def inputs(B, T, D, V):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    kernel, bias = jax.random.normal(keys[1], (D, V)) / D**0.5, jax.random.normal(keys[2], (V,))
    return hidden, jax.random.randint(keys[3], (B, T), 0, V), kernel, bias


def dense(hidden, targets, kernel, bias, softcap):
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    log_z = np.log(np.exp(logits).sum(-1))
    return np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0] - log_z, log_z


@pytest.mark.parametrize('whole', [2**22, 64, 1], ids=['whole', 'some chunks', 'most chunks'])
@pytest.mark.parametrize('softcap', [0.0, 3.0])
def test_equals_the_dense_formula(monkeypatch, whole, softcap):
    monkeypatch.setattr(head, 'WHOLE', whole)
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)
    outputs = head.log_likelihood(hidden, targets, kernel, bias, softcap)
    for ours, exact in zip(outputs, dense(hidden, targets, kernel, bias, softcap), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, atol=1e-5)


@pytest.mark.parametrize('softcap', [0.0, 3.0])
def test_gradients_are_those_of_the_whole(monkeypatch, softcap):
    hidden, targets, kernel, bias = inputs(2, 7, 8, 11)

    def total(hidden, kernel, bias):
        logprob, log_z = head.log_likelihood(hidden, targets, kernel, bias, softcap)
        return jnp.sum(logprob * jnp.arange(14.0).reshape(2, 7)) + 0.1 * jnp.sum(log_z**2)

    def plain(hidden, kernel, bias):
        logits = head.logits(hidden, kernel, bias, softcap)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        logprob = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] - log_z
        return jnp.sum(logprob * jnp.arange(14.0).reshape(2, 7)) + 0.1 * jnp.sum(log_z**2)

    expected = jax.grad(plain, argnums=(0, 1, 2))(hidden, kernel, bias)
    for whole in (2**22, 40):
        monkeypatch.setattr(head, 'WHOLE', whole)
        grads = jax.grad(total, argnums=(0, 1, 2))(hidden, kernel, bias)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_compiled_program_never_holds_all_logits(dtype):
    B, T, D, V = 8, 256, 32, 4096
    hidden, targets, kernel, _ = jax.eval_shape(lambda: inputs(B, T, D, V))
    hidden = jax.ShapeDtypeStruct(hidden.shape, dtype)
    step = jax.jit(jax.grad(lambda h, k, t: sum(x.sum() for x in head.log_likelihood(h, t, k)), argnums=(0, 1)))
    compiled = step.lower(hidden, kernel, targets).compile()
    shapes = re.findall(r'(?:f32|bf16)\[([\d,]+)\]', compiled.as_text())
    assert max(np.prod([int(n) for n in shape.split(',')]) for shape in shapes) <= head.WHOLE < B * T * V
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * B * T * V * 1.1
