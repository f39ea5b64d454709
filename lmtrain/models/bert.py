"""BERT (arXiv 1810.04805) and crammed BERT (arXiv 2212.14034): sizes, as updates of a config's `model` section."""

ENCODER = {'norm': 'layernorm', 'norm_eps': 1e-12, 'embed_norm': True, 'tied': True, 'causal': False}
# The embedding of sentence types is left out: it is a constant where one sentence is given, and part of the positions.
BERT = ENCODER | {
    'vocab_size': 30_522,
    'max_len': 512,
    'positions': 'learned',
    'norm_place': 'post',
    'activation': 'gelu_exact',
    'bias': True,
    'mlm_head': True,
}
SIZES = {
    'base': BERT | {'num_layers': 12, 'width': 768, 'num_heads': 12},
    'large': BERT | {'num_layers': 24, 'width': 1024, 'num_heads': 16},
    'crammed': ENCODER
    | {
        'vocab_size': 32_768,
        'max_len': 128,
        'num_layers': 16,
        'width': 768,
        'num_heads': 12,
        'mlp_dim': 1536,
        'positions': 'sinusoidal',
        'norm_place': 'pre',
        'activation': 'geglu',
        'bias': False,
        'mlm_head': False,
    },
}
