"""A step that is taken twice from the same state, against hardware that computes wrongly and says nothing."""

import jax
import jax.numpy as jnp

from lmtrain import survive


def twice(train_step, step: int):
    """`train_step` (which donates its state) taken twice; gives what it gives, and costs one more state in memory.

    Raises survive.Ended (DIFFERS) naming the step and the leaves where the two results are not equal to the bit.
    """

    def take(state, batch, progress):
        kept = jax.tree.map(jnp.copy, state)
        first = train_step(state, batch, progress)
        if survive.wanted(survive.CORRUPT, step):
            leaf, *rest = jax.tree.leaves(first[0].trainable)
            flipped = jax.jit(_flip, out_shardings=leaf.sharding)(leaf)
            structure = jax.tree.structure(first[0].trainable)
            first = first[0].replace(trainable=jax.tree.unflatten(structure, [flipped, *rest])), first[1]
        second = train_step(kept, batch, progress)
        equal = jax.device_get(_equal(first, second))
        found = [path for path, same in jax.tree_util.tree_leaves_with_path(equal) if not same]
        if found:
            names = [jax.tree_util.keystr(path[1:], simple=True, separator='/') for path in found]
            more = f' and {len(names) - 1} more' if len(names) > 1 else ''
            raise survive.Ended(
                survive.DIFFERS,
                f'step {step:,}, taken twice from the same state, differs in {names[0]}{more}: a device computes '
                'wrongly. Nothing of it is kept; the same command goes on from the last checkpoint, on other devices',
            )
        return second

    return take


def _bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')) if x.dtype != bool else x


def _flip(x):
    bits = _bits(x).reshape(-1)
    return jax.lax.bitcast_convert_type(bits.at[0].set(bits[0] ^ 1), x.dtype).reshape(x.shape)


@jax.jit
def _equal(one, other):
    return jax.tree.map(lambda a, b: jnp.array_equal(_bits(a), _bits(b)), one, other)
