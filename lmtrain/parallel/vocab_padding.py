"""Padding of the vocabulary to a multiple of mesh.tensor. No token uses the padding, and no file contains it.

The tables of a model have these rows only in the memory of a run with mesh.tensor > 1. They are zeros, the head gives
their ids probability 0, and no optimizer updates them. So the parameters are the same on every mesh, and a run can
resume from its checkpoint on another mesh.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lmtrain import tree
from lmtrain.adapt.leaves import vocab_axis

TABLES = {'embed/embedding': 0, 'head/kernel': 1}  # {path: its dimension over the vocabulary}


def num_padding_rows(size: int, tensor: int) -> int:
    """Rows to add to a vocabulary of `size` so that `tensor` divides it; multiples of 128 are fast on accelerators.

    >>> num_padding_rows(50_257, 4), num_padding_rows(50_304, 4)
    (47, 0)
    """
    return 0 if size % tensor == 0 else -size % math.lcm(128, tensor)


def pad(params: tree.Params, rows: int) -> tree.Params:
    """The parameters (arrays, may be traced) with `rows` more rows in the tables of the vocabulary."""
    leaves = tree.flatten(params)
    for path, leaf in leaves.items():
        axis = TABLES.get(path, vocab_axis(path))
        if axis is not None:
            leaves[path] = jnp.pad(leaf, [(0, rows if i == axis else 0) for i in range(leaf.ndim)])
    return tree.unflatten(leaves)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Unpadded shapes with the `shardings` of padded leaves, except for dimensions that the mesh does not divide."""

    def one(leaf, on):
        pairs = zip(leaf.shape, (*on.spec, *[None] * leaf.ndim), strict=False)
        even = (axis if axis and size % on.mesh.shape[axis] == 0 else None for size, axis in pairs)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(on.mesh, PartitionSpec(*even)))

    return jax.tree.map(one, shapes, shardings)


def resize(state: Any, shapes: Any) -> Any:
    """A state of arrays or shapes with the shapes and shardings of `shapes`: last rows are dropped, or zeros added.

    `shapes` has every path of the state.
    """
    targets = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}

    def one(path, leaf):
        target = targets[jax.tree_util.keystr(path)]
        if leaf.shape == target.shape:
            return leaf
        return target if isinstance(leaf, jax.ShapeDtypeStruct) else _resize_on(target.shape, target.sharding)(leaf)

    return jax.tree_util.tree_map_with_path(one, state)


@functools.cache
def _resize_on(shape: tuple[int, ...], on: NamedSharding):
    def cut_or_pad(leaf):
        part = leaf[tuple(slice(0, size) for size in shape)]
        return jnp.pad(part, [(0, size - own) for size, own in zip(shape, part.shape, strict=True)])

    return jax.jit(cut_or_pad, out_shardings=on)
