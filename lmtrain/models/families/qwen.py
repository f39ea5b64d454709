"""Qwen 2 (arXiv 2407.10671), with biases on queries, keys and values, and Qwen 3 (arXiv 2505.09388), with norms."""

from lmtrain.models.families import llama
from lmtrain.models.families.llama import IGNORED, PREFIX, SPAN_PREFIX, entries
from lmtrain.models.hf import Fields, layer_types, rope, rope_fields, windows
from lmtrain.models.hf_heads import DECODER_HEADS

__all__ = ['ARCHITECTURES', 'HEADS', 'IGNORED', 'PREFIX', 'SIZES', 'entries', 'fields', 'settings']

ARCHITECTURES = {'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}
HEADS = DECODER_HEADS._replace(prefixes=SPAN_PREFIX)
QWEN = llama.LLAMA | {'vocab_size': 151_936, 'max_len': 32_768, 'rope_theta': 1_000_000.0, 'norm_eps': 1e-6}
QWEN2 = QWEN | {'family': 'qwen2', 'biased': ('query', 'key', 'value')}
QWEN3 = QWEN | {'family': 'qwen3', 'qk_norm': True, 'head_dim': 128, 'num_kv_heads': 8}
SIZES = {
    '2.5 0.5B': QWEN2
    | {'num_layers': 24, 'width': 896, 'num_heads': 14, 'num_kv_heads': 2, 'mlp_dim': 4864, 'tied': True},
    '2.5 1.5B': QWEN2
    | {'num_layers': 28, 'width': 1536, 'num_heads': 12, 'num_kv_heads': 2, 'mlp_dim': 8960, 'tied': True},
    '3 0.6B': QWEN3 | {'num_layers': 28, 'width': 1024, 'num_heads': 16, 'mlp_dim': 3072, 'tied': True},
    '3 1.7B': QWEN3 | {'num_layers': 28, 'width': 2048, 'num_heads': 16, 'mlp_dim': 6144, 'tied': True},
    '3 8B': QWEN3 | {'num_layers': 36, 'width': 4096, 'num_heads': 32, 'mlp_dim': 12_288},
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    third = fields.family == 'qwen3'
    sizes = llama.common(fields, head_dim=128 if third else None)
    sizes |= rope(fields, sizes['head_dim'], sizes['max_len'])
    window, first = fields.take('sliding_window', 4096), fields.take('max_window_layers', 28)
    if not fields.take('use_sliding_window', False):
        window = None
    kinds = fields.take('layer_types', None) or [
        'sliding_attention' if window and i >= first else 'full_attention' for i in range(sizes['num_layers'])
    ]
    sizes |= windows(window, kinds, sizes['num_layers'])
    if third:
        biased = ('query', 'key', 'value', 'output') if fields.take('attention_bias', False) else ()
        return sizes | {'qk_norm': True, 'biased': biased}
    return sizes | {'biased': ('query', 'key', 'value')}


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    return (
        llama.common_fields(model)
        | rope_fields(model)
        | {
            'use_sliding_window': bool(model.window),
            'sliding_window': model.window or None,
            'max_window_layers': model.num_layers,
            'layer_types': layer_types(model),
        }
        | ({'attention_bias': 'output' in model.biases} if model.family == 'qwen3' else {})
    )
