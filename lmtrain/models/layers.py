"""What every layer is made of beside Linear: norms, the feed-forward, rotary positions and dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmtrain.models.linear import Linear

GATED = {'swiglu': jax.nn.silu, 'geglu': lambda x: jax.nn.gelu(x, approximate=True)}
PLAIN = {
    'gelu': lambda x: jax.nn.gelu(x, approximate=True),
    'gelu_exact': lambda x: jax.nn.gelu(x, approximate=False),
    'relu2': lambda x: jnp.square(jax.nn.relu(x)),  # Primer, arXiv 2109.08668
}


class Norm(nn.Module):
    """'rmsnorm' (arXiv 1910.07467) or 'layernorm' (arXiv 1607.06450) over the last dimension, computed in float32."""

    kind: str
    eps: float
    bias: bool

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        if self.kind == 'layernorm':
            y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y *= jnp.expand_dims(scale, range(y.ndim - 1))
        if self.bias:
            y += jnp.expand_dims(self.param('bias', nn.initializers.zeros, scale.shape, jnp.float32), range(y.ndim - 1))
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
    def __call__(self, x, drop=None):
        up = Linear(self.hidden, self.bias, self.stddev, name='up')(x, drop)
        if self.activation in GATED:
            gate = Linear(self.hidden, self.bias, self.stddev, name='gate')(x, drop)
            up = GATED[self.activation](gate) * up
        else:
            up = PLAIN[self.activation](up)
        return Linear(self.width, self.bias, self.output_stddev, name='down')(up, drop)


def rotary_angles(positions_BT, head_dim: int, theta: float):
    """(cos, sin), float32 [B, T, K/2], of position / theta^(2i/K) (RoFormer, arXiv 2104.09864)."""
    frequencies_K = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BT.astype(jnp.float32)[..., None] * frequencies_K[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHK, cos, sin):
    """Turns the pairs (x[i], x[i + K/2]) by their angles: LLaMA's layout of the pairs."""
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)


def sinusoids(positions_BT, width: int):
    """Fixed positions, float32 [B, T, D] (arXiv 1706.03762, section 3.5), over sqrt(D) lest they drown tokens."""
    cos, sin = rotary_angles(positions_BT, width, 10_000.0)
    return jnp.concatenate([sin, cos], axis=-1)[..., :width] * width**-0.5


def dropout(x_BTD, rate: float, key, row_B):
    """Drops elements at `rate`; nothing where `key` is None.

    Every row has a key of its own, folded from its index in the global batch: how the batch is cut over devices or
    micro-batches cannot change the mask.
    """
    if key is None or rate == 0:
        return x_BTD

    def keep(row):
        return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x_BTD.shape[1:])

    return jnp.where(jax.vmap(keep)(row_B), x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
