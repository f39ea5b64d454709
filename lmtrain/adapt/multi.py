"""Several adapters of one base: split off, switched, stacked, and mixed within one batch."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.adapt.adapter import OUTPUTS
from lmtrain.adapt.leaves import kind_of
from lmtrain.errors import InputError


def split_adapter(params: Mapping) -> tuple[tree.Params, tree.Params]:
    """(base, adapter): the leaves of the model, and those of adapters and heads.

    `tree.join(base, other)` switches to another adapter.
    """
    leaves = tree.flatten(params)
    added = {path: leaf for path, leaf in leaves.items() if kind_of(path)}
    return tree.unflatten({path: leaf for path, leaf in leaves.items() if path not in added}), tree.unflatten(added)


def stack(adapters: Sequence[Mapping]) -> tree.Params:
    """The leaves of A adapters (`split_adapter`) as one tree, every leaf [A, ...]; {} is the base without adapter.

    Lower ranks are padded with zeros, and an adapter that lacks a leaf gets its neutral value (`leaves.KINDS`).
    Raises InputError if a leaf without neutral value is missing in one adapter, or if shapes differ in another
    dimension than the rank.
    """
    if not adapters:
        raise InputError('there is no adapter to stack')
    trees = [tree.flatten(adapter) for adapter in adapters]
    return tree.unflatten({path: _stacked(path, trees) for path in sorted(set().union(*trees))})


def _stacked(path, trees):
    """[A, ...] of the leaf at `path` in each of A adapters {path: leaf}."""
    kind = kind_of(path)
    shapes = [adapter[path].shape for adapter in trees if path in adapter]
    same_rank = len({len(shape) for shape in shapes}) == 1
    largest = tuple(map(max, zip(*shapes, strict=True))) if same_rank else None
    leaves = []
    for i, adapter in enumerate(trees):
        if path not in adapter:
            if kind is None or kind.neutral is None:
                raise InputError(
                    f'adapter {i} has no {path}, which another adapter has, and no value is neutral for it'
                )
            leaves.append(jnp.full(largest, kind.neutral, jnp.float32))
            continue
        shape = adapter[path].shape
        gaps = [most - n for n, most in zip(shape, largest, strict=True)] if largest else []
        differs = [gap for axis, gap in enumerate(gaps, -len(gaps)) if kind is None or axis != kind.rank_axis]
        if largest is None or any(differs):
            raise InputError(f'{path} is {shape} in adapter {i}, but {largest or shapes} in others')
        leaves.append(jnp.pad(jnp.asarray(adapter[path]), [(0, gap) for gap in gaps]))
    return jnp.stack(leaves)


def mix(model, base: Mapping, adapters: Mapping, batch: Mapping, **options) -> dict:
    """`model.apply` with one adapter per row: the column `adapter` int32 [B] is an index into the A stacked `adapters`.

    The base is read once for all rows. Does not take a cache. Raises InputError if the column is missing, or if it is
    out of range (not checked under jit).
    """
    if 'adapter' not in batch:
        raise InputError('the batch has no column adapter, int32 [B], the index of the adapter of each row')
    A = jax.tree.leaves(adapters)[0].shape[0]
    index_B = batch['adapter']
    if not isinstance(index_B, jax.core.Tracer) and not 0 <= np.min(index_B) <= np.max(index_B) < A:
        raise InputError(
            f'column adapter reaches from {np.min(index_B)} to {np.max(index_B)}, but there are {A} adapters'
        )
    columns = {name: column for name, column in batch.items() if name != 'adapter'}
    columns = {'row': np.arange(len(index_B), dtype=np.int32)} | columns

    def one_row(index, row):
        adapter = jax.tree.map(lambda leaf: leaf[index], adapters)
        outputs = model.apply({'params': tree.join(base, adapter)}, jax.tree.map(lambda x: x[None], row), **options)
        return jax.tree.map(functools.partial(jnp.squeeze, axis=0), outputs)

    return jax.vmap(one_row)(jnp.asarray(index_B), columns)


def largest_change(model, before: Mapping, after: Mapping, batch: Mapping) -> float:
    """The largest absolute difference of outputs between two parameter trees, over the tokens that are not padding.

    Compares the logits of the model's head and of every added head, or the hidden states if there is no head.
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
