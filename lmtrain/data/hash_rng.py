"""Random numbers as hashes of what they are for: equal in every version of NumPy, on every host and in any order."""

import hashlib
from typing import Any

import numpy as np

# The purpose of a random number is a part of its hash, after the seed if it depends on one.
SHUFFLE = 0  # the order of rows in an epoch
MASK_ORDER = 1  # which tokens of a row are masked
MASK_ACTION = 2  # whether a masked token becomes MASK, a random token or stays
MASK_TOKEN = 3  # the random token
BATCH_ORDER = 4  # the order of padded batches in an epoch
SHIFT = 5  # by how much the rows of one text are shifted in an epoch
SAMPLE = 6  # the rows of a limited evaluation
ROLLOUT = 7  # the draws of a rollout
MINIBATCH = 8  # the order of completions in an epoch over a rollout


def random_bits(*parts: Any) -> np.ndarray:
    """uint64 hash of the broadcast integers `parts`, in their order: splitmix64 (Steele, Lea, Flood 2014) chained.

    >>> hex(random_bits(0, SHUFFLE, [1])[0])
    '0x2f32a78496c67c60'
    """
    state = np.uint64(0)
    with np.errstate(over='ignore'):
        for part in parts:
            state = np.asarray(state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permutation(size: int, *parts: Any) -> np.ndarray:
    """[size] int64: a permutation of 0..size-1 that is a function of `parts`."""
    return np.argsort(random_bits(*parts, np.arange(size)), kind='stable')


def hash_unit(purpose: str, text: str) -> float:
    """A number in [0, 1), a hash of the text; independent for different purposes."""
    return int.from_bytes(hashlib.sha256(f'{purpose}:{text}'.encode()).digest()[:8], 'big') / 2**64
