"""Sums over the segments of a row: what the losses of preferences are functions of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Segments(NamedTuple):
    """Figures of the scored segments of each row, float32 [B, S].

    Attributes:
      logprob: the sum of log p(target) over the targets of the segment that count, in nats.
      tokens: how many these are, at least 1.
    """

    logprob: jax.Array
    tokens: jax.Array


def segment_sums(values_BT, batch):
    """float32 [B, S]: the sum of `values_BT` * loss_mask over the tokens of each scored segment; 0 if a row lacks it.

    Elementwise, and not as a product of matrices, which accelerators round to bfloat16 or tf32 by default.
    """
    inside_BST = batch['segment_ids'][:, None, :] == batch['scored'][:, :, None]
    counted_BT = values_BT * batch['loss_mask']
    return jnp.sum(jnp.where(inside_BST & (batch['scored'] > 0)[:, :, None], counted_BT[:, None, :], 0.0), axis=2)


def policy(forward, batch) -> Segments:
    """The segments under the model that is trained."""
    tokens = segment_sums(jnp.ones_like(batch['loss_mask']), batch)
    return Segments(segment_sums(forward(batch)['logprob'], batch), jnp.maximum(tokens, 1.0))


def reference_logprob(forward, batch, reference: str):
    """float32 [B, S]: the sums of `Segments.logprob` under the reference model, without a gradient.

    Args:
      reference: 'cached': from the column `ref_logprob`; 'live': computed from the frozen base.
    """
    live = reference == 'live'
    values_BT = forward(batch, reference_model=True)['logprob'] if live else batch['ref_logprob']
    return jax.lax.stop_gradient(segment_sums(values_BT, batch))


def sides(values_BS):
    """(chosen, rejected) [B, P] of the segments of packed pairs, which alternate."""
    return values_BS[:, 0::2], values_BS[:, 1::2]


def pair_weights(batch):
    """float32 [B, P]: 1 for a pair, 0 where a row has none."""
    return (sides(batch['scored'])[0] > 0).astype(jnp.float32)
