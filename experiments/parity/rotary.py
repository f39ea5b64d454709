"""Writes the rotary frequencies of transformers for every way of stretching (tests/models/goldens_rotary.json).

    python -m experiments.parity.rotary

A golden holds the settings, the length of the row, the frequency of each pair and the factor of cos and sin.
"""

import json

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from experiments.record import ROOT

DIM, THETA, CONTEXT = 16, 500.0, 32
LONG = {
    'rope_type': 'longrope',
    'factor': 4.0,
    'original_max_position_embeddings': CONTEXT,
    'short_factor': [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    'long_factor': [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
}
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': CONTEXT}
DYNAMIC = {'rope_type': 'dynamic', 'factor': 2.0, 'original_max_position_embeddings': CONTEXT}
CASES = [
    ({'rope_type': 'linear', 'factor': 4.0}, CONTEXT),
    (DYNAMIC, 20),
    (DYNAMIC, CONTEXT + 1),
    (DYNAMIC, 100),
    (
        {
            'rope_type': 'llama3',
            'factor': 8.0,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': CONTEXT,
        },
        CONTEXT,
    ),
    (YARN, CONTEXT),
    (YARN | {'beta_fast': 16.0, 'beta_slow': 2.0, 'mscale': 1.2, 'mscale_all_dim': 0.7}, CONTEXT),
    (YARN | {'attention_factor': 0.8, 'truncate': False}, CONTEXT),
    (LONG, CONTEXT),
    (LONG, CONTEXT + 1),
    (LONG | {'attention_factor': 1.3}, CONTEXT + 1),
]


def golden(scaling: dict, length: int) -> dict:
    config = LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters=scaling | {'rope_theta': THETA},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling['rope_type']](config, 'cpu', seq_len=length)
    return {'scaling': scaling, 'length': length, 'frequencies': frequencies.tolist(), 'factor': factor}


def main():
    goldens = {'dim': DIM, 'theta': THETA, 'cases': [golden(*case) for case in CASES]}
    text = json.dumps(goldens, separators=(',', ':')).replace('},{', '},\n{') + '\n'
    (ROOT / 'tests' / 'models' / 'goldens_rotary.json').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
