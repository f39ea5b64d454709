"""PEFT's directories, read and written exactly: adapter_config.json and adapter_model.safetensors.

LoRA (with rsLoRA and DoRA), IA3, prompt tuning, P-tuning and prefix tuning, each with heads. Our kernels are [in, out]:
lora_a is PEFT's A transposed, lora_b its B. Where one module of theirs holds several kernels of ours (GPT-2's c_attn),
each kernel gets the module's A and its own columns of B; written back, equal As become one again, and different ones
stand side by side in an A of their summed rank, beside a block-diagonal B.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.adapt.adapter import check
from lmtrain.adapt.multi import split_adapter
from lmtrain.adapt.peft import config, lora, write
from lmtrain.adapt.peft import heads as peft_heads
from lmtrain.adapt.peft.config import CONFIG, WEIGHTS
from lmtrain.adapt.peft.modules import layer_places
from lmtrain.errors import InputError
from lmtrain.files import read_json, write_json
from lmtrain.models import safetensors
from lmtrain.models.virtual_tokens import materialise

BASE = 'lmtrain.json'  # beside PEFT's two files: the fingerprint of the base
SAMPLES = 64  # values of every leaf that a fingerprint reads


def load_adapter(model, params: Mapping, directory, ignore: Sequence[str] = ()) -> tree.Params:
    """`params` with the leaves of the adapter in a directory, float32, and its heads.

    A head of the checkpoint itself takes the adapter's values, any other becomes `heads/<name>`. `params` may be
    shapes: then the adapter's leaves alone are arrays, and the base is not compared with the one it was made on.
    Unknown fields of adapter_config.json that are in `ignore` are skipped.

    Raises FileNotFoundError, or ValueError naming the field, tensor, shape or value: a field that is unknown, missing
    or not implemented, a tensor too many or too few, and an adapter of another base.
    """
    directory = Path(directory)
    fields = config.read(directory, ignore)
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f'{directory} holds no {WEIGHTS} (pickled weights are not read: open it in PEFT and save it again)'
        )
    check_base(directory, params)
    tensors = {
        _without_adapter_name(key): np.asarray(tensor.read(), np.float32)
        for key, tensor in safetensors.header(path).items()
    }
    beside = fields['peft_type'] in ('LORA', 'IA3')
    prefix = 'base_model.model.' if beside else 'base_model.'
    try:
        if beside:
            new, rest = lora.read(model, params, fields, tensors)
        else:
            new, rest = _read_prompt(model, params, fields, tensors)
        own, heads = peft_heads.read(model, params, fields, rest, prefix)
    except ValueError as error:
        raise InputError(f'{directory}: {error}') from None
    params = tree.flatten(params) | own
    new = tree.unflatten({name: jnp.asarray(leaf) for name, leaf in (new | heads).items()})
    check(tree.unflatten(params), new)
    return tree.join(tree.unflatten(params), new)


def _without_adapter_name(key: str) -> str:
    """A key of a module's own state dict, which still has the adapter's name 'default', as PEFT saves it."""
    key = re.sub(r'\.(lora_\w+|ia3_l|modules_to_save)\.default(?=\.|$)', r'.\1', key)
    return key.replace('.modules_to_save.', '.')


def save_adapter(
    directory,
    model,
    params: Mapping,
    *,
    base: str,
    task_type: str | None,
    modules_to_save: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> None:
    """Writes the adapter's leaves in `params` as PEFT's directory.

    Args:
      base: the name or folder of the base, as its users will write it.
      task_type: 'CAUSAL_LM' | 'SEQ_CLS' | 'TOKEN_CLS' | 'QUESTION_ANS' | 'FEATURE_EXTRACTION' (the model without
        its head), or None, of a masked language model.
      modules_to_save: modules of the base, by Hugging Face's names ('lm_head'), that have learnt and go along whole.
        Added heads and the checkpoint's own head always do.
      labels: names of the classes, which PEFT's files do not hold: they are for `labels_of` alone.

    Raises ValueError where there is no such leaf, or PEFT has no form for what is there.
    """
    network = 'P_TUNING' if 'mlp_0' in params.get('prompt', {}) else 'PROMPT_TUNING'
    params = materialise(params)
    own, added = split_adapter(params)
    names = {path.rpartition('/')[2] for path in tree.flatten(added) if not path.startswith('heads/')}
    kinds = {'LORA': 'lora_', 'IA3': 'ia3_', 'PREFIX_TUNING': 'prefix_', network: 'embedding'}
    found = [kind for kind, word in kinds.items() if any(name.startswith(word) for name in names)]
    if len(found) != 1:
        told = (
            f'{" and ".join(found)} at once'
            if found
            else 'no adapter: BitFit, norms and layers are no leaves of its own'
        )
        raise InputError(f'the parameters hold {told}; a directory of PEFT holds exactly one kind')
    kind = found[0]
    prefix = 'base_model.model.' if kind in ('LORA', 'IA3') else 'base_model.'
    heads, saved = peft_heads.write(model, params, task_type, modules_to_save, prefix)
    fields = config.common(kind, base, task_type, saved)
    if kind in ('LORA', 'IA3'):
        about, tensors = write.write(model, params, kind, task_type)
    else:
        about, tensors = _write_prompt(model, params, kind)
    tensors = {key: np.ascontiguousarray(x, np.float32) for key, x in sorted((tensors | heads).items())}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shapes = {key: (x.shape, x.dtype) for key, x in tensors.items()}
    safetensors.write_file(directory / WEIGHTS, shapes, tensors.__getitem__)
    for name, content in ((CONFIG, fields | about), (BASE, {'base': fingerprint(own), 'labels': list(labels)})):
        write_json(directory / name, content, indent=2, sort_keys=True)


def labels_of(directory, count: int) -> tuple[str, ...]:
    """The names of an adapter's `count` classes; LABEL_0, ... as in transformers if it was not written here."""
    path = Path(directory) / BASE
    names = read_json(path).get('labels') if path.is_file() else ()
    return tuple(names or (f'LABEL_{i}' for i in range(count)))


