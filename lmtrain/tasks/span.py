"""Extractive question answering: where in the context the answer starts and where it ends."""

import jax
import jax.numpy as jnp

OUTSIDE = -1e30  # finite: a row without candidates has no NaN


def loss(forward, batch, *, head: str = 'logits'):
    """Half the sum of the cross-entropies of start and end (arXiv 1810.04805, section 4.2).

    They are over the context and the row's first token, at which start and end lie if the context has no answer (the
    null span of section 4.3). Such windows are trained on because `predict` compares their scores with the others'.

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]` float32 [B, T, 2], scores of start and end.
      batch: `spans` int32 [B, 2], first and last token of the answer, (0, 0) without one, -1 in a row of padding (its
        weight is 0); `label_weights` float32 [B, T], 1 at the tokens among which an answer may lie.

    Returns:
      ({'loss', 'accuracy'}, weights), each [B]; accuracy: both ends are the likeliest ones.
    """
    first = jnp.arange(batch['label_weights'].shape[1])[None] == 0
    scores = _among(forward(batch)[head], (batch['label_weights'] > 0) | first)
    spans = batch['spans']
    weights = (spans[:, 0] >= 0).astype(jnp.float32)
    log_p = jax.nn.log_softmax(scores, axis=1)
    ends = jnp.maximum(spans, 0)[:, None, :]
    nats = -jnp.take_along_axis(log_p, ends, axis=1)[:, 0]
    right = jnp.all(jnp.argmax(scores, axis=1) == spans, axis=1)
    return {'loss': jnp.mean(nats, axis=1), 'accuracy': right.astype(jnp.float32)}, weights


def predict(forward, batch, *, head: str = 'logits', longest: int = 30):
    """(spans int32 [B, 2], scores float32 [B], null float32 [B]).

    The span with the highest start + end among those of at most `longest` tokens of the context, its score, and the
    score of the null span.
    """
    outputs = forward(batch)[head]
    scores = _among(outputs, batch['label_weights'] > 0)
    T = scores.shape[1]
    start, end = jnp.arange(T)[:, None], jnp.arange(T)[None]
    sums = scores[:, :, None, 0] + scores[:, None, :, 1]
    allowed = (start <= end) & (end < start + longest)
    flat = jnp.where(allowed[None], sums, 2 * OUTSIDE).reshape(len(scores), T * T)
    best = jnp.argmax(flat, axis=1)
    spans = jnp.stack([best // T, best % T], axis=1).astype(jnp.int32)
    return spans, jnp.max(flat, axis=1), jnp.sum(outputs[:, 0], axis=-1)


def _among(scores, candidates):
    return jnp.where(candidates[..., None], scores, OUTSIDE)
