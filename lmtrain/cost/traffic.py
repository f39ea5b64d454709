"""Communication of a step: bytes of the collectives in the compiled program, and the minimum that the mesh needs.

Both are {(collective, axes): bytes that one device receives per step}, with a name of COLLECTIVES and axes of the mesh
such as 'fsdp' or 'data+fsdp'. In a ring of n devices, each receives (n - 1) / n of the whole array for an all-gather or
a reduce-scatter, and twice that for an all-reduce.
"""

import itertools
import math
import re
from collections import defaultdict

import numpy as np

from lmtrain import optimizer, tree
from lmtrain.cost import hlo
from lmtrain.parallel import redistribute
from lmtrain.parallel.collectives import BATCH_AXES

COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
MESH = re.compile(
    r'replica_groups=mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\(\[(?P<ids>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))? '
    r"\{(?P<axes>'[^}:]*')\}"
)
BYTES = re.compile(r'(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def audit(text: str, mesh) -> dict[tuple[str, str], float]:
    """The collectives of an HLO module's text, once per iteration of a loop; those within one device are not counted.

    Raises ValueError if the devices of a collective are not along axes of the mesh, or if a trip count is unknown.
    """
    received: defaultdict[tuple[str, str], float] = defaultdict(float)
    for instruction, times in hlo.executed(text):
        kind = instruction.opcode.removesuffix('-start')
        if kind not in COLLECTIVES:
            continue
        shapes = BYTES.findall(instruction.shape)
        sizes = [math.prod(map(int, filter(None, dims.split(',')))) * _bytes(name, bits) for name, bits, dims in shapes]
        if kind == 'collective-permute':
            axes, share = _axes_of_pairs(instruction.rest, mesh), 1.0
        else:
            groups = _groups(instruction.rest, mesh.size)
            n = groups.shape[1]
            axes, share = _axes(groups, mesh), (n - 1) / n
        if not share or not axes:
            continue
        if instruction.opcode.endswith('-start') and len(sizes) > 1:
            sizes = sizes[len(sizes) // 2 :]  # operands come before results
        # The result of a reduce-scatter is one of n parts of the whole.
        whole = sum(sizes) * (n if kind == 'reduce-scatter' else 1)
        received[kind, axes] += times * whole * share * (2 if kind == 'all-reduce' else 1)
    return dict(received)


def minimum(run) -> dict[tuple[str, str], float]:
    """The minimum for the mesh, model and method of a `Run`, in the dtypes of `parallel.collectives`.

    fsdp: all-gathers a layer's leaves for the forward and for the backward pass of every micro-batch, other leaves once
    per micro-batch, and reduce-scatters the gradients of trainable leaves; the other axes all-reduce them once a step.
    tensor: all-reduces the outputs of attention and feed-forward, forward and backward and if remat recomputes them,
    and once each for the embedding and the head. sequence: all-gathers keys and values, reduce-scatters their
    gradients. Muon: moves float32 matrices to the devices that orthogonalise them, and back
    (`parallel.redistribute`).
    """
    config, model, mesh, specs = run.config, run.model, run.mesh, run.specs
    sizes, dtype = mesh.shape, np.dtype(model.dtype)
    micro, members = config.optimizer.accumulate, max(len(run.initial.members), 1)
    received: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(kind, axes, whole):
        n = math.prod(sizes[axis] for axis in axes)
        if n > 1:
            named = '+'.join(axis for axis in sizes if axis in axes and sizes[axis] > 1)
            received[kind, named] += whole * (n - 1) / n * (2 if kind == 'all-reduce' else 1)

    trainable = tree.flatten(run.shapes.trainable)
    for path, leaf in tree.flatten(run.shapes.params).items():
        spec = specs[path]
        whole = math.prod(leaf.shape) / (sizes['tensor'] if 'tensor' in spec else 1)
        if 'fsdp' in spec:
            wire = min(dtype.itemsize, leaf.dtype.itemsize)
            add('all-gather', ('fsdp',), (2 if path.startswith('layers') else 1) * micro * whole * wire)
            if path in trainable:
                add('reduce-scatter', ('fsdp',), micro * whole * leaf.dtype.itemsize)
                whole /= sizes['fsdp']
        if path in trainable:
            add('all-reduce', [axis for axis in BATCH_AXES if axis not in spec], whole * leaf.dtype.itemsize)

    rows = config.data.batch_size / sizes['data'] / sizes['fsdp'] * members  # of all micro-batches
    tokens = rows * config.data.seq_len / sizes['sequence']
    again = model.remat != 'none'
    if run.task.predicts_tokens:
        sums = model.num_layers * (5 if again else 4) + 2
        add('all-reduce', ('tensor',), sums * tokens * model.width * dtype.itemsize)
    heads = model.num_kv_heads * model.head_dim / sizes['tensor']
    both = 2 * rows * config.data.seq_len * heads * dtype.itemsize * model.num_layers
    add('all-gather', ('sequence',), both * (2 if again else 1))
    add('reduce-scatter', ('sequence',), both)

    for group in redistribute.matrix_groups(optimizer.matrices(config.optimizer.name, trainable), specs, mesh):
        shared = [axis for axis in group.shard_axes if axis not in group.spread_axes]
        whole = members * group.per_device * group.rows * group.columns * 4
        add('all-to-all', group.spread_axes, 2 * whole / math.prod(sizes[axis] for axis in shared))
        add('all-gather', shared, whole)
    return dict(received)


def _bytes(name: str, bits: str) -> float:
    return 1 if name == 'pred' else int(bits) / 8


def _groups(rest: str, devices: int) -> np.ndarray:
    """int [groups, n]: the devices of a collective.

    Reads `replica_groups=` {{0,1},{2,3}}, [2,4]<=[4,2]T(1,0) and mesh['a'=2,'b'=4] {'b'}; else raises ValueError.
    """
    if match := re.search(MESH, rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match['sizes'])}
        ids = np.arange(math.prod(sizes.values()))
        if match['ids']:
            ids = ids.reshape([int(x) for x in match['ids'].split(',')])
            ids = ids.transpose([int(x) for x in match['order'].split(',')]) if match['order'] else ids
        inner = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", match['axes'])]
        outer = [i for i in range(len(sizes)) if i not in inner]
        ids = ids.reshape(list(sizes.values())).transpose(*outer, *inner)
        return ids.reshape(-1, math.prod(list(sizes.values())[i] for i in inner))
    if match := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
        shape, source, order = ([int(x) for x in part.split(',')] if part else [] for part in match.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if match := re.search(r'replica_groups=\{(\{.*?\})\}', rest):
        return np.array([[int(x) for x in group.split(',')] for group in re.findall(r'\{([\d,]+)\}', match[1])])
    if 'replica_groups={}' in rest:
        return np.arange(devices)[None]
    raise ValueError(f'the devices of a collective cannot be read from {rest[:200]!r}')


def _axes(groups: np.ndarray, mesh) -> str:
    """The axes of the mesh along which the devices of a group differ. Raises ValueError if they are none."""
    given_groups = {frozenset(group) for group in groups.tolist()}
    names = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    ids = np.arange(mesh.size).reshape([mesh.shape[axis] for axis in names])
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(range(len(names)), count):
            others = [i for i in range(len(names)) if i not in axes]
            size = math.prod(ids.shape[i] for i in axes)
            if given_groups == {frozenset(group) for group in ids.transpose(*others, *axes).reshape(-1, size).tolist()}:
                return '+'.join(names[i] for i in axes)
    if groups.shape[1] == 1:
        return ''
    raise ValueError(f'a collective among the devices {groups[0].tolist()}, ... is along no axes of {dict(mesh.shape)}')


def _axes_of_pairs(rest: str, mesh) -> str:
    """The axes of the mesh along which the sources and targets of a permutation differ."""
    pairs = re.findall(r'source_target_pairs=\{(\{.*?\})\}', rest)[0]
    pairs = np.array([[int(x) for x in pair.split(',')] for pair in re.findall(r'\{([\d,]+)\}', pairs)])
    names = list(mesh.axis_names)
    source, target = (np.array(np.unravel_index(pairs[:, i], list(mesh.shape.values()))) for i in range(2))
    return '+'.join(name for name, differs in zip(names, (source != target).any(axis=1), strict=True) if differs)
