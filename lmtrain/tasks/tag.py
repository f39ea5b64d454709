"""Token tagging: a cross-entropy at the first sub-token of every word."""

import jax
import jax.numpy as jnp


def loss(forward, batch, *, head: str = 'logits'):
    """Cross-entropy of `batch['labels']` int32 [B, T] in nats, weighted by `batch['label_weights']` float32 [B, T].

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]` float32 [B, T, C].

    Returns:
      ({'loss', 'accuracy'}, weights), each [B, T]. Entities are counted on the host (`lmtrain.evaluation.scores`).
    """
    logits = forward(batch)[head]
    labels = batch['labels']
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[..., None], axis=-1)[..., 0]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {'loss': nats, 'accuracy': right}, batch['label_weights']


def predict(forward, batch, *, head: str = 'logits'):
    """int32 [B, T]: the likeliest tag of every token."""
    return jnp.argmax(forward(batch)[head], axis=-1).astype(jnp.int32)
