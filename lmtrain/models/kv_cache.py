"""Attention to texts that precede the rows of a batch, each encoded once: one softmax over several sets of keys.

A past is the cache of an earlier call, read only. Each of its texts precedes one row, or several consecutive ones that
share it: all rows the demonstrations of a prompt, some rows the prompt that they are samples of. The queries of rows
that share a text are rows of one product (Hydragen, arXiv 2402.05099). Texts can be chained:

    past 0, shared         past 1, of each row      tokens of the batch
    [1, S0]                [B, S1]                  [B, T]
    demonstrations    │    question            │    texts, packed, each a segment of its own

In decoding every row has one token, and the keys of the tokens before it that follow the pasts are in the cache of its
layer, which `append` fills (`attend_token`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmtrain.models.attention_kernels import BLOCK, AttentionMask, block_mask, multiply, with_prefix


class Past(NamedTuple):
    """Keys and values of a text before each row, in a layer or (a stack, or a tuple of N arrays) in all layers.

    b divides the number of rows B: each text precedes B / b consecutive rows.

    Attributes:
      key, value: [b, G, S, K].
      length: int32 [b], number of its tokens; the keys behind them are not read.
      start: int32 [b], index of its first token in the whole text: the length of all texts before it.
    """

    key: Any
    value: Any
    length: Any
    start: Any


def chain(caches: Sequence[dict[str, Any]], rows: int) -> tuple[tuple[Past, ...], Any]:
    """(the pasts of all layers, int32 [rows], the length of all texts together) of consecutive caches.

    A cache without its first tokens has their number, int32 [b], as `dropped`.
    """
    pasts, start_b = [], jnp.zeros(1, jnp.int32)
    for cache in caches:
        start_b = _of_rows(start_b, len(cache['length'])) + cache.get('dropped', 0)
        pasts.append(Past(cache['key'], cache['value'], cache['length'], start_b))
        start_b = start_b + cache['length']
    return tuple(pasts), _of_rows(start_b, rows)


def _of_rows(x_b, rows: int):
    """[b, ...] -> [rows, ...]: that of the text before each row."""
    return x_b if len(x_b) == rows else jnp.repeat(x_b, rows // len(x_b), axis=0)


def append(cache, key_BG1K, value_BG1K, index):
    """(key, value [B, G, S, K] of the layer, cache) with those of token `index`, int32 [], of every row.

    The token `index` is in the slot `index` modulo S: a cache whose S is the window of the layer is a ring.

    Args:
      cache: (keys, values, layer): stacks [N, B, G, S, K] or tuples of N arrays (`Transformer.init_cache`), and the
        index of the layer.
    """
    *kinds, layer = cache
    own, updated = [], []
    for stack, new in zip(kinds, (key_BG1K, value_BG1K), strict=True):
        *rows, S, K = stack[layer].shape if isinstance(stack, tuple) else stack.shape[1:]
        new, at = new.astype(jnp.result_type(stack[0])).reshape(*rows, 1, K), (*[0] * len(rows), index % S, 0)
        if isinstance(stack, tuple):
            whole = jax.lax.dynamic_update_slice(stack[layer], new, at)
            stack = (*stack[:layer], whole, *stack[layer + 1 :])
        else:
            stack = jax.lax.dynamic_update_slice(stack, new[None], (layer, *at))
            whole = jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
        own.append(whole.reshape(*key_BG1K.shape[:2], S, K))
        updated.append(stack)
    return *own, (*updated, layer)


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
            visible_BCS = _visible(past, mask.positions[:, start:stop], mask.window)
            parts.append(_part(query_BGRCK, past.key, past.value, visible_BCS, **options))
        blocks.append(_joined(parts).astype(query_BTHK.dtype))
    return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def attend_token(query_BHK, own, index, mask: AttentionMask, pasts: Sequence[Past], *, softcap, scale, prefix=None):
    """`attend_past` for one token per row, with the keys and values [B, G, S, K] `own` of a cache; [B, H, K].

    Args:
      own: from `append`. index: int32 [], the number of tokens of each row that were in the cache before.
      mask: its `positions`, int32 [B, 1], and its window.
      prefix: None, or keys and values [1, G, P, K] that precede all texts.
    """
    B, H, K = query_BHK.shape
    G, S = own[0].shape[1:3]
    sets = [(past.key, past.value, _visible(past, mask.positions, mask.window)) for past in pasts]
    visible_1S = (jnp.arange(S) <= index)[None]
    limited = not isinstance(mask.window, int) or 0 < mask.window < S  # else the cache is a ring, or has no window
    if limited:
        visible_1S &= index - jnp.arange(S)[None] < mask.window
    sets.append((*own, visible_1S[:, None]))
    if prefix is not None:
        P = prefix[0].shape[2]
        near_BTP = with_prefix(jnp.ones((1, 1, 0), bool), mask._replace(prefix=P))
        sets.insert(0, (*prefix, near_BTP))

    scores = []
    for key_bGSK, _, visible_BTS in sets:
        score_BGRS = _of_texts(multiply, 'bGQK,bGSK->bGQS', query_BHK.reshape(B, G, H // G, K), key_bGSK) * scale
        if softcap:
            score_BGRS = softcap * jnp.tanh(score_BGRS / softcap)
        scores.append(jnp.where(visible_BTS[:, :, None], score_BGRS, jnp.finfo(jnp.float32).min))
    score_BGRS = jnp.concatenate(scores, axis=-1)
    weights_BGRS = jnp.exp(score_BGRS - jnp.max(score_BGRS, axis=-1, keepdims=True)).astype(query_BHK.dtype)
    total_BGR1 = jnp.sum(weights_BGRS, axis=-1, keepdims=True, dtype=jnp.float32)
    out_BGRK, start = 0, 0
    for _, value_bGSK, _ in sets:
        stop = start + value_bGSK.shape[2]
        out_BGRK += _of_texts(multiply, 'bGQS,bGSK->bGQK', weights_BGRS[..., start:stop], value_bGSK)
        start = stop
    return (out_BGRK / total_BGR1).astype(query_BHK.dtype).reshape(B, H, K)


def _of_texts(product, equation: str, left_BGRX, right_bGSK):
    """product(equation, left [b, G, Q, X], right [b, G, S, K]) of rows that share texts, [B, G, R, ...]."""
    B, G, R, X = left_BGRX.shape
    b = len(right_bGSK)
    if b == B:
        return product(equation, left_BGRX, right_bGSK)
    n = B // b
    left_bGQX = left_BGRX.reshape(b, n, G, R, X).swapaxes(1, 2).reshape(b, G, n * R, X)
    out = product(equation, left_bGQX, right_bGSK)
    return out.reshape(b, G, n, R, -1).swapaxes(1, 2).reshape(B, G, R, -1)


def _visible(past: Past, positions_BT, window):
    """bool [B or 1, 1 or T, S]: the keys of a past that are real and, if there is a window, in that of each query."""
    rows = len(positions_BT)
    index_S = jnp.arange(past.key.shape[2])
    visible_bS = index_S[None] < past.length[:, None]
    visible_B1S = (visible_bS if len(visible_bS) == 1 else _of_rows(visible_bS, rows))[:, None]
    if isinstance(window, int) and not window:
        return visible_B1S
    start_B = past.start if len(past.start) == 1 else _of_rows(past.start, rows)
    distance_BTS = positions_BT[:, :, None] - (start_B[:, None] + index_S[None])[:, None]
    return (distance_BTS < window) & visible_B1S


def _part(query_BGRTK, key_bGSK, value_bGSK, visible_BTS, *, softcap, scale):
    """(weighted sum of the values [B, G, R, T, K], sum and log-maximum of the weights [B, G, R, T, 1]), float32.

    `visible` may have one row for all rows of the queries.
    """
    B, G, R, T, K = query_BGRTK.shape
    b, n = len(key_bGSK), B // len(key_bGSK)

    def shared(x_BGRTX):
        """[B, G, R, T, X] -> [b, G, n * R * T, X]: the queries of a text are rows of one product."""
        return x_BGRTX.reshape(b, n, G, R, T, -1).swapaxes(1, 2).reshape(b, G, n * R * T, -1)

    def of_rows(x_bGQX):
        return x_bGQX.reshape(b, G, n, R, T, -1).swapaxes(1, 2).reshape(B, G, R, T, -1)

    score_bGQS = scale * multiply('bGQK,bGSK->bGQS', shared(query_BGRTK), key_bGSK)
    if softcap:
        score_bGQS = softcap * jnp.tanh(score_bGQS / softcap)
    if visible_BTS is not None:
        visible = jnp.expand_dims(visible_BTS, (1, 2))
        score_bGQS = shared(jnp.where(visible, of_rows(score_bGQS), jnp.finfo(jnp.float32).min))
    top_bGQ1 = jnp.max(score_bGQS, axis=-1, keepdims=True)
    weights_bGQS = jnp.exp(score_bGQS - jax.lax.stop_gradient(top_bGQ1)).astype(value_bGSK.dtype)
    total_bGQ1 = jnp.sum(weights_bGQS, axis=-1, keepdims=True, dtype=jnp.float32)
    out_bGQK = multiply('bGQS,bGSK->bGQK', weights_bGQS, value_bGSK)
    return tuple(map(of_rows, (out_bGQK, total_bGQ1, top_bGQ1)))


def _joined(parts):
    """[B, G, R, T, K]: the average over the keys of all parts. A part without a visible key has the weight 0."""
    outs, totals, tops = zip(*parts, strict=True)
    top = jnp.max(jnp.stack(tops), axis=0)
    factors = [jnp.exp(each - top) for each in tops]
    out = sum(factor * out for factor, out in zip(factors, outs, strict=True))
    return out / sum(factor * total for factor, total in zip(factors, totals, strict=True))
