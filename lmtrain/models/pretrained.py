"""Reads and writes models in Hugging Face directories: config.json and safetensors, without torch or transformers."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import read_json, write_json
from lmtrain.models import hf, hf_heads, safetensors
from lmtrain.models.families.family import FAMILIES
from lmtrain.models.hf import HARMLESS, Entry, Fields
from lmtrain.models.transformer import Transformer

# Settings that a family need not give.
DEFAULTS = {
    'norm_place': 'pre',
    'embed_norm': False,
    'causal': True,
    'mlm_head': False,
    'qk_norm': False,
    'logit_softcap': 0.0,
    'attention_softcap': 0.0,
    'window': 0,
    'rope_theta': 10_000.0,
    'dropout': 0.0,
    'dtype': 'float32',
    'remat': 'none',
    'attention': 'auto',
}
NOT_IN_FILES = {'dropout', 'dtype', 'remat', 'unroll', 'attention'}  # settings of a run, which no config.json has


def put(path: str, array: np.ndarray) -> jax.Array:
    """The leaf on the default device."""
    return jnp.asarray(array)


def load_pretrained(
    directory,
    place: Callable = put,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
    model: Transformer | None = None,
) -> tuple[Transformer, tree.Params]:
    """(model, params) of a directory with config.json and model.safetensors, or several files and their index.

    A leaf is read, layer by layer, into one host array, and passed to `place` before the next one is read.

    Args:
      place: (path, numpy array) -> the leaf at that path, such as the array sharded over a mesh.
      dtype: of the leaves; None keeps that of the file, for a stack the widest of its layers.
      ignore: unknown fields of config.json that are skipped.
      model: the model of config.json `with_task_head`. The leaves of the head are read if the files have them, except
        those of its last projection, whose outputs differ.

    Raises:
      FileNotFoundError: no config.json or no weights.
      InputError: a field of config.json is missing, unknown or not supported; a tensor is missing, superfluous or has
        another shape than the model's (both shapes are named); or a file is malformed.
    """
    directory = Path(directory)
    own, tensors = model_of(read_config(directory), ignore), safetensors.find(directory)
    plan = _match_all(own, tensors, shapes_of(own))
    if model:
        plan = _match_tensors(model, tensors, shapes_of(model), partial=True)
    model = model or own
    pieces = _pieces(shapes_of(model))
    shapes = {path: _stacked_shape(own) for path, own in pieces.items()}
    leaves = {}
    for entry, keys in plan:
        # Layers may have different dtypes (some models keep some in float32); a stack has one that represents all.
        kind = jnp.dtype(dtype or functools.reduce(jnp.promote_types, [tensors[key].dtype for key in keys]))
        widths = [shapes[path][-1] for path in entry.paths]
        if '{layer}' not in entry.key:
            arrays = [np.ascontiguousarray(x, kind) for x in hf.split(entry, tensors[keys[0]].read(), widths)]
        else:
            arrays = [np.empty(shapes[path], kind) for path in entry.paths]
            for layer, key in enumerate(keys):
                for array, part in zip(arrays, hf.split(entry, tensors[key].read(), widths), strict=True):
                    array[layer] = part
        for path, array in zip(entry.paths, arrays, strict=True):
            stops = np.cumsum([leaf.shape[0] for _, leaf in pieces[path][:-1]], dtype=int)
            leaves |= {own: place(own, x) for (own, _), x in zip(pieces[path], np.split(array, stops), strict=True)}
    return model, tree.unflatten(leaves)


def shapes_in(directory, model: Transformer) -> tree.Params:
    """The shapes of the leaves that `load_pretrained` reads for a model with a new head."""
    shapes = shapes_of(model)
    plan = _match_tensors(model, safetensors.find(Path(directory)), shapes, partial=True)
    paths = {path for entry, _ in plan for path in entry.paths}
    pieces = [own for path, own in _pieces(shapes).items() if path in paths]
    return tree.unflatten({path: leaf for own in pieces for path, leaf in own})


def save_pretrained(
    directory,
    model: Transformer,
    params: tree.Params,
    *,
    dtype: str | None = None,
    like: Mapping | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Writes config.json and the weights, above 5 GB in several files, for transformers and `load_pretrained`.

    Tied weights stay tied. Weights in the directory are replaced; every file is written atomically.

    Args:
      dtype: of the tensors; None keeps that of each leaf, for a tensor of several the widest.
      like: config.json of the base, whose names, token ids and labels are copied.
      labels: names of the classes, in the order of their numbers; () copies those of `like` if their number matches.

    InputError: the family's config.json cannot express the model's settings, or the leaves are not those of the model
    (adapters must be folded first).
    """
    directory = Path(directory)
    config = config_of(model, like) | hf_heads.label_fields(model, labels)
    if (completed := hf.with_token_types(model, entries_of(model))) != model:
        table = np.zeros((completed.token_types, model.width), params['embed']['embedding'].dtype)
        model, params = completed, {**params, 'token_types': {'embedding': table}}
    leaves = _pieces(params)
    shapes = {path: _stacked_shape(own) for path, own in _pieces(shapes_of(model)).items()}
    for path in leaves.keys() ^ shapes.keys():
        what = f'is missing, {shapes[path]}' if path in shapes else 'is not in the files of its family'
        raise InputError(f'{path} {what}: a model is exported without added leaves (fold adapters first)')
    for path, own in leaves.items():
        if _stacked_shape(own) != shapes[path]:
            raise InputError(f'{path} is {_stacked_shape(own)}, but {shapes[path]} by the settings of the model')
    tensors = _layers_by_key(model)

    def shape_and_dtype(entry: Entry):
        shape = hf.joined_shape(entry, [_layer_shape(shapes[path], entry) for path in entry.paths])
        # A frozen segment may be in bfloat16 and a trained one in float32, which must not be rounded.
        parts = [leaf.dtype for path in entry.paths for _, leaf in leaves[path]]
        return shape, np.dtype(jnp.dtype(dtype or functools.reduce(jnp.promote_types, parts)))

    @functools.lru_cache(maxsize=1)  # only the leaves of one entry are on the host at a time
    def fetch(entry: Entry):
        parts = [[np.asarray(leaf) for _, leaf in leaves[path]] for path in entry.paths]
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def read(key: str):
        entry, layer = tensors[key]
        arrays = fetch(entry) if layer is None else [array[layer] for array in fetch(entry)]
        return hf.join(entry, arrays).astype(shape_and_dtype(entry)[1])

    directory.mkdir(parents=True, exist_ok=True)
    headers = {key: shape_and_dtype(entry) for key, (entry, _) in tensors.items()}
    safetensors.write(directory, headers, read)
    # transformers 4 reads torch_dtype, 5 prefers dtype.
    config['dtype'] = config['torch_dtype'] = str(functools.reduce(jnp.promote_types, [x for _, x in headers.values()]))
    write_json(directory / 'config.json', config, indent=2)


