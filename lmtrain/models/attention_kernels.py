"""softmax(query . key) . value and its backends: plain XLA, cuDNN's fused kernel, and splash attention on TPUs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmtrain.errors import InputError
from lmtrain.models.hooks import NO_SHARDING, ShardingHooks
from lmtrain.models.layers import recomputed

BLOCK = 128  # queries of one block of causal attention by XLA


class AttentionMask(NamedTuple):
    """Which keys a query sees.

    A query at key index i sees index j if both are of one segment, j <= i if `causal`, and |i - j| < `window` if that
    is not 0. Padding is a segment like any other: its rows are finite and never read.

    Attributes:
      causal: whether a query sees no later keys.
      window: number of keys that a query sees, itself included, 0 for all; a traced window is never 0.
      query_segments, key_segments: int32 [B, T] and [B, S], or None for one segment.
      query_index: int32 [B, T], index of each query among the keys; None if T == S and each stands at its own index.
      prefix: P, number of keys that precede index 0 and belong to no segment. Every document sees them as if they were
        before its first token: all of them without a window, else prefix key p is at the distance P + position - p,
        the same as transformers' cache of past keys.
      positions: int32 [B, T], of the queries in their documents; used with a window, and `prefix`, `branches` or
        texts before the rows.
      branches: int32 [B, T], or None. The tokens of a segment are then a tree: a trunk, 0, and branches 1, 2, ... that
        each continue it. A query sees keys of the trunk and of its own branch, and a window counts positions. T == S.
    """

    causal: bool
    window: int | jax.Array = 0
    query_segments: Any = None
    key_segments: Any = None
    query_index: Any = None
    prefix: int = 0
    positions: Any = None
    branches: Any = None


def attend_chunked(query_BTHK, key_BSGK, value_BSGK, mask: AttentionMask, **options):
    """`attend` for one block of queries after the other; the backward pass recomputes their weights [BLOCK, S].

    `mask.query_index` must be given.
    """
    T = query_BTHK.shape[1]
    if T <= BLOCK or T % BLOCK:
        return attend(query_BTHK, key_BSGK, value_BSGK, mask, **options)

    def chunk(x):
        return x.reshape(x.shape[0], T // BLOCK, BLOCK, *x.shape[2:]).swapaxes(0, 1)

    # Every array is an argument: `recomputed` differentiates nothing else.
    arrays = {name: x for name, x in mask._asdict().items() if x is not None and not isinstance(x, int)}
    own = {name: arrays.pop(name) for name in ('query_index', 'query_segments') if name in arrays}

    @recomputed
    def block(query, key, value, *others):
        return attend(query, key, value, mask._replace(**dict(zip((*own, *arrays), others, strict=True))), **options)

    def of_chunk(parts):
        return block(parts[0], key_BSGK, value_BSGK, *parts[1:], *arrays.values())

    out = jax.lax.map(of_chunk, tuple(map(chunk, (query_BTHK, *own.values()))))
    return out.swapaxes(0, 1).reshape(query_BTHK.shape)


def attend(
    query_BTHK,
    key_BSGK,
    value_BSGK,
    mask: AttentionMask,
    *,
    softcap: float = 0.0,
    scale: float | None = None,
    backend: str = 'auto',
    hooks: ShardingHooks = NO_SHARDING,
):
    """softmax(scale * query . key) . value over the keys that `mask` allows, in the dtype of `query`; [B, T, H, K].

    Products take operands in the dtype of `query`, also in the backward pass, and accumulate in float32; the scale, the
    softcap and the softmax are float32.

    Args:
      query_BTHK, key_BSGK, value_BSGK: H is a multiple of G, and head h reads key-value head h // (H / G).
      softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118); 0 is off.
      scale: factor of the scores; None is 1 / sqrt(K).
      backend: 'xla' | 'cudnn' | 'splash', or 'auto': the kernel of `hooks` if it supports these arguments, else XLA.
      hooks: names the kernel of the devices. Without a kernel every backend is XLA.

    InputError: `backend` is requested explicitly, the devices have it, and it does not support these arguments.

    >>> query, key, value = jnp.ones((1, 5, 4, 8)), jnp.ones((1, 5, 2, 8)), jnp.ones((1, 5, 2, 8))
    >>> attend(query, key, value, AttentionMask(causal=True)).shape
    (1, 5, 4, 8)
    """
    T, K = query_BTHK.shape[1], query_BTHK.shape[3]
    options = {'softcap': softcap, 'scale': K**-0.5 if scale is None else scale}
    kernel = hooks.attention_kernel
    if kernel and backend in ('auto', kernel) and not mask.prefix and mask.branches is None:
        properties = {'head_dim': K, 'dtype': query_BTHK.dtype, 'window': mask.window, 'softcap': softcap}
        properties['capability'] = hooks.capability
        reason = (
            'does not support a cache' if mask.query_index is not None else unsupported_reason(kernel, T, **properties)
        )
        if not reason:
            return _attend_fused(query_BTHK, key_BSGK, value_BSGK, mask, hooks, options)
        if backend != 'auto':
            raise InputError(f"attention='{backend}' {reason}; choose attention='auto' or 'xla'")
    return xla(query_BTHK, key_BSGK, value_BSGK, mask, **options)


def _attend_fused(query_BTHK, key_BSGK, value_BSGK, mask: AttentionMask, hooks: ShardingHooks, options):
    """`attend` by the kernel of `hooks`. All arrays are explicit operands: shard_heads passes no others."""
    arrays = {'query_segments': mask.query_segments, 'key_segments': mask.key_segments}
    if not isinstance(mask.window, int):
        arrays['window'] = mask.window

    def kernel(query, key, value, *operands):
        own = mask._replace(**dict(zip(arrays, operands, strict=True)))
        return KERNELS[hooks.attention_kernel](query, key, value, own, **options)

    kernel = hooks.shard_heads(kernel) if hooks.shard_heads else kernel
    return kernel(query_BTHK, key_BSGK, value_BSGK, *arrays.values())


def unsupported_reason(
    kernel: str, length: int, *, head_dim: int, dtype, window, softcap: float, capability: tuple[int, ...] = ()
) -> str:
    """The reason that a kernel does not support rows of `length` positions, or ''.

    `capability` is the CUDA compute capability of the devices, such as (9, 0); () if they have none. Head sizes are
    those of cuDNN's backward pass: 256 on Hopper, 128 on Ampere, Ada and Blackwell (docs.nvidia.com/deeplearning/cudnn,
    attention, support matrix).
    """
    if kernel == 'splash':
        if not isinstance(window, int):
            return 'needs a window that is known at compile time (set model.unroll to model.num_layers)'
        return '' if length % 128 == 0 else f'needs a multiple of 128 positions, not {length}'
    if capability < (8, 0):
        own = f'this GPU has {".".join(map(str, capability))}' if capability else 'this device has none'
        return f'needs CUDA compute capability 8.0, and {own}'
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs dtype 'bfloat16' or 'float16', not '{dtype}'"
    if softcap:
        return 'does not support softcap'
    if length % 2:
        return f'needs an even number of positions, not {length}'
    largest = 256 if capability[0] == 9 else 128
    fits = head_dim % 8 == 0 and head_dim <= largest
    return '' if fits else f'needs a head_dim that is a multiple of 8 and at most {largest} on this GPU, not {head_dim}'


def multiply(equation: str, a, b):
    """jnp.einsum of two arrays of one dtype, accumulated in float32; float32."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


