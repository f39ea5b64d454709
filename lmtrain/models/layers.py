"""Norms, the feed-forward network, activations and dropout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmtrain.models.linear import Linear, shared_input_matmul

# A function without products: its backward pass keeps the arguments alone and computes everything else again. A scan
# over layers would keep every intermediate result, five for gelu. In unrolled layers the compiler decides: it may share
# the results of the forward pass (prevent_cse=False).
elementwise = functools.partial(jax.checkpoint, prevent_cse=False)


@elementwise
def squared_relu(x):
    """relu(x)^2 (Primer, arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


gelu_tanh = elementwise(functools.partial(jax.nn.gelu, approximate=True))
gelu_exact = elementwise(functools.partial(jax.nn.gelu, approximate=False))
# Activations of the gate, and those of feed-forward networks without a gate.
GATED = {'swiglu': elementwise(jax.nn.silu), 'geglu': gelu_tanh, 'geglu_exact': gelu_exact}
UNGATED = {'gelu': gelu_tanh, 'gelu_exact': gelu_exact, 'relu': elementwise(jax.nn.relu), 'relu2': squared_relu}


class Norm(nn.Module):
    """'rmsnorm' (arXiv 1910.07467) or 'layernorm' (arXiv 1607.06450) over the last dimension, computed in float32.

    'rmsnorm1p' multiplies by 1 + scale (Gemma), so that weight decay pulls it to 1.
    """

    kind: str
    eps: float
    bias: bool

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.zeros if self.kind == 'rmsnorm1p' else nn.initializers.ones
        scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, scale.shape, jnp.float32) if self.bias else None
        return normalise(x, scale, bias, self.kind, self.eps)


@functools.partial(elementwise, static_argnums=(3, 4))
def normalise(x, scale, bias, kind: str, eps: float):
    """The function of `Norm`; x [..., W], scale and bias [W], bias may be None."""
    y = x.astype(jnp.float32)
    if kind == 'layernorm':
        y -= jnp.mean(y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    factor = 1 + scale.astype(jnp.float32) if kind == 'rmsnorm1p' else scale
    y *= jnp.expand_dims(factor, range(y.ndim - 1))
    if bias is not None:
        y += jnp.expand_dims(bias, range(y.ndim - 1))
    return y.astype(x.dtype)


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) if the activation is gated (arXiv 2002.05202)."""

    width: int
    hidden: int
    activation: str
    bias: bool
    stddev: float
    output_stddev: float

    @nn.compact
    def __call__(self, x, drop=None, column_parallel=None):
        names = ('up', 'gate') if self.activation in GATED else ('up',)
        sizes = dict.fromkeys(names, self.hidden)
        products = shared_input_matmul(self, sizes, x, column_parallel)
        up = Linear(self.hidden, self.bias, self.stddev, name='up')(x, drop, products.get('up'))
        if 'gate' in names:
            gate = Linear(self.hidden, self.bias, self.stddev, name='gate')(x, drop, products.get('gate'))
            up = elementwise(lambda gate, up: GATED[self.activation](gate) * up)(gate, up)
        else:
            up = UNGATED[self.activation](up)
        return Linear(self.width, self.bias, self.output_stddev, name='down')(up, drop)


def dropout(x_BTD, rate: float, key, row_B):
    """Sets elements to zero with probability `rate` and scales the others by 1 / (1 - rate).

    The key of a row is folded from its index `row_B` in the global batch, so the mask does not depend on how the batch
    is divided over devices or micro-batches.
    """
    if rate == 0:
        return x_BTD

    def keep(row):
        return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x_BTD.shape[1:])

    return jnp.where(jax.vmap(keep)(row_B), x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
