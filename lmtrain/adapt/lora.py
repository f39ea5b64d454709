"""Low-rank adaptation of kernels and embeddings: LoRA, rsLoRA, DoRA.

    x [in] ---+--- kernel [in, out] --------------------------------(+)--- y [out]
              |    frozen                                            |
              +--- lora_a [in, R] --- lora_b [R, out] --- * scale ---+
                   trained            trained             fixed        R << in, out

lora_b (or lora_a) is 0 at first, so y does not change. After training, `fold` replaces the kernel by
kernel + scale lora_a lora_b.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.adapt.adapter import Adapter, key_of, sites
from lmtrain.errors import InputError
from lmtrain.models.linear import column_norm

TRAINABLE = r'.*/lora_(a|b|magnitude)'
TARGETS = {
    'qv': r'layers(_\d+)?/attention/(query|value)/kernel',
    'attention': r'layers(_\d+)?/attention/\w+/kernel',
    'all-linear': r'layers(_\d+)?/(attention|mlp)/\w+/kernel',  # same as PEFT: without the head
}
LEAVES = ('lora_a', 'lora_b', 'lora_scale', 'lora_magnitude')


def adapter(
    *,
    rank: Sequence[tuple[str, int | Sequence[int]]],
    alpha: Sequence[tuple[str, float | Sequence[float]]],
    targets: str = '',
    rslora: bool = False,
    zero: str = 'b',
    dora: bool = False,
) -> Adapter:
    """LoRA (arXiv 2106.09685): lora_a [in, R], lora_b [R, out] and lora_scale [] next to each matched kernel [in, out].

    lora_a is U(-1/sqrt(in), 1/sqrt(in)) and lora_b 0. Next to an embedding [V, D], lora_a [V, R] is 0 and lora_b [R, D]
    N(0, 1), same as PEFT. All are float32. In a stack of layers every leaf has the leading dimension N.

    Args:
      rank: [(regex of kernels or embeddings, rank)]. A list of N ranks gives every layer its own; rank 0 is no LoRA.
        The layers share one array of the largest rank, whose unused columns are 0 and stay 0.
      alpha: [(regex, alpha)] for the same paths; the scale is alpha / rank.
      targets: one of TARGETS or a regex, in place of the pattern of `rank`; '' is that pattern.
      rslora: the scale is alpha / sqrt(rank) (arXiv 2312.03732).
      zero: the factor that is 0 at first. 'a': lora_b is N(0, 1/R) instead, R the rank (Hayou et al., arXiv 2406.08447,
        Init[B]). With 'b', the first updates of Adam depend on rounding, and so on the layout of the devices.
        Embeddings always have lora_a = 0.
      dora: adds lora_magnitude [out], the norms of the kernel's columns (arXiv 2402.09353).

    The adapter raises InputError for a pattern that matches nothing, a matched path without alpha, and a rank that is
    out of range.
    """

    if zero not in ('a', 'b'):
        raise InputError(f"adapt.lora.zero is {zero!r}: it is 'a' or 'b'")
    patterns = _targeted(rank, targets) if targets else rank

    def new_leaves(rng, params):
        leaves = tree.flatten(params)
        ranks = sites(params, patterns, f'adapt.lora.{"targets" if targets else "rank"}')
        try:
            alphas = tree.match(alpha, ranks)
        except ValueError as error:
            raise InputError(f'adapt.lora.alpha: {error}') from None
        new = {}
        for path in ranks:
            if alphas[path] is None:
                raise InputError(f'adapt.lora.alpha: no pattern matches {path}, which adapt.lora.rank adapts')
            r, layer_alpha = _per_layer(path, leaves[path].shape[:-2], ranks[path], alphas[path], dora)
            scale = layer_alpha / np.maximum(np.sqrt(r) if rslora else r, 1)
            scale = jnp.asarray(np.where(r > 0, scale, 0), jnp.float32)
            new |= _initial(rng, path, leaves[path], r, scale, zero, dora)
        return tree.unflatten(new)

    return new_leaves


def _targeted(rank, targets: str) -> list[tuple[str, int | Sequence[int]]]:
    """`rank` with `targets` as its only pattern. Raises InputError if `rank` has several."""
    if len(rank) != 1:
        raise InputError(
            f'adapt.lora.targets = {targets!r} with {len(rank)} patterns in adapt.lora.rank: it replaces the only '
            'pattern there; set adapt.lora.rank to one number, or leave adapt.lora.targets out'
        )
    return [(TARGETS.get(targets, targets), value) for _, value in rank]


def _per_layer(path: str, stack: tuple[int, ...], rank, alpha, dora: bool) -> tuple[np.ndarray, np.ndarray]:
    """(rank, alpha) of every layer, both of the shape `stack`: [N], or [] outside the layers. Raises InputError."""
    if not np.issubdtype(np.asarray(rank).dtype, np.integer):
        raise InputError(f'adapt.lora.rank of {path} is {rank!r}: it must be a whole number above 0')
    if not np.issubdtype(np.asarray(alpha).dtype, np.number) or not np.all(np.greater(alpha, 0)):
        raise InputError(f'adapt.lora.alpha of {path} is {alpha!r}: it must be a number above 0')
    try:
        r, alpha = (np.broadcast_to(np.asarray(value), stack) for value in (rank, alpha))
    except ValueError:
        raise InputError(
            f'adapt.lora.rank: {path} has {list(stack) or "no"} layers, but rank {rank} and alpha {alpha}'
        ) from None
    if np.any(r < 0) or r.max() < 1:
        raise InputError(f'adapt.lora.rank of {path} is {r.tolist()}: it must be a whole number above 0')
    if dora and (path.endswith('/embedding') or np.any(r == 0)):
        raise InputError(
            f'adapt.lora.dora: {path} is an embedding or has layers of rank 0, for which there is no DoRA: let '
            "adapt.lora.rank match kernels alone, such as '.*/kernel'"
        )
    return r, alpha


def _initial(rng, path: str, kernel, r: np.ndarray, scale, zero: str, dora: bool) -> tree.Params:
    """{path: leaf} next to one kernel [..., in, out] or embedding, of the ranks `r` [...]."""
    *stack, rows, columns = kernel.shape
    parent, _, name = path.rpartition('/')
    key, R = key_of(rng, parent), int(r.max())
    used = jnp.asarray(np.arange(R) < r[..., None], jnp.float32)  # [..., R]
    if name == 'embedding':
        a = jnp.zeros((*stack, rows, R))
        b = jax.random.normal(key, (*stack, R, columns)) * used[..., None]
    elif zero == 'a':
        a = jnp.zeros((*stack, rows, R))
        deviation = jnp.asarray(np.maximum(r, 1.0) ** -0.5, jnp.float32)[..., None, None]
        b = jax.random.normal(key, (*stack, R, columns)) * used[..., None] * deviation
    else:
        bound = rows**-0.5
        a = jax.random.uniform(key, (*stack, rows, R), minval=-bound, maxval=bound) * used[..., None, :]
        b = jnp.zeros((*stack, R, columns))
    leaves = {'lora_a': a, 'lora_b': b, 'lora_scale': scale}
    if dora:
        leaves['lora_magnitude'] = column_norm(kernel, a, b, scale)
    return {f'{parent}/{leaf_name}': leaf for leaf_name, leaf in leaves.items()}


def merged(kernel, a, b, scale, magnitude=None):
    """float32 [..., in, out]: kernel + scale a b. With DoRA's magnitude, its columns are scaled to that length."""
    out = kernel.astype(jnp.float32) + scale[..., None, None] * (a @ b)
    if magnitude is not None:
        out *= (magnitude / column_norm(kernel, a, b, scale))[..., None, :]
    return out


def fold(params: Mapping) -> tree.Params:
    """`params` with every low-rank path merged into its kernel, in float32; the kernel keeps its dtype.

    Raises InputError for a LoRA of an embedding to which the head is tied: it would change the head as well.
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
        low_rank = [leaves.pop(f'{parent}/{name}', None) for name in LEAVES]
        leaves[target] = merged(leaves[target], *low_rank).astype(leaves[target].dtype)
    return tree.unflatten(leaves)
