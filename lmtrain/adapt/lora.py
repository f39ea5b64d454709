"""Low-rank adaptation: LoRA, rsLoRA, DoRA, beside any kernel that a Linear holds and beside embeddings."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.adapt.adapter import Adapter, key_of, sites
from lmtrain.errors import InputError
from lmtrain.models.linear import column_norm

TRAINABLE = r'.*/lora_(a|b|magnitude)'
NAMES = ('lora_a', 'lora_b', 'lora_scale', 'lora_magnitude')


def adapter(
    *,
    rank: Sequence[tuple[str, int | Sequence[int]]],
    alpha: Sequence[tuple[str, float | Sequence[float]]],
    rslora: bool = False,
    dora: bool = False,
) -> Adapter:
    """LoRA (arXiv 2106.09685): beside each matched kernel [in, out] lora_a [in, R], lora_b [R, out], lora_scale [].

    lora_a is U(-1/sqrt(in), 1/sqrt(in)) and lora_b 0, so nothing changes at first (beside an embedding lora_a [V, R] is
    0 and lora_b N(0, 1), as PEFT has it). All are float32. In a stack of layers every leaf has the leading [N].

    Args:
      rank: [(regex of kernels or embeddings, rank)]; a list of N ranks gives each layer its own, 0 being none. They
        share one array of the largest, whose other columns are 0 and stay 0.
      alpha: [(regex, alpha)] for the same paths; the scale is alpha / rank.
      rslora: alpha / sqrt(rank) instead (arXiv 2312.03732).
      dora: adds lora_magnitude [out], the norms of the kernel's columns (arXiv 2402.09353).

    Raises ValueError at `extend`: a pattern that matches nothing, a matched path without alpha, a rank out of range.
    """

    def extend(rng, params):
        new, leaves = {}, tree.flatten(params)
        ranks = sites(params, rank, 'adapt.lora.rank')
        try:
            alphas = tree.match(alpha, ranks)
        except ValueError as error:
            raise InputError(f'adapt.lora.alpha: {error}') from None
        for path, r in ranks.items():
            if alphas[path] is None:
                raise InputError(f'adapt.lora.alpha: no pattern matches {path}, which adapt.lora.rank adapts')
            new |= _leaves(rng, path, leaves[path], r, alphas[path])
        return tree.unflatten(new)

    def _leaves(rng, path, kernel, r, alpha):
        *stack, rows, columns = kernel.shape
        if not np.issubdtype(np.asarray(r).dtype, np.integer):
            raise InputError(f'adapt.lora.rank of {path} is {r!r}: it must be a whole number above 0')
        if not np.issubdtype(np.asarray(alpha).dtype, np.number) or not np.all(np.greater(alpha, 0)):
            raise InputError(f'adapt.lora.alpha of {path} is {alpha!r}: it must be a number above 0')
        try:
            r, alpha = (np.broadcast_to(np.asarray(value), stack) for value in (r, alpha))
        except ValueError:
            raise InputError(
                f'adapt.lora.rank: {path} has {stack or "no"} layers, but rank {r} and alpha {alpha}'
            ) from None
        R = int(r.max())
        table = path.endswith('/embedding')
        if np.any(r < 0) or R < 1:
            raise InputError(f'adapt.lora.rank of {path} is {r.tolist()}: it must be a whole number above 0')
        if dora and (table or np.any(r == 0)):
            raise InputError(
                f'adapt.lora.dora: {path} is an embedding or has layers of rank 0, for which there is no DoRA: let '
                "adapt.lora.rank match kernels alone, such as '.*/kernel'"
            )
        used = jnp.asarray(np.arange(R) < r[..., None], jnp.float32)  # [..., R]
        parent = path.rpartition('/')[0]
        key = key_of(rng, parent)
        if table:
            a = jnp.zeros((*stack, rows, R))
            b = jax.random.normal(key, (*stack, R, columns)) * used[..., None]
        else:
            bound = rows**-0.5
            a = jax.random.uniform(key, (*stack, rows, R), minval=-bound, maxval=bound) * used[..., None, :]
            b = jnp.zeros((*stack, R, columns))
        divisor = np.maximum(np.sqrt(r) if rslora else r, 1)
        scale = jnp.asarray(np.where(r > 0, alpha / divisor, 0), jnp.float32)
        made = [a, b, scale] + ([column_norm(kernel, a, b, scale)] if dora else [])
        return {f'{parent}/{name}': leaf for name, leaf in zip(NAMES, made, strict=False)}

    return Adapter(extend, fold)


def merged(kernel, a, b, scale, magnitude=None):
    """float32 [..., in, out]: kernel + scale a b, with DoRA's magnitude its columns brought to that length."""
    out = kernel.astype(jnp.float32) + scale[..., None, None] * (a @ b)
    if magnitude is not None:
        out *= (magnitude / column_norm(kernel, a, b, scale))[..., None, :]
    return out


def fold(params: Mapping) -> tree.Params:
    """`params` with every low-rank path merged into its kernel, in float32 and then in the kernel's own dtype.

    Raises ValueError for a LoRA of an embedding to which the head is tied: merged, it would change the head as well.
    """
    leaves = tree.flatten(params)
    for path in [path for path in leaves if path.endswith('/lora_a')]:
        parent = path.rpartition('/')[0]
        target = f'{parent}/kernel' if f'{parent}/kernel' in leaves else f'{parent}/embedding'
        if target == 'embed/embedding' and 'head/kernel' not in leaves:
            raise InputError(
                f'{path}: the head is tied to {target} and is not adapted with it, so they cannot be merged and stay '
                'one; export the adapter by itself'
            )
        found = [leaves.pop(f'{parent}/{name}', None) for name in NAMES]
        leaves[target] = merged(leaves[target], *found).astype(leaves[target].dtype)
    return tree.unflatten(leaves)
