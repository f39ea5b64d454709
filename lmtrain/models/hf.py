"""Shared by the families: config.json read field by field, and the map between paths of leaves and keys of tensors."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.errors import InputError

# Fields that change neither outputs nor training: defaults, names and versions of other programs.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _flash_attn_2_enabled _name_or_path _num_labels architectures attention_dropout
    attention_probs_dropout_prob attn_implementation attn_pdrop auto_map bos_token_id cache_implementation
    classifier_dropout cls_token_id decoder_start_token_id directionality dtype embd_pdrop eos_token_id
    finetuning_task gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder
    is_llama_config keys_to_ignore_at_inference label2id language max_sequence_length model_type n_ctx n_special
    num_labels output_attentions output_hidden_states output_past pad_token_id pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type predict_special_tokens prefix
    pretraining_tp problem_type reorder_and_upcast_attn resid_pdrop return_dict return_dict_in_generate
    sep_token_id summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    xla_device
    """.split()
)
# Settings of text generation, which older files and many fine-tuned models have in config.json.
GENERATION = frozenset(
    """
    bad_words_ids begin_suppress_tokens chunk_size_feed_forward diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length min_new_tokens no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores penalty_alpha remove_invalid_values
    renormalize_logits repetition_penalty suppress_tokens temperature tie_encoder_decoder top_k top_p typical_p
    """.split()
)
# Tensors of older files that are not parameters: causal masks, rotary frequencies and position ids (module buffers).
BUFFERS = (
    r'(.*\.)?(attn|attention)\.(bias|masked_bias)|(.*\.)?rotary_emb\w*\.(\w*inv_freq|cos_cached|sin_cached)'
    r'|(.*\.)?embeddings\.(position|token_type)_ids'
)
GATED_NAMES = {'silu': 'swiglu', 'swish': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu'}
UNGATED_NAMES = {
    'gelu': 'gelu_exact',
    'gelu_new': 'gelu',
    'gelu_fast': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
    'relu': 'relu',
    'relu2': 'relu2',
}

REQUIRED = object()


def activation_name(activation: str, names: Mapping[str, str]) -> str:
    """Hugging Face's name of an activation among `names`, UNGATED_NAMES or GATED_NAMES.

    The first name if there is none: pretrained.config_of reads the result back and reports the difference.
    """
    return next((theirs for theirs, ours in names.items() if ours == activation), next(iter(names)))


def how_to_skip(name: str) -> str:
    """How a user skips a field of config.json."""
    return f'skip it with --config.init.ignore="(\'{name}\',)" (beside --base: --ignore={name})'


class Fields:
    """The fields of a config.json. Every field must be read, because an unread one could change the outputs.

    `ignore` are fields that the user declares to have no effect (config.init.ignore).

    >>> fields = Fields({'model_type': 'llama', 'hidden_size': 64, 'new_field': 1})
    >>> fields.take('hidden_size')
    64
    >>> fields.done()
    Traceback (most recent call last):
    ...
    lmtrain.errors.InputError: config.json: new_field=1 is unknown for a llama and may change ...
    """

    def __init__(self, fields: Mapping[str, Any], ignore: Sequence[str] = ()):
        self.unread = dict(fields)
        self.names = frozenset(fields)
        self.ignore = tuple(ignore)
        self.family = fields['model_type']

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a field; without a default it must be a size. InputError: it is missing or has a wrong type."""
        if name not in self.unread and default is REQUIRED:
            raise InputError(f'config.json of a {self.family} lacks {name}')
        value = self.unread.pop(name, default)
        kinds = {bool: bool, int: int | float, float: int | float}.get(type(default), object)
        if default is REQUIRED and (type(value) is not int or value < 1):
            raise InputError(f'config.json: {name}={value!r} of a {self.family} is not a positive integer')
        if value is not None and not isinstance(value, kinds):
            raise InputError(f'config.json: {name}={value!r} of a {self.family} must have the type of {default!r}')
        return value

    def only(self, name: str, *values: Any) -> None:
        """InputError: a field has another value than those that this family supports."""
        if (value := self.take(name, values[0])) not in values:
            raise InputError(
                f'config.json: {name}={value!r} of a {self.family} is not supported, only '
                + ' and '.join(map(repr, values))
            )

    def choose(self, name: str, choices: Mapping[str, str], default: Any = REQUIRED) -> str:
        """The name in `choices` for the value of a field. InputError: there is none."""
        if (value := self.take(name, default)) not in choices:
            raise InputError(f'config.json: {name}={value!r} of a {self.family} is none of {", ".join(choices)}')
        return choices[value]

    def done(self) -> None:
        """InputError: a field has not been read, or one of `ignore` has."""
        if read := [name for name in self.ignore if name in self.names and name not in self.unread]:
            raise InputError(
                f'init.ignore has {read[0]!r}, which a {self.family} reads: it changes what the model computes'
            )
        for name, value in self.unread.items():
            # Older files have fields that are off: output_scores: false, pruned_heads: {}, prefix: null.
            if name not in HARMLESS | GENERATION | {*self.ignore} and value not in (None, False, {}, []):
                raise InputError(
                    f'config.json: {name}={value!r} is unknown for a {self.family} and may change what the model '
                    f'computes; if it does not, {how_to_skip(name)}'
                )


def rope(fields: Fields, head_dim: int, max_len: int, *, theta: float = 10_000.0, partial: float | None = None) -> dict:
    """{'rope_theta', 'rope_scaling', 'rotary_dim'} from rope_theta and rope_scaling, or from the newer rope_parameters.

    `partial` is the default fraction of a head that is rotated; None if the family always rotates all of it.
    """
    old, new = fields.take('rope_scaling', None), fields.take('rope_parameters', None)
    top_theta, top_partial = fields.take('rope_theta', theta), fields.take('partial_rotary_factor', partial)
    original = fields.take('original_max_position_embeddings', None)
    return rope_of(old or new or {}, head_dim, max_len, top_theta, top_partial, original, partial is not None)


def rope_of(parameters: Mapping, head_dim, max_len, theta, partial=None, original=None, may_be_partial=False) -> dict:
    """The settings of one dict of rope parameters; the arguments are the fields outside of it."""
    # `finetuned` in files of YaRN models: whether the model was trained with the scaling. It changes no output.
    scaling = {name: value for name, value in parameters.items() if value is not None and name != 'finetuned'}
    kinds = {scaling.pop(name) for name in ('rope_type', 'type') if name in scaling}
    if len(kinds) > 1:
        raise InputError(f'config.json: rope_type and type of the rope parameters differ: {sorted(kinds)}')
    kind = kinds.pop() if kinds else 'default'
    theta, partial = scaling.pop('rope_theta', theta), scaling.pop('partial_rotary_factor', partial)
    rotary_dim = head_dim if partial is None else int(head_dim * partial)
    if rotary_dim != head_dim and not may_be_partial:
        raise InputError(f'config.json: partial_rotary_factor={partial} is not supported for this family')
    if kind == 'default':
        if scaling:
            raise InputError(f'config.json: rope parameters of rope_type default have the field {min(scaling)}')
    else:
        if kind in ('llama3', 'yarn', 'longrope'):
            scaling['original_max_position_embeddings'] = original or scaling.get(
                'original_max_position_embeddings', max_len
            )
        if kind == 'dynamic':
            scaling['original_max_position_embeddings'] = max_len
        if kind in ('yarn', 'longrope'):
            scaling.setdefault('factor', max_len / scaling['original_max_position_embeddings'])
        scaling = {'rope_type': kind} | scaling
    return {
        'rope_theta': float(theta),
        'rope_scaling': tuple((name, _tuple(value)) for name, value in sorted(scaling.items())),
        'rotary_dim': 0 if rotary_dim == head_dim else rotary_dim,
    }


def rope_fields(model) -> dict:
    """{'rope_theta', 'rope_scaling'}, the names of transformers 4, which 5 reads too; the inverse of `rope`."""
    scaling = {name: list(v) if isinstance(v, tuple) else v for name, v in model.rope_scaling}
    if scaling.get('rope_type') == 'dynamic':
        del scaling['original_max_position_embeddings']  # it is max_position_embeddings
    return {'rope_theta': model.rope_theta, 'rope_scaling': scaling or None}


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def windows(window: int | None, layer_types: Sequence[str], num_layers: int) -> dict:
    """{'window', 'global_layers'} from the field layer_types."""
    kinds = ('sliding_attention', 'full_attention')
    if len(layer_types) != num_layers or set(layer_types) - set(kinds):
        raise InputError(f'config.json: layer_types={layer_types} are not {num_layers} of {" and ".join(kinds)}')
    full = tuple(i for i, kind in enumerate(layer_types) if kind == 'full_attention')
    if len(full) == num_layers:
        return {'window': 0, 'global_layers': ()}
    if not window:
        raise InputError(f'config.json: layer_types has sliding_attention, but sliding_window={window}')
    return {'window': window, 'global_layers': full}


def layer_types(model) -> list[str]:
    """The field layer_types; the inverse of `windows`."""
    return ['sliding_attention' if model.local(i) else 'full_attention' for i in range(model.num_layers)]


class Entry(NamedTuple):
    """One tensor in the files and the leaves that it holds, concatenated along their last dimension.

    Attributes:
      paths: of the leaves.
      key: of the tensor, with {layer} if the leaves are stacked over layers.
      linear: the tensor is [out, in], while the leaves are [in, out].
      heads: number of heads by which the leaves are interleaved; 0 if they are not.
      also: other keys that files may have instead.
      first: first layer with this tensor (ModernBERT's first layer lacks a norm).
    """

    paths: tuple[str, ...]
    key: str
    linear: bool = False
    heads: int = 0
    also: tuple[str, ...] = ()
    first: int = 0


def with_token_types(model, entries: Sequence[Entry]):
    """The model with a table of two token types if its files (`entries`) must have one: zeros change nothing."""
    has_table = any('token_types/embedding' in entry.paths for entry in entries)
    return dataclasses.replace(model, token_types=2) if has_table and not model.token_types else model


def size_fields(model) -> dict:
    """The fields of config.json for sizes, with the names that most families use."""
    return {
        'vocab_size': model.vocab_size,
        'max_position_embeddings': model.max_len,
        'num_hidden_layers': model.num_layers,
        'hidden_size': model.width,
        'num_attention_heads': model.num_heads,
        'intermediate_size': model.mlp_dim,
    }


def split(entry: Entry, array: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """The leaves in a tensor; their last dimensions are `widths`."""
    x = array.T if entry.linear else array
    if entry.heads:
        x = x.reshape(*x.shape[:-1], entry.heads, len(widths), -1)
        return [x[..., i, :].reshape(*x.shape[:-3], -1) for i in range(len(widths))]
    return np.split(x, np.cumsum(widths)[:-1], axis=-1)


def join(entry: Entry, leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor of leaves; the inverse of `split`."""
    if entry.heads:
        x = np.stack([leaf.reshape(*leaf.shape[:-1], entry.heads, -1) for leaf in leaves], axis=-2)
        x = x.reshape(*x.shape[:-3], -1)
    else:
        x = leaves[0] if len(leaves) == 1 else np.concatenate(leaves, axis=-1)
    return x.T if entry.linear else x


def joined_shape(entry: Entry, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of `join` of leaves with these shapes."""
    shape = *shapes[0][:-1], sum(shape[-1] for shape in shapes)
    return shape[::-1] if entry.linear else shape
