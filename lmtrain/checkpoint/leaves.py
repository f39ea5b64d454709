"""The leaves of a state as a checkpoint has them: by path, plain, and apart from what the next step takes."""

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
            raise TypeError(f'{path}: {type(leaf).__name__} is no plain array; save a key as jax.random.key_data(key)')
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise TypeError(f'{path}: {leaf.dtype} would be restored as {jax.dtypes.canonicalize_dtype(leaf.dtype)}')
        leaves[path] = leaf
    return leaves


def detach_host_copies(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves with copies of what lies in the memory of the host itself; accelerators' arrays as they are.

    Orbax writes such an array without a copy, and the step that it is donated to meanwhile would have to take new
    memory for the whole state: that costs more than the copy, and comes later.
    """

    def one(leaf):
        if isinstance(leaf, jax.Array) and any(device.platform != 'cpu' for device in leaf.sharding.device_set):
            return leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, leaf.sharding, may_alias=False)
        return np.array(leaf)  # on huge pages, where there are some: half the time of a copy by jax

    return jax.block_until_ready({path: one(leaf) for path, leaf in leaves.items()})


def signature(leaves: dict[str, Any]) -> dict[str, Any]:
    """{path: {'shape', 'dtype'}}, as the manifest holds them."""
    return {path: {'shape': list(leaf.shape), 'dtype': str(np.dtype(leaf.dtype))} for path, leaf in leaves.items()}


def compare(manifest: dict[str, Any], wanted: dict[str, Any], folder: Path, partial: bool) -> None:
    """Raise ValueError naming every leaf in which a checkpoint and the tree to fill differ."""
    saved = manifest['leaves']

    def say(leaf: dict[str, Any] | None) -> str:
        return f'{leaf["dtype"]}{leaf["shape"]}' if leaf else 'no such leaf'

    differences = [
        f'{path}: saved {say(saved.get(path))}, this run has {say(wanted.get(path))}'
        for path in sorted(saved.keys() | wanted.keys())
        if saved.get(path) != wanted.get(path) and not (partial and path not in wanted)
    ]
    if differences:
        raise InputError(f'{folder} is of another model or optimizer:\n  ' + '\n  '.join(differences))