def check_base(directory, params: Mapping) -> None:
    """Raises ValueError where the adapter in a directory says that it was made on another base than `params`.

    Only adapters written here say so. Shapes in place of arrays, and arrays of several processes, are not compared.
    """
    path, leaves = Path(directory) / BASE, jax.tree.leaves(dict(params))
    known = all(not isinstance(x, jax.ShapeDtypeStruct) and getattr(x, 'is_fully_addressable', True) for x in leaves)
    if not path.is_file() or not known:
        return
    wanted, got = read_json(path).get('base'), fingerprint(split_adapter(params)[0])
    if wanted != got:
        raise InputError(f'{directory} was made on another base: {path.name} says {wanted}, and this one is {got}')


def fingerprint(params: Mapping) -> str:
    """16 hex digits of a base's paths, shapes and some values of each leaf, rounded to bfloat16; segments count as one.

    The heads of a checkpoint are left out: they learn with the adapter.
    """
    total = hashlib.sha256()
    lines = []
    first = {name: i for i, (name, place) in reversed(list(enumerate(layer_places(params)))) if place == 0}
    for path, leaf in tree.flatten(params).items():
        head, _, rest = path.partition('/')
        if head in ('task_head', 'head'):
            continue
        rows = (
            [(f'layers/{first[head] + i}/{rest}', x) for i, x in enumerate(leaf)] if head in first else [(path, leaf)]
        )
        lines += rows
    for path, leaf in sorted(lines, key=lambda pair: pair[0]):
        flat = jnp.ravel(leaf)
        some = np.asarray(flat[:: max(1, flat.size // SAMPLES)], jnp.bfloat16)
        total.update(f'{path} {leaf.shape} '.encode() + some.tobytes())
    return total.hexdigest()[:16]


def _read_prompt(model, params, fields, tensors):
    """({path: leaf}, the other tensors) of prompt tuning, P-tuning or prefix tuning."""
    tensors = dict(tensors)
    if 'prompt_embeddings' not in tensors:
        raise InputError(f'{WEIGHTS} lacks the tensor prompt_embeddings')
    x, P = tensors.pop('prompt_embeddings'), fields['num_virtual_tokens']
    G, K, N = model.num_kv_heads, model.head_dim, model.num_layers
    prefix = fields['peft_type'] == 'PREFIX_TUNING'
    expected = {'token_dim': G * K, 'num_attention_heads': G, 'num_layers': N} if prefix else {'token_dim': model.width}
    for name, value in expected.items():
        if fields[name] != value:
            raise InputError(f'{CONFIG} has {name}={fields[name]}, but the base has {value}: it is of another base')
    shape = (P, 2 * N * G * K) if prefix else (P, model.width)
    if x.shape != shape:
        raise InputError(f'prompt_embeddings is {x.shape}, where {shape} is wanted')
    if not prefix:
        return {'prompt/embedding': x}, tensors
    both_PNGK = x.reshape(P, N, 2, G, K)
    new: dict[str, list] = {}
    for layer, (segment, _) in enumerate(layer_places(params)):
        for i, name in enumerate(('prefix_key', 'prefix_value')):
            new.setdefault(f'{segment}/attention/{name}', []).append(both_PNGK[:, layer, i])
    return {path: np.stack(rows) for path, rows in new.items()}, tensors


def _write_prompt(model, params, kind):
    """(fields, tensors) of prompt tuning, P-tuning or prefix tuning."""
    fields = {'num_attention_heads': model.num_heads, 'num_layers': model.num_layers, 'token_dim': model.width}
    if kind == 'PREFIX_TUNING':
        layers = []
        for segment, i in layer_places(params):
            layers += [np.asarray(params[segment]['attention'][f'prefix_{name}'][i]) for name in ('key', 'value')]
        x = np.stack(layers, axis=1).reshape(len(layers[0]), -1)
        fields |= {'num_attention_heads': model.num_kv_heads, 'token_dim': model.num_kv_heads * model.head_dim}
        fields |= {'encoder_hidden_size': None, 'prefix_projection': False}
    else:
        x = np.asarray(params['prompt']['embedding'])
        tuning = {'prompt_tuning_init': 'RANDOM', 'prompt_tuning_init_text': None, 'tokenizer_name_or_path': None}
        encoder = {'encoder_reparameterization_type': 'MLP', 'encoder_hidden_size': model.width}
        encoder |= {'encoder_num_layers': 2, 'encoder_dropout': 0.0}
        fields |= encoder if kind == 'P_TUNING' else tuning
    fields |= {'num_transformer_submodules': 1, 'num_virtual_tokens': len(x)}
    return fields, {'prompt_embeddings': x}