def _layers_by_key(model: Transformer) -> dict[str, tuple[Entry, int | None]]:
    """{key of a tensor in the files: (entry, index in its stack, None outside the layers)}."""
    bare = FAMILIES[model.family].PREFIX if model.head == 'none' else ''
    tensors = {}
    for entry in entries_of(model):
        key = entry.key.removeprefix(bare)
        layers = range(entry.first, model.num_layers) if '{layer}' in key else [None]
        tensors |= {key.format(layer=i): (entry, None if i is None else i - entry.first) for i in layers}
    return tensors


def read_config(directory) -> dict:
    """The config.json of a directory. FileNotFoundError: there is none. InputError: it is not that of a model."""
    path = Path(directory) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'{directory} has no config.json: it is not a directory of a Hugging Face model')
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get('model_type'), str):
        raise InputError(f'{path} has no model_type: it is not the config.json of a Hugging Face model')
    return config


def model_of(config: Mapping, ignore: Sequence[str] = ()) -> Transformer:
    """The model of a config.json; unknown fields in `ignore` are skipped.

    InputError: a field is missing, unknown or not supported.
    """
    kind = config['model_type']
    if kind not in FAMILIES:
        raise InputError(
            f'config.json: model_type={kind!r} is none of {", ".join(FAMILIES)}{did_you_mean(kind, FAMILIES)}'
        )
    module = FAMILIES[kind]
    fields = Fields(config, ignore)
    try:
        settings = DEFAULTS | module.settings(fields)
        settings |= hf_heads.settings(hf_heads.head_of(config, module), fields, module)
        # False turns a decoder of transformers into a model that attends in both directions, and so does null.
        fields.only('is_causal', *((True,) if settings['causal'] else (False, None)))
        fields.done()
        return Transformer(**settings | {'family': kind, 'unroll': settings['num_layers']})
    except (TypeError, AttributeError) as error:
        raise InputError(f'config.json of a {kind} has a value of a wrong type: {error}') from error


