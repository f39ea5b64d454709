"""Heads in PEFT's directories: modules_to_save, which are whole layers and no adapters."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmtrain import tree
from lmtrain.adapt.peft_config import AUTOMATIC
from lmtrain.adapt.peft_modules import entries
from lmtrain.models import huggingface

HEADS = ('lm_head', 'score', 'classifier', 'qa_outputs')


def read(model, params: Mapping, fields: Mapping, tensors: Mapping, prefix: str) -> tuple[dict, dict]:
    """({path: leaf} of the base's own head, {path: leaf} of added heads) of the tensors that no adapter read.

    Raises ValueError where modules_to_save and the tensors differ, or a shape is not the base's.
    """
    saved = fields.get('modules_to_save') or []
    known = {key: entry for entry in entries(model) for key in (entry.key, *entry.also)}
    leaves, own, added, seen = tree.flatten(params), {}, {}, set()
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        module, _, kind = name.rpartition('.')
        listed = [s for s in saved if module == s or module.endswith(f'.{s}') or f'.{s}.' in f'.{name}']
        if not key.startswith(prefix) or not listed:
            raise ValueError(f'the tensor {key!r} is neither of the adapter nor of modules_to_save={saved}')
        seen.update(listed)
        if name in known:
            entry = known[name]
            paths = [path for path in entry.paths if path in leaves]
            shapes = [leaves[path].shape for path in paths]
            if paths != list(entry.paths) or tensor.shape != huggingface.joined_shape(entry, shapes):
                raise ValueError(f'the tensor {key!r} is {tensor.shape}, but the base has {shapes or "none such"}')
            parts = huggingface.split(entry, tensor, [shape[-1] for shape in shapes])
            # An abstract base stays so but for these leaves.
            own |= {path: np.ascontiguousarray(part) for path, part in zip(paths, parts, strict=True)}
        elif module == 'lm_head':
            raise ValueError(f'{key!r} is a head of its own, but the base ties its head to the embedding')
        elif '.' in module or kind not in ('weight', 'bias') or tensor.ndim != (2 if kind == 'weight' else 1):
            raise ValueError(f'{key!r} is no projection of the hidden states, nor a head that the base has')
        else:
            added[f'heads/{module}/{"kernel" if kind == "weight" else "bias"}'] = tensor.T
    missing = [name for name in saved if name not in seen and name not in AUTOMATIC]
    if missing or (saved and not seen):
        raise ValueError(f'modules_to_save has {(missing or saved)[0]!r}, of which there is no tensor')
    for path, leaf in added.items():
        if path.endswith('/kernel') and leaf.shape[0] != model.width:
            raise ValueError(
                f'{path} reads {leaf.shape[0]} numbers, but the hidden states of the base are {model.width}'
            )
    return own, added


def write(model, params: Mapping, modules: Sequence[str], prefix: str) -> tuple[dict, list[str]]:
    """({key: tensor}, modules_to_save): the added heads, the base's own head for a task, and `modules` of the base.

    Raises ValueError where one of `modules` is not there, or lies in the layers.
    """
    tensors, saved, held = {}, list(modules), tree.flatten(params)
    for name, leaves in params.get('heads', {}).items():
        saved.append(name)
        for kind, leaf in leaves.items():
            tensors[f'{prefix}{name}.{"weight" if kind == "kernel" else kind}'] = np.asarray(leaf).T
    for entry in entries(model):
        module = entry.key.rpartition('.')[0]
        asked = [name for name in modules if f'.{module}.'.endswith(f'.{name}.')]
        if entry.paths[0].startswith('task_head/'):
            parts = entry.key.split('.')
            saved.append(next((part for part in parts if part in HEADS), parts[-3 if len(parts) > 2 else -2]))
        elif not asked:
            continue
        if '{layer}' in entry.key:
            raise ValueError(f'modules_to_save has {asked[0]!r}, which lies in every layer: that is no head')
        tensors[prefix + entry.key] = huggingface.join(entry, [np.asarray(held[path]) for path in entry.paths])
    if missing := [name for name in modules if not any(f'.{name}.' in f'.{key}' for key in tensors)]:
        raise ValueError(f'modules_to_save has {missing[0]!r}, which is no module of a {model.family}')
    return tensors, sorted(set(saved))
