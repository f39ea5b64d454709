"""Random numbers that are a pure function of what they are for, equal in every version of NumPy and on every host."""

import numpy as np


def random_bits(*parts) -> np.ndarray:
    """uint64 hash of the broadcast integers `parts`, in their order: splitmix64 (Steele, Lea, Flood 2014) chained."""
    state = np.uint64(0)
    with np.errstate(over='ignore'):
        for part in parts:
            state = np.asarray(state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permutation(size: int, *parts) -> np.ndarray:
    """[size] int64: 0..size-1 in an order that `parts` decide."""
    return np.argsort(random_bits(*parts, np.arange(size)), kind='stable')
