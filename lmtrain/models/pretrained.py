"""Models in and out of Hugging Face directories: config.json and safetensors, with neither torch nor transformers."""

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

# What a config.json does not say, and what a family leaves out.
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
HOW = {'dropout', 'dtype', 'remat', 'unroll', 'attention'}  # settings that no file holds


def put(path: str, array: np.ndarray) -> jax.Array:
    """What `load_pretrained` makes of a leaf unless told otherwise."""
    return jnp.asarray(array)


def load_pretrained(
    directory,
    place: Callable = put,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
    model: Transformer | None = None,
) -> tuple[Transformer, tree.Params]:
    """(model, params) of a directory with config.json and model.safetensors, or several files and their index.

    A leaf is read, layer by layer, into one array of the host, and given to `place` before the next one is read.

    Args:
      place: (path, numpy array) -> what stands at that path of params; on a mesh, the array as the mesh holds it.
      dtype: of the leaves; None leaves each as the file has it, the widest of its layers.
      ignore: fields of config.json that are skipped although they are unknown.
      model: what config.json says, but with a new head (`headed`): its leaves are read as far as the files have
        them, without its last projection, whose outputs are other ones.

    Raises FileNotFoundError; ValueError naming the field of config.json that is missing, unknown or not supported, the
    tensor that is missing, left over, or of another shape than the model's (both shapes), or what is wrong with a file.
    """
    directory = Path(directory)
    own, tensors = model_of(read_config(directory), ignore), safetensors.find(directory)
    plan = _plan(own, tensors, shapes_of(own))
    if model:
        plan = _in_files(model, tensors, shapes_of(model), partial=True)
    model = model or own
    pieces = _pieces(shapes_of(model))
    shapes = {path: _joined(found) for path, found in pieces.items()}
    leaves = {}
    for entry, keys in plan:
        # Layers may have different dtypes (some kept in float32 on purpose); one stack has one, in which each fits.
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
    """The shapes of what `load_pretrained` reads for a model with a new head."""
    shapes = shapes_of(model)
    plan = _in_files(model, safetensors.find(Path(directory)), shapes, partial=True)
    held = {path for entry, _ in plan for path in entry.paths}
    pieces = {path: found for path, found in _pieces(shapes).items() if path in held}
    return tree.unflatten({own: leaf for found in pieces.values() for own, leaf in found})


