"""GPT-2 (Radford et al., 2019): the published sizes, as updates of a config's `model` section."""

GPT2 = {
    'vocab_size': 50257,
    'max_len': 1024,
    'positions': 'learned',
    'norm': 'layernorm',
    'norm_eps': 1e-5,
    'activation': 'gelu',
    'bias': True,
    'tied': True,
}
SIZES = {
    '124M': GPT2 | {'num_layers': 12, 'width': 768, 'num_heads': 12},
    '355M': GPT2 | {'num_layers': 24, 'width': 1024, 'num_heads': 16},
    '774M': GPT2 | {'num_layers': 36, 'width': 1280, 'num_heads': 20},
    '1558M': GPT2 | {'num_layers': 48, 'width': 1600, 'num_heads': 25},
}
