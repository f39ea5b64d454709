"""LLaMA 3 (arXiv 2407.21783): published sizes and a ladder of small ones, as updates of a config's `model` section.

The 1B and 3B are those of LLaMA 3.2, without the scaling of rotary angles beyond 8,192 tokens. The second half reads
files of LLaMA 2 and 3; most families use it with few changes.
"""

from typing import Any

from lmtrain.models.hf import (
    BUFFERS,
    GATED_NAMES,
    REQUIRED,
    Entry,
    Fields,
    activation_name,
    rope,
    rope_fields,
    size_fields,
)
from lmtrain.models.hf_heads import DECODER_HEADS

LLAMA = {
    'family': 'llama',
    'positions': 'rotary',
    'rope_theta': 500_000.0,
    'norm': 'rmsnorm',
    'norm_eps': 1e-5,
    'activation': 'swiglu',
    'bias': False,
    'tied': False,
}
LLAMA3 = LLAMA | {'vocab_size': 128_256, 'max_len': 8192, 'num_kv_heads': 8}
SIZES = {
    '1B': LLAMA3 | {'num_layers': 16, 'width': 2048, 'num_heads': 32, 'mlp_dim': 8192, 'tied': True},
    '3B': LLAMA3 | {'num_layers': 28, 'width': 3072, 'num_heads': 24, 'mlp_dim': 8192, 'tied': True},
    '8B': LLAMA3 | {'num_layers': 32, 'width': 4096, 'num_heads': 32, 'mlp_dim': 14_336},
    '70B': LLAMA3 | {'num_layers': 80, 'width': 8192, 'num_heads': 64, 'mlp_dim': 28_672},
}


def rung(depth: int) -> dict:
    """A tied decoder of `depth` layers, 64 depth wide, heads of 64: about 49,152 depth^3 parameters in its layers.

    Vocabulary and length remain those of the config. One number sets all sizes, same as nanochat
    (github.com/karpathy/nanochat).

    >>> rung(12)['width'], rung(12)['mlp_dim']
    (768, 2048)
    """
    width = 64 * depth
    mlp_dim = 64 * round(width * 8 / 3 / 64)  # three matrices with as many parameters as the usual two of width 4 D
    return LLAMA | {'num_layers': depth, 'width': width, 'num_heads': depth, 'mlp_dim': mlp_dim, 'tied': True}


# Names are the number of parameters in the layers.
LADDER = {
    '1M': rung(3),
    '3M': rung(4),
    '10M': rung(6),
    '25M': rung(8),
    '85M': rung(12),
    '200M': rung(16),
    '400M': rung(20),
    '700M': rung(24),
}

ARCHITECTURES = {'llama': 'LlamaForCausalLM'}
SPAN_PREFIX = {'span': 'transformer.'}  # transformers' older name of the body, which question answering still has
HEADS = DECODER_HEADS._replace(aliases={'LLaMAForCausalLM': 'lm'}, prefixes=SPAN_PREFIX)  # the alias is LLaMA 1's
PREFIX = 'model.'
IGNORED = BUFFERS


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    sizes = common(fields, max_len=2048)  # files of LLaMA 1 lack it
    attention, mlp = fields.take('attention_bias', False), fields.take('mlp_bias', False)
    biased = (('query', 'key', 'value', 'output') if attention else ()) + (('mlp',) if mlp else ())
    return sizes | rope(fields, sizes['head_dim'], sizes['max_len']) | {'biased': biased}


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    biases = {'attention_bias': 'output' in model.biases, 'mlp_bias': 'mlp' in model.biases}
    return common_fields(model) | rope_fields(model) | biases


def common(
    fields: Fields,
    *,
    eps: float = 1e-6,
    head_dim: int | None = None,
    tied: bool = False,
    max_len: Any = REQUIRED,
) -> dict:
    """The settings that all relatives of LLaMA have in common; the arguments are a family's defaults.

    `head_dim` None: width / num_heads.
    """
    width, num_heads = fields.take('hidden_size'), fields.take('num_attention_heads')
    return LLAMA | {
        'vocab_size': fields.take('vocab_size'),
        'max_len': fields.take('max_position_embeddings', max_len),
        'num_layers': fields.take('num_hidden_layers'),
        'width': width,
        'num_heads': num_heads,
        'num_kv_heads': fields.take('num_key_value_heads', None) or num_heads,
        'head_dim': fields.take('head_dim', head_dim) or width // num_heads,
        'mlp_dim': fields.take('intermediate_size'),
        'norm_eps': fields.take('rms_norm_eps', eps),
        'activation': fields.choose('hidden_act', GATED_NAMES, 'silu'),
        'tied': fields.take('tie_word_embeddings', tied),
    }


def common_fields(model) -> dict:
    """The inverse of `common`."""
    return size_fields(model) | {
        'num_key_value_heads': model.num_kv_heads,
        'head_dim': model.head_dim,
        'rms_norm_eps': model.norm_eps,
        'hidden_act': activation_name(model.activation, GATED_NAMES),
        'tie_word_embeddings': model.tied,
    }


PRE_NORMS = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
PROJECTIONS = {
    'self_attn.q_proj': ('attention/query',),
    'self_attn.k_proj': ('attention/key',),
    'self_attn.v_proj': ('attention/value',),
    'self_attn.o_proj': ('attention/output',),
    'mlp.gate_proj': ('mlp/gate',),
    'mlp.up_proj': ('mlp/up',),
    'mlp.down_proj': ('mlp/down',),
}


def entries(model, norms=PRE_NORMS, projections=PROJECTIONS) -> list[Entry]:
    """The tensors in the files and the leaves that each holds; `norms` is {path: key}, `projections` {key: paths}."""
    tensors = [
        Entry(('embed/embedding',), 'model.embed_tokens.weight'),
        Entry(('final_norm/scale',), 'model.norm.weight'),
    ]
    if model.qk_norm:
        norms = norms | {'attention/query_norm': 'self_attn.q_norm', 'attention/key_norm': 'self_attn.k_norm'}
    for ours, theirs in norms.items():
        tensors.append(Entry((f'layers/{ours}/scale',), f'model.layers.{{layer}}.{theirs}.weight'))
    for theirs, ours in projections.items():
        kernels, biases = (tuple(f'layers/{name}/{leaf}' for name in ours) for leaf in ('kernel', 'bias'))
        tensors.append(Entry(kernels, f'model.layers.{{layer}}.{theirs}.weight', linear=True))
        parent, name = ours[0].split('/')
        if ('mlp' if parent == 'mlp' else name) in model.biases:
            tensors.append(Entry(biases, f'model.layers.{{layer}}.{theirs}.bias'))
    return tensors + ([] if model.tied else [Entry(('head/kernel',), 'lm_head.weight', linear=True)])
