"""Attention to texts that precede the rows of a batch, each encoded once: one softmax over several sets of keys.

A past is the cache of an earlier call, read only. Its texts are either one per row, or one that all rows share, such as
the demonstrations of a prompt; then the queries of all rows are rows of one product (Hydragen, arXiv 2402.05099). Texts
can be chained:

    past 0, shared         past 1, of each row      tokens of the batch
    [1, S0]                [B, S1]                  [B, T]
    demonstrations    │    question            │    choices, packed, each a segment of its own
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmtrain.models.attention_kernels import BLOCK, AttentionMask, block_mask, multiply


class Past(NamedTuple):
    """Keys and values of a text before each row, in a layer or (with a leading N) in all layers.

    Attributes:
      key, value: [B or 1, S, G, K].
      length: int32 [B or 1], number of its tokens; the keys behind them are not read.
      start: int32 [B or 1], index of its first token in the whole text: the length of all texts before it.
    """

    key: Any
    value: Any
    length: Any
    start: Any


def chain(caches: Sequence[dict[str, Any]]) -> tuple[tuple[Past, ...], Any]:
    """(the pasts of all layers, int32 [B or 1], the length of all texts together) of consecutive caches."""
    pasts, start = [], jnp.zeros(1, jnp.int32)
    for cache in caches:
        pasts.append(Past(cache['key'], cache['value'], cache['length'], start))
        start = start + cache['length']
    return tuple(pasts), start


def attend_past(
    query_BTHK, key_BSGK, value_BSGK, mask: AttentionMask, pasts: Sequence[Past], *, softcap: float, scale: float
):
    """`attention_kernels.attend` with the keys of `pasts` before those of the rows.

    A past is visible to all segments of a row. `mask.positions` are the indices of the queries in the whole text: a
    window counts from them. Queries are computed in blocks, as in `attention_kernels.xla`.
    """
    B, T, H, K = query_BTHK.shape
    G = key_BSGK.shape[2]
    query_BGRTK = query_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    key_BGSK, value_BGSK = key_BSGK.transpose(0, 2, 1, 3), value_BSGK.transpose(0, 2, 1, 3)
    options = {'softcap': softcap, 'scale': scale}
    blocks = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        query_BGRCK, last = query_BGRTK[:, :, :, start:stop], mask.prefix + stop
        own_BCS = block_mask(mask, start, stop, 0, stop)
        parts = [_part(query_BGRCK, key_BGSK[:, :, :last], value_BGSK[:, :, :last], own_BCS, **options)]
        for past in pasts:
            keys = (x.transpose(0, 2, 1, 3) for x in (past.key, past.value))
            visible_BCS = _visible(past, mask.positions[:, start:stop], mask.window)
            parts.append(_part(query_BGRCK, *keys, visible_BCS, **options))
        blocks.append(_joined(parts).astype(query_BTHK.dtype))
    return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _visible(past: Past, positions_BT, window):
    """bool [B or 1, T, S]: the keys of a past that are real and, if there is a window, in the window of each query."""
    index_S = jnp.arange(past.key.shape[1])
    visible_B1S = (index_S[None] < past.length[:, None])[:, None]
    if isinstance(window, int) and not window:
        return visible_B1S
    distance_BTS = positions_BT[:, :, None] - (past.start[:, None] + index_S[None])[:, None]
    return (distance_BTS < window) & visible_B1S


def _part(query_BGRTK, key_BGSK, value_BGSK, visible_BTS, *, softcap, scale):
    """(weighted sum of the values [B, G, R, T, K], sum and log-maximum of the weights [B, G, R, T, 1]), float32.

    Keys and `visible` may have one row for all rows of the queries.
    """
    shared = len(key_BGSK) < len(query_BGRTK)
    order = (1, 0, 2, 3, 4) if shared else (0, 1, 2, 3, 4)  # [G, B, R, T, ...] of shared keys; its own inverse
    query = query_BGRTK.transpose(order)
    *rows, K = query.shape
    # [1, G, B * R * T, K] of shared keys, else [B, G, R * T, K].
    query_bGQK = query.reshape(*key_BGSK.shape[:2], -1, K)
    score_bGQS = scale * multiply('bGQK,bGSK->bGQS', query_bGQK, key_BGSK)
    if softcap:
        score_bGQS = softcap * jnp.tanh(score_bGQS / softcap)
    if visible_BTS is not None:
        visible = jnp.expand_dims(visible_BTS, (0, 2) if shared else (1, 2))
        scores = jnp.where(visible, score_bGQS.reshape(*rows, -1), jnp.finfo(jnp.float32).min)
        score_bGQS = scores.reshape(score_bGQS.shape)
    top_bGQ1 = jnp.max(score_bGQS, axis=-1, keepdims=True)
    weights_bGQS = jnp.exp(score_bGQS - jax.lax.stop_gradient(top_bGQ1)).astype(value_BGSK.dtype)
    total_bGQ1 = jnp.sum(weights_bGQS, axis=-1, keepdims=True, dtype=jnp.float32)
    out_bGQK = multiply('bGQS,bGSK->bGQK', weights_bGQS, value_BGSK)

    return tuple(x.reshape(*rows, -1).transpose(order) for x in (out_bGQK, total_bGQ1, top_bGQ1))


def _joined(parts):
    """[B, G, R, T, K]: the average over the keys of all parts. A part without a visible key has the weight 0."""
    outs, totals, tops = zip(*parts, strict=True)
    top = jnp.max(jnp.stack(tops), axis=0)
    factors = [jnp.exp(each - top) for each in tops]
    out = sum(factor * out for factor, out in zip(factors, outs, strict=True))
    return out / sum(factor * total for factor, total in zip(factors, totals, strict=True))
