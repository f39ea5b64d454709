"""Tiny models of every family: their config.json, their weights by name and a ragged batch. Needs numpy alone.

The script beside this file runs them in transformers and writes what came out; the tests run them in lmtrain.
"""

import zlib

import numpy as np

LENGTHS = (80, 64, 23)  # of the rows; every context below that is stretched is 32
VOCAB = 61

SMALL = {'vocab_size': VOCAB, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
LLAMA = SMALL | {
    'intermediate_size': 48,
    'num_key_value_heads': 2,
    'max_position_embeddings': 128,
    'rms_norm_eps': 1e-5,
    'rope_theta': 10_000.0,
    'tie_word_embeddings': False,
}


def llama(**changes):
    return LLAMA | {'model_type': 'llama', 'architectures': ['LlamaForCausalLM']} | changes


def stretched(**scaling):
    return llama(max_position_embeddings=32, rope_scaling=scaling)


GPT2 = {
    'model_type': 'gpt2',
    'architectures': ['GPT2LMHeadModel'],
    'vocab_size': VOCAB,
    'n_embd': 32,
    'n_layer': 2,
    'n_head': 4,
    'n_positions': 96,
    'tie_word_embeddings': True,
}
GEMMA = LLAMA | {
    'head_dim': 16,
    'tie_word_embeddings': True,
    'rms_norm_eps': 1e-6,
    'hidden_activation': 'gelu_pytorch_tanh',
}
GEMMA2 = GEMMA | {'query_pre_attn_scalar': 64, 'sliding_window': 16, 'num_hidden_layers': 3}
NEOX = SMALL | {
    'model_type': 'gpt_neox',
    'architectures': ['GPTNeoXForCausalLM'],
    'intermediate_size': 64,
    'max_position_embeddings': 128,
    'rotary_pct': 0.5,
    'rotary_emb_base': 10_000,
    'tie_word_embeddings': False,
}
PHI3 = LLAMA | {
    'model_type': 'phi3',
    'architectures': ['Phi3ForCausalLM'],
    'pad_token_id': None,
    'original_max_position_embeddings': 128,
}
DECODERS = {
    'gpt2': GPT2,
    'gpt2 untied, unscaled': GPT2
    | {'tie_word_embeddings': False, 'scale_attn_weights': False, 'n_inner': 40, 'activation_function': 'relu'},
    'llama': llama(attention_bias=True, mlp_bias=True),
    'llama tied, rope llama3': stretched(
        rope_type='llama3',
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    )
    | {'tie_word_embeddings': True, 'head_dim': 16},
    'llama rope linear': stretched(rope_type='linear', factor=4.0),
    'llama rope dynamic': stretched(rope_type='dynamic', factor=2.0),
    'llama rope yarn': stretched(rope_type='yarn', factor=4.0, original_max_position_embeddings=8),
    'mistral': LLAMA
    | {'model_type': 'mistral', 'architectures': ['MistralForCausalLM'], 'sliding_window': 16, 'head_dim': 16},
    'qwen2': LLAMA
    | {
        'model_type': 'qwen2',
        'architectures': ['Qwen2ForCausalLM'],
        'use_sliding_window': True,
        'sliding_window': 16,
        'max_window_layers': 1,
        'tie_word_embeddings': True,
    },
    'qwen3': LLAMA | {'model_type': 'qwen3', 'architectures': ['Qwen3ForCausalLM'], 'head_dim': 16},
    'gemma': {name: value for name, value in GEMMA.items() if name != 'hidden_activation'}
    | {'model_type': 'gemma', 'architectures': ['GemmaForCausalLM'], 'num_key_value_heads': 1, 'hidden_act': 'gelu'},
    'gemma2': GEMMA2
    | {
        'model_type': 'gemma2',
        'architectures': ['Gemma2ForCausalLM'],
        'attn_logit_softcapping': 3.0,
        'final_logit_softcapping': 2.0,
    },
    'gemma2, narrow window': GEMMA2
    | {'model_type': 'gemma2', 'architectures': ['Gemma2ForCausalLM'], 'sliding_window': 8},
    'gemma3': GEMMA2
    | {
        'model_type': 'gemma3_text',
        'architectures': ['Gemma3ForCausalLM'],
        'sliding_window_pattern': 2,
        'rope_theta': 100_000.0,
        'rope_local_base_freq': 500.0,
        'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
    'phi3': PHI3 | {'partial_rotary_factor': 0.5, 'sliding_window': 20},
    'phi3 longrope': PHI3
    | {
        'original_max_position_embeddings': 32,
        'rope_scaling': {
            'type': 'longrope',
            'short_factor': [1.0, 1.1, 1.2, 1.3],
            'long_factor': [1.0, 2.0, 3.5, 6.0],
        },
    },
    'olmo2': LLAMA | {'model_type': 'olmo2', 'architectures': ['Olmo2ForCausalLM']},
    'gpt_neox': NEOX,
    'gpt_neox sequential, no biases of attention': NEOX
    | {'use_parallel_residual': False, 'attention_bias': False, 'hidden_act': 'gelu_fast', 'rotary_pct': 1.0},
}


def weights(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name, float32: every one is random; norms lie around 1, biases around 0."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    x = random.standard_normal(shape)
    if len(shape) > 1:
        x *= 0.08 if 'wte' in key or 'embed' in key else 0.7 / np.sqrt(shape[-1])
    else:
        x = 0.2 * x + (1 if 'norm' in key.lower() or '.ln_' in key else 0)
    return x.astype(np.float32)


def batch() -> dict[str, np.ndarray]:
    """tokens and segment_ids, int32 [B, T], rows of LENGTHS padded on the right."""
    tokens = np.random.RandomState(0).randint(0, VOCAB, (len(LENGTHS), max(LENGTHS)))
    real = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    return {'tokens': np.where(real, tokens, 0).astype(np.int32), 'segment_ids': real.astype(np.int32)}


def sampled(logits: np.ndarray) -> np.ndarray:
    """The part of logits [B, T, V] that the stored goldens keep: every 9th token of each row, every 12th entry."""
    rows = [np.asarray(logits)[row, :length][::9, ::12] for row, length in enumerate(LENGTHS)]
    return np.concatenate(rows)
