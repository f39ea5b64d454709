"""Redistributes sharded matrices so that each device holds whole ones (all-to-all), applies a function such as Muon's
orthogonalisation, and shards the results again.

A function of whole matrices would communicate at each of its products if they were sharded. Instead each device
receives all shards of some of the matrices, which is one all-to-all, and returns shards of the results, which is
another: on n devices n / 2 times less communication than all-gathering every matrix on every device.

                 sharded                      whole
    device 0     a0 b0 c0 d0                  a0 a1 a2 a3
    device 1     a1 b1 c1 d1    all-to-all    b0 b1 b2 b3
    device 2     a2 b2 c2 d2   <---------->   c0 c1 c2 c3
    device 3     a3 b3 c3 d3                  d0 d1 d2 d3

Matrices of one shape are grouped, whatever their layer and name, so that few devices are idle.
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

SHARD_AXES = ('fsdp', 'tensor')  # axes that shard matrices: rows over the first, columns over the second


class MatrixGroup(NamedTuple):
    """Matrices that are redistributed together.

    Attributes:
      paths: of their stacks [N, rows, columns], or [N, columns, rows] if a spec has SHARD_AXES in the other order.
      matrices: number of matrices in all of those stacks. rows, columns: of one matrix.
      shard_axes: mesh axes over which each matrix is sharded.
      spread_axes: those of them along which devices receive different matrices; along the others they receive the same.
      per_device: matrices of one device, including zero padding if the number of matrices is not a multiple.
    """

    paths: tuple[str, ...]
    matrices: int
    rows: int
    columns: int
    shard_axes: tuple[str, ...]
    spread_axes: tuple[str, ...]
    per_device: int


def matrix_groups(stacks: Mapping, specs: Mapping[str, PartitionSpec], mesh: Mesh) -> list[MatrixGroup]:
    """Groups {path: stack, an array or its shape} with the given specs such that least is communicated.

    Axes before the three of a stack, such as that over the members of a sweep, are not counted.
    """
    similar: dict[tuple, list[str]] = {}
    for path, stack in stacks.items():
        shard_axes = tuple(axis for axis in SHARD_AXES if axis in specs[path])
        rows, columns = stack.shape[-2:]
        shape = (columns, rows) if _is_transposed(specs[path]) else (rows, columns)
        similar.setdefault((shape, shard_axes), []).append(path)

    def group(shape, shard_axes, paths, spread_axes):
        matrices = sum(stacks[path].shape[-3] for path in paths)
        per_device = -(-matrices // _num_devices(spread_axes, mesh))
        return MatrixGroup(tuple(paths), matrices, *shape, shard_axes, spread_axes, per_device)

    def received(group: MatrixGroup) -> int:
        """Shards that a device receives: of its own matrices from the devices that have others, there and back, and of
        the matrices that it computes together with other devices."""
        spread = _num_devices(group.spread_axes, mesh)
        return group.per_device * (2 * (spread - 1) + _num_devices(group.shard_axes, mesh) - spread)

    groups = []
    for (shape, shard_axes), paths in similar.items():
        # The first of equal minima: with it, fewest devices compute the same matrix.
        choices = (axes for n in range(len(shard_axes), -1, -1) for axes in itertools.combinations(shard_axes, n))
        groups.append(min((group(shape, shard_axes, paths, axes) for axes in choices), key=received))
    return groups


def for_each_matrix(mesh: Mesh) -> Callable[[Callable, tree.Params], tree.Params] | None:
    """(function of one matrix, tree of stacks) -> tree of its results, with the shardings of the parameters.

    None if the mesh does not shard matrices.
    """
    if _num_devices(SHARD_AXES, mesh) == 1:
        return None

    def apply(function, stacks):
        leaves = tree.flatten(stacks)
        specs = {path: on.spec for path, on in tree.flatten(sharding.shardings(stacks, mesh)).items()}
        results = {}
        for group in matrix_groups(leaves, specs, mesh):
            in_specs = [specs[path] for path in group.paths]
            on_shards = jax.shard_map(
                on_device(function, group, in_specs),
                mesh=mesh,
                in_specs=(in_specs,),
                out_specs=in_specs,
                check_vma=False,
            )
            results |= zip(group.paths, on_shards([leaves[path] for path in group.paths]), strict=True)
        return tree.unflatten(results)

    def on_device(function, group, specs):
        def orient(shards):
            return [x.mT if _is_transposed(spec) else x for x, spec in zip(shards, specs, strict=True)]

        def on_shards(stacks):
            stacks = orient(stacks)
            ends = list(itertools.accumulate(len(x) for x in stacks))[:-1]
            padding = group.per_device * _num_devices(group.spread_axes, mesh) - group.matrices
            shards = jnp.pad(jnp.concatenate(stacks), ((0, padding), (0, 0), (0, 0)))
            shards = _to_shards(jax.vmap(function)(_to_whole(shards, group, mesh)), group, mesh)
            return orient(jnp.split(shards[: group.matrices], ends))

        return on_shards

    return apply


def _to_whole(shards, group: MatrixGroup, mesh: Mesh):
    """A shard of every matrix [M, r, c] -> whole matrices of this device [per_device, rows, columns]."""
    # One leading axis for each of SHARD_AXES. Before the all-to-all it counts the devices to which matrices are sent,
    # after it the devices from which shards came, in the order of the rows and columns that the shards have.
    x = shards.reshape(*_axis_sizes(group.spread_axes, mesh), group.per_device, *shards.shape[1:])
    x = _all_to_all(x, group)
    for axis in group.shard_axes:
        if axis not in group.spread_axes:
            x = jax.lax.all_gather(x, axis, axis=SHARD_AXES.index(axis), tiled=True)
    return jnp.einsum('ftnrc->nfrtc', x).reshape(group.per_device, group.rows, group.columns)


def _to_shards(whole, group: MatrixGroup, mesh: Mesh):
    """The inverse of `_to_whole`."""
    f, t = _axis_sizes(group.shard_axes, mesh)
    x = whole.reshape(group.per_device, f, group.rows // f, t, group.columns // t)
    x = jnp.einsum('nfrtc->ftnrc', x)
    for axis in group.shard_axes:
        if axis not in group.spread_axes:  # these devices have computed the same: each keeps its own shard
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis), 1, SHARD_AXES.index(axis))
    return _all_to_all(x, group).reshape(-1, *x.shape[3:])


def _all_to_all(x, group: MatrixGroup):
    """x [fsdp, tensor, ...], by receiving device -> the same shape, by sending device."""
    if not group.spread_axes:
        return x
    flat = x.reshape(-1, *x.shape[2:])
    return jax.lax.all_to_all(flat, group.spread_axes, 0, 0).reshape(x.shape)


def _axis_sizes(axes: tuple[str, ...], mesh: Mesh) -> tuple[int, ...]:
    """Devices along each of SHARD_AXES; 1 for those that are not in `axes`."""
    return tuple(mesh.shape[axis] if axis in axes else 1 for axis in SHARD_AXES)


def _num_devices(axes: tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _is_transposed(spec: PartitionSpec) -> bool:
    """Whether the first of SHARD_AXES does not shard the rows of a stack, or the second not its columns."""
    return any(axis in spec and spec.index(axis) != 1 + i for i, axis in enumerate(SHARD_AXES))
