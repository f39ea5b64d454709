"""Several adapters of one base: taken apart, switched, laid side by side, and mixed within one batch."""

import functools
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.adapt.adapter import BESIDE, OUTPUTS, ROOT
from lmtrain.errors import InputError

LEAVES = '|'.join([rf'.*/({name})' for name in BESIDE] + list(ROOT))
NEUTRAL = {r'lora_(a|b|scale)': jnp.zeros, r'ia3_(in|out)': jnp.ones}  # what changes nothing


def split_adapter(params: Mapping) -> tuple[tree.Params, tree.Params]:
    """(base, adapter): the leaves of adapters apart from the others; `tree.join(base, other)` switches to another."""
    leaves = tree.flatten(params)
    added = {path: leaf for path, leaf in leaves.items() if re.fullmatch(LEAVES, path)}
    return tree.unflatten({path: leaf for path, leaf in leaves.items() if path not in added}), tree.unflatten(added)


def stack(adapters: Sequence[Mapping]) -> tree.Params:
    """Adapters' own leaves (`separate`) as one tree, every leaf [A, ...] over the A adapters.

    Lower ranks are filled with zeros, and a kernel that one of them leaves alone gets a LoRA or IA3 that changes
    nothing; {} is the base itself. Raises ValueError where leaves of another kind are missing or differ in shape.
    """
    if not adapters:
        raise InputError('there is no adapter to stack')
    trees = [tree.flatten(one) for one in adapters]
    return tree.unflatten({path: _stacked(path, trees) for path in sorted(set().union(*trees))})


def _stacked(path, trees):
    name = path.rpartition('/')[2]
    shapes = [one[path].shape for one in trees if path in one]
    largest = tuple(map(max, zip(*shapes, strict=True))) if len({len(s) for s in shapes}) == 1 else None
    rank_axis = {'lora_a': -1, 'lora_b': -2}.get(name)
    fill = next((make for pattern, make in NEUTRAL.items() if re.fullmatch(pattern, name)), None)
    leaves = []
    for i, one in enumerate(trees):
        if path not in one:
            if fill is None:
                raise InputError(f'adapter {i} has no {path}, which another of them has and nothing stands for')
            leaves.append(fill(largest))
            continue
        short = [(0, most - n) for n, most in zip(one[path].shape, largest, strict=True)] if largest else [(0, 1)]
        others = [gap for axis, gap in enumerate(short, -len(short)) if axis != rank_axis]
        if any(after for _, after in others):
            raise InputError(f'{path} is {one[path].shape} in adapter {i}, where others have {largest or shapes}')
        leaves.append(jnp.pad(jnp.asarray(one[path]), short))
    return jnp.stack(leaves)


def mix(model, base: Mapping, adapters: Mapping, batch: Mapping, **options) -> dict:
    """`model.apply` where each row uses the adapter that the column `adapter` int32 [B] names, of `stack`'s A.

    The base is read once for all rows. Takes no cache. Raises ValueError where the column is missing, or known while
    tracing and out of range.
    """
    if 'adapter' not in batch:
        raise InputError('the batch has no column adapter, int32 [B], which says which adapter a row uses')
    A = jax.tree.leaves(adapters)[0].shape[0]
    which = batch['adapter']
    if not isinstance(which, jax.core.Tracer) and not 0 <= np.min(which) <= np.max(which) < A:
        raise InputError(f'column adapter reaches from {np.min(which)} to {np.max(which)}, but there are {A} adapters')
    columns = {name: column for name, column in batch.items() if name != 'adapter'}
    columns = {'row': np.arange(len(which), dtype=np.int32)} | columns

    def row(index, one):
        own = jax.tree.map(lambda leaf: leaf[index], adapters)
        outputs = model.apply({'params': tree.join(base, own)}, jax.tree.map(lambda x: x[None], one), **options)
        return jax.tree.map(functools.partial(jnp.squeeze, axis=0), outputs)

    return jax.vmap(row)(jnp.asarray(which), columns)


def largest_change(model, before: Mapping, after: Mapping, batch: Mapping) -> float:
    """The largest absolute difference of an output between two trees of parameters, over the real tokens of a batch.

    Outputs are the logits of the model's head and of every added head; the hidden states of a model that has none.
    """

    @jax.jit
    def outputs(params, batch):
        every = model.apply({'params': params}, batch)
        return {name: x for name, x in every.items() if name not in OUTPUTS or name == 'logits'} or every['hidden']

    def largest(x, y):
        change = jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))
        if 'segment_ids' in batch and change.shape[:2] == batch['segment_ids'].shape:
            change = jnp.where((batch['segment_ids'] > 0)[..., None], change, 0)
        return jnp.max(change)

    changes = jax.tree.map(largest, outputs(before, batch), outputs(after, batch))
    return float(max(jax.tree.leaves(changes)))
