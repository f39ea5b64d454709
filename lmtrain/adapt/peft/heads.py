"""Heads in PEFT's directories: modules_to_save, which are whole layers of the model."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmtrain import tree
from lmtrain.adapt.peft import config
from lmtrain.adapt.peft.config import AUTOMATIC, TIED
from lmtrain.adapt.peft.modules import entries, known_name, name_for, tied_embedding
from lmtrain.errors import InputError
from lmtrain.models import hf, pretrained, safetensors

HEAD_MODULES = ('lm_head', 'score', 'classifier', 'qa_outputs')
HEAD_OF_TASK_TYPE = {'SEQ_CLS': 'classify', 'TOKEN_CLS': 'tag', 'QUESTION_ANS': 'span'}


def under_class(model, directory: Path, ignore: Sequence[str] = ()):
    """`model` with the head of transformers' class for the task_type of an adapter, if the adapter holds that head."""
    head = HEAD_OF_TASK_TYPE.get(config.read(directory, ignore).get('task_type'))
    if head is None or head == model.head or not (directory / config.WEIGHTS).is_file():
        return model
    out = next(
        e.key for e in entries(pretrained.with_task_head(model, head, 1)) if e.paths == ('task_head/out/kernel',)
    )
    tensors = safetensors.header(directory / config.WEIGHTS)
    labels = [tensor.shape[0] for key, tensor in tensors.items() if key.endswith(f'.{out}')]
    return pretrained.with_task_head(model, head, labels[0]) if labels else model


def read(model, params: Mapping, fields: Mapping, tensors: Mapping, prefix: str) -> tuple[dict, dict]:
    """({path: leaf} of the base's head, {path: leaf} of added heads) from the tensors that belong to no adapter.

    Raises InputError if modules_to_save and the tensors differ, or if a shape is not that of the base.
    """
    saved = fields.get('modules_to_save') or []
    known = {key: entry for entry in entries(model) for key in (entry.key, *entry.also)}
    leaves, own, added, seen = tree.flatten(params), {}, {}, set()
    tensors = _without_tied_copy(model, fields, tensors, prefix)
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        module, _, kind = name.rpartition('.')
        listed = [s for s in saved if module == s or module.endswith(f'.{s}') or f'.{s}.' in f'.{name}']
        if not key.startswith(prefix) or not listed:
            raise InputError(f'the tensor {key!r} is neither of the adapter nor of modules_to_save={saved}')
        seen.update(listed)
        if found := known_name(model, name, known):  # a class without a head has other names
            entry = known[found]
            paths = [path for path in entry.paths if path in leaves]
            shapes = [leaves[path].shape for path in paths]
            if paths != list(entry.paths) or tensor.shape != hf.joined_shape(entry, shapes):
                raise InputError(f'the tensor {key!r} is {tensor.shape}, but the base has {shapes or "none such"}')
            parts = hf.split(entry, tensor, [shape[-1] for shape in shapes])
            # If the base is shapes, only these leaves become arrays.
            own |= {path: np.ascontiguousarray(part) for path, part in zip(paths, parts, strict=True)}
        elif module == 'lm_head':
            raise InputError(f'{key!r} is a separate head, but the base ties its head to the embedding')
        elif '.' in module or kind not in ('weight', 'bias') or tensor.ndim != (2 if kind == 'weight' else 1):
            raise InputError(f'{key!r} is neither a projection of the hidden states nor a head of the base')
        else:
            added[f'heads/{module}/{"kernel" if kind == "weight" else "bias"}'] = tensor.T
    missing = [name for name in saved if name not in seen and name not in AUTOMATIC]
    if missing or (saved and not seen):
        raise InputError(f'modules_to_save has {(missing or saved)[0]!r}, but there is no tensor of it')
    for path, leaf in added.items():
        if path.endswith('/kernel') and leaf.shape[0] != model.width:
            raise InputError(
                f'{path} reads vectors of {leaf.shape[0]}, but the hidden states of the base have {model.width}'
            )
    return own, added


def _without_tied_copy(model, fields: Mapping, tensors: Mapping, prefix: str) -> dict:
    """The tensors without the head's copy of an embedding of modules_to_save.

    Raises InputError if the head of PEFT's model is another table than the embedding, which the base ties.
    """
    tied, rest = tied_embedding(model), dict(tensors)
    table = rest.get(f'{prefix}{tied}.weight') if tied else None
    if table is None:
        return rest
    known = tied.rpartition('.')[2] in TIED
    if not known or not fields.get('ensure_weight_tying'):
        way = 'train it with ensure_weight_tying=True, or ' if known and fields['peft_type'] == 'LORA' else ''
        raise InputError(
            f'modules_to_save={fields["modules_to_save"]} has {tied!r}, to which the base ties its head: with '
            f'ensure_weight_tying={fields.get("ensure_weight_tying")} PEFT trains a copy of it, and the head keeps the '
            f'table of the base; {way}merge it in PEFT, set tie_word_embeddings to false and save the whole model'
        )
    head = rest.pop(f'{prefix}lm_head.weight', table)
    if not np.array_equal(head, table):
        raise InputError(f'{prefix}lm_head.weight is not {tied!r}, though ensure_weight_tying=True ties them')
    return rest


