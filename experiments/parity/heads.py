"""Tiny encoders with every head, and decoders with the heads that transformers gives them. Needs numpy alone.

A case is a config.json whose architecture names the head; weights are by name, as those of cases.py are.
"""

import numpy as np

from experiments.parity import cases
from experiments.parity.cases import LENGTHS, SMALL

HEADS = {
    'none': 'Model',
    'classify': 'ForSequenceClassification',
    'tag': 'ForTokenClassification',
    'span': 'ForQuestionAnswering',
}
LABELS = 5
ENCODER = SMALL | {'intermediate_size': 48, 'max_position_embeddings': 128, 'pad_token_id': 0}
ENCODERS = {
    'bert': ('Bert', ENCODER | {'model_type': 'bert', 'hidden_act': 'gelu_new'}),
    'roberta': ('Roberta', ENCODER | {'model_type': 'roberta', 'pad_token_id': 1, 'type_vocab_size': 1}),
    'modernbert': (
        'ModernBert',
        ENCODER
        | {'model_type': 'modernbert', 'num_hidden_layers': 5, 'local_attention': 16, 'classifier_pooling': 'cls'}
        | {'bos_token_id': 2, 'eos_token_id': 3, 'cls_token_id': 2, 'sep_token_id': 3},
    ),
}
ENCODERS['modernbert with biases, mean'] = (
    'ModernBert',
    ENCODERS['modernbert'][1]
    | {'classifier_pooling': 'mean', 'layer_types': ['sliding_attention'] * 4 + ['full_attention']}
    | dict.fromkeys(('attention_bias', 'mlp_bias', 'norm_bias', 'classifier_bias'), True),
)
MASKED = {'lm': 'ForMaskedLM'}
DECODERS = {
    'gpt2': ('GPT2', 'classify', 'tag', 'span'),
    'llama': ('Llama', 'none', 'classify', 'tag', 'span'),
    'mistral': ('Mistral', 'classify', 'tag', 'span'),
    'qwen2': ('Qwen2', 'classify', 'tag', 'span'),
    'qwen3': ('Qwen3', 'classify', 'tag', 'span'),
    'gemma': ('Gemma', 'classify', 'tag'),
    'gemma2': ('Gemma2', 'classify', 'tag'),
    'gemma3': ('Gemma3Text', 'classify'),
    'phi3': ('Phi3', 'classify', 'tag'),
    'olmo2': ('Olmo2', 'classify'),
    'gpt_neox': ('GPTNeoX', 'none', 'classify', 'tag', 'span'),
}


def headed(config: dict, stem: str, head: str) -> dict:
    labels = {'num_labels': LABELS} if head in ('classify', 'tag') else {}
    return {'pad_token_id': 0} | config | labels | {'architectures': [stem + (MASKED | HEADS)[head]]}


CASES = {f'{name}, {head}': headed(c, stem, head) for name, (stem, c) in ENCODERS.items() for head in MASKED | HEADS}
CASES |= {
    f'{name}, {head}': headed({k: v for k, v in cases.DECODERS[name].items() if v is not None}, stem, head)
    for name, (stem, *heads) in DECODERS.items()
    for head in heads
}

# Those whose outputs the default tests compare with.
KEPT = (
    *('bert, lm', 'bert, none', 'bert, classify', 'bert, span', 'roberta, lm', 'roberta, classify', 'roberta, tag'),
    *('modernbert, lm', 'modernbert, tag', 'modernbert with biases, mean, classify'),
    *('llama, none', 'llama, span', 'gpt2, classify', 'gpt_neox, tag'),
)


def batch(config: dict) -> dict[str, np.ndarray]:
    """A ragged batch; no real token is the padding's, by which transformers finds positions and the last token."""
    columns, padding = cases.batch(), config['pad_token_id']
    tokens = np.where(columns['segment_ids'] > 0, np.maximum(columns['tokens'], 2), padding).astype(np.int32)
    columns = columns | {'tokens': tokens}
    if config['model_type'] == 'bert':
        columns['token_types'] = np.random.RandomState(1).randint(0, 2, tokens.shape).astype(np.int32)
    return columns


def sampled(outputs: np.ndarray) -> np.ndarray:
    """What the stored goldens keep: all of [B, C], and of [B, T, C] every 11th real token, at most 6 of its entries."""
    outputs = np.asarray(outputs)
    if outputs.ndim == 2:
        return outputs.ravel()
    every = max(1, outputs.shape[-1] // 5)
    return np.concatenate([outputs[row, :length][::11, ::every].ravel() for row, length in enumerate(LENGTHS)])
