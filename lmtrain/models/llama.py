"""LLaMA 3 (arXiv 2407.21783): published sizes and a ladder of small ones, as updates of a config's `model` section.

The 1B and 3B are LLaMA 3.2's; their stretching of rotary angles beyond 8,192 tokens is left out.
"""

LLAMA = {
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

    Vocabulary and length stay the config's. The one dial is nanochat's (github.com/karpathy/nanochat).
    """
    width = 64 * depth
    mlp_dim = 64 * round(width * 8 / 3 / 64)  # three matrices that weigh as much as the usual two of 4 D
    return LLAMA | {'num_layers': depth, 'width': width, 'num_heads': depth, 'mlp_dim': mlp_dim, 'tied': True}


# Named by the parameters in the layers.
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
