"""Detection of silent data corruption: a step is run twice and compared, and replicas of a leaf are compared."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lmtrain.runtime import faults, lifecycle


def run_twice(train_step, step: int):
    """A function that runs `train_step` twice from the same state and returns the result.

    `train_step` donates its state, so the check needs the memory of one more state. The function raises
    lifecycle.RunEnded (DIFFERS), naming the step and the leaves, if the two results, or the replicas of a leaf on
    several devices, are not bitwise equal.
    """

    def run(state, batch, progress):
        copy = jax.tree.map(jnp.copy, state)
        first = train_step(state, batch, progress)
        if faults.fault_requested(faults.CORRUPT, step):
            first = _flip_first_bit(first[0]), first[1]
        second = train_step(copy, batch, progress)
        _end_if(_unequal(_bitwise_equal(first, second)), step, 'run twice from the same state, differs in')
        _end_if(_unequal(replicas_equal(second)), step, 'has unequal replicas on several devices of')
        return second

    return run


def _unequal(equal) -> list[str]:
    """The paths of False in a tree of bools whose first element is a state."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(equal))
    return [jax.tree_util.keystr(path[1:], simple=True, separator='/') for path, same in leaves if not same]


def _end_if(paths: list[str], step: int, what: str) -> None:
    if paths:
        more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
        raise lifecycle.RunEnded(
            lifecycle.DIFFERS,
            f'step {step:,}, {what} {paths[0]}{more}: a device computes or stores wrong values. The step is discarded; '
            'run the same command to resume from the last checkpoint, on other devices',
        )


def replicas_equal(tree):
    """For each leaf, whether all replicas of it, or of each shard of it, are bitwise equal. A tree of bools.

    A step computed from a wrong replica is wrong twice in the same way, so that its two results do not show it.
    Replicas are compared by the sum of their bits.
    """
    leaves, structure = jax.tree.flatten(tree)
    shardings = tuple(leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None for leaf in leaves)
    return jax.tree.unflatten(structure, _compare_replicas(shardings)(leaves))


@functools.cache
def _compare_replicas(shardings: tuple):
    def compare(leaf, sharding):
        axes = sharding and tuple(axis for axis, size in sharding.mesh.shape.items() if size > 1)
        if not axes:
            return jnp.bool_(True)
        sharded = {axis for part in sharding.spec for axis in (part if isinstance(part, tuple) else (part,))}
        replicated = tuple(axis for axis in axes if axis not in sharded)

        def same(shard):
            total = jnp.sum(_bits(shard).astype(jnp.uint32), dtype=jnp.uint32)
            differs = jnp.bool_(False)
            if replicated:
                differs = jax.lax.pmax(total, replicated) != jax.lax.pmin(total, replicated)
            # Over all axes: every device, and so every process, gets the same answer.
            return jax.lax.pmax(differs.astype(jnp.int32), axes) == 0

        return jax.shard_map(
            same, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=PartitionSpec(), check_vma=False
        )(leaf)

    return jax.jit(lambda leaves: [compare(*pair) for pair in zip(leaves, shardings, strict=True)])


def _bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')) if x.dtype != bool else x


def _flip_first_bit(state):
    """The state with one bit of its first trainable leaf flipped."""

    def flip(x):
        bits = _bits(x).reshape(-1)
        return jax.lax.bitcast_convert_type(bits.at[0].set(bits[0] ^ 1), x.dtype).reshape(x.shape)

    leaf, *rest = jax.tree.leaves(state.trainable)
    leaves = [jax.jit(flip, out_shardings=leaf.sharding)(leaf), *rest]
    return state.replace(trainable=jax.tree.unflatten(jax.tree.structure(state.trainable), leaves))


@jax.jit
def _bitwise_equal(one, other):
    return jax.tree.map(lambda a, b: jnp.array_equal(_bits(a), _bits(b)), one, other)
