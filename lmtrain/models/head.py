"""The language-model head: logits for who wants them, and log-probabilities that never hold all of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmtrain.models.layers import GATED, PLAIN, Norm
from lmtrain.models.linear import Linear, stddev

WHOLE = 2**22  # elements of logits that are cheaper kept than computed twice
CHUNKS = 16  # at most; a chunk then holds a 16th of the logits


def logits(hidden, kernel_DV, bias_V=None, softcap: float = 0.0, columns=None):
    """float32 [..., V] from hidden [..., D]: hidden . kernel + bias, then capped (0 is off).

    `columns` is Share.columns or None.
    """
    kernel_DV = kernel_DV.astype(hidden.dtype)
    if columns:
        (out,) = columns(hidden, [kernel_DV], jnp.float32)
    else:
        flat = hidden.reshape(-1, hidden.shape[-1])
        out = jnp.dot(flat, kernel_DV, preferred_element_type=jnp.float32).reshape(*hidden.shape[:-1], -1)
    if bias_V is not None:
        out += jnp.expand_dims(bias_V, range(out.ndim - 1))
    return softcap * jnp.tanh(out / softcap) if softcap else out


def log_likelihood(hidden_BTD, targets_BT, kernel_DV, bias_V=None, softcap: float = 0.0, columns=None):
    """(logprob, log_z), float32 [B, T]: log p(target) and the log of the softmax's normaliser; arguments as `logits`.

    Logits are made for a chunk of positions at a time and again in the backward pass, so that beyond `WHOLE` elements
    no [B, T, V] array exists. Chunks run along T and leave B alone, whose rows are spread over devices.
    """
    B, T, D = hidden_BTD.shape

    def chunk(hidden_BCD, targets_BC):
        logits_BCV = logits(hidden_BCD, kernel_DV, bias_V, softcap, columns)
        log_z = jax.nn.logsumexp(logits_BCV, axis=-1)
        return jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0] - log_z, log_z

    chunks = min(-(-B * T * kernel_DV.shape[1] // WHOLE), CHUNKS, T)
    if chunks == 1:
        return chunk(hidden_BTD, targets_BT)
    C = -(-T // chunks)

    def cut(x):
        """[B, T, ...] -> [chunks, B, C, ...], filled with zeros."""
        x = jnp.pad(x, [(0, 0), (0, chunks * C - T)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(B, chunks, C, *x.shape[2:]).swapaxes(0, 1)

    outputs = jax.lax.map(lambda xs: jax.checkpoint(chunk, prevent_cse=False)(*xs), (cut(hidden_BTD), cut(targets_BT)))
    return tuple(x.swapaxes(0, 1).reshape(B, chunks * C)[:, :T] for x in outputs)


class Kernel(nn.Module):
    """The head's own kernel, float32 [D, V], where it is not the embedding."""

    model: Any

    @nn.compact
    def __call__(self):
        shape = self.model.width, self.model.vocab_size
        return self.param('kernel', nn.initializers.normal(stddev(self.model.width)), shape, jnp.float32)


class MaskedHead(nn.Module):
    """BERT's transform before the decoder (arXiv 1810.04805): (norm(activation(dense(x))), float32 bias [V])."""

    model: Any

    @nn.compact
    def __call__(self, x):
        m = self.model
        x = Linear(m.width, m.has_bias('head'), stddev(m.width), name='dense')(x)
        x = (GATED | PLAIN)[m.activation](x)
        x = Norm(m.norm, m.norm_eps, m.has_bias('norm'), name='norm')(x)
        return x, self.param('bias', nn.initializers.zeros, (m.vocab_size,), jnp.float32)