# The two products have custom derivatives, because jax's own would multiply a float32 cotangent by a bfloat16 operand,
# which no matrix unit supports. The cotangent is rounded to the dtype of the operands first, as in FlashAttention-2
# (arXiv 2307.08691, algorithm 2). For the scores this is the only rounding; the cotangent of the output has that dtype
# already.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def scores(query_BGTK, key_BGSK, scale: float):
    """scale * query . key, float32 [B, G, T, S]; query and key are of one dtype."""
    return scale * multiply('BGTK,BGSK->BGTS', query_BGTK, key_BGSK)


def _scores_vjp(query_BGTK, key_BGSK, scale):
    return scores(query_BGTK, key_BGSK, scale), (query_BGTK, key_BGSK)


def _scores_backward(scale, operands, g_BGTS):
    query_BGTK, key_BGSK = operands
    dtype = query_BGTK.dtype
    g_BGTS = g_BGTS.astype(dtype)
    to_query = scale * multiply('BGTS,BGSK->BGTK', g_BGTS, key_BGSK)
    to_key = scale * multiply('BGTS,BGTK->BGSK', g_BGTS, query_BGTK)
    return to_query.astype(dtype), to_key.astype(dtype)


scores.defvjp(_scores_vjp, _scores_backward)


@jax.custom_vjp
def average(weights_BGTS, value_BGSK):
    """sum(weights * value) / sum(weights) over S, float32 [B, G, T, K], of float32 weights in the dtype of `value`.

    Dividing after the product takes T * K operations instead of T * S.
    """
    return _average_vjp(weights_BGTS, value_BGSK)[0]


