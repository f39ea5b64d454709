"""Reads and writes PEFT's directories: adapter_config.json and adapter_model.safetensors.

LoRA (with rsLoRA and DoRA), IA3, prompt tuning, P-tuning and prefix tuning, each with heads. Our kernels are [in, out]:
lora_a is PEFT's A transposed, and lora_b its B transposed. If one module in PEFT holds several of our kernels (GPT-2's
c_attn), each kernel gets the module's A and its own columns of B. When written, equal As become one again; different
ones are concatenated to an A of their summed rank, with a block-diagonal B.
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

BASE = 'lmtrain.json'  # next to PEFT's two files: the fingerprint of the base
SAMPLES = 64  # values of every leaf in a fingerprint, at least; all of a smaller leaf


def load_adapter(model, params: Mapping, directory, ignore: Sequence[str] = ()) -> tree.Params:
    """`params` with the float32 leaves of the adapter in a directory, and its heads.

    A head of the checkpoint takes the adapter's values, any other one becomes `heads/<name>`. `params` may be shapes:
    then only the adapter's leaves are arrays, and the base is not compared with the one the adapter was trained on.
    Unknown fields of adapter_config.json are skipped if they are in `ignore`.

    Raises FileNotFoundError, or InputError naming the field, tensor, shape or value: for a field that is unknown,
    missing or not supported, a superfluous or missing tensor, and an adapter of another base.
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
    in_layers = fields['peft_type'] in ('LORA', 'IA3')
    prefix = 'base_model.model.' if in_layers else 'base_model.'
    try:
        if in_layers:
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
    """A key of a module's state dict, which contains the adapter's name 'default', as PEFT would save it."""
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
    """Writes the adapter's leaves in `params` as a directory of PEFT.

    Args:
      base: the name or folder of the base, for base_model_name_or_path.
      task_type: 'CAUSAL_LM' | 'SEQ_CLS' | 'TOKEN_CLS' | 'QUESTION_ANS' | 'FEATURE_EXTRACTION' (the model without
        its head), or None for a masked language model.
      modules_to_save: modules of the base, by Hugging Face's names ('lm_head'), that were trained and are saved whole.
        Added heads and the checkpoint's head always are.
      labels: names of the classes. PEFT's files do not hold them; `labels_of` reads them.

    Raises InputError if there is no adapter, or if PEFT cannot represent it.
    """
    network = 'P_TUNING' if 'mlp_0' in params.get('prompt', {}) else 'PROMPT_TUNING'
    params = materialise(params)
    own, added = split_adapter(params)
    names = {path.rpartition('/')[2] for path in tree.flatten(added) if not path.startswith('heads/')}
    kinds = {'LORA': 'lora_', 'IA3': 'ia3_', 'PREFIX_TUNING': 'prefix_', network: 'embedding'}
    present = [kind for kind, word in kinds.items() if any(name.startswith(word) for name in names)]
    if len(present) != 1:
        none = 'no adapter: the methods full, layers, head, bitfit and norms add no leaves'
        problem = f'{" and ".join(present)} at once' if present else none
        raise InputError(f'the parameters hold {problem}; a directory of PEFT holds exactly one kind')
    kind = present[0]
    prefix = 'base_model.model.' if kind in ('LORA', 'IA3') else 'base_model.'
    heads, saved = peft_heads.write(model, params, task_type, modules_to_save, prefix)
    is_bare = task_type == 'FEATURE_EXTRACTION'  # which has no head to tie
    tying, copy = ({}, {}) if is_bare else peft_heads.tie(model, kind, saved, heads, prefix)
    fields = config.common(kind, base, task_type, saved) | tying
    if kind in ('LORA', 'IA3'):
        about, tensors = write.write(model, params, kind, task_type)
    else:
        about, tensors = _write_prompt(model, params, kind)
    tensors = {key: np.ascontiguousarray(x, np.float32) for key, x in sorted((tensors | heads | copy).items())}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shapes = {key: (x.shape, x.dtype) for key, x in tensors.items()}
    safetensors.write_file(directory / WEIGHTS, shapes, tensors.__getitem__)
    for name, content in ((CONFIG, fields | about), (BASE, {'base': fingerprint(own), 'labels': list(labels)})):
        write_json(directory / name, content, indent=2, sort_keys=True)


def labels_of(directory, count: int) -> tuple[str, ...]:
    """The names of an adapter's `count` classes; LABEL_0, ... as in transformers if lmtrain did not write it."""
    path = Path(directory) / BASE
    names = read_json(path).get('labels') if path.is_file() else ()
    return tuple(names or (f'LABEL_{i}' for i in range(count)))


def check_base(directory, params: Mapping) -> None:
    """Raises InputError if the adapter in a directory was trained on another base than `params`.

    Only adapters that lmtrain wrote record their base. Shapes, and arrays of several processes, are not compared.
    """
    path, leaves = Path(directory) / BASE, jax.tree.leaves(dict(params))
    known = all(not isinstance(x, jax.ShapeDtypeStruct) and getattr(x, 'is_fully_addressable', True) for x in leaves)
    if not path.is_file() or not known:
        return
    recorded, actual = read_json(path).get('base'), fingerprint(split_adapter(params)[0])
    if recorded != actual:
        raise InputError(f'{directory} was made on another base: {path.name} says {recorded}, but this one is {actual}')


def fingerprint(params: Mapping) -> str:
    """16 hex digits: a hash of a base's paths, shapes and values, rounded to bfloat16.

    At least `SAMPLES` equally spaced values of each leaf are read, or all of them.

    It does not depend on segments. The heads of a checkpoint are left out: they are trained with the adapter.
    """
    total = hashlib.sha256()
    leaves = []  # (path, leaf of one layer)
    first = {name: i for i, (name, place) in reversed(list(enumerate(layer_places(params)))) if place == 0}
    for path, leaf in tree.flatten(params).items():
        head, _, rest = path.partition('/')
        if head in ('task_head', 'head'):
            continue
        if head in first:
            leaves += [(f'layers/{first[head] + i}/{rest}', x) for i, x in enumerate(leaf)]
        else:
            leaves.append((path, leaf))
    for path, leaf in sorted(leaves, key=lambda pair: pair[0]):
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
            raise InputError(f'{CONFIG} has {name}={fields[name]}, but the base has {value}')
    shape = (P, 2 * N * G * K) if prefix else (P, model.width)
    if x.shape != shape:
        raise InputError(f'prompt_embeddings is {x.shape}, but {shape} is expected')
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
