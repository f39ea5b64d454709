"""Reads LoRA and IA3 from PEFT's directories, module by module."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lmtrain import tree
from lmtrain.adapt.peft.config import TIED
from lmtrain.adapt.peft.modules import Module, known_name, layer_places, modules, name_for, stacked, tied_embedding
from lmtrain.errors import InputError, did_you_mean
from lmtrain.models.linear import column_norm

PREFIX = 'base_model.model.'
TENSOR = re.compile(
    r'base_model\.model\.(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?|ia3_l)'
)


def read(model, params: Mapping, fields: Mapping, tensors: Mapping) -> tuple[dict, dict]:
    """({path: leaf}, the other tensors) of a LoRA or an IA3.

    Raises InputError naming a tensor or field: of a module that the base does not have, of another shape, or missing.
    """
    known, rest = modules(model, params), {}
    flat = tree.flatten(params)
    by_module: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    _check_tied(model, fields, tensors)
    for key, tensor in tensors.items():
        if match := TENSOR.fullmatch(key):
            by_module[match[1]][match[2].removesuffix('.weight')] = tensor
        elif key.endswith('.base_layer.weight'):
            _check_base_layer(flat, known, key, tensor)
        else:
            rest[key] = tensor
    if not by_module:
        raise InputError('there is no tensor of an adapter')
    by_path: dict[str, dict[int | None, Any]] = collections.defaultdict(dict)
    named = {}
    for name, parts in by_module.items():
        ours = known_name(model, name, known)
        if ours is None:
            raise InputError(f'{name!r} is no module that an adapter of this base can have{did_you_mean(name, known)}')
        module, named[ours] = known[ours], name
        reader = _read_ia3 if fields['peft_type'] == 'IA3' else _read_lora
        for path, leaf in reader(fields, module, name, parts):
            by_path[path][module.index] = leaf
    _check_targets(model, fields, named, known)
    sizes = collections.Counter(segment for segment, _ in layer_places(params))
    leaves = stacked(by_path, sizes)
    for path in [path for path in leaves if path.endswith('/lora_magnitude')]:
        _fill_magnitude(flat, leaves, path, by_path[path])
    return leaves, rest


def _read_lora(fields, module: Module, name: str, parts: Mapping):
    """(path, leaf) for every kernel of one module."""
    kind = 'lora_embedding_' if module.is_embedding else 'lora_'
    dora = ['lora_magnitude_vector'] if fields['use_dora'] else []
    if parts.keys() != {f'{kind}A', f'{kind}B', *dora}:
        raise InputError(
            f'{name!r} has the tensors {sorted(parts)}, but {[f"{kind}A", f"{kind}B", *dora]} are expected'
        )
    a, b = parts[f'{kind}A'], parts[f'{kind}B']
    r = _of_pattern(fields['rank_pattern'], name, fields['r'])
    rows, columns = module.shapes[0][0], sum(out for _, out in module.shapes)
    if a.shape != (r, rows) or b.shape != (columns, r):
        raise InputError(
            f'{name!r} has A {a.shape} and B {b.shape}, but ({r}, {rows}) and ({columns}, {r}) are expected'
        )
    alpha = _of_pattern(fields['alpha_pattern'], name, fields['lora_alpha'])
    scale = np.float32(alpha / (r**0.5 if fields['use_rslora'] else r))
    for parent, part in zip(module.parents, module.split(b.T), strict=True):
        yield f'{parent}/lora_a', a.T
        yield f'{parent}/lora_b', part
        yield f'{parent}/lora_scale', scale
    for magnitude in dora:
        vector = parts[magnitude]
        if vector.shape != (columns,) or module.is_embedding:
            raise InputError(
                f'{name!r} has {magnitude} {vector.shape}, but ({columns},) next to a projection is expected'
            )
        for parent, part in zip(module.parents, module.split(vector), strict=True):
            yield f'{parent}/lora_magnitude', part


def _read_ia3(fields, module: Module, name: str, parts: Mapping):
    """(path, leaf) for every kernel of one module."""
    factor = parts.get('ia3_l')
    rows, columns = module.shapes[0][0], sum(out for _, out in module.shapes)
    inward = _matches(fields['feedforward_modules'] or [], name)
    shape = (1, rows) if inward else (columns, 1)
    if len(parts) > 1 or factor is None or factor.shape != shape:
        raise InputError(f'{name!r} has { ({k: v.shape for k, v in parts.items()}) }, but ia3_l {shape} is expected')
    values = [factor[0]] * len(module.parents) if inward else module.split(factor[:, 0])
    for parent, value in zip(module.parents, values, strict=True):
        yield f'{parent}/ia3_{"in" if inward else "out"}', value


def _of_pattern(pattern: Mapping, name: str, default):
    """The value of the first key that matches the end of the module's name, after a dot, as a regex (PEFT's rule)."""
    return next((value for key, value in pattern.items() if re.match(rf'(.*\.)?({key})$', name)), default)


def _matches(targets, name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f'.{target}') for target in targets)


def _check_targets(model, fields, named: Mapping[str, str], known: Mapping[str, Module]) -> None:
    """Raises InputError if target_modules in the config and the tensors are of different modules.

    `named`: {our name of a module that the tensors have: its name in the file}.
    """
    targets, layers = fields['target_modules'] or [], fields.get('layers_to_transform')
    layers = [layers] if isinstance(layers, int) else layers
    skipped = fields.get('exclude_modules') or []
    for name, module in known.items():
        theirs = named.get(name) or name_for(model, name, fields.get('task_type'))
        if targets == 'all-linear':
            is_target = not module.is_embedding
        else:
            is_target = _matches(targets, theirs)
        is_target = is_target and not _matches(skipped, theirs)
        number = re.search(r'\.(\d+)\.', f'.{name}.')
        is_target = is_target and (not layers or (number is not None and int(number[1]) in layers))
        if is_target != (name in named):
            problem = 'there is no tensor of it' if is_target else 'the tensors have it'
            raise InputError(f'target_modules={targets} and the tensors differ in {theirs!r}: {problem}')


def _check_tied(model, fields, tensors) -> None:
    """Raises InputError for a LoRA of the embedding that PEFT also puts on the head, which the base ties to it."""
    tied = tied_embedding(model)
    if tied.rpartition('.')[2] not in TIED or not fields.get('ensure_weight_tying'):
        return
    if f'{PREFIX}{tied}.lora_embedding_A' in tensors:
        raise InputError(
            f'{tied!r} has a LoRA, and ensure_weight_tying=True puts it on the head too, which the base ties to it: '
            'this is not implemented; merge it in PEFT, set tie_word_embeddings to false and save the whole model'
        )


def _check_base_layer(flat, known, key, tensor) -> None:
    """PEFT writes the embedding next to a LoRA of it. Raises InputError if it is not the base's."""
    module = known.get(key.removeprefix(PREFIX).removesuffix('.base_layer.weight'))
    if module is None or not module.is_embedding:
        raise InputError(f'the tensor {key!r} is a weight of the base, which an adapter does not change')
    table = flat[module.entry.paths[0]]
    if tensor.shape != table.shape:
        raise InputError(f'{key!r} is {tensor.shape}, but the base has {table.shape}: it is of another base')
    if not isinstance(table, jax.ShapeDtypeStruct) and not np.allclose(
        tensor, np.asarray(table, np.float32), atol=1e-2
    ):
        raise InputError(f"{key!r} is not the base's embedding: the adapter is of another base")


def _fill_magnitude(flat, leaves, path, by_index) -> None:
    """Layers without DoRA get the norms of their kernel, which change nothing."""
    parent = path.rpartition('/')[0]
    magnitude = leaves[path]
    if magnitude.ndim == 1:
        return
    for i in set(range(len(magnitude))) - by_index.keys():
        kernel = flat[f'{parent}/kernel']
        if isinstance(kernel, jax.ShapeDtypeStruct):
            raise InputError(
                f'DoRA in some layers only ({path}) needs the values of the base, but only its shapes are known'
            )
        magnitude[i] = norm(kernel[i], *(leaves[f'{parent}/lora_{name}'][i] for name in ('a', 'b', 'scale')))


def norm(kernel, a, b, scale) -> np.ndarray:
    """[out] the norms of the columns of a kernel with its LoRA, on the host: the magnitude of DoRA."""
    return np.asarray(column_norm(np.asarray(kernel), np.asarray(a), np.asarray(b), np.asarray(scale)))
