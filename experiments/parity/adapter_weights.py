"""The tensors of an adapter's file by their names: what the script and the tests both make. Needs numpy alone."""

import numpy as np

from experiments.parity import cases


def weights(key: str, shape: tuple[int, ...], base: dict[str, np.ndarray]) -> np.ndarray:
    """float32; `base` are the base's own tensors, of which PEFT writes the embedding beside a LoRA of it."""
    name = key.removeprefix('base_model.model.').replace('.base_layer', '')
    if name in base and '.base_layer' in key:
        return base[name]
    x = cases.weights(key, shape)
    if 'ia3' in key or 'magnitude' in key:
        return (1 + 0.3 * np.tanh(x)).astype(np.float32)
    if 'embedding_A' in key:
        return 0.5 * x
    return (0.5 if 'lora' in key else 1.0) * x