def save_pretrained(
    directory,
    model: Transformer,
    params: tree.Params,
    *,
    dtype: str | None = None,
    like: Mapping | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Writes config.json and the weights, in one file or above 5 GB in several, that transformers opens alike.

    Tied weights stay tied. Weights that the directory held are replaced; every file appears whole or not at all.

    Args:
      dtype: of the tensors; None leaves each as it is.
      like: a config.json, of the base, whose names, token ids and labels are kept.
      labels: names of the classes, in the order of their numbers; () keeps those of `like` if there are as many.

    Raises ValueError where the model's settings cannot be said in its family's config.json, or where the leaves are not
    those of the model: adapters are folded first.
    """
    directory = Path(directory)
    config = config_of(model, like) | hf_heads.label_fields(model, labels)
    leaves = _pieces(params)
    shapes = {path: _joined(found) for path, found in _pieces(shapes_of(model)).items()}
    for path in leaves.keys() ^ shapes.keys():
        what = f'is missing, {shapes[path]}' if path in shapes else 'has no place in the files of its family'
        raise InputError(f'{path} {what}: a model is exported without added leaves (fold adapters first)')
    for path, found in leaves.items():
        if _joined(found) != shapes[path]:
            raise InputError(f'{path} is {_joined(found)}, but {shapes[path]} by the settings of the model')
    entries = entries_of(model)
    bare = FAMILIES[model.family].PREFIX if model.head == 'none' else ''
    places = {}  # {key: (entry, layer)}
    for entry in entries:
        key = entry.key.removeprefix(bare)
        layers = range(entry.first, model.num_layers) if '{layer}' in key else [None]
        places |= {key.format(layer=i): (entry, None if i is None else i - entry.first) for i in layers}

    def described(entry: Entry):
        shape = hf.joined_shape(entry, [_one(shapes[path], entry) for path in entry.paths])
        return shape, np.dtype(jnp.dtype(dtype or leaves[entry.paths[0]][0][1].dtype))

    @functools.lru_cache(maxsize=1)  # of the device's arrays, one entry is brought at a time
    def fetched(entry: Entry):
        parts = [[np.asarray(leaf) for _, leaf in leaves[path]] for path in entry.paths]
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def read(key: str):
        entry, layer = places[key]
        arrays = fetched(entry) if layer is None else [array[layer] for array in fetched(entry)]
        return hf.join(entry, arrays).astype(described(entry)[1])

    directory.mkdir(parents=True, exist_ok=True)
    safetensors.write(directory, {key: described(entry) for key, (entry, _) in places.items()}, read)
    # transformers 4 reads torch_dtype, 5 prefers dtype.
    config['dtype'] = config['torch_dtype'] = str(jnp.dtype(dtype or params['embed']['embedding'].dtype))
    write_json(directory / 'config.json', config, indent=2)


def read_config(directory) -> dict:
    """The config.json of a directory. Raises FileNotFoundError; ValueError where it is no JSON object."""
    path = Path(directory) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'{directory} holds no config.json: it is no directory of a Hugging Face model')
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get('model_type'), str):
        raise InputError(f'{path} has no model_type: it is no config.json of a Hugging Face model')
    return config


def model_of(config: Mapping, ignore: Sequence[str] = ()) -> Transformer:
    """The model of a config.json, without reading the unknown fields of `ignore`.

    Raises ValueError naming the field that is missing, unknown or not supported.
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
        fields.done()
        return Transformer(**settings | {'family': kind, 'unroll': settings['num_layers']})
    except (TypeError, AttributeError) as error:
        raise InputError(
            f'config.json of a {kind} has a value of another kind than its field takes: {error}'
        ) from error


def config_of(model: Transformer, like: Mapping | None = None) -> dict:
    """The config.json of a model; undoes `model_of`. Raises ValueError naming a setting that it cannot say."""
    if model.family not in FAMILIES:
        raise InputError(
            f'model.family={model.family!r} is none of {", ".join(FAMILIES)}: only a model of one of these has '
            'a Hugging Face form'
        )
    config = _fields(model)
    if others := differences(model, read_as(model)):
        raise InputError(f'the config.json of a {model.family} has no {" and no ".join(others)}')
    tokens = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'))
    kept = {name: value for name, value in (like or {}).items() if name in HARMLESS and name not in config}
    if len(kept.get('id2label') or ()) != model.num_labels:  # the names of another head's labels
        kept.pop('id2label', None), kept.pop('label2id', None)
    return tokens | config | kept


def _fields(model: Transformer) -> dict:
    """The fields of config.json that a model decides."""
    module = FAMILIES[model.family]
    return {'model_type': model.family} | module.fields(model) | hf_heads.fields(model, module)


def read_as(model: Transformer) -> Transformer:
    """The model that the config.json of a model's family makes of its settings; `differences` compares the two."""
    return model_of(_fields(model))


def differences(model: Transformer, other: Transformer) -> list[str]:
    """The settings of `model` that `other` has not, each as "model.NAME=VALUE (only OTHER)"."""

    def value(settings: Transformer, name: str):
        if name == 'attention_scale' and not settings.attention_scale:
            return settings.head_dim**-0.5
        return getattr(settings, name)

    names = [name for name in Transformer.__dataclass_fields__ if name not in (*HOW, 'family')]
    return [
        f'model.{name}={getattr(model, name)!r} (only {getattr(other, name)!r})'
        for name in names
        if value(model, name) != value(other, name)
    ]


def headed(model: Transformer, head: str, num_labels: int, pool: str = 'auto') -> Transformer | None:
    """`model` with the head of transformers' class for a task, as `checkpoint_head.headed` has it.

    A model without a family is treated as a decoder, whose classes have one form, or as BERT.
    """
    module = FAMILIES[model.family or ('llama' if model.causal else 'bert')]
    return hf_heads.headed(model, module, head, num_labels, pool)


def as_class(model: Transformer, head: str, num_labels: int, pool: str) -> Transformer | None:
    """`headed` if that class computes no more than a projection at `pool`, as an added head does; else None."""
    found = headed(model, head, num_labels, pool)
    return found if found and not found.head_activation else None


def no_class(model: Transformer) -> tuple[str, ...]:
    """A line that says that transformers has no class for the head of a model, if it has none."""
    family = FAMILIES.get(model.family)
    if family is None or not hf_heads.is_missing(model, family):
        return ()
    return (f'transformers has no class for {model.head!r} of a {model.family}: such a run cannot be exported',)


def shared_head(old: Transformer, new: Transformer) -> dict[str, str]:
    """{path in `old`: path in `new`} of the leaves of heads that have one key in the files of their family.

    The last projection is none of them: its outputs are other ones.
    """
    was = {entry.key: entry.paths for entry in entries_of(old)} if new.family else {}
    shared = [(was[entry.key], entry.paths) for entry in entries_of(new) if entry.key in was] if was else []
    pairs = [pair for both in shared for pair in zip(*both, strict=True)]
    return {
        ours: theirs
        for ours, theirs in pairs
        if theirs.startswith('task_head/') and not theirs.startswith('task_head/out/')
    }


def entries_of(model: Transformer) -> list[Entry]:
    """Where each leaf of a model lies in its files."""
    return hf_heads.entries(model, FAMILIES[model.family])


@functools.cache
def shapes_of(model: Transformer) -> tree.Params:
    """The tree of ShapeDtypeStructs of a model's parameters, float32."""
    batch = {'tokens': jax.ShapeDtypeStruct((1, 1), jnp.int32)}
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch)['params'], batch)