def tie(model, kind: str, saved: Sequence[str], tensors: Mapping, prefix: str) -> tuple[dict, dict]:
    """({field: value}, {key: tensor}) with which PEFT ties a head to an embedding of modules_to_save; empty if none.

    Raises InputError if PEFT cannot tie them.
    """
    tied = tied_embedding(model)
    if not tied or not any(f'.{tied}.'.endswith(f'.{name}.') for name in saved):
        return {}, {}
    if kind != 'LORA' or tied.rpartition('.')[2] not in TIED:
        raise InputError(
            f'modules_to_save has {tied!r}, to which the head is tied: PEFT ties them only for LoRA and only if the '
            f'embedding is called {TIED[0]}; save the whole model, merged, with lmtrain.models.save_pretrained'
        )
    return {'ensure_weight_tying': True}, {f'{prefix}lm_head.weight': tensors[f'{prefix}{tied}.weight']}


def write(model, params: Mapping, task_type: str | None, modules: Sequence[str], prefix: str) -> tuple[dict, list[str]]:
    """({key: tensor}, modules_to_save): the added heads, the base's head for a task, and `modules` of the base.

    Raises InputError if one of `modules` is missing or is in the layers, or if transformers has no such head.
    """
    tensors, saved, flat = {}, list(modules), tree.flatten(params)
    for name, leaves in params.get('heads', {}).items():
        module, kinds = _module(model, name, leaves, task_type)
        saved.append(module)
        for kind in kinds & leaves.keys():
            tensors[f'{prefix}{module}.{"weight" if kind == "kernel" else kind}'] = np.asarray(leaves[kind]).T
    for entry in entries(model):
        module = entry.key.rpartition('.')[0]
        requested = [name for name in modules if f'.{module}.'.endswith(f'.{name}.')]
        if entry.paths[0].startswith('task_head/') and model.head in HEAD_OF_TASK_TYPE.values():
            parts = entry.key.split('.')
            saved.append(next((part for part in parts if part in HEAD_MODULES), parts[-3 if len(parts) > 2 else -2]))
        elif not requested:
            continue
        if '{layer}' in entry.key:
            raise InputError(f'modules_to_save has {requested[0]!r}, a module of every layer: only heads can be saved')
        tensors[prefix + name_for(model, entry.key, task_type)] = hf.join(
            entry, [np.asarray(flat[path]) for path in entry.paths]
        )
    if missing := [name for name in modules if not any(f'.{name}.' in f'.{key}' for key in tensors)]:
        raise InputError(f'modules_to_save has {missing[0]!r}, which is not a module of the family {model.family}')
    return tensors, sorted(set(saved))


def _module(model, name: str, leaves: Mapping, task_type: str | None) -> tuple[str, set[str]]:
    """(module, its leaves) in transformers' class for a task. InputError if that does not compute an added head."""
    if task_type not in HEAD_OF_TASK_TYPE:
        known = ', '.join(HEAD_OF_TASK_TYPE)
        raise InputError(f'heads/{name} with task_type={task_type!r}: a head needs one of {known}')
    head = HEAD_OF_TASK_TYPE[task_type]
    own = pretrained.FAMILIES[model.family].HEADS.settings[head]
    headed = {'mlm_head': False, 'head': head, 'num_labels': leaves['kernel'].shape[1]} | own
    own_entries = [e for e in entries(dataclasses.replace(model, **headed)) if e.paths[0].startswith('task_head/')]
    kinds = {path.removeprefix('task_head/out/') for entry in own_entries for path in entry.paths}
    if extra := kinds - leaves.keys():
        problem = f'has {min(extra)} as well'
    elif 'bias' in leaves and 'bias' not in kinds and np.any(leaves['bias']):
        problem = 'has no bias'
    else:
        return own_entries[0].key.rpartition('.')[0], kinds
    raise InputError(
        f"heads/{name}: the head of transformers' class for {task_type} of a {model.family} {problem}; start from a "
        'checkpoint that has that head, which is trained with the adapter'
    )
