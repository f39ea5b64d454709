"""The modules of a Hugging Face model that an adapter may stand beside, and the kernels of ours that each one holds."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lmtrain import tree
from lmtrain.adapt.adapter import ELSEWHERE
from lmtrain.errors import InputError
from lmtrain.models import hf, hf_heads, pretrained

QUESTIONS = 'transformer.'  # what some families' class for questions calls its body


class Module(NamedTuple):
    """A module that holds a weight of Hugging Face's: one kernel or embedding of ours, or several joined by columns.

    Attributes:
      entry: its line in the family's map. layer: its number in the whole stack, None outside of it.
      parents: our paths without /kernel, with the segment in which the layer lies; index: its place there.
      shapes: of our kernels or embedding, (in, out).
    """

    name: str
    entry: hf.Entry
    parents: tuple[str, ...]
    index: int | None
    shapes: tuple[tuple[int, int], ...]

    @property
    def is_embedding(self) -> bool:
        return self.entry.paths[0].endswith('/embedding')

    def split(self, columns: np.ndarray) -> list[np.ndarray]:
        """[..., out of the module] -> [..., out] of each kernel."""
        return hf.split(self.entry._replace(linear=False), columns, [out for _, out in self.shapes])

    def join(self, columns: list[np.ndarray]) -> np.ndarray:
        """Undoes `split`."""
        return hf.join(self.entry._replace(linear=False), columns)


def entries(model) -> list[hf.Entry]:
    """The map of a model's family. Raises ValueError where it has none."""
    if model.family not in pretrained.FAMILIES:
        raise InputError(f'model.family={model.family!r} has no Hugging Face form, so PEFT has no adapter of it')
    return pretrained.entries_of(model)


def known_name(model, name: str, known: Mapping) -> str | None:
    """The name among `known` of a module that another class of the family calls `name`; None where there is none."""
    prefix = pretrained.FAMILIES[model.family].PREFIX
    names = name, prefix + name, prefix + name.removeprefix(QUESTIONS)
    return next((name for name in names if name in known), None)


def name_for(model, name: str, task_type: str) -> str:
    """What the class for a task calls a module; undoes `known_name`."""
    prefix = pretrained.FAMILIES[model.family].PREFIX
    if task_type == 'FEATURE_EXTRACTION':  # the bare model
        return name.removeprefix(prefix)
    if task_type == 'QUESTION_ANS' and model.family in hf_heads.RENAMED and name.startswith(prefix):
        return QUESTIONS + name.removeprefix(prefix)
    return name


def modules(model, params: Mapping) -> dict[str, Module]:
    """{name: Module} of all that an adapter may stand beside, in a tree of arrays or shapes."""
    leaves, found = tree.flatten(params), {}
    places = layer_places(params)
    for entry in entries(model):
        name = entry.key.removesuffix('.weight')
        targets = all(path.endswith(('/kernel', '/embedding')) for path in entry.paths)
        if not targets or name == entry.key or any(re.fullmatch(ELSEWHERE, path) for path in entry.paths):
            continue
        layered = entry.paths[0].startswith('layers/')
        for layer, (segment, index) in enumerate(places) if layered else [(None, ('', None))]:
            paths = [path.replace('layers/', f'{segment}/', 1) if layered else path for path in entry.paths]
            if not all(path in leaves for path in paths):
                continue
            one = Module(
                name.format(layer=layer) if layered else name,
                entry,
                tuple(path.rpartition('/')[0] for path in paths),
                index,
                tuple(leaves[path].shape[-2:] for path in paths),
            )
            found[one.name] = one
    return found


def layer_places(params: Mapping) -> list[tuple[str, int]]:
    """(segment, index in it) of every layer, in order."""
    sizes = {name: jax.tree.leaves(params[name])[0].shape[0] for name in tree.segments(params)}
    return [(name, i) for name, size in sizes.items() for i in range(size)]


def own(params: Mapping, module: Module, name: str) -> list[np.ndarray | None]:
    """The leaf `name` beside each kernel of a module, of its layer alone; None where there is none."""
    leaves = tree.flatten(params)
    found = [leaves.get(f'{parent}/{name}') for parent in module.parents]
    return [None if x is None else np.asarray(x if module.index is None else x[module.index]) for x in found]


def stacked(found: Mapping[str, Mapping[int | None, Any]], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """{path: {index: leaf}} -> {path: leaf}, stacked over the layers of a segment.

    Ranks are filled with zeros to the largest, and layers without an adapter get one that changes nothing.
    """
    leaves = {}
    for path, by_index in found.items():
        if None in by_index:
            leaves[path] = by_index[None]
            continue
        shape = tuple(np.max([leaf.shape for leaf in by_index.values()], axis=0).astype(int))
        neutral = np.ones if re.fullmatch(r'.*/ia3_(in|out)', path) else np.zeros
        rows = []
        for i in range(sizes[path.partition('/')[0]]):
            leaf = by_index.get(i, neutral(shape, np.float32))
            gaps = [(0, most - n) for n, most in zip(leaf.shape, shape, strict=True)]
            rows.append(np.pad(leaf, gaps) if gaps else leaf)
        leaves[path] = np.stack(rows)
    return leaves
