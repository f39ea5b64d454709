"""Norms, feed-forward networks and dropout equal closed forms in float64; bfloat16 rounds only once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.models import layers
from lmtrain.models.layers import FeedForward, Norm, dropout
from lmtrain.parallel import collectives


def norm(kind, x, scale, bias, eps):
    x = np.asarray(x, np.float64)
    if kind == 'layernorm':
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y * (1 + scale if kind == 'rmsnorm1p' else scale) + (0 if bias is None else bias)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('kind', ['rmsnorm', 'layernorm', 'rmsnorm1p'])
def test_norms_equal_their_formula(kind, bias):
    """An epsilon as large as the mean of squares, a mean that is not 0, scales around 2 and -0.3."""
    random = np.random.default_rng(0)
    x = 0.7 + 0.5 * random.normal(size=(2, 3, 16))
    scale, shift = 2 + random.normal(size=16), -0.3 + random.normal(size=16)
    params = {'scale': scale.astype(np.float32)} | ({'bias': shift.astype(np.float32)} if bias else {})
    for dtype in ('float32', 'bfloat16'):
        rounded = jnp.asarray(x, dtype)
        actual = Norm(kind, 0.5, bias).apply({'params': params}, rounded)
        assert actual.dtype == dtype
        expected = norm(kind, rounded.astype(jnp.float32), scale, shift if bias else None, 0.5)
        np.testing.assert_allclose(
            actual.astype(jnp.float32), expected, rtol=2**-8 if dtype == 'bfloat16' else 1e-5, atol=1e-5
        )


def kept(function, *arguments):
    """Elements that the backward pass of a function keeps of its forward pass."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(function, *arguments)[1]))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', ['rmsnorm', 'layernorm', 'rmsnorm1p'])
def test_the_backward_pass_of_a_norm_keeps_its_input(kind, dtype):
    module, x = Norm(kind, 0.5, True), jnp.ones((2, 3, 16), dtype)
    params = {'params': {'scale': jnp.ones(16), 'bias': jnp.ones(16)}}
    assert kept(module.apply, params, x) <= x.size + 2 * 16


@pytest.mark.parametrize('keep', [collectives.remat_policy, jax.checkpoint_policies.everything_saveable])
def test_a_checkpoint_around_it_keeps_no_more(keep):
    """The policy of a sharded model saves all that it does not gather again."""
    x = jnp.ones((2, 3, 16), jnp.bfloat16)
    params = {'params': {'scale': jnp.ones(16), 'bias': jnp.ones(16)}}

    def layer(params, x):
        return layers.UNGATED['gelu'](Norm('layernorm', 0.5, True).apply(params, x))

    assert kept(jax.checkpoint(layer, policy=keep), params, x) <= 2 * x.size + 2 * 16


@pytest.mark.parametrize('name', [*layers.UNGATED, *layers.GATED])
def test_the_backward_pass_of_an_activation_keeps_its_input(name):
    x = jnp.linspace(-3, 3, 24)
    function = (layers.UNGATED | layers.GATED)[name]
    assert kept(function, x) == x.size
    gradient = jax.grad(lambda x: function(x).sum())(x)
    step = 1e-2
    slope = (function(x + step) - function(x - step)) / (2 * step)
    np.testing.assert_allclose(gradient, slope, atol=step)


def test_the_backward_pass_of_a_gate_keeps_its_two_inputs_and_the_product():
    """And the kernels of three products and the input of two: 2 T H + T H + 3 W H + T W."""
    T, W, H = 5, 4, 8
    module, x = FeedForward(W, H, 'swiglu', False, 0.5, 0.5), jnp.ones((T, W))
    params = module.init(jax.random.key(0), x)
    assert kept(module.apply, params, x) == 3 * T * H + 3 * W * H + T * W


def test_initial_norms_do_not_scale():
    x = jnp.array([[3.0, -1.0]])
    for kind in ('rmsnorm', 'rmsnorm1p'):
        actual, _ = Norm(kind, 1e-6, False).init_with_output(jax.random.key(0), x)
        np.testing.assert_allclose(actual, x / math.sqrt(5), rtol=1e-5)


def erf(x):
    return np.vectorize(math.erf)(x)


ACTIVATIONS = {
    'gelu': lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    'gelu_exact': lambda x: x / 2 * (1 + erf(x / math.sqrt(2))),
    'relu': lambda x: np.maximum(x, 0),
    'relu2': lambda x: np.maximum(x, 0) ** 2,
    'swiglu': lambda x: x / (1 + np.exp(-x)),
}
ACTIVATIONS |= {'geglu': ACTIVATIONS['gelu'], 'geglu_exact': ACTIVATIONS['gelu_exact']}


@pytest.mark.parametrize('activation', [*layers.UNGATED, *layers.GATED])
def test_feed_forwards_equal_their_formula(activation):
    """The two forms of GELU differ by 5e-4 at most."""
    random = np.random.default_rng(1)
    gated = activation in layers.GATED
    shapes = {'up': (4, 6), 'down': (6, 4)} | ({'gate': (4, 6)} if gated else {})
    params = {name: {'kernel': random.normal(size=s), 'bias': random.normal(size=s[1])} for name, s in shapes.items()}
    x = 1.5 * random.normal(size=(2, 5, 4))

    def linear(name, x):
        return x @ params[name]['kernel'] + params[name]['bias']

    act = ACTIVATIONS[activation]
    expected = linear('down', act(linear('gate', x)) * linear('up', x) if gated else act(linear('up', x)))
    one = FeedForward(4, 6, activation, True, 0.1, 0.1)
    actual = one.apply({'params': jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}, jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, atol=3e-5)


def test_dropout_has_its_rate_and_keeps_the_mean():
    x = jnp.full((3, 400, 50), 2.0)
    dropped = dropout(x, 0.3, jax.random.key(0), jnp.array([4, 9, 4]))
    assert set(np.unique(dropped)) == {0.0, np.float32(2 / 0.7)}
    np.testing.assert_allclose(np.mean(np.asarray(dropped) == 0, axis=(1, 2)), [0.3] * 3, atol=0.015)
    np.testing.assert_array_equal(dropped[0], dropped[2])  # the mask is of the row's index in the global batch
    assert np.mean(np.asarray(dropped[0]) == np.asarray(dropped[1])) < 0.7
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0), jnp.arange(3)), x)
    assert dropout(x.astype('bfloat16'), 0.3, jax.random.key(0), jnp.arange(3)).dtype == jnp.bfloat16
