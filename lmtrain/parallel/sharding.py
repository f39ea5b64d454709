"""The device mesh, and the path rules that shard parameters, optimizer states and batches over it.

    axis        divides                         communication in each step (parallel/collectives.py)
    ─────────   ─────────────────────────────   ────────────────────────────────────────────────────────────────────
    data        rows of the batch               all-reduce of gradients, once per step
    fsdp        rows of the batch, parameters   all-gather of a layer's parameters, reduce-scatter of their gradients
    tensor      heads, columns, vocabulary      all-reduce of activations, twice per layer and direction
    sequence    positions of a row              all-gather of keys and values, reduce-scatter of their gradients

Neighbouring devices differ in the last axis, so the axes with the most communication have the fastest links. A mesh of
data=2, fsdp=2, tensor=2 on two slices (data-centre network between slices, fast links within):

                 slice 0, data=0                     slice 1, data=1
              tensor=0    tensor=1                tensor=0    tensor=1
    fsdp=0   device 0 ── device 1       fsdp=0   device 4 ── device 5
                │           │        <──────>       │           │
    fsdp=1   device 2 ── device 3       fsdp=1   device 6 ── device 7

A query kernel [D, F] is sharded ('fsdp', 'tensor'): device 3 stores its lower right quarter, and so does device 7. A
batch is sharded by rows over data x fsdp: devices 2 and 3 compute the same quarter of the rows.
"""

import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmtrain import tree
from lmtrain.adapt import leaves
from lmtrain.errors import InputError

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# One list for all families, which use the same paths; the leaves of adapters have theirs in adapt/leaves.py. The first
# dimension of layers/ is N, the stacked layers. If several rules match a path, the first one counts whose axes divide
# the leaf.
RULES = (
    ('embed/embedding', ('tensor', 'fsdp')),
    ('positions/embedding', (None, 'fsdp')),
    ('layers[^/]*/attention/(query|key|value)/kernel', (None, 'fsdp', 'tensor')),
    ('layers[^/]*/attention/output/kernel', (None, 'tensor', 'fsdp')),
    ('layers[^/]*/mlp/(gate|up)/kernel', (None, 'fsdp', 'tensor')),
    ('layers[^/]*/mlp/down/kernel', (None, 'tensor', 'fsdp')),
    ('head/kernel', ('fsdp', 'tensor')),
)
PLATFORM_KERNELS = {'gpu': 'cudnn', 'tpu': 'splash'}  # fused attention of a platform, in attention_kernels.KERNELS
SEGMENT_COLUMNS = ('scored', 'margin', 'labels', 'label_weights')  # [B, S] of token tasks: no dimension of positions
MAX_REPLICATED = 0.02  # fraction of the parameters' bytes that may be replicated on a mesh that shards parameters
ALWAYS_REPLICATED = 2**20  # bytes that may be replicated in any case


def mesh(data: int, fsdp: int, tensor: int, sequence: int, devices=None) -> Mesh:
    """A mesh with the axes `AXES` over `devices` (None: all); an axis of -1 has the remaining devices.

    If the devices belong to several slices, `data` is the outermost axis and the only one across slices. The same for
    machines with GPUs, if `data` is a multiple of their number.

    InputError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise InputError(f'mesh.{name} = {size}: an axis has at least 1 device, or -1 for all remaining ones')
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise InputError(f'mesh.{" and mesh.".join(open_axes)} are -1: only one axis can have the remaining devices')
    axes = ' x '.join(f'{name}={size}' for name, size in sizes.items())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        sizes[open_axes[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise InputError(
            f'the mesh {axes} needs '
            f'{fixed if open_axes else math.prod(sizes.values())} devices{" or a multiple" if open_axes else ""}, '
            f'but there are {len(devices)}: set config.mesh so that its product is {len(devices)}, or one axis to -1'
        )
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
    if devices[0].platform == 'gpu' and sizes['data'] % len(slices):
        slices = {0: list(devices)}  # XLA treats each machine as a slice, and every axis may go across machines
    if sizes['data'] % len(slices):
        raise InputError(
            f'mesh.data = {sizes["data"]} does not divide over {len(slices)} slices: only data goes across slices, '
            f'so set mesh.data to a multiple of {len(slices)}'
        )
    within = (sizes['data'] // len(slices), *list(sizes.values())[1:])
    grids = [
        mesh_utils.create_device_mesh(within, slices[index], allow_split_physical_axes=True) for index in sorted(slices)
    ]
    # Auto axes: with explicit ones, rows of an embedding sharded over fsdp cannot be gathered.
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def kernel(mesh: Mesh) -> str:
    """The fused attention kernel of the mesh's devices; '' if they have none."""
    return PLATFORM_KERNELS.get(mesh.devices.flat[0].platform, '')


def capability(mesh: Mesh) -> tuple[int, ...]:
    """The lowest CUDA compute capability of the mesh's devices, such as (9, 0); () if one of them has none."""
    versions = [getattr(device, 'compute_capability', '') for device in mesh.devices.flat]
    return min(tuple(map(int, v.split('.'))) if re.fullmatch(r'\d+\.\d+', v) else () for v in versions)