def _pieces(params) -> dict[str, list[tuple[str, Any]]]:
    """{path in one whole stack: [(path, leaf) in every segment of the layers that has it]}."""
    names, found = tree.segments(params), {}
    for path, leaf in tree.flatten(params).items():
        head, _, rest = path.partition('/')
        found.setdefault(f'layers/{rest}' if head in names else path, []).append((path, leaf))
    return {
        path: sorted(each, key=lambda piece: names.index(piece[0].split('/')[0])) if len(each) > 1 else each
        for path, each in found.items()
    }


def _joined(pieces) -> tuple:
    """The shape of the pieces of a stack, one behind the other."""
    shapes = [leaf.shape for _, leaf in pieces]
    return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _one(shape: tuple, entry: Entry) -> tuple:
    """The shape of one layer."""
    return shape[1:] if '{layer}' in entry.key else shape


def _in_files(model, tensors: Mapping, params: tree.Params, partial: bool = False) -> list[tuple[Entry, list[str]]]:
    """Each entry of the family's map with the keys of its tensors, layer by layer.

    partial: leaves of a task's head may be missing, and those of its last projection are left out.
    """
    module = FAMILIES[model.family]
    shapes = {path: _joined(found) for path, found in _pieces(params).items()}
    # Files of the bare model, without a head, lack the name of its module.
    bare = not any(key.startswith(module.PREFIX) for key in tensors)
    plan, left = [], set(tensors)
    for entry in entries_of(model):
        layers = range(entry.first, model.num_layers) if '{layer}' in entry.key else [None]
        wanted = hf.joined_shape(entry, [_one(shapes[path], entry) for path in entry.paths])
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
                raise InputError(f'the weights lack {names[0]!r}, {wanted}{did_you_mean(names[0], left)}')
            if tensors[key].shape != wanted:
                raise InputError(f'{tensors[key].path}: {key!r} is {tensors[key].shape}, but {wanted} by config.json')
            if not jnp.issubdtype(tensors[key].dtype, jnp.floating):
                raise InputError(
                    f'{tensors[key].path}: {key!r} is {tensors[key].dtype}: quantized weights are not read; take a '
                    'directory with the weights in float32, bfloat16 or float16'
                )
            keys.append(key)
        plan += [(entry, keys)] * bool(keys)
        left -= set(keys)
    return plan


def _tied_keys(model) -> list[str]:
    """Keys under which the files of a tied model may repeat the embedding as the weight of its head."""
    untied = dataclasses.replace(model, tied=False, head='lm')
    heads = [entry for entry in FAMILIES[model.family].entries(untied) if entry.paths == ('head/kernel',)]
    return [key for entry in heads for key in (entry.key, *entry.also)] if model.tied else []


def _plan(model, tensors: Mapping, params: tree.Params) -> list[tuple[Entry, list[str]]]:
    """What `_in_files` finds, which must be all of the model and all of the files."""
    module, plan = FAMILIES[model.family], _in_files(model, tensors, params)
    left = set(tensors) - {key for _, keys in plan for key in keys}
    left = {key for key in left if not re.fullmatch(module.IGNORED, key.removeprefix(module.PREFIX))}
    head = next((key for key in _tied_keys(model) if key in left), None)
    if head:
        embedding = next(keys[0] for entry, keys in plan if entry.paths == ('embed/embedding',))
        if not np.array_equal(tensors[head].read(), tensors[embedding].read()):
            raise InputError(
                f'{head!r} is not {embedding!r}, though config.json ties them: set tie_word_embeddings to false there '
                'if the model was trained with a head of its own'
            )
        left.remove(head)
    if left:
        key = min(left)
        raise InputError(
            f'{tensors[key].path}: {key!r} {tensors[key].shape} has no place in a {model.family} of this config.json'
            + (f' ({len(left)} tensors are left over)' if len(left) > 1 else '')
        )
    return plan
