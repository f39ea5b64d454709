"""OLMo 2 (arXiv 2501.00656): LLaMA with norms after its branches, and norms of queries and keys over all heads."""

from lmtrain.models.families import llama
from lmtrain.models.families.llama import IGNORED, PREFIX
from lmtrain.models.hf import Entry, Fields, rope, rope_fields
from lmtrain.models.hf_heads import DECODER_HEADS

__all__ = ['ARCHITECTURES', 'HEADS', 'IGNORED', 'PREFIX', 'SIZES', 'entries', 'fields', 'settings']

ARCHITECTURES = {'olmo2': 'Olmo2ForCausalLM'}
HEADS = DECODER_HEADS._replace(missing={'olmo2': ('tag', 'span')})
BRANCH_NORMS = {'attention_norm': 'post_attention_layernorm', 'mlp_norm': 'post_feedforward_layernorm'}
PLACES = {'norm_place': 'branch', 'qk_norm': True, 'qk_norm_over': 'projection'}
OLMO2 = llama.LLAMA | PLACES | {'family': 'olmo2', 'vocab_size': 100_352, 'max_len': 4096, 'norm_eps': 1e-6}
SIZES = {
    '1B': OLMO2 | {'num_layers': 16, 'width': 2048, 'num_heads': 16, 'mlp_dim': 8192},
    '7B': OLMO2 | {'num_layers': 32, 'width': 4096, 'num_heads': 32, 'mlp_dim': 11_008},
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    sizes = llama.common(fields, eps=1e-5) | PLACES
    biased = ('query', 'key', 'value', 'output') if fields.take('attention_bias', False) else ()
    return sizes | rope(fields, sizes['head_dim'], sizes['max_len']) | {'biased': biased}


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    return llama.common_fields(model) | rope_fields(model) | {'attention_bias': 'output' in model.biases}


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds."""
    return llama.entries(model, BRANCH_NORMS)
