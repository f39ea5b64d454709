"""Attention itself, softmax(query . key) . value, and the backends behind it."""

import functools

import jax
import jax.numpy as jnp

from lmtrain.errors import InputError
from lmtrain.models.hooks import NO_SHARDING, ShardingHooks

BLOCK = 128  # queries a causal block holds on the XLA path


def attend_chunked(query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, query_index, **options):
    """`attend` for one block of queries after the other; the backward pass recomputes their weights [BLOCK, S]."""
    T = query_BTHK.shape[1]
    if T <= BLOCK or T % BLOCK:
        return attend(query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, query_index, **options)

    def cut(x):
        return x.reshape(x.shape[0], T // BLOCK, BLOCK, *x.shape[2:]).swapaxes(0, 1)

    def block(queries):
        query, index, *segments = queries
        segments = segments[0] if segments else None
        return attend(query, key_BSGK, value_BSGK, segments, key_segments, index, **options)

    queries = [query_BTHK, query_index] + ([] if query_segments is None else [query_segments])
    out = jax.lax.map(jax.checkpoint(block, prevent_cse=False), tuple(map(cut, queries)))
    return out.swapaxes(0, 1).reshape(query_BTHK.shape)


def attend(
    query_BTHK,
    key_BSGK,
    value_BSGK,
    query_segments=None,
    key_segments=None,
    query_index=None,
    *,
    causal: bool,
    window: int | jax.Array = 0,
    softcap: float = 0.0,
    scale: float | None = None,
    backend: str = 'auto',
    prefix: int = 0,
    positions: jax.Array | None = None,
    share: ShardingHooks = NO_SHARDING,
):
    """softmax(scale * query . key) . value over the keys that a query sees, in the dtype of `query`; [B, T, H, K].

    A query at key index i sees index j if both are of one segment, j <= i if `causal`, and |i - j| < `window` if that
    is not 0 (a traced window is never 0). Padding is a segment like any other: its rows are finite and never read.
    Products take operands in the dtype of `query`, backward too, and accumulate in float32; the scale, the cap and the
    softmax are float32.

    Args:
      query_BTHK, key_BSGK, value_BSGK: H is a multiple of G, and head h reads key-value head h // (H / G).
      query_segments, key_segments: int32 [B, T] and [B, S], or None for one segment.
      query_index: int32 [B, T]; None if T == S and every query stands at its own index.
      softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118); 0 is off.
      scale: factor of the scores; None is 1 / sqrt(K).
      prefix: P, the number of keys that precede index 0 and belong to no segment. Every document sees them as if they
        stood before its first token: all of them without a window, else prefix key p is at the distance
        P + position - p, as in transformers' cache of past keys.
      positions: int32 [B, T], of the queries in their documents; used with `prefix` and a window alone.
      backend: 'xla' | 'cudnn' | 'splash', or 'auto': the kernel that `share` offers if it takes these arguments.
      share: if it has no kernel, all is 'xla'.

    Raises ValueError if `backend` names the kernel that is offered, which cannot take these arguments.
    """
    operands = query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments
    T, K = query_BTHK.shape[1], query_BTHK.shape[3]
    options = {'causal': causal, 'window': window, 'softcap': softcap, 'scale': K**-0.5 if scale is None else scale}
    if share.kernel and backend in ('auto', share.kernel) and not prefix:
        about = {'head_dim': K, 'dtype': query_BTHK.dtype, 'window': window, 'softcap': softcap}
        about['capability'] = share.capability
        why = 'takes no cache' if query_index is not None else unsupported_reason(share.kernel, T, **about)
        if not why:
            return _fused(share, operands, options)
        if backend != 'auto':
            raise InputError(f"attention='{backend}' {why}; choose attention='auto' or 'xla'")
    return xla(*operands, query_index, **options, prefix=prefix, positions=positions)


def _fused(share: ShardingHooks, operands, options):
    """`attend` by the kernel of `share`; a traced window is an operand, since on_heads passes in nothing else."""
    traced = {} if isinstance(options['window'], int) else {'window': options['window']}

    def function(*operands):
        return KERNELS[share.kernel](*operands[:5], **options | dict(zip(traced, operands[5:], strict=True)))

    return (share.on_heads(function) if share.on_heads else function)(*operands, *traced.values())


def unsupported_reason(
    kernel: str, length: int, *, head_dim: int, dtype, window, softcap: float, capability: tuple[int, ...] = ()
) -> str:
    """The reason that a kernel cannot take rows of `length` positions, or ''.

    `capability` is the CUDA compute capability of the devices, such as (9, 0); () if they have none. Head sizes are
    those of cuDNN's backward pass: 256 on Hopper, 128 on Ampere, Ada and Blackwell (docs.nvidia.com/deeplearning/cudnn,
    attention, support matrix).
    """
    if kernel == 'splash':
        if not isinstance(window, int):
            return 'needs a window that is known when it is compiled (model.unroll must hold all layers)'
        return '' if length % 128 == 0 else f'needs a length that 128 divides, not {length}'
    if capability < (8, 0):
        have = f'this GPU has {".".join(map(str, capability))}' if capability else 'this device has none'
        return f'needs CUDA compute capability 8.0, and {have}'
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs dtype 'bfloat16' or 'float16', not '{dtype}'"
    if softcap:
        return 'knows no softcap'
    if length % 2:
        return f'needs an even length, not {length}'
    most = 256 if capability[0] == 9 else 128
    fits = head_dim % 8 == 0 and head_dim <= most
    return '' if fits else f'needs heads of at most {most} and a multiple of 8 on this GPU, not {head_dim}'


def multiply(equation: str, a, b):
    """jnp.einsum of two arrays of one dtype, accumulated in float32; float32."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


# The two products have derivatives of their own since jax's would multiply a float32 cotangent by a bfloat16 operand,
# which no matrix unit does. The cotangent is rounded to the dtype of the operands first, as in FlashAttention-2 (arXiv
# 2307.08691, algorithm 2): of the scores' it is the only rounding, and that of the output is in that dtype anyway.


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
    share_BGT1 = 1 / jnp.sum(weights_BGTS, axis=-1, keepdims=True, dtype=jnp.float32)
    out_BGTK = multiply('BGTS,BGSK->BGTK', weights_BGTS, value_BGSK) * share_BGT1
    return out_BGTK, (weights_BGTS, value_BGSK, share_BGT1, out_BGTK)


def _average_backward(kept, g_BGTK):
    weights_BGTS, value_BGSK, share_BGT1, out_BGTK = kept
    dtype = value_BGSK.dtype
    g_BGTK = g_BGTK.astype(dtype)
    to_value = multiply('BGTS,BGTK->BGSK', weights_BGTS, (g_BGTK * share_BGT1).astype(dtype))
    mean_BGT1 = jnp.sum(g_BGTK * out_BGTK, axis=-1, keepdims=True)
    to_weights = (multiply('BGTK,BGSK->BGTS', g_BGTK, value_BGSK) - mean_BGT1) * share_BGT1
    return to_weights, to_value.astype(dtype)


average.defvjp(_average_vjp, _average_backward)


def visible(query_index, key_index, query_segments, key_segments, *, causal: bool, window: int):
    """bool [B or 1, T, S], or None if every query sees every key. Indices are [B or 1, T] and [1, S]."""
    distance = query_index[:, :, None] - key_index[:, None, :]
    masks = []
    if causal:
        masks.append(distance >= 0)
    if not isinstance(window, int) or window:
        masks.append(jnp.abs(distance) < window)
    if query_segments is not None:
        masks.append(query_segments[:, :, None] == key_segments[:, None, :])
    return functools.reduce(jnp.logical_and, masks) if masks else None


def with_prefix(mask, positions, prefix: int, window):
    """bool [B, T, P + S]: which of P = `prefix` keys before those of `mask` [B or 1, T, S] are seen; see `attend`."""
    if isinstance(window, int) and not window or not prefix:
        return jnp.pad(mask, ((0, 0), (0, 0), (prefix, 0)), constant_values=True)
    near_BTP = prefix + positions[:, :, None] - jnp.arange(prefix)[None, None] < window
    return jnp.concatenate([near_BTP, jnp.broadcast_to(mask, (len(near_BTP), *mask.shape[1:]))], axis=-1)


def xla(
    query_BTHK,
    key_BSGK,
    value_BSGK,
    query_segments,
    key_segments,
    query_index,
    *,
    causal,
    window,
    softcap,
    scale,
    prefix=0,
    positions=None,
):
    """Plain products and a float32 softmax; causal queries in blocks, each reading only the keys it can see.

    The queries that share a key-value head are rows of one product, so keys are never repeated.
    """
    B, T, H, K = query_BTHK.shape
    S, G = key_BSGK.shape[1] - prefix, key_BSGK.shape[2]
    R = H // G
    dtype = query_BTHK.dtype
    query_BGRTK = query_BTHK.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4)
    key_BGSK, value_BGSK = key_BSGK.transpose(0, 2, 1, 3), value_BSGK.transpose(0, 2, 1, 3)

    def block(start, stop, first, last):
        """Queries [start, stop) over keys [first, last)."""
        C = stop - start

        def read(x_BGSK):
            if first and prefix:
                return jnp.concatenate([x_BGSK[:, :, :prefix], x_BGSK[:, :, prefix + first : prefix + last]], axis=2)
            return x_BGSK[:, :, first : prefix + last]

        mask = visible(
            jnp.arange(start, stop)[None] if query_index is None else query_index,
            jnp.arange(first, last)[None],
            None if query_segments is None else query_segments[:, start:stop],
            None if key_segments is None else key_segments[:, first:last],
            causal=causal,
            window=window,
        )
        query_BGTK = query_BGRTK[:, :, :, start:stop].reshape(B, G, R * C, K)
        score_BGTS = scores(query_BGTK, read(key_BGSK), scale)
        if softcap:
            score_BGTS = softcap * jnp.tanh(score_BGTS / softcap)
        if mask is not None:
            mask = with_prefix(mask, None if positions is None else positions[:, start:stop], prefix, window)
            score_BGTS = jnp.where(jnp.tile(mask[:, None], (1, 1, R, 1)), score_BGTS, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(score_BGTS - jax.lax.stop_gradient(jnp.max(score_BGTS, axis=-1, keepdims=True)))
        return average(weights, read(value_BGSK)).astype(dtype).reshape(B, G, R, C, K)

    if causal and query_index is None:
        blocks = [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]
        reach = window if isinstance(window, int) else 0
        out = [block(start, stop, max(0, start - reach + 1) if reach else 0, stop) for start, stop in blocks]
        out_BGRTK = jnp.concatenate(out, axis=3)
    else:
        out_BGRTK = block(0, T, 0, S)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def cudnn(query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, *, causal, window, softcap, scale):
    """cuDNN's fused attention. It has a window of its own only on the left of a causal query and of a known size.

    Segments and every other window become a mask, which it reads as a bias.
    """
    index = jnp.arange(query_BTHK.shape[1])[None]
    own = causal and isinstance(window, int)
    mask = visible(index, index, query_segments, key_segments, causal=False, window=0 if own else window)
    return jax.nn.dot_product_attention(
        query_BTHK,
        key_BSGK,
        value_BSGK,
        mask=None if mask is None else mask[:, None],
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if own and window else None,
        implementation='cudnn',
    )


def splash(
    query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, *, causal, window, softcap, scale, interpret=False
):
    """The splash kernel of jax.experimental.pallas, which skips the blocks that no query sees.

    It takes no scale, so the query is multiplied, in float32, and rounded once more if the scale is no power of two.
    `interpret` runs it without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    T, H = query_BTHK.shape[1:3]
    if window:
        mask = kernels.LocalMask((T, T), (window - 1, 0 if causal else window - 1), 0)
    else:
        mask = kernels.CausalMask((T, T)) if causal else kernels.FullMask((T, T))
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * H),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )
    segments = None if query_segments is None else kernels.SegmentIds(query_segments, key_segments)
    scaled_BTHK = (query_BTHK.astype(jnp.float32) * scale).astype(query_BTHK.dtype)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (scaled_BTHK, key_BSGK, value_BSGK))
    return jax.vmap(kernel)(*heads_first, segments).transpose(0, 2, 1, 3)


KERNELS = {'cudnn': cudnn, 'splash': splash}
