"""Sequence classification and regression: one vector a row, from a checkpoint's own head or from an added one."""

import jax
import jax.numpy as jnp

from lmtrain.errors import InputError


def loss(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """Cross-entropy of `batch['labels']` int32 [B] in nats, weighted by `batch['label_weights']` float32 [B].

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]`: float32 [B, C], or [B, T, C], which is pooled.
      batch: columns `labels`, `label_weights`, and where it is pooled `segment_ids` (0 is padding).
      head: name of the output. pool: 'first' | 'last' | 'mean' of the row's real tokens.

    Returns:
      ({'loss', 'accuracy'}, weights), each [B].
    """
    logits = pooled(forward(batch)[head], batch, pool)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    labels = batch['labels']
    nats = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {'loss': nats, 'accuracy': right}, batch['label_weights']


def regression(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """Squared error of `batch['labels']` float32 [B]; `outputs[head]` as in `loss`, with C = 1.

    Returns:
      ({'loss', 'absolute_error'}, weights), each [B].
    """
    error = pooled(forward(batch)[head], batch, pool)[:, 0] - batch['labels']
    return {'loss': error**2, 'absolute_error': jnp.abs(error)}, batch['label_weights']


def predict(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """int32 [B]: the likeliest class of every row."""
    return jnp.argmax(pooled(forward(batch)[head], batch, pool), axis=-1).astype(jnp.int32)


def predict_number(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """float32 [B]: the number of every row."""
    return pooled(forward(batch)[head], batch, pool)[:, 0]


def pooled(outputs, batch, pool: str):
    """[B, C] of outputs [B, C] (as they are) or [B, T, C]: the first or last real token of each row, or their mean."""
    if outputs.ndim == 2:
        return outputs
    if pool not in POOLS:
        raise InputError(f'pool={pool!r} is none of {", ".join(POOLS)}')
    real = batch['segment_ids'] > 0
    return POOLS[pool](outputs, real)


def _at(outputs, index):
    return jnp.take_along_axis(outputs, index[:, None, None], axis=1)[:, 0]


def _first(outputs, real):
    return _at(outputs, jnp.argmax(real, axis=1))


def _last(outputs, real):
    return _at(outputs, real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1))


def _mean(outputs, real):
    total = jnp.sum(jnp.where(real[..., None], outputs, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]


POOLS = {'first': _first, 'last': _last, 'mean': _mean}
