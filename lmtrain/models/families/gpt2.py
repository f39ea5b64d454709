"""GPT-2 (Radford et al., 2019): the published sizes, as updates of a config's `model` section, and its files."""

from lmtrain.models.hf import BUFFERS, UNGATED_NAMES, Entry, Fields, activation_name
from lmtrain.models.hf_heads import DECODER_HEADS

GPT2 = {
    'family': 'gpt2',
    'vocab_size': 50257,
    'max_len': 1024,
    'positions': 'learned',
    'norm': 'layernorm',
    'norm_eps': 1e-5,
    'activation': 'gelu',
    'bias': True,
    'tied': True,
}
SIZES = {
    '124M': GPT2 | {'num_layers': 12, 'width': 768, 'num_heads': 12},
    '355M': GPT2 | {'num_layers': 24, 'width': 1024, 'num_heads': 16},
    '774M': GPT2 | {'num_layers': 36, 'width': 1280, 'num_heads': 20},
    '1558M': GPT2 | {'num_layers': 48, 'width': 1600, 'num_heads': 25},
}

ARCHITECTURES = {'gpt2': 'GPT2LMHeadModel'}
HEADS = DECODER_HEADS._replace(projections=DECODER_HEADS.projections | {'tag': 'classifier'})
PREFIX = 'transformer.'
IGNORED = BUFFERS


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    width, num_heads = fields.take('n_embd'), fields.take('n_head')
    fields.only('scale_attn_by_inverse_layer_idx', False)
    return GPT2 | {
        'vocab_size': fields.take('vocab_size'),
        'max_len': fields.take('n_positions'),
        'num_layers': fields.take('n_layer'),
        'width': width,
        'num_heads': num_heads,
        'num_kv_heads': num_heads,
        'head_dim': width // num_heads,
        'mlp_dim': fields.take('n_inner', None) or 4 * width,
        'norm_eps': fields.take('layer_norm_epsilon', 1e-5),
        'activation': fields.choose('activation_function', UNGATED_NAMES, 'gelu_new'),
        'attention_scale': 0.0 if fields.take('scale_attn_weights', True) else 1.0,
        'tied': fields.take('tie_word_embeddings', True),
    }


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    return {
        'vocab_size': model.vocab_size,
        'n_positions': model.max_len,
        'n_layer': model.num_layers,
        'n_embd': model.width,
        'n_head': model.num_heads,
        'n_inner': model.mlp_dim,
        'layer_norm_epsilon': model.norm_eps,
        'activation_function': activation_name(model.activation, UNGATED_NAMES),
        'scale_attn_weights': not model.attention_scale,
        'tie_word_embeddings': model.tied,
    }


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds. Kernels are [in, out], the same as the leaves."""
    layers = {
        'ln_1.{}': ['attention_norm/{}'],
        'attn.c_attn.{}': [f'attention/{name}/{{}}' for name in ('query', 'key', 'value')],
        'attn.c_proj.{}': ['attention/output/{}'],
        'ln_2.{}': ['mlp_norm/{}'],
        'mlp.c_fc.{}': ['mlp/up/{}'],
        'mlp.c_proj.{}': ['mlp/down/{}'],
    }
    tensors = [
        Entry(('embed/embedding',), 'transformer.wte.weight'),
        Entry(('positions/embedding',), 'transformer.wpe.weight'),
        Entry(('final_norm/scale',), 'transformer.ln_f.weight'),
        Entry(('final_norm/bias',), 'transformer.ln_f.bias'),
    ]
    for key, paths in layers.items():
        for theirs, ours in (('weight', 'scale' if '.ln' in f'.{key}' else 'kernel'), ('bias', 'bias')):
            names = tuple(f'layers/{path.format(ours)}' for path in paths)
            tensors.append(Entry(names, f'transformer.h.{{layer}}.{key.format(theirs)}'))
    return tensors + ([] if model.tied else [Entry(('head/kernel',), 'lm_head.weight', linear=True)])
