"""Gemma 1 to 3, text alone (arXiv 2403.08295, 2408.00118, 2503.19786): sizes and files.

All multiply embeddings by sqrt(D) and norms by 1 + scale. Gemma 2 adds norms after each branch, softcaps, and a sliding
window in every other layer. Gemma 3 replaces the softcaps by norms of queries and keys, and has other rotary angles in
layers with a window.
"""

from lmtrain.errors import InputError
from lmtrain.models.families import llama
from lmtrain.models.families.llama import IGNORED, PREFIX
from lmtrain.models.hf import Entry, Fields, layer_types, rope, rope_fields, rope_of, windows
from lmtrain.models.hf_heads import DECODER_HEADS

__all__ = ['ARCHITECTURES', 'HEADS', 'IGNORED', 'PREFIX', 'SIZES', 'entries', 'fields', 'settings']

ARCHITECTURES = {
    'gemma': 'GemmaForCausalLM',
    'gemma2': 'Gemma2ForCausalLM',
    'gemma3_text': 'Gemma3ForCausalLM',
}
HEADS = DECODER_HEADS._replace(
    stems={'gemma3_text': 'Gemma3Text'},
    missing={'gemma': ('span',), 'gemma2': ('span',), 'gemma3_text': ('tag', 'span')},
)
EVERY = {'gemma2': 2, 'gemma3_text': 6}  # of so many layers the last has full attention, the others a window
GEMMA = llama.LLAMA | {
    'rope_theta': 10_000.0,
    'norm': 'rmsnorm1p',
    'norm_eps': 1e-6,
    'activation': 'geglu',
    'tied': True,
    'head_dim': 256,
}
GEMMA1 = GEMMA | {'family': 'gemma', 'vocab_size': 256_000, 'max_len': 8192}
GEMMA2 = GEMMA1 | {
    'family': 'gemma2',
    'norm_place': 'sandwich',
    'attention_softcap': 50.0,
    'logit_softcap': 30.0,
    'attention_scale': 256**-0.5,
    'window': 4096,
}
GEMMA3 = GEMMA | {
    'family': 'gemma3_text',
    'vocab_size': 262_144,
    'max_len': 32_768,
    'norm_place': 'sandwich',
    'qk_norm': True,
    'attention_scale': 256**-0.5,
    'rope_theta': 1_000_000.0,
    'local_rope_theta': 10_000.0,
}


def sized(base: dict, num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_dim: int, **more) -> dict:
    """A published size; of `every` layers, the last has full attention."""
    every = more.pop('every', None)
    full = {'global_layers': tuple(range(every - 1, num_layers, every))} if every else {}
    sizes = {'num_layers': num_layers, 'width': width, 'num_heads': num_heads, 'num_kv_heads': num_kv_heads}
    return base | sizes | {'mlp_dim': mlp_dim, 'embed_scale': width**0.5} | full | more


