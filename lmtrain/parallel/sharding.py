"""The mesh from the config, and path rules that say how any tree lies on it."""

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
KERNELS = {'gpu': 'cudnn', 'tpu': 'splash'}  # fused attention by platform, of models.attend.KERNELS
LOST = 0.02  # share of the parameters' bytes that may lie whole on every device of a mesh that divides them
FREE = 2**20  # bytes that may in any case


def mesh(data: int, fsdp: int, tensor: int, sequence: int, devices=None) -> Mesh:
    """A mesh with the axes `AXES` over all devices (or those given); -1 fills what the others leave.

    Where the devices are of several slices, `data` goes across them, outermost, and every other axis stays within one;
    over machines of GPUs so does `data` where it can.
    Raises ValueError where the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise InputError(f'mesh.{name} = {size}: an axis has at least 1 device, or -1 to fill')
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise InputError(f'mesh.{" and mesh.".join(open_axes)} are both -1: only one axis can fill the mesh')
    asked = ' x '.join(f'{name}={size}' for name, size in sizes.items())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        sizes[open_axes[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise InputError(
            f'the mesh {asked} wants '
            f'{fixed if open_axes else math.prod(sizes.values())} devices{" or a multiple" if open_axes else ""}, '
            f'{len(devices)} are there: set config.mesh so that its product is {len(devices)}, or one axis to -1'
        )
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
    if devices[0].platform == 'gpu' and sizes['data'] % len(slices):
        slices = {0: list(devices)}  # XLA takes each machine for a slice, and any axis may go across machines
    if sizes['data'] % len(slices):
        raise InputError(
            f'mesh.data = {sizes["data"]} does not divide over {len(slices)} slices: only data goes across slices, '
            f'so set mesh.data to a multiple of {len(slices)}'
        )
    within = (sizes['data'] // len(slices), *list(sizes.values())[1:])
    grids = [
        mesh_utils.create_device_mesh(within, slices[index], allow_split_physical_axes=True) for index in sorted(slices)
    ]
    # Auto axes: an embedding sharded by fsdp cannot be gathered under explicit ones.
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def kernel(mesh: Mesh) -> str:
    """The fused attention that the mesh's devices have; '' where they have none."""
    return KERNELS.get(mesh.devices.flat[0].platform, '')


def capability(mesh: Mesh) -> tuple[int, ...]:
    """The lowest CUDA compute capability of the mesh's devices, such as (9, 0); () if one of them has none."""
    words = [getattr(device, 'compute_capability', '') for device in mesh.devices.flat]
    return min(tuple(map(int, word.split('.'))) if re.fullmatch(r'\d+\.\d+', word) else () for word in words)


def path_of(key_path) -> str:
    """jax key path -> 'opt_state/0/mu/layers/attention/query/kernel'."""
    return '/'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in key_path)


def shardings(shapes, mesh: Mesh):
    """Tree of NamedShardings for any tree whose paths end in parameter paths: parameters, moments, a whole state.

    A leaf that no rule covers, or whose rank is not the rule's (factored moments), is replicated.
    Raises ValueError where no rule for a leaf divides it, naming the dimension and the axis of the first of them.
    """
    rules = [*RULES, *leaves.partition_rules()]

    def one(key_path, leaf):
        path, uneven = path_of(key_path), None
        for pattern, axes in rules:
            if not re.fullmatch(f'(.*/)?{pattern}', path) or len(axes) != len(leaf.shape):
                continue
            pairs = [(size, axis) for size, axis in zip(leaf.shape, axes, strict=True) if axis]
            left = [(size, axis) for size, axis in pairs if size % mesh.shape[axis]]
            if not left:
                # An axis of one device shards nothing; unnamed, it is not shown as if it did.
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
    """What lies whole on each device though the mesh divides parameters, in words; '' where it divides none.

    Raises ValueError where that is more than `LOST` of the bytes of `shapes` (and than `FREE`).
    """
    if mesh.shape['fsdp'] * mesh.shape['tensor'] == 1:
        return ''
    flat, on = tree.flatten(shapes), tree.flatten(shardings(shapes, mesh))
    whole = {path: tree.size(leaf) for path, leaf in flat.items() if not any(on[path].spec)}
    size, total = sum(whole.values()), tree.size(flat)
    largest = sorted(whole, key=lambda path: -whole[path])[:3]
    if size > max(LOST * total, FREE):
        raise InputError(
            f'{size / total:.1%} of the parameters ({size:,} bytes) lie whole on every device of the mesh, as no rule '
            f'divides them: {", ".join(largest)}, ... Give them a rule in parallel/sharding.py '
            f'(leaves of adapters: adapt/leaves.py), or set mesh.fsdp and mesh.tensor to 1; up to {LOST:.0%} may'
        )
    return (
        f'{len(whole)} leaves on every device, {size / total:.2%} of the bytes ({", ".join(largest)}, ...)'
        if whole
        else ''
    )


def column(mesh: Mesh, ndim: int) -> NamedSharding:
    """A column of a batch: rows over `data` x `fsdp`, and positions, the last dimension of several, over `sequence`."""
    positions = [None] * (ndim - 2) + ['sequence'] if ndim > 1 and mesh.shape['sequence'] > 1 else []
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), *positions))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError where a micro-batch does not divide over the mesh."""
    if batch_size < 1 or accumulate < 1:
        raise InputError(f'data.batch_size = {batch_size}, optimizer.accumulate = {accumulate}: both are at least 1')
    devices = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_size % (accumulate * devices):
        raise InputError(
            f'data.batch_size = {batch_size} does not divide into {accumulate} micro-batches (optimizer.accumulate) '
            f'over {devices} devices (mesh.data x mesh.fsdp): it must be a multiple of {accumulate * devices}'
        )


def rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int [b]: the rows of a global batch that this process reads, ascending: those of its devices.

    Processes whose devices hold the same rows, since `tensor` or `sequence` goes across them, read the same.
    """
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    grid = mesh.devices.reshape(parts, -1)
    mine = [i for i in range(parts) if any(x.process_index == jax.process_index() for x in grid[i])]
    return np.arange(batch_size).reshape(parts, -1)[mine].reshape(-1)


def place(mesh: Mesh):
    """The function that puts this process's rows of a batch (numpy columns) on its devices, as one global batch."""

    def array(local):
        parts = mesh.shape['data'] * mesh.shape['fsdp']
        on, mine = column(mesh, local.ndim), len(rows(mesh, parts))  # parts of the batch that are here
        batch_size = len(local) // mine * parts
        held = rows(mesh, batch_size)
        if mine == parts and mesh.shape['sequence'] == 1:
            return jax.device_put(local, on)

        def piece(where):
            first, stop, _ = where[0].indices(batch_size)
            here = np.searchsorted(held, first)
            return local[(slice(here, here + stop - first), *where[1:])]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), on, piece)

    def put(batch: dict[str, np.ndarray]):
        return {name: array(local) for name, local in batch.items()}

    return put