def config_of(model: Transformer, like: Mapping | None = None) -> dict:
    """The config.json of a model; the inverse of `model_of`. InputError: it cannot express a setting."""
    if model.family not in FAMILIES:
        raise InputError(
            f'model.family={model.family!r} is none of {", ".join(FAMILIES)}: only a model of one of these has '
            'a Hugging Face form'
        )
    config = _fields(model)
    if others := differences(model, round_trip(model)):
        raise InputError(f'the config.json of a {model.family} has no {" and no ".join(others)}')
    tokens = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'))
    copied = {name: value for name, value in (like or {}).items() if name in HARMLESS and name not in config}
    if len(copied.get('id2label') or ()) != model.num_labels:  # the names of another head's labels
        for name in ('id2label', 'label2id', 'problem_type'):
            copied.pop(name, None)
    return tokens | config | copied


def _fields(model: Transformer) -> dict:
    """The fields of config.json that the settings of a model decide."""
    module = FAMILIES[model.family]
    return {'model_type': model.family} | module.fields(model) | hf_heads.fields(model, module)


def round_trip(model: Transformer) -> Transformer:
    """A model after a round trip through the config.json of its family; `differences` compares the two."""
    return model_of(_fields(model))


def differences(model: Transformer, other: Transformer) -> list[str]:
    """The settings that differ, each as "model.NAME=VALUE (only OTHER)"."""

    def value(settings: Transformer, name: str):
        if name == 'attention_scale' and not settings.attention_scale:
            return settings.head_dim**-0.5
        if name == 'token_types':
            return hf.with_token_types(settings, entries_of(settings)).token_types
        return getattr(settings, name)

    names = [name for name in Transformer.__dataclass_fields__ if name not in (*NOT_IN_FILES, 'family')]
    return [
        f'model.{name}={getattr(model, name)!r} (only {getattr(other, name)!r})'
        for name in names
        if value(model, name) != value(other, name)
    ]


def with_task_head(model: Transformer, head: str, num_labels: int, pool: str = 'auto') -> Transformer | None:
    """`model` with the head of transformers' class for a task; see hf_heads.with_task_head.

    A model without a family is treated as LLaMA if it is causal, else as BERT.
    """
    module = FAMILIES[model.family or ('llama' if model.causal else 'bert')]
    return hf_heads.with_task_head(model, module, head, num_labels, pool)


def with_linear_head(model: Transformer, head: str, num_labels: int, pool: str) -> Transformer | None:
    """`with_task_head` if that head is one projection after `pool`, the same as an added head; else None."""
    changed = with_task_head(model, head, num_labels, pool)
    return changed if changed and not changed.head_activation else None


def missing_class_note(model: Transformer) -> tuple[str, ...]:
    """A note if transformers has no class for the head of a model."""
    family = FAMILIES.get(model.family)
    if family is None or not hf_heads.is_missing(model, family):
        return ()
    return (f'transformers has no class for {model.head!r} of a {model.family}: such a run cannot be exported',)


def shared_head_paths(old: Transformer, new: Transformer) -> dict[str, str]:
    """{path in `old`: path in `new`} of the leaves of two heads that have the same key in the files of the family.

    Without those of the last projection, whose outputs differ.
    """
    if not new.family:
        return {}
    old_paths = {entry.key: entry.paths for entry in entries_of(old)}
    shared = [(old_paths[entry.key], entry.paths) for entry in entries_of(new) if entry.key in old_paths]
    pairs = [pair for both in shared for pair in zip(*both, strict=True)]
    return {
        before: after
        for before, after in pairs
        if after.startswith('task_head/') and not after.startswith('task_head/out/')
    }


def entries_of(model: Transformer) -> list[Entry]:
    """The tensors in the files of a model and the leaves that each holds."""
    return hf_heads.entries(model, FAMILIES[model.family])


@functools.cache
def shapes_of(model: Transformer) -> tree.Params:
    """The tree of ShapeDtypeStructs of a model's parameters, float32."""
    batch = {'tokens': jax.ShapeDtypeStruct((1, 1), jnp.int32)}
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch)['params'], batch)


