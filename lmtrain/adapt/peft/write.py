"""Writes LoRA and IA3 in the format of PEFT, module by module."""

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lmtrain import tree
from lmtrain.adapt.peft.lora import PREFIX, norm
from lmtrain.adapt.peft.modules import Module, leaves_of, modules, name_for
from lmtrain.errors import InputError

AMBIGUOUS = {'dense'}  # also the name of modules that our tree may lack (BERT's pooler)


def write(model, params: Mapping, kind: str, task_type: str | None) -> tuple[dict, dict]:
    """(fields, tensors) of the LoRA or IA3 in `params`. Raises InputError if PEFT cannot represent it."""
    leaves = tree.flatten(params)
    names = {name_for(model, name, task_type): module for name, module in modules(model, params).items()}
    tensors, about = {}, {}
    for name, module in names.items():
        written = _write_ia3(leaves, module) if kind == 'IA3' else _write_lora(leaves, module)
        if written is not None:
            parts, about[name] = written
            tensors |= {f'{PREFIX}{name}.{part}': x for part, x in parts.items()}
    beside = {path.rpartition('/')[0] for path in leaves if re.search(r'/(lora_b|ia3_\w+)$', path)}
    if strays := beside - {parent for name in about for parent in names[name].parents}:
        raise InputError(f'{min(strays)} has an adapter, but no module of the family {model.family!r} holds it')
    linear = [names[name].entry.linear for name in about if not names[name].is_embedding]
    fields: dict[str, Any] = {
        'target_modules': _targets(about, names),
        'fan_in_fan_out': bool(linear) and not all(linear),
    }
    if kind == 'IA3':
        inward = [name for name, shape in about.items() if shape == 'in']
        fields |= {'feedforward_modules': _targets(inward, names), 'init_ia3_weights': True, 'exclude_modules': None}
        return fields, tensors
    doras = {dora for *_, dora in about.values()}
    if len(doras) > 1:
        raise InputError('some kernels have a lora_magnitude and some have none: PEFT has DoRA for all or for none')
    rank, alpha = (collections.Counter(about[name][i] for name in about).most_common(1)[0][0] for i in (0, 1))
    return fields | {
        'r': rank,
        'lora_alpha': alpha,
        'rank_pattern': {re.escape(name): one[0] for name, one in about.items() if one[0] != rank},
        'alpha_pattern': {re.escape(name): one[1] for name, one in about.items() if one[1] != alpha},
        'use_dora': doras.pop(),
        'use_rslora': False,
        'bias': 'none',
        'exclude_modules': None,
        'init_lora_weights': True,
        'layers_pattern': None,
        'layers_to_transform': None,
        'lora_dropout': 0.0,
    }, tensors


def _write_lora(leaves, module: Module):
    """({name of a tensor: array}, (rank, alpha, whether it is DoRA)) of one module; None without LoRA."""
    a, b, scales, magnitudes = (leaves_of(module, f'lora_{name}', leaves) for name in ('a', 'b', 'scale', 'magnitude'))
    here = [i for i, scale in enumerate(scales) if scale is not None and scale != 0]
    if not here:
        return None
    used = {i: np.flatnonzero(np.any(a[i] != 0, axis=0) | np.any(b[i] != 0, axis=1)) for i in here}
    ranks = {i: max(1, int(used[i].max(initial=0)) + 1) for i in here}  # the others pad the stack
    scale, r = scales[here[0]], max(ranks.values())
    alike = len(here) == len(module.parents) and all(
        np.array_equal(a[i][:, :r], a[here[0]][:, :r]) and scales[i] == scale for i in here
    )
    if alike:
        rows, columns = a[here[0]][:, :r], [b[i][:r] for i in here]
    else:  # A of the summed rank, B block diagonal: the rows of one kernel's B change that kernel's columns only
        r, start = sum(ranks.values()), 0
        rows = np.concatenate([a[i][:, : ranks[i]] for i in here], axis=1)
        columns = [np.zeros((r, out), np.float32) for _, out in module.shapes]
        for i in here:
            columns[i][start : start + ranks[i]] = b[i][: ranks[i]] * (scales[i] / scale)
            start += ranks[i]
    alpha = float(scale) * r
    alpha = round(alpha) if abs(alpha - round(alpha)) < 1e-6 * abs(alpha) else alpha
    kinds = ('lora_embedding_A', 'lora_embedding_B') if module.is_embedding else ('lora_A.weight', 'lora_B.weight')
    parts = dict(zip(kinds, (rows.T, module.join(columns).T), strict=True))
    dora = any(magnitude is not None for magnitude in magnitudes)
    if dora:
        kernels = leaves_of(module, 'kernel', leaves)
        scaled = [np.float32(0) if i not in here else scales[i] for i in range(len(kernels))]
        filled = [
            norm(kernel, np.zeros((kernel.shape[0], 1)), np.zeros((1, kernel.shape[1])), scaled[i]) if m is None else m
            for i, (kernel, m) in enumerate(zip(kernels, magnitudes, strict=True))
        ]
        parts['lora_magnitude_vector'] = module.join(filled)
    return parts, (r, alpha, dora)


def _write_ia3(leaves, module: Module):
    """({'ia3_l': array}, 'in' or 'out') of one module; None without IA3. InputError: PEFT cannot represent it."""
    inward, outward = leaves_of(module, 'ia3_in', leaves), leaves_of(module, 'ia3_out', leaves)
    has_in, has_out = (any(x is not None for x in factors) for factors in (inward, outward))
    if not has_in and not has_out:
        return None
    alike = all(x is not None and np.array_equal(x, inward[0]) for x in inward)
    if has_in and (has_out or not alike):
        raise InputError(
            f'{module.name} has factors of its input that differ between its kernels, or factors of its output as well'
        )
    if has_in:
        return {'ia3_l': inward[0][None]}, 'in'
    ones = [np.ones(out, np.float32) for _, out in module.shapes]
    return {
        'ia3_l': module.join([a if a is not None else b for a, b in zip(outward, ones, strict=True)])[:, None]
    }, 'out'


def _targets(adapted: Iterable[str], names: Iterable[str]) -> list[str]:
    """target_modules that match `adapted` and no other of `names`: last parts of names if they suffice."""
    adapted = set(adapted)
    words = collections.defaultdict(set)
    for name in names:
        words[name.rpartition('.')[2]].add(name)
    targets = set()
    for word, same in words.items():
        if same & adapted:
            targets |= {word} if same <= adapted and word not in AMBIGUOUS else same & adapted
    return sorted(targets)
