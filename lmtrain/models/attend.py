"""Attention itself, softmax(query . key) . value, and the backends behind it."""

import functools

import jax
import jax.numpy as jnp

from lmtrain.models.share import ALL, Share

BLOCK = 128  # queries a causal block holds on the XLA path


def in_blocks(query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, query_index, **options):
    """`attend` a block of queries after the other, whose weights [BLOCK, S] the backward pass makes again."""
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
    backend: str = 'auto',
    prefix: int = 0,
    share: Share = ALL,
):
    """softmax(query . key / sqrt(K)) . value over the keys a query sees, in the dtype of `query`; [B, T, H, K].

    A query at key index i sees index j where both are of one segment, j <= i if `causal`, and |i - j| < `window` if
    that is not 0 (a traced one is not). Padding is a segment like any other: its rows are finite and nobody reads them.

    Args:
      query_BTHK, key_BSGK, value_BSGK: H is a multiple of G, and head h reads key-value head h // (H / G).
      query_segments, key_segments: int32 [B, T] and [B, S], or None for one segment.
      query_index: int32 [B, T]; None where T == S and every query stands at its own index.
      softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118); 0 is off.
      prefix: of the keys, so many stand before index 0 and the segments: every query sees them.
      backend: 'xla' | 'cudnn' | 'splash', or 'auto': the kernel that `share` offers, where it takes these arguments.
      share: without a kernel in it all is 'xla'.

    Raises ValueError where `backend` is named, offered, and cannot take these arguments.
    """
    operands = query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments
    options = {'causal': causal, 'window': window, 'softcap': softcap}
    if share.kernel and backend in ('auto', share.kernel) and not prefix:
        T, K = query_BTHK.shape[1], query_BTHK.shape[3]
        about = {'head_dim': K, 'dtype': query_BTHK.dtype, 'window': window, 'softcap': softcap}
        why = 'takes no cache' if query_index is not None else obstacle(share.kernel, T, **about)
        if not why:
            function = functools.partial(KERNELS[share.kernel], **options)
            return (share.on_heads(function) if share.on_heads else function)(*operands)
        if backend != 'auto':
            raise ValueError(f"attention='{backend}' {why}; choose attention='auto' or 'xla'")
    return xla(*operands, query_index, **options, prefix=prefix)


def obstacle(kernel: str, length: int, *, head_dim: int, dtype, window, softcap: float) -> str:
    """Why a kernel cannot take rows of `length` positions, in words; '' where it can."""
    if not isinstance(window, int):
        return 'needs a window that is known when it is compiled (model.unroll must hold all layers)'
    if kernel == 'splash':
        return '' if length % 128 == 0 else f'needs a length that 128 divides, not {length}'
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs dtype 'bfloat16' or 'float16', not '{dtype}'"
    if softcap:
        return 'knows no softcap'
    if length % 2:
        return f'needs an even length, not {length}'
    fits = head_dim % 8 == 0 and head_dim <= 128
    return '' if fits else f'needs heads of at most 128 and a multiple of 8, not {head_dim}'


def visible(query_index, key_index, query_segments, key_segments, *, causal: bool, window: int):
    """bool [B or 1, T, S], or None where every query sees every key. Indices are [B or 1, T] and [1, S]."""
    distance = query_index[:, :, None] - key_index[:, None, :]
    masks = []
    if causal:
        masks.append(distance >= 0)
    if not isinstance(window, int) or window:
        masks.append(jnp.abs(distance) < window)
    if query_segments is not None:
        masks.append(query_segments[:, :, None] == key_segments[:, None, :])
    return functools.reduce(jnp.logical_and, masks) if masks else None


def xla(
    query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, query_index, *, causal, window, softcap, prefix=0
):
    """Plain products and a float32 softmax; causal queries in blocks, each reading only the keys it can see.

    The queries that share a key-value head are rows of one product, so keys are never repeated. Weights are divided by
    their sum after they met the values: [T, K] divisions for [T, S].
    """
    B, T, H, K = query_BTHK.shape
    S, G = key_BSGK.shape[1] - prefix, key_BSGK.shape[2]
    R = H // G
    query_BGRTK = (query_BTHK * K**-0.5).reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4)
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
        scores = jnp.einsum(
            'BGTK,BGSK->BGTS',
            query_BGRTK[:, :, :, start:stop].reshape(B, G, R * C, K),
            read(key_BGSK),
            preferred_element_type=jnp.float32,
        )
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, 0), (prefix, 0)), constant_values=True)
            scores = jnp.where(jnp.tile(mask[:, None], (1, 1, R, 1)), scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        out = jnp.einsum(
            'BGTS,BGSK->BGTK',
            weights.astype(query_BTHK.dtype),
            read(value_BGSK),
            preferred_element_type=jnp.float32,
        )
        out /= jnp.sum(weights, axis=-1, keepdims=True)
        return out.astype(query_BTHK.dtype).reshape(B, G, R, C, K)

    if causal and query_index is None:
        blocks = [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]
        reach = window if isinstance(window, int) else 0
        out = [block(start, stop, max(0, start - reach + 1) if reach else 0, stop) for start, stop in blocks]
        out_BGRTK = jnp.concatenate(out, axis=3)
    else:
        out_BGRTK = block(0, T, 0, S)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def cudnn(query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, *, causal, window, softcap):
    """cuDNN's fused attention. Segments become a mask, which it reads as a bias."""
    mask = None
    if query_segments is not None:
        mask = (query_segments[:, :, None] == key_segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        query_BTHK,
        key_BSGK,
        value_BSGK,
        mask=mask,
        is_causal=causal,
        local_window_size=((window - 1, 0) if causal else (window - 1, window - 1)) if window else None,
        implementation='cudnn',
    )


def splash(query_BTHK, key_BSGK, value_BSGK, query_segments, key_segments, *, causal, window, softcap, interpret=False):
    """The splash kernel of jax.experimental.pallas, which skips the blocks that no query sees.

    `interpret` runs it without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    T, H, K = query_BTHK.shape[1:]
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
    heads_first = (x.transpose(0, 2, 1, 3) for x in (query_BTHK * K**-0.5, key_BSGK, value_BSGK))
    return jax.vmap(kernel)(*heads_first, segments).transpose(0, 2, 1, 3)


KERNELS = {'cudnn': cudnn, 'splash': splash}