SIZES = {
    '2B': sized(GEMMA1, 18, 2048, 8, 1, 16_384),
    '7B': sized(GEMMA1, 28, 3072, 16, 16, 24_576),
    '2 2B': sized(GEMMA2, 26, 2304, 8, 4, 9216, every=2),
    '2 9B': sized(GEMMA2, 42, 3584, 16, 8, 14_336, every=2),
    '3 270M': sized(GEMMA3, 18, 640, 4, 1, 2048, every=6, window=512),
    '3 1B': sized(GEMMA3, 26, 1152, 4, 1, 6912, every=6, window=512),
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    # In one of the two fields, published files have 'gelu' or nothing and mean the tanh form, which the other names.
    for name in ('hidden_act', 'hidden_activation'):
        fields.only(name, None, 'gelu_pytorch_tanh', *(('gelu',) if fields.family == 'gemma' else ()))
    sizes = llama.common(fields, head_dim=256, tied=True)
    sizes |= {'norm': 'rmsnorm1p', 'activation': 'geglu', 'embed_scale': sizes['width'] ** 0.5}
    sizes['biased'] = ('query', 'key', 'value', 'output') if fields.take('attention_bias', False) else ()
    fields.only('use_bidirectional_attention', None, False)
    if fields.family == 'gemma':
        return sizes | rope(fields, sizes['head_dim'], sizes['max_len'])
    third, count = fields.family == 'gemma3_text', sizes['num_layers']
    every = EVERY[fields.family]
    if third:  # transformers 5 writes the first as the second, together with layer_types
        every = fields.take('sliding_window_pattern', fields.take('_sliding_window_pattern', every))
    kinds = fields.take('layer_types', None) or [
        'sliding_attention' if (i + 1) % every else 'full_attention' for i in range(count)
    ]
    if third:  # transformers reads this field but does not apply it
        fields.only('attn_logit_softcapping', None)
    sizes |= {
        'norm_place': 'sandwich',
        'qk_norm': third,
        'attention_scale': fields.take('query_pre_attn_scalar', 256) ** -0.5,
        'attention_softcap': 0.0 if third else fields.take('attn_logit_softcapping', 50.0) or 0.0,
        'logit_softcap': fields.take('final_logit_softcapping', None if third else 30.0) or 0.0,
    }
    sizes |= windows(fields.take('sliding_window', 4096), kinds, count)
    return sizes | (two_ropes(fields, sizes) if third else rope(fields, sizes['head_dim'], sizes['max_len']))


def two_ropes(fields: Fields, sizes: dict) -> dict:
    """The rotary settings of Gemma 3: layers with full attention scale their angles, those with a window do not."""
    head_dim, max_len = sizes['head_dim'], sizes['max_len']
    new = fields.take('rope_parameters', None) or {}
    full = {**(new.get('full_attention') or {}), **(fields.take('rope_scaling', None) or {})}
    thetas = fields.take('rope_theta', 1_000_000.0), fields.take('rope_local_base_freq', 10_000.0)
    if stray := new.keys() - {'full_attention', 'sliding_attention'}:
        raise InputError(
            f'config.json: rope_parameters of a {fields.family} has {min(stray)}, not one dict per kind of layer'
        )
    local = rope_of(new.get('sliding_attention') or {}, head_dim, max_len, thetas[1])
    if local['rope_scaling']:
        raise InputError(
            'config.json: rope_parameters.sliding_attention of a gemma3_text has a scaling, which is not supported'
        )
    theta = {'local_rope_theta': local['rope_theta'] if sizes['window'] else 0.0}
    return rope_of(full, head_dim, max_len, thetas[0]) | theta


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    config = llama.common_fields(model) | rope_fields(model)
    config |= {'attention_bias': 'output' in model.biases, 'hidden_act': 'gelu_pytorch_tanh'}
    if model.family == 'gemma':
        return config
    config['hidden_activation'] = config.pop('hidden_act')
    config |= {
        'query_pre_attn_scalar': whole(model.attention_scale**-2) if model.attention_scale else model.head_dim,
        'attn_logit_softcapping': model.family == 'gemma2' and model.attention_softcap or None,
        'final_logit_softcapping': model.logit_softcap or None,
        'sliding_window': model.window or model.max_len,
        'layer_types': layer_types(model),
    }
    if model.family == 'gemma3_text':
        config['rope_local_base_freq'] = model.local_rope_theta or model.rope_theta
    return config


def whole(value: float) -> float | int:
    """The nearest integer, if the difference is only rounding."""
    return round(value) if abs(value - round(value)) < 1e-6 * value else value


SANDWICH_NORMS = llama.PRE_NORMS | {
    'attention_post_norm': 'post_attention_layernorm',
    'mlp_norm': 'pre_feedforward_layernorm',
    'mlp_post_norm': 'post_feedforward_layernorm',
}


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds."""
    return llama.entries(model, llama.PRE_NORMS if model.norm_place == 'pre' else SANDWICH_NORMS)
