"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): sizes and files."""

from lmtrain.models.hf import BUFFERS, UNGATED_NAMES, Entry, Fields, activation_name, rope, rope_fields, size_fields
from lmtrain.models.hf_heads import DECODER_HEADS

ARCHITECTURES = {'gpt_neox': 'GPTNeoXForCausalLM'}
HEADS = DECODER_HEADS._replace(projections=DECODER_HEADS.projections | {'tag': 'classifier'})
PREFIX = 'gpt_neox.'
IGNORED = BUFFERS
NEOX = {
    'family': 'gpt_neox',
    'positions': 'rotary',
    'rope_theta': 10_000.0,
    'norm': 'layernorm',
    'norm_eps': 1e-5,
    'activation': 'gelu_exact',
    'bias': True,
    'tied': False,
    'parallel': True,
}
PYTHIA = NEOX | {'vocab_size': 50_304, 'max_len': 2048, 'rotary_dim': 16}
SIZES = {
    '70M': PYTHIA | {'num_layers': 6, 'width': 512, 'num_heads': 8},
    '160M': PYTHIA | {'num_layers': 12, 'width': 768, 'num_heads': 12},
    '410M': PYTHIA | {'num_layers': 24, 'width': 1024, 'num_heads': 16},
    '1.4B': PYTHIA | {'num_layers': 24, 'width': 2048, 'num_heads': 16, 'rotary_dim': 32},
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    width, num_heads = fields.take('hidden_size'), fields.take('num_attention_heads')
    max_len, head_dim = fields.take('max_position_embeddings'), width // num_heads
    theta, partial = fields.take('rotary_emb_base', 10_000), fields.take('rotary_pct', 0.25)
    biased = {} if fields.take('attention_bias', True) else {'bias': False, 'biased': ('mlp', 'norm')}
    sizes = {
        'vocab_size': fields.take('vocab_size'),
        'max_len': max_len,
        'num_layers': fields.take('num_hidden_layers'),
        'width': width,
        'num_heads': num_heads,
        'num_kv_heads': num_heads,
        'head_dim': head_dim,
        'mlp_dim': fields.take('intermediate_size'),
        'norm_eps': fields.take('layer_norm_eps', 1e-5),
        'activation': fields.choose('hidden_act', UNGATED_NAMES, 'gelu'),
        'parallel': fields.take('use_parallel_residual', True),
        'tied': fields.take('tie_word_embeddings', False),
    }
    return NEOX | sizes | rope(fields, head_dim, max_len, theta=theta, partial=partial) | biased


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    rotary = rope_fields(model)
    return size_fields(model) | {
        'layer_norm_eps': model.norm_eps,
        'hidden_act': activation_name(model.activation, UNGATED_NAMES),
        'rotary_emb_base': rotary['rope_theta'],
        'rotary_pct': (model.rotary_dim or model.head_dim) / model.head_dim,
        'rope_scaling': rotary['rope_scaling'],
        'use_parallel_residual': model.parallel,
        'attention_bias': 'query' in model.biases,
        'tie_word_embeddings': model.tied,
    }


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds; queries, keys and values are interleaved by head."""
    layers = {
        'input_layernorm': ('attention_norm',),
        'attention.query_key_value': ('attention/query', 'attention/key', 'attention/value'),
        'attention.dense': ('attention/output',),
        'post_attention_layernorm': ('mlp_norm',),
        'mlp.dense_h_to_4h': ('mlp/up',),
        'mlp.dense_4h_to_h': ('mlp/down',),
    }
    tensors = [
        Entry(('embed/embedding',), 'gpt_neox.embed_in.weight'),
        Entry(('final_norm/scale',), 'gpt_neox.final_layer_norm.weight'),
        Entry(('final_norm/bias',), 'gpt_neox.final_layer_norm.bias'),
    ]
    for key, names in layers.items():
        norm, heads = key.endswith('norm'), model.num_heads if len(names) > 1 else 0
        kernels, biases = (
            tuple(f'layers/{n}/{leaf}' for n in names) for leaf in ('scale' if norm else 'kernel', 'bias')
        )
        tensors.append(Entry(kernels, f'gpt_neox.layers.{{layer}}.{key}.weight', not norm, heads))
        if norm or names[0].split('/')[0].replace('attention', 'query') in model.biases:
            tensors.append(Entry(biases, f'gpt_neox.layers.{{layer}}.{key}.bias', False, heads))
    # transformers 5 calls embed_out lm_head, and reads both.
    head = Entry(('head/kernel',), 'embed_out.weight', linear=True, also=('lm_head.weight',))
    return tensors + ([] if model.tied else [head])
