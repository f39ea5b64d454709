"""Norms, the feed-forward network, activations and dropout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmtrain.models.linear import Linear, shared_input_matmul


def recomputed(function, static: int = 0):
    """A function of arrays whose backward pass keeps the arguments alone and computes everything else again.

    A scan over layers would keep every intermediate result, five for gelu; in unrolled layers the compiler may share
    those of the forward pass. jax.checkpoint would do the same, but a checkpoint around it overrides its policy, and
    `ShardingHooks.remat_policy` saves all but gathered parameters.

    Args:
      static: number of arguments, the first ones, that are no arrays.
    """

    def backward(*args):
        *settings, arrays, gradient = args
        return jax.vjp(functools.partial(function, *settings), *arrays)[1](gradient)

    result = jax.custom_vjp(function, nondiff_argnums=tuple(range(static)))
    result.defvjp(lambda *args: (function(*args), args[static:]), backward)
    return result


@recomputed
def squared_relu(x):
    """relu(x)^2 (Primer, arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


def gate_by(activation):
    """(gate, up) -> activation(gate) * up."""
    return recomputed(lambda gate, up: activation(gate) * up)


gelu_tanh = recomputed(functools.partial(jax.nn.gelu, approximate=True))
gelu_exact = recomputed(functools.partial(jax.nn.gelu, approximate=False))
# Activations of the gate, and those of feed-forward networks without a gate.
GATED = {'swiglu': recomputed(jax.nn.silu), 'geglu': gelu_tanh, 'geglu_exact': gelu_exact}
GATES = {name: gate_by(activation) for name, activation in GATED.items()}
UNGATED = {'gelu': gelu_tanh, 'gelu_exact': gelu_exact, 'relu': recomputed(jax.nn.relu), 'relu2': squared_relu}


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
        return normalise(self.kind, self.eps, x, scale, bias)


@functools.partial(recomputed, static=2)
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)  # traced once for all layers
def normalise(kind: str, eps: float, x, scale, bias):
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
            up = GATES[self.activation](gate, up)
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
