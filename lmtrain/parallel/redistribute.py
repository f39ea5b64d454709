"""Layers dealt out to devices: stacks of matrices that lie in pieces, as whole matrices of some layers, and back.

A function of whole matrices, such as Muon's, would be exchanged at each of its products where a matrix lies in pieces.
So each device is sent all pieces of its share of the matrices, which is one all-to-all, and sends back what the
function made of them, which is another: on n devices n / 2 times less than to gather every matrix everywhere. Matrices
of one shape are dealt out together, whatever their layer and their name, so that few devices wait while others work.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lmtrain import tree
from lmtrain.parallel import sharding

SHARD_AXES = ('fsdp', 'tensor')  # axes over which matrices lie in pieces: dealt out, their rows over the first of them


class MatrixGroup(NamedTuple):
    """Matrices that are dealt out together.

    Attributes:
      paths: of their stacks [N, rows, columns], or [N, columns, rows] where CUT would be the wrong way round.
      matrices: in all of those stacks. rows, columns: of one.
      cut: the axes over which each lies in pieces.
      dealt: those of them along which devices have different matrices; along the others they have the same.
      each: matrices of one device, zeros among them where they do not come out even.
    """

    paths: tuple[str, ...]
    matrices: int
    rows: int
    columns: int
    cut: tuple[str, ...]
    dealt: tuple[str, ...]
    each: int


def matrix_groups(stacks: Mapping, specs: Mapping[str, PartitionSpec], mesh: Mesh) -> list[MatrixGroup]:
    """How {path: stack, an array or its shape} that lies as `specs` is dealt out: so that least is exchanged.

    Axes before the three of a stack, such as that over the members of a sweep, are not counted.
    """
    alike: dict[tuple, list[str]] = {}
    for path, stack in stacks.items():
        cut = tuple(axis for axis in SHARD_AXES if axis in specs[path])
        rows, columns = stack.shape[-2:]
        shape = (columns, rows) if _turned(specs[path]) else (rows, columns)
        alike.setdefault((shape, cut), []).append(path)

    def hand(shape, cut, paths, dealt):
        matrices = sum(stacks[path].shape[-3] for path in paths)
        return MatrixGroup(tuple(paths), matrices, *shape, cut, dealt, -(-matrices // _devices(dealt, mesh)))

    def received(one: MatrixGroup) -> int:
        """Pieces of a matrix that a device receives: of its own from all that have others, there and back, and of
        those that it shares."""
        ways = _devices(one.dealt, mesh)
        return one.each * (2 * (ways - 1) + _devices(one.cut, mesh) - ways)

    found = []
    for (shape, cut), paths in alike.items():
        # Of equals the first, in which fewest devices do the same.
        choices = (axes for n in range(len(cut), -1, -1) for axes in itertools.combinations(cut, n))
        found.append(min((hand(shape, cut, paths, dealt) for dealt in choices), key=received))
    return found


def for_each_matrix(mesh: Mesh) -> Callable[[Callable, tree.Params], tree.Params] | None:
    """(function of a matrix, tree of stacks) -> tree of what it makes of each matrix, lying as the parameters do.

    None where no matrix lies in pieces.
    """
    if _devices(SHARD_AXES, mesh) == 1:
        return None

    def dealt(function, stacks):
        leaves = tree.flatten(stacks)
        specs = {path: on.spec for path, on in tree.flatten(sharding.shardings(stacks, mesh)).items()}
        made = {}
        for hand in matrix_groups(leaves, specs, mesh):
            at = [specs[path] for path in hand.paths]
            on = {'mesh': mesh, 'in_specs': (at,), 'out_specs': at, 'check_vma': False}
            given = [leaves[path] for path in hand.paths]
            made |= zip(hand.paths, jax.shard_map(on_device(function, hand, at), **on)(given), strict=True)
        return tree.unflatten(made)

    def on_device(function, hand, at):
        def turn(pieces):
            return [x.mT if _turned(spec) else x for x, spec in zip(pieces, at, strict=True)]

        def on_pieces(stacks):
            stacks = turn(stacks)
            ends = list(itertools.accumulate(len(x) for x in stacks))[:-1]
            missing = hand.each * _devices(hand.dealt, mesh) - hand.matrices
            pieces = jnp.pad(jnp.concatenate(stacks), ((0, missing), (0, 0), (0, 0)))
            pieces = _parted(jax.vmap(function)(_whole(pieces, hand, mesh)), hand, mesh)
            return turn(jnp.split(pieces[: hand.matrices], ends))

        return on_pieces

    return dealt


def _whole(pieces, hand: MatrixGroup, mesh: Mesh):
    """A piece of every matrix [M, r, c] -> this device's matrices [each, rows, columns]."""
    # One axis for each of CUT: of the devices to which matrices go, and then of those from which pieces come.
    x = _sent(pieces.reshape(*_sizes(hand.dealt, mesh), hand.each, *pieces.shape[1:]), hand)
    for axis in hand.cut:
        if axis not in hand.dealt:
            x = jax.lax.all_gather(x, axis, axis=SHARD_AXES.index(axis), tiled=True)
    return jnp.einsum('ftnrc->nfrtc', x).reshape(hand.each, hand.rows, hand.columns)


def _parted(whole, hand: MatrixGroup, mesh: Mesh):
    """Undoes `_whole`."""
    rows, columns = _sizes(hand.cut, mesh)
    x = whole.reshape(hand.each, rows, hand.rows // rows, columns, hand.columns // columns)
    x = jnp.einsum('nfrtc->ftnrc', x)
    for axis in hand.cut:
        if axis not in hand.dealt:
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis), 1, SHARD_AXES.index(axis))
    return _sent(x, hand).reshape(-1, *x.shape[3:])


def _sent(x, hand: MatrixGroup):
    """x [fsdp, tensor, ...], what each device has for every other -> the same shape, what every other had for it."""
    if not hand.dealt:
        return x
    flat = x.reshape(-1, *x.shape[2:])
    return jax.lax.all_to_all(flat, hand.dealt, 0, 0).reshape(x.shape)


def _sizes(axes: tuple[str, ...], mesh: Mesh) -> tuple[int, ...]:
    """Devices along each of CUT; 1 where it is none of `axes`."""
    return tuple(mesh.shape[axis] if axis in axes else 1 for axis in SHARD_AXES)


def _devices(axes: tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _turned(spec: PartitionSpec) -> bool:
    """Whether a stack's rows do not lie over the first of CUT, or its columns not over the second."""
    return any(axis in spec and spec.index(axis) != 1 + i for i, axis in enumerate(SHARD_AXES))
