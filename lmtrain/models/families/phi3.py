"""Phi-3 (arXiv 2404.14219): LLaMA with fused projections in its files, partly rotated heads and LongRoPE."""

from lmtrain.errors import InputError
from lmtrain.models.families import llama
from lmtrain.models.families.llama import IGNORED, PREFIX
from lmtrain.models.hf import Entry, Fields, layer_types, rope, rope_fields, windows
from lmtrain.models.hf_heads import DECODER_HEADS

__all__ = ['ARCHITECTURES', 'HEADS', 'IGNORED', 'PREFIX', 'SIZES', 'entries', 'fields', 'settings']

ARCHITECTURES = {'phi3': 'Phi3ForCausalLM'}
HEADS = DECODER_HEADS._replace(missing={'phi3': ('span',)})
PHI3 = llama.LLAMA | {'family': 'phi3', 'vocab_size': 32_064, 'max_len': 4096, 'rope_theta': 10_000.0, 'window': 2047}
SIZES = {'mini': PHI3 | {'num_layers': 32, 'width': 3072, 'num_heads': 32, 'mlp_dim': 8192}}
PROJECTIONS = {
    'self_attn.qkv_proj': ('attention/query', 'attention/key', 'attention/value'),
    'self_attn.o_proj': ('attention/output',),
    'mlp.gate_up_proj': ('mlp/gate', 'mlp/up'),
    'mlp.down_proj': ('mlp/down',),
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    sizes = llama.common(fields, eps=1e-5)
    window, count = fields.take('sliding_window', None), sizes['num_layers']
    sizes |= windows(window, ['sliding_attention' if window else 'full_attention'] * count, count)
    fields.only('attention_bias', False)
    fields.only('full_attn_mod', 1)  # Phi-4-mini has these two fields
    fields.only('interpolate_factor', 1)
    for name in ('rope_scaling', 'rope_parameters'):  # older names of LongRoPE
        for word in ('type', 'rope_type'):
            if (fields.unread.get(name) or {}).get(word) in ('su', 'yarn'):
                fields.unread[name] = fields.unread[name] | {word: 'longrope'}
    sizes |= rope(fields, sizes['head_dim'], sizes['max_len'], partial=1.0)
    if (kind := dict(sizes['rope_scaling']).get('rope_type', 'longrope')) != 'longrope':
        raise InputError(f"config.json: rope_type={kind!r} of a phi3 is not supported, only 'longrope'")
    return sizes


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    if len(set(layer_types(model))) > 1:
        raise InputError(f'a phi3 has one window, not model.global_layers={model.global_layers}')
    config = llama.common_fields(model) | rope_fields(model) | {'sliding_window': model.window or None}
    config['partial_rotary_factor'] = (model.rotary_dim or model.head_dim) / model.head_dim
    config['original_max_position_embeddings'] = model.max_len
    if scaling := config['rope_scaling']:
        scaling['type'] = scaling.pop('rope_type')  # the name that all versions of transformers read
        config['original_max_position_embeddings'] = scaling.pop('original_max_position_embeddings')
        if scaling['factor'] == model.max_len / config['original_max_position_embeddings']:
            del scaling['factor']
    return config


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds."""
    return llama.entries(model, projections=PROJECTIONS)
