"""The modules of a Hugging Face model that can have an adapter, and the kernels of ours that each one holds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lmtrain import tree
from lmtrain.adapt.leaves import adaptable, kind_of
from lmtrain.errors import InputError
from lmtrain.models import hf, pretrained

QUESTIONS = 'transformer.'  # the body's name in the question-answering class of some families


class Module(NamedTuple):
    """A module with one weight of Hugging Face's: one kernel or embedding of ours, or several joined by columns.

    Attributes:
      entry: the weight's entry in the family's map.
      parents: our paths without /kernel or /embedding; for a layer's module, in the segment that holds the layer.
      index: the layer's index in that segment; None outside the layers.
      shapes: (in, out) of each of our kernels, or of the embedding.
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
    """The weight map of a model's family. Raises InputError if the family has none."""
    if model.family not in pretrained.FAMILIES:
        raise InputError(f'model.family={model.family!r} has no Hugging Face form, so PEFT has no adapter of it')
    return pretrained.entries_of(model)


def tied_embedding(model) -> str:
    """The name of the embedding's module if the head of the language model is tied to it, else ''."""
    if not model.tied or model.head != 'lm':
        return ''
    return next(e.key for e in entries(model) if e.paths == ('embed/embedding',)).removesuffix('.weight')


def known_name(model, name: str, known: Mapping) -> str | None:
    """The name in `known` of the module that another class of the family calls `name`; None if there is none."""
    prefix = pretrained.FAMILIES[model.family].PREFIX
    names = name, prefix + name, prefix + name.removeprefix(QUESTIONS)
    return next((name for name in names if name in known), None)


def name_for(model, name: str, task_type: str | None) -> str:
    """The name of a module in the class for a task; undoes `known_name`."""
    family = pretrained.FAMILIES[model.family]
    prefix = family.PREFIX
    if task_type == 'FEATURE_EXTRACTION':  # the bare model
        return name.removeprefix(prefix)
    if task_type == 'QUESTION_ANS' and family.HEADS.prefixes and name.startswith(prefix):
        return QUESTIONS + name.removeprefix(prefix)
    return name


def modules(model, params: Mapping) -> dict[str, Module]:
    """{name: Module} of all modules that can have an adapter, in a tree of arrays or shapes."""
    leaves: dict[str, Any] = tree.flatten(params)
    by_name = {}
    places = layer_places(params)
    for entry in entries(model):
        name = entry.key.removesuffix('.weight')
        if name == entry.key or len(adaptable(entry.paths)) < len(entry.paths):
            continue
        layered = entry.paths[0].startswith('layers/')
        for layer, (segment, index) in enumerate(places) if layered else [(None, ('', None))]:
            paths = [path.replace('layers/', f'{segment}/', 1) if layered else path for path in entry.paths]
            if not all(path in leaves for path in paths):
                continue
            module = Module(
                name.format(layer=layer) if layered else name,
                entry,
                tuple(path.rpartition('/')[0] for path in paths),
                index,
                tuple(leaves[path].shape[-2:] for path in paths),
            )
            by_name[module.name] = module
    return by_name


def layer_places(params: Mapping) -> list[tuple[str, int]]:
    """[(segment, index in the segment)] of every layer, in order."""
    return [(name, i) for name, size in tree.segment_sizes(params).items() for i in range(size)]


def leaves_of(module: Module, name: str, leaves: Mapping[str, Any]) -> list[np.ndarray | None]:
    """The leaf `name` next to each kernel of a module, in the module's layer; None for a kernel without it.

    `leaves` is {path: leaf} of the whole tree: flattened once for all modules.
    """
    stacks = [leaves.get(f'{parent}/{name}') for parent in module.parents]
    return [None if x is None else np.asarray(x if module.index is None else x[module.index]) for x in stacks]


def stacked(rows_of: Mapping[str, Mapping[int | None, Any]], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """{path: {layer's index: leaf}} -> {path: leaf}, stacked over the layers of a segment.

    Ranks are padded with zeros to the largest, and a layer without the leaf gets its neutral value (zeros if the kind
    has none).
    """
    leaves = {}
    for path, by_index in rows_of.items():
        if None in by_index:
            leaves[path] = by_index[None]
            continue
        shape = tuple(np.max([leaf.shape for leaf in by_index.values()], axis=0).astype(int))
        neutral = np.full(shape, kind_of(path).neutral or 0.0, np.float32)
        rows = []
        for i in range(sizes[path.partition('/')[0]]):
            leaf = by_index.get(i, neutral)
            gaps = [(0, most - n) for n, most in zip(leaf.shape, shape, strict=True)]
            rows.append(np.pad(leaf, gaps) if gaps else leaf)
        leaves[path] = np.stack(rows)
    return leaves
