"""A step that is taken twice, and copies that are compared, against hardware that is wrong and says nothing."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lmtrain.runtime import lifecycle


def run_twice(train_step, step: int):
    """`train_step` (which donates its state) taken twice; gives what it gives, and costs one more state in memory.

    Raises survive.Ended (DIFFERS) naming the step and the leaves where the two results, or the copies of a leaf that
    several devices hold, are not equal to the bit.
    """

    def take(state, batch, progress):
        kept = jax.tree.map(jnp.copy, state)
        first = train_step(state, batch, progress)
        if lifecycle.fault_requested(lifecycle.CORRUPT, step):
            leaf, *rest = jax.tree.leaves(first[0].trainable)
            flipped = jax.jit(_flip, out_shardings=leaf.sharding)(leaf)
            structure = jax.tree.structure(first[0].trainable)
            first = first[0].replace(trainable=jax.tree.unflatten(structure, [flipped, *rest])), first[1]
        second = train_step(kept, batch, progress)
        _end(step, 'taken twice from the same state, differs in', _unequal(_equal(first, second)))
        _end(step, 'has copies on several devices that are not equal of', _unequal(equal_copies(second)))
        return second

    return take


def _unequal(equal) -> list[str]:
    """The paths at which a tree, of which the first element is a state, says False."""
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(equal))
    return [jax.tree_util.keystr(path[1:], simple=True, separator='/') for path, same in found if not same]


def _end(step: int, what: str, names: list[str]) -> None:
    if names:
        more = f' and {len(names) - 1} more' if len(names) > 1 else ''
        raise lifecycle.RunEnded(
            lifecycle.DIFFERS,
            f'step {step:,}, {what} {names[0]}{more}: a device computes or keeps what is wrong. Nothing of it is kept; '
            'the same command goes on from the last checkpoint, on other devices',
        )


def equal_copies(tree):
    """Whether all copies of a leaf, or of a piece of it, are equal to the bit, by the sum of their bits; tree of bools.

    What is computed from a copy that is wrong is wrong twice, so that two results do not show it.
    """
    leaves, structure = jax.tree.flatten(tree)
    laid = [leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None for leaf in leaves]
    return jax.tree.unflatten(structure, _compared(tuple(laid))(leaves))


@functools.cache
def _compared(laid: tuple):
    def one(leaf, on):
        axes = on and tuple(axis for axis, size in on.mesh.shape.items() if size > 1)
        if not axes:
            return jnp.bool_(True)
        over = {axis for part in on.spec for axis in (part if isinstance(part, tuple) else (part,))}
        copied = tuple(axis for axis in axes if axis not in over)

        def same(piece):
            total = jnp.sum(_bits(piece).astype(jnp.uint32), dtype=jnp.uint32)
            apart = jax.lax.pmax(total, copied) != jax.lax.pmin(total, copied) if copied else jnp.bool_(False)
            return jax.lax.pmax(apart.astype(jnp.int32), axes) == 0

        return jax.shard_map(same, mesh=on.mesh, in_specs=on.spec, out_specs=PartitionSpec(), check_vma=False)(leaf)

    return jax.jit(lambda leaves: [one(leaf, on) for leaf, on in zip(leaves, laid, strict=True)])


def _bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')) if x.dtype != bool else x


def _flip(x):
    bits = _bits(x).reshape(-1)
    return jax.lax.bitcast_convert_type(bits.at[0].set(bits[0] ^ 1), x.dtype).reshape(x.shape)


@jax.jit
def _equal(one, other):
    return jax.tree.map(lambda a, b: jnp.array_equal(_bits(a), _bits(b)), one, other)
