"""The leaves of a state in a checkpoint: by path, as plain arrays, detached from buffers that the next step takes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmtrain.errors import InputError


def named(tree: Any) -> dict[str, Any]:
    """{path: leaf} of any pytree, in its order. Raises TypeError or ValueError naming a leaf that cannot be saved."""
    leaves: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator='/')
        if path in leaves:
            raise InputError(f'two leaves have the path {path!r}')
        if not hasattr(leaf, 'dtype') or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(
                f'{path}: {type(leaf).__name__} is not a plain array; save a key as jax.random.key_data(key)'
            )
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise TypeError(f'{path}: {leaf.dtype} would be restored as {jax.dtypes.canonicalize_dtype(leaf.dtype)}')
        leaves[path] = leaf
    return leaves


def detach_host_copies(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves, with copies of the arrays in host memory; arrays of accelerators are returned unchanged.

    Orbax writes a host array without a copy. A step that meanwhile donates it could not reuse its buffer and would
    allocate the whole state anew, which costs more than the copy.
    """

    copies = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and any(device.platform != 'cpu' for device in leaf.sharding.device_set):
            copies[path] = leaf
        elif isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            copies[path] = jax.device_put(leaf, leaf.sharding, may_alias=False)
        else:
            copies[path] = np.array(leaf)  # on huge pages if available: half the time of a copy by jax
    return jax.block_until_ready(copies)


def signature(leaves: dict[str, Any]) -> dict[str, Any]:
    """{path: {'shape', 'dtype'}}, the entries of the manifest."""
    return {path: {'shape': list(leaf.shape), 'dtype': str(np.dtype(leaf.dtype))} for path, leaf in leaves.items()}


def compare(manifest: dict[str, Any], wanted: dict[str, Any], folder: Path, partial: bool) -> None:
    """Raises InputError naming every leaf in which a checkpoint and the tree to fill differ.

    Args:
      wanted: `signature` of the tree.
      partial: leaves of the checkpoint that the tree lacks are no difference.
    """
    saved = manifest['leaves']

    def describe(leaf: dict[str, Any] | None) -> str:
        return f'{leaf["dtype"]}{leaf["shape"]}' if leaf else 'no such leaf'

    differences = [
        f'{path}: saved {describe(saved.get(path))}, this run has {describe(wanted.get(path))}'
        for path in sorted(saved.keys() | wanted.keys())
        if saved.get(path) != wanted.get(path) and not (partial and path not in wanted)
    ]
    if differences:
        raise InputError(f'{folder} is of another model or optimizer:\n  ' + '\n  '.join(differences))
