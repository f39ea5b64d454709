"""Bytes that devices send each other in a step: those of the compiled program, and the least that its mesh needs.

Both are {(kind, axes): bytes that one device receives in a step}, `kind` one of KINDS, `axes` of the mesh, as in 'fsdp'
or 'data+fsdp'. Over n devices a ring receives (n - 1) / n of what all have together when it gathers or scatters it, and
twice that when it sums it for all.
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

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
MESH = re.compile(
    r'replica_groups=mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\(\[(?P<ids>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))? '
    r"\{(?P<axes>'[^}:]*')\}"
)
BYTES = re.compile(r'(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def audit(text: str, mesh) -> dict[tuple[str, str], float]:
    """Of an HLO module's text, each exchange as often as its loops turn. Exchanges within one device are none.

    Raises ValueError where the devices of an exchange are no axes of the mesh, or a loop's turns are not known.
    """
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for instruction, times in hlo.executed(text):
        kind = instruction.opcode.removesuffix('-start')
        if kind not in KINDS:
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
            sizes = sizes[len(sizes) // 2 :]  # operands stand before results
        # A scatter's result is its share of what all have.
        whole = sum(sizes) * (n if kind == 'reduce-scatter' else 1)
        found[kind, axes] += times * whole * share * (2 if kind == 'all-reduce' else 1)
    return dict(found)


def minimum(run) -> dict[tuple[str, str], float]:
    """The least for the mesh, model and method of a `Run`, in the dtypes in which this house sends.

    FSDP gathers a leaf of a layer for the forward and for the backward pass of every micro-batch, others once for it,
    and scatters the gradients of what learns with every micro-batch; over other axes they are summed once a step.
    `tensor` sums the outputs of attention and feed-forward, forward and backward, those that remat makes again, and
    what the embedding reads and the head gives back. `sequence` gathers keys and values and scatters their gradients.
    What is orthogonalised, in float32, goes to the devices that do it and comes back (`lmtrain.parallel.redistribute`).
    """
    config, model, mesh, specs = run.config, run.model, run.mesh, run.specs
    sizes, dtype = mesh.shape, np.dtype(model.dtype)
    micro, members = config.optimizer.accumulate, max(len(run.members), 1)
    found: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(kind, axes, whole):
        n = math.prod(sizes[axis] for axis in axes)
        if n > 1:
            named = '+'.join(axis for axis in sizes if axis in axes and sizes[axis] > 1)
            found[kind, named] += whole * (n - 1) / n * (2 if kind == 'all-reduce' else 1)

    learning = tree.flatten(run.shapes.trainable)
    for path, leaf in tree.flatten(run.shapes.params).items():
        spec, learns = specs[path], path in learning
        whole = math.prod(leaf.shape) / (sizes['tensor'] if 'tensor' in spec else 1)
        if 'fsdp' in spec:
            wire = min(dtype.itemsize, leaf.dtype.itemsize)
            add('all-gather', ('fsdp',), (2 if path.startswith('layers') else 1) * micro * whole * wire)
            if learns:
                add('reduce-scatter', ('fsdp',), micro * whole * leaf.dtype.itemsize)
                whole /= sizes['fsdp']
        if learns:
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

    for group in redistribute.matrix_groups(optimizer.matrices(config.optimizer.name, learning), specs, mesh):
        shared = [axis for axis in group.shard_axes if axis not in group.spread_axes]
        whole = members * group.per_device * group.rows * group.columns * 4
        add('all-to-all', group.spread_axes, 2 * whole / math.prod(sizes[axis] for axis in shared))
        add('all-gather', shared, whole)
    return dict(found)


def _bytes(name: str, bits: str) -> float:
    return 1 if name == 'pred' else int(bits) / 8


def _groups(rest: str, devices: int) -> np.ndarray:
    """int [groups, n] of an exchange: `replica_groups=` {{0,1},{2,3}}, [2,4]<=[4,2]T(1,0), mesh['a'=2,'b'=4] {'b'}.

    Raises ValueError at another form.
    """
    if found := re.search(MESH, rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found['sizes'])}
        ids = np.arange(math.prod(sizes.values()))
        if found['ids']:
            ids = ids.reshape([int(x) for x in found['ids'].split(',')])
            ids = ids.transpose([int(x) for x in found['order'].split(',')]) if found['order'] else ids
        inner = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", found['axes'])]
        outer = [i for i in range(len(sizes)) if i not in inner]
        ids = ids.reshape(list(sizes.values())).transpose(*outer, *inner)
        return ids.reshape(-1, math.prod(list(sizes.values())[i] for i in inner))
    if found := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
        shape, source, order = ([int(x) for x in part.split(',')] if part else [] for part in found.groups())
        ids = np.arange(math.prod(source)).reshape(source)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if found := re.search(r'replica_groups=\{(\{.*?\})\}', rest):
        return np.array([[int(x) for x in group.split(',')] for group in re.findall(r'\{([\d,]+)\}', found[1])])
    if 'replica_groups={}' in rest:
        return np.arange(devices)[None]
    raise ValueError(f'the devices of an exchange cannot be read from {rest[:200]!r}')


def _axes(groups: np.ndarray, mesh) -> str:
    """The axes of the mesh along which devices of a group differ. Raises ValueError where the groups are none of it."""
    wanted = {frozenset(group) for group in groups.tolist()}
    names = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    ids = np.arange(mesh.size).reshape([mesh.shape[axis] for axis in names])
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(range(len(names)), count):
            others = [i for i in range(len(names)) if i not in axes]
            size = math.prod(ids.shape[i] for i in axes)
            if wanted == {frozenset(group) for group in ids.transpose(*others, *axes).reshape(-1, size).tolist()}:
                return '+'.join(names[i] for i in axes)
    if groups.shape[1] == 1:
        return ''
    raise ValueError(f'an exchange among the devices {groups[0].tolist()}, ... is along no axes of {dict(mesh.shape)}')


def _axes_of_pairs(rest: str, mesh) -> str:
    """The axes along which sources and targets of a permutation differ."""
    pairs = re.findall(r'source_target_pairs=\{(\{.*?\})\}', rest)[0]
    pairs = np.array([[int(x) for x in pair.split(',')] for pair in re.findall(r'\{([\d,]+)\}', pairs)])
    names = list(mesh.axis_names)
    source, target = (np.array(np.unravel_index(pairs[:, i], list(mesh.shape.values()))) for i in range(2))
    return '+'.join(name for name, differs in zip(names, (source != target).any(axis=1), strict=True) if differs)