def _average_vjp(weights_BGTS, value_BGSK):
    weights_BGTS = weights_BGTS.astype(value_BGSK.dtype)
    # The sum is of the rounded weights, so that the average of equal values is that value.
    inverse_BGT1 = 1 / jnp.sum(weights_BGTS, axis=-1, keepdims=True, dtype=jnp.float32)
    out_BGTK = multiply('BGTS,BGSK->BGTK', weights_BGTS, value_BGSK) * inverse_BGT1
    return out_BGTK, (weights_BGTS, value_BGSK, inverse_BGT1, out_BGTK)


def _average_backward(residuals, g_BGTK):
    weights_BGTS, value_BGSK, inverse_BGT1, out_BGTK = residuals
    dtype = value_BGSK.dtype
    g_BGTK = g_BGTK.astype(dtype)
    to_value = multiply('BGTS,BGTK->BGSK', weights_BGTS, (g_BGTK * inverse_BGT1).astype(dtype))
    mean_BGT1 = jnp.sum(g_BGTK * out_BGTK, axis=-1, keepdims=True)
    to_weights = (multiply('BGTK,BGSK->BGTS', g_BGTK, value_BGSK) - mean_BGT1) * inverse_BGT1
    return to_weights, to_value.astype(dtype)


average.defvjp(_average_vjp, _average_backward)


def visible(query_index, key_index, mask: AttentionMask):
    """bool [B or 1, T, S], or None if every query sees every key; the prefix is not included.

    Indices are [B or 1, T] and [1, S], and the segments of `mask` those of the same queries and keys.
    """
    distance = query_index[:, :, None] - key_index[:, None, :]
    conditions = []
    if mask.causal:
        conditions.append(distance >= 0)
    if not isinstance(mask.window, int) or mask.window:
        conditions.append(jnp.abs(distance) < mask.window)
    if mask.query_segments is not None:
        conditions.append(mask.query_segments[:, :, None] == mask.key_segments[:, None, :])
    return functools.reduce(jnp.logical_and, conditions) if conditions else None


def with_prefix(visible_BTS, mask: AttentionMask):
    """bool [B or 1, T, P + S]: `visible_BTS` with the keys of the prefix before the others; see AttentionMask."""
    P = mask.prefix
    if isinstance(mask.window, int) and not mask.window:
        return jnp.pad(visible_BTS, ((0, 0), (0, 0), (P, 0)), constant_values=True)
    near_BTP = P + mask.positions[:, :, None] - jnp.arange(P)[None, None] < mask.window
    visible_BTS = jnp.broadcast_to(visible_BTS, (len(near_BTP), *visible_BTS.shape[1:]))
    return jnp.concatenate([near_BTP, visible_BTS], axis=-1)


