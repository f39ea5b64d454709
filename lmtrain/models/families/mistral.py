"""Mistral (arXiv 2310.06825): LLaMA with a sliding window in every layer; the 7B of both versions, and its files."""

from lmtrain.errors import InputError
from lmtrain.models.families import llama
from lmtrain.models.families.llama import IGNORED, PREFIX, entries
from lmtrain.models.hf import Fields, layer_types, rope, rope_fields, windows
from lmtrain.models.hf_heads import DECODER_HEADS

__all__ = ['ARCHITECTURES', 'HEADS', 'IGNORED', 'PREFIX', 'SIZES', 'entries', 'fields', 'settings']

ARCHITECTURES = {'mistral': 'MistralForCausalLM'}
HEADS = DECODER_HEADS
MISTRAL = llama.LLAMA | {
    'family': 'mistral',
    'num_layers': 32,
    'width': 4096,
    'num_heads': 32,
    'num_kv_heads': 8,
    'mlp_dim': 14_336,
}
SIZES = {
    '7B v0.1': MISTRAL | {'vocab_size': 32_000, 'max_len': 32_768, 'rope_theta': 10_000.0, 'window': 4096},
    '7B v0.3': MISTRAL | {'vocab_size': 32_768, 'max_len': 32_768, 'rope_theta': 1_000_000.0},
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    sizes = llama.common(fields)
    window, count = fields.take('sliding_window', 4096), sizes['num_layers']
    every = ['sliding_attention' if window else 'full_attention'] * count
    # transformers ignores layer_types of a Mistral, so it may only agree with sliding_window.
    fields.only('layer_types', None, every)
    return sizes | rope(fields, sizes['head_dim'], sizes['max_len']) | windows(window, every, count)


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`.

    InputError: some layers have full attention and others a window.
    """
    if len(set(layer_types(model))) > 1:
        raise InputError(f'a mistral has one window, not model.global_layers={model.global_layers}')
    return llama.common_fields(model) | rope_fields(model) | {'sliding_window': model.window or None}
