"""OLMo 2 (arXiv 2501.00656): LLaMA with norms behind its branches, and of queries and keys over all heads."""

from lmtrain.models.families import llama
from lmtrain.models.families.llama import PREFIX
from lmtrain.models.hf import Entry, Fields, rope, rope_fields

__all__ = ['ARCHITECTURES', 'PREFIX', 'SIZES', 'entries', 'fields', 'settings']

ARCHITECTURES = {'olmo2': 'Olmo2ForCausalLM'}
NORMS = {'attention_norm': 'post_attention_layernorm', 'mlp_norm': 'post_feedforward_layernorm'}
PLACES = {'norm_place': 'branch', 'qk_norm': True, 'qk_norm_over': 'projection'}
OLMO2 = llama.LLAMA | PLACES | {'family': 'olmo2', 'vocab_size': 100_352, 'max_len': 4096, 'norm_eps': 1e-6}
SIZES = {
    '1B': OLMO2 | {'num_layers': 16, 'width': 2048, 'num_heads': 16, 'mlp_dim': 8192},
    '7B': OLMO2 | {'num_layers': 32, 'width': 4096, 'num_heads': 32, 'mlp_dim': 11_008},
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. Raises ValueError naming the field that this model does not have."""
    sizes = llama.common(fields, eps=1e-5) | PLACES
    biased = ('query', 'key', 'value', 'output') if fields.take('attention_bias', False) else ()
    return sizes | rope(fields, sizes['head_dim'], sizes['max_len']) | {'biased': biased}


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; undoes `settings`."""
    return llama.common_fields(model) | rope_fields(model) | {'attention_bias': model.has_bias('output')}


def entries(model) -> list[Entry]:
    """Where each leaf lies in the files."""
    return llama.entries(model, NORMS)