def xla(query_BTHK, key_BSGK, value_BSGK, mask: AttentionMask, *, softcap, scale):
    """Plain products and a float32 softmax; causal queries in blocks, each reading only the keys that it can see.

    The queries that share a key-value head are rows of one product, so keys are never repeated.
    """
    B, T, H, K = query_BTHK.shape
    S, G = key_BSGK.shape[1] - mask.prefix, key_BSGK.shape[2]
    R = H // G
    query_BGRTK = query_BTHK.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4)
    key_BGSK, value_BGSK = key_BSGK.transpose(0, 2, 1, 3), value_BSGK.transpose(0, 2, 1, 3)

    def block(start, stop, first, last):
        """[B, G, R, C, K] of queries [start, stop) over the prefix and keys [first, last)."""
        C = stop - start

        def own_keys(x_BGSK):
            if first and mask.prefix:
                prefix, rest = x_BGSK[:, :, : mask.prefix], x_BGSK[:, :, mask.prefix + first : mask.prefix + last]
                return jnp.concatenate([prefix, rest], axis=2)
            return x_BGSK[:, :, first : mask.prefix + last]

        visible_BTS = block_mask(mask, start, stop, first, last)
        query_BGTK = query_BGRTK[:, :, :, start:stop].reshape(B, G, R * C, K)
        score_BGTS = scores(query_BGTK, own_keys(key_BGSK), scale)
        if softcap:
            score_BGTS = softcap * jnp.tanh(score_BGTS / softcap)
        if visible_BTS is not None:
            visible_BGTS = jnp.tile(visible_BTS[:, None], (1, 1, R, 1))
            score_BGTS = jnp.where(visible_BGTS, score_BGTS, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(score_BGTS - jax.lax.stop_gradient(jnp.max(score_BGTS, axis=-1, keepdims=True)))
        return average(weights, own_keys(value_BGSK)).astype(query_BTHK.dtype).reshape(B, G, R, C, K)

    if mask.causal and mask.query_index is None:
        blocks = [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]
        window = mask.window if isinstance(mask.window, int) and mask.branches is None else 0
        out = [block(start, stop, max(0, start - window + 1) if window else 0, stop) for start, stop in blocks]
        out_BGRTK = jnp.concatenate(out, axis=3)
    else:
        out_BGRTK = block(0, T, 0, S)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def block_mask(mask: AttentionMask, start: int, stop: int, first: int, last: int):
    """bool [B or 1, stop - start, P + last - first], or None if every query of the block sees every key of it."""
    ranges = {'query_segments': (start, stop), 'key_segments': (first, last), 'positions': (start, stop)}
    columns = {name: getattr(mask, name) for name in ranges}
    own = mask._replace(**{name: x_BT[:, slice(*ranges[name])] for name, x_BT in columns.items() if x_BT is not None})
    query_index = jnp.arange(start, stop)[None] if mask.query_index is None else mask.query_index
    is_tree = mask.branches is not None
    visible_BTS = visible(query_index, jnp.arange(first, last)[None], own._replace(window=0) if is_tree else own)
    if is_tree:  # its window counts positions, not indices
        visible_BTS &= _in_tree(mask, start, stop, first, last)
    return with_prefix(visible_BTS, own) if mask.prefix and visible_BTS is not None else visible_BTS


def _in_tree(mask: AttentionMask, start: int, stop: int, first: int, last: int):
    """bool [B, stop - start, last - first]: the keys of the trunk and of each query's branch that are in its window."""
    query_BT1, key_B1S = mask.branches[:, start:stop, None], mask.branches[:, None, first:last]
    visible_BTS = (key_B1S == 0) | (key_B1S == query_BT1)
    if isinstance(mask.window, int) and not mask.window:
        return visible_BTS
    distance_BTS = mask.positions[:, start:stop, None] - mask.positions[:, None, first:last]
    return visible_BTS & (distance_BTS < mask.window)


def cudnn(query_BTHK, key_BSGK, value_BSGK, mask: AttentionMask, *, softcap, scale):
    """cuDNN's fused attention. Its own window must be causal and known at compile time.

    Segments and every other window are passed as a mask, which it reads as a bias. It has no softcap.
    """
    index = jnp.arange(query_BTHK.shape[1])[None]
    own_window = mask.causal and isinstance(mask.window, int)
    visible_BTS = visible(index, index, mask._replace(causal=False, window=0 if own_window else mask.window))
    return jax.nn.dot_product_attention(
        query_BTHK,
        key_BSGK,
        value_BSGK,
        mask=None if visible_BTS is None else visible_BTS[:, None],
        scale=scale,
        is_causal=mask.causal,
        local_window_size=(mask.window - 1, 0) if own_window and mask.window else None,
        implementation='cudnn',
    )


def splash(query_BTHK, key_BSGK, value_BSGK, mask: AttentionMask, *, softcap, scale, interpret=False):
    """The splash kernel of jax.experimental.pallas, which skips blocks in which no query sees a key.

    It has no scale, so the query is multiplied in float32 and rounded, exactly only if the scale is a power of two.
    `interpret` runs it without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    T, H = query_BTHK.shape[1:3]
    if mask.window:
        head_mask = kernels.LocalMask((T, T), (mask.window - 1, 0 if mask.causal else mask.window - 1), 0)
    else:
        head_mask = kernels.CausalMask((T, T)) if mask.causal else kernels.FullMask((T, T))
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([head_mask] * H),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )
    segments = None if mask.query_segments is None else kernels.SegmentIds(mask.query_segments, mask.key_segments)
    scaled_BTHK = (query_BTHK.astype(jnp.float32) * scale).astype(query_BTHK.dtype)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (scaled_BTHK, key_BSGK, value_BSGK))
    return jax.vmap(kernel)(*heads_first, segments).transpose(0, 2, 1, 3)


KERNELS = {'cudnn': cudnn, 'splash': splash}
