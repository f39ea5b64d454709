"""Extractive question answering: where in the context the answer starts and where it ends."""

import jax
import jax.numpy as jnp

OUTSIDE = -1e30  # finite: a row without candidates has no NaN


def loss(forward, batch, *, head: str = 'logits'):
    """Half the sum of the cross-entropies of start and end (arXiv 1810.04805, section 4.2) over the real context.

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]` float32 [B, T, 2], scores of start and end.
      batch: `spans` int32 [B, 2], first and last token of the answer, -1 where the row holds none (its weight is 0);
        `label_weights` float32 [B, T], 1 at the tokens among which an answer may lie.

    Returns:
      ({'loss', 'accuracy'}, weights), each [B]; accuracy: both ends are the likeliest ones.
    """
    scores = _candidates(forward(batch)[head], batch)
    spans = batch['spans']
    weights = (spans[:, 0] >= 0).astype(jnp.float32)
    log_p = jax.nn.log_softmax(scores, axis=1)
    ends = jnp.maximum(spans, 0)[:, None, :]
    nats = -jnp.take_along_axis(log_p, ends, axis=1)[:, 0]
    right = jnp.all(jnp.argmax(scores, axis=1) == spans, axis=1)
    return {'loss': jnp.mean(nats, axis=1), 'accuracy': right.astype(jnp.float32)}, weights


def predict(forward, batch, *, head: str = 'logits', longest: int = 30):
    """(spans int32 [B, 2], scores float32 [B]): the span with the highest start + end, of at most `longest` tokens."""
    scores = _candidates(forward(batch)[head], batch)
    T = scores.shape[1]
    start, end = jnp.arange(T)[:, None], jnp.arange(T)[None]
    sums = scores[:, :, None, 0] + scores[:, None, :, 1]
    allowed = (start <= end) & (end < start + longest)
    flat = jnp.where(allowed[None], sums, 2 * OUTSIDE).reshape(len(scores), T * T)
    best = jnp.argmax(flat, axis=1)
    spans = jnp.stack([best // T, best % T], axis=1).astype(jnp.int32)
    return spans, jnp.max(flat, axis=1)


def _candidates(scores, batch):
    return jnp.where(batch['label_weights'][..., None] > 0, scores, OUTSIDE)
