"""Tiny models in which the fields of config.json are not their defaults. Needs numpy alone.

With the cases of cases.py and heads.py, every field that a family reads is somewhere other than its default; the test
of the goldens checks it. Norms have an eps that changes the output, and angles a base that 80 positions can tell apart.
"""

from experiments.parity import cases
from experiments.parity.heads import ENCODER

EPS, THETA = 0.05, 300.0
ROTARY = {'rms_norm_eps': EPS, 'rope_theta': THETA, 'hidden_act': 'gelu_pytorch_tanh', 'num_key_value_heads': 1}
LLAMA = cases.LLAMA | ROTARY
TWICE = {'rope_type': 'linear', 'factor': 2.0}


def decoder(kind: str, architecture: str, base: dict, **changes) -> dict:
    config = base | {'model_type': kind, 'architectures': [architecture]} | changes
    return {name: value for name, value in config.items() if value is not None}


DECODERS = {
    'gpt2 fields': decoder('gpt2', 'GPT2LMHeadModel', cases.GPT2, layer_norm_epsilon=EPS, activation_function='gelu'),
    'llama fields': decoder('llama', 'LlamaForCausalLM', LLAMA, head_dim=16, tie_word_embeddings=True),
    'llama yarn fields': decoder(
        *('llama', 'LlamaForCausalLM', LLAMA),
        max_position_embeddings=32,
        rope_scaling={
            **{'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 8, 'finetuned': True},
            **{'beta_fast': 8.0, 'beta_slow': 2.0, 'attention_factor': 1.3},
        },
    ),
    'llama yarn mscale': decoder(
        *('llama', 'LlamaForCausalLM', LLAMA),
        max_position_embeddings=32,
        rope_scaling={
            **{'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 8},
            **{'mscale': 1.5, 'mscale_all_dim': 0.5, 'truncate': False},
        },
    ),
    'mistral fields': decoder(
        'mistral',
        'MistralForCausalLM',
        LLAMA,
        head_dim=12,
        sliding_window=5,
        tie_word_embeddings=True,
        rope_scaling=TWICE,
    ),
    'qwen2 fields': decoder(
        *('qwen2', 'Qwen2ForCausalLM', LLAMA),
        use_sliding_window=True,
        sliding_window=5,
        layer_types=['sliding_attention', 'full_attention'],
        head_dim=None,
    ),
    'qwen2 fields, no window': decoder(
        'qwen2',
        'Qwen2ForCausalLM',
        LLAMA,
        use_sliding_window=False,
        sliding_window=5,
        max_window_layers=0,
        rope_scaling=TWICE,
        head_dim=12,
    ),
    'qwen3 fields': decoder(
        *('qwen3', 'Qwen3ForCausalLM', LLAMA),
        attention_bias=True,
        head_dim=12,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
        layer_types=['full_attention', 'sliding_attention'],
        rope_scaling=TWICE,
    ),
    'gemma fields': decoder(
        *('gemma', 'GemmaForCausalLM', LLAMA),
        hidden_act=None,
        head_dim=12,
        attention_bias=True,
        tie_word_embeddings=False,
        rope_scaling=TWICE,
    ),
    'gemma2 fields': decoder(
        *('gemma2', 'Gemma2ForCausalLM', LLAMA),
        hidden_act=None,
        head_dim=12,
        attention_bias=True,
        query_pre_attn_scalar=5,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0,
        sliding_window=5,
        layer_types=['full_attention', 'sliding_attention'],
        tie_word_embeddings=False,
        rope_scaling=TWICE,
    ),
    'gemma3 fields': decoder(
        *('gemma3_text', 'Gemma3ForCausalLM', LLAMA),
        hidden_act=None,
        head_dim=12,
        attention_bias=True,
        query_pre_attn_scalar=20,
        final_logit_softcapping=3.0,
        num_hidden_layers=3,
        sliding_window=5,
        layer_types=['full_attention', 'sliding_attention', 'sliding_attention'],
        rope_local_base_freq=40.0,
        tie_word_embeddings=False,
    ),
    'phi3 fields': decoder(
        *('phi3', 'Phi3ForCausalLM', LLAMA),
        partial_rotary_factor=0.5,
        sliding_window=5,
        tie_word_embeddings=True,
        original_max_position_embeddings=128,
        pad_token_id=0,
        head_dim=12,
    ),
    'olmo2 fields': decoder(
        'olmo2',
        'Olmo2ForCausalLM',
        LLAMA,
        attention_bias=True,
        tie_word_embeddings=True,
        head_dim=12,
        rope_scaling=TWICE,
    ),
    'gpt_neox fields': decoder(
        *('gpt_neox', 'GPTNeoXForCausalLM', cases.NEOX),
        layer_norm_eps=EPS,
        rotary_emb_base=300,
        hidden_act='relu',
        tie_word_embeddings=True,
        rope_scaling=TWICE,
    ),
}
ENCODERS = {
    'bert fields, lm': ENCODER
    | {'model_type': 'bert', 'architectures': ['BertForMaskedLM'], 'hidden_act': 'relu', 'layer_norm_eps': EPS}
    | {'type_vocab_size': 3, 'tie_word_embeddings': False},
    'roberta fields, lm': ENCODER
    | {'model_type': 'roberta', 'architectures': ['RobertaForMaskedLM'], 'layer_norm_eps': EPS}
    | {'pad_token_id': 0, 'type_vocab_size': 1, 'tie_word_embeddings': False},
    'modernbert fields, lm': ENCODER
    | {'model_type': 'modernbert', 'architectures': ['ModernBertForMaskedLM'], 'num_hidden_layers': 5}
    | {'norm_eps': EPS, 'global_attn_every_n_layers': 2, 'local_attention': 10, 'tie_word_embeddings': False}
    | {'global_rope_theta': THETA, 'local_rope_theta': 40.0}
    | {'bos_token_id': 2, 'eos_token_id': 3, 'cls_token_id': 2, 'sep_token_id': 3},
}