def _pieces(params) -> dict[str, list[tuple[str, Any]]]:
    """{path in one stack of all layers: [(path, leaf) in each segment of the layers, in order]}."""
    names, pieces = tree.segments(params), {}
    for path, leaf in tree.flatten(params).items():
        head, _, rest = path.partition('/')
        pieces.setdefault(f'layers/{rest}' if head in names else path, []).append((path, leaf))
    return {
        path: sorted(own, key=lambda piece: names.index(piece[0].split('/')[0])) if len(own) > 1 else own
        for path, own in pieces.items()
    }


def _stacked_shape(pieces) -> tuple:
    """The shape of the concatenated pieces of a stack."""
    shapes = [leaf.shape for _, leaf in pieces]
    return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _layer_shape(shape: tuple, entry: Entry) -> tuple:
    """The shape of one layer."""
    return shape[1:] if '{layer}' in entry.key else shape


def _match_tensors(
    model, tensors: Mapping, params: tree.Params, partial: bool = False
) -> list[tuple[Entry, list[str]]]:
    """Each entry of the family with the keys of its tensors, layer by layer.

    partial: leaves of a task's head may be missing, and those of its last projection are skipped.
    """
    module = FAMILIES[model.family]
    shapes = {path: _stacked_shape(own) for path, own in _pieces(params).items()}
    # Files of the bare model, without a head, lack the prefix.
    bare = not any(key.startswith(module.PREFIX) for key in tensors)
    plan, left = [], set(tensors)
    for entry in entries_of(model):
        layers = range(entry.first, model.num_layers) if '{layer}' in entry.key else [None]
        shape = hf.joined_shape(entry, [_layer_shape(shapes[path], entry) for path in entry.paths])
        if partial and entry.paths[0].startswith('task_head/out/'):
            continue
        keys = []
        for layer in layers:
            names = [name.format(layer=layer) for name in (entry.key, *entry.also)]
            names = [name.removeprefix(module.PREFIX) if bare else name for name in names]
            key = next((name for name in names if name in tensors), None)
            if key is None and partial and entry.paths[0].startswith('task_head/'):
                break
            if key is None:
                raise InputError(f'the weights lack {names[0]!r}, {shape}{did_you_mean(names[0], left)}')
            if tensors[key].shape != shape:
                raise InputError(f'{tensors[key].path}: {key!r} is {tensors[key].shape}, but {shape} by config.json')
            if not jnp.issubdtype(tensors[key].dtype, jnp.floating):
                raise InputError(
                    f'{tensors[key].path}: {key!r} is {tensors[key].dtype}: quantized weights are not supported; use a '
                    'directory with weights in float32, bfloat16 or float16'
                )
            keys.append(key)
        if keys:
            plan.append((entry, keys))
        left -= set(keys)
    return plan


def _tied_keys(model) -> list[str]:
    """Keys under which the files of a tied model may repeat the embedding as the weight of its head."""
    untied = dataclasses.replace(model, tied=False, head='lm')
    heads = [entry for entry in FAMILIES[model.family].entries(untied) if entry.paths == ('head/kernel',)]
    return [key for entry in heads for key in (entry.key, *entry.also)] if model.tied else []


def _match_all(model, tensors: Mapping, params: tree.Params) -> list[tuple[Entry, list[str]]]:
    """`_match_tensors` of a whole model. InputError: the files hold other tensors too."""
    module, plan = FAMILIES[model.family], _match_tensors(model, tensors, params)
    left = set(tensors) - {key for _, keys in plan for key in keys}
    left = {key for key in left if not re.fullmatch(module.IGNORED, key.removeprefix(module.PREFIX))}
    head = next((key for key in _tied_keys(model) if key in left), None)
    if head:
        embedding = next(keys[0] for entry, keys in plan if entry.paths == ('embed/embedding',))
        if not np.array_equal(tensors[head].read(), tensors[embedding].read()):
            raise InputError(
                f'{head!r} is not {embedding!r}, though config.json ties them: set tie_word_embeddings to false there '
                'if the model was trained with an untied head'
            )
        left.remove(head)
    if left:
        key = min(left)
        raise InputError(
            f'{tensors[key].path}: {key!r} {tensors[key].shape} is not part of a {model.family} with this config.json'
            + (f' ({len(left)} tensors are superfluous)' if len(left) > 1 else '')
        )
    return plan