def shardings(shapes, mesh: Mesh):
    """Tree of NamedShardings for any tree whose paths end in parameter paths: parameters, moments, a whole state.

    A leaf that no rule matches, or whose rank differs from the rule's (factored moments), is replicated.

    InputError: rules match a leaf, but the axes of none of them divide its dimensions.
    """
    rules = [*RULES, *leaves.PARTITION_RULES]

    def one(key_path, leaf):
        # Such as 'opt_state/0/mu/layers/attention/query/kernel'.
        path, uneven = jax.tree_util.keystr(key_path, simple=True, separator='/'), None
        for pattern, axes in rules:
            if not re.fullmatch(f'(.*/)?{pattern}', path) or len(axes) != len(leaf.shape):
                continue
            pairs = [(size, axis) for size, axis in zip(leaf.shape, axes, strict=True) if axis]
            left = [(size, axis) for size, axis in pairs if size % mesh.shape[axis]]
            if not left:
                # An axis of one device shards nothing and is omitted.
                named = (axis if axis and mesh.shape[axis] > 1 else None for axis in axes)
                return NamedSharding(mesh, PartitionSpec(*named))
            uneven = uneven or left[0]
        if uneven:
            size, axis = uneven
            raise InputError(
                f'{path}: a dimension of {size} does not divide over mesh.{axis} = {mesh.shape[axis]}; change that '
                'axis, or the size'
            )
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, shapes)


def replicated(shapes, mesh: Mesh) -> str:
    """A message about the leaves that are replicated on a mesh that shards parameters; '' if there are none.

    InputError: they are more than `MAX_REPLICATED` of the bytes of `shapes`, and more than `ALWAYS_REPLICATED`.
    """
    if mesh.shape['fsdp'] * mesh.shape['tensor'] == 1:
        return ''
    flat, on = tree.flatten(shapes), tree.flatten(shardings(shapes, mesh))
    whole = {path: tree.size(leaf) for path, leaf in flat.items() if not any(on[path].spec)}
    size, total = sum(whole.values()), tree.size(flat)
    largest = sorted(whole, key=lambda path: -whole[path])[:3]
    if size > max(MAX_REPLICATED * total, ALWAYS_REPLICATED):
        raise InputError(
            f'{size / total:.1%} of the parameters ({size:,} bytes) are replicated on every device, because no '
            f'rule shards them, or only over axes of 1 device: {", ".join(largest)}, ... Divide the devices otherwise '
            '(mesh.fsdp, mesh.tensor), set both to 1, or add a rule to parallel/sharding.py (leaves of adapters: '
            f'adapt/leaves.py); at most {MAX_REPLICATED:.0%} may be replicated'
        )
    return (
        f'{len(whole)} leaves are replicated, {size / total:.2%} of the bytes ({", ".join(largest)}, ...)'
        if whole
        else ''
    )


def column(mesh: Mesh, ndim: int) -> NamedSharding:
    """The sharding of a batch column: rows over `data` x `fsdp`, positions (the last dimension) over `sequence`."""
    positions = [None] * (ndim - 2) + ['sequence'] if ndim > 1 and mesh.shape['sequence'] > 1 else []
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), *positions))


def columns(mesh: Mesh, batch) -> dict[str, NamedSharding]:
    """{name: the sharding of this column} of a batch of arrays or shapes; no column of segments is divided."""
    return {name: column(mesh, 1 if name in SEGMENT_COLUMNS else x.ndim) for name, x in batch.items()}


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """InputError: a micro-batch does not divide over the mesh."""
    if batch_size < 1 or accumulate < 1:
        raise InputError(f'data.batch_size = {batch_size}, optimizer.accumulate = {accumulate}: both are at least 1')
    devices = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_size % (accumulate * devices):
        raise InputError(
            f'data.batch_size = {batch_size} does not divide into {accumulate} micro-batches (optimizer.accumulate) '
            f'over {devices} devices (mesh.data x mesh.fsdp): it must be a multiple of {accumulate * devices}'
        )


def rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int [b], ascending: the rows of a global batch that the devices of this process compute, and that it reads.

    They are not contiguous in general. Processes read the same rows if `tensor` or `sequence` goes across processes.
    """
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    grid = mesh.devices.reshape(parts, -1)
    mine = [i for i in range(parts) if any(x.process_index == jax.process_index() for x in grid[i])]
    return np.arange(batch_size).reshape(parts, -1)[mine].reshape(-1)


def place(mesh: Mesh):
    """A function (the rows of a batch that this process reads, numpy columns) -> the global batch on the devices."""
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    mine = len(rows(mesh, parts))  # parts of the batch on this process
    whole = mine == parts and mesh.shape['sequence'] == 1

    def array(local, on):
        batch_size = len(local) // mine * parts
        own_rows = rows(mesh, batch_size)

        def shard(index):
            first, stop, _ = index[0].indices(batch_size)
            start = np.searchsorted(own_rows, first)
            return local[(slice(start, start + stop - first), *index[1:])]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), on, shard)

    def put(batch: dict[str, np.ndarray]):
        shardings = columns(mesh, batch)
        if whole:
            return jax.device_put(batch, shardings)
        return {name: array(local, shardings[name]) for name, local in batch.items()}

    return put
