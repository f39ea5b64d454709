"""Masked language modelling: which tokens are hidden, and what stands in their place (Devlin et al., 2019)."""

import numpy as np

from lmtrain.data import hash_rng
from lmtrain.data.tokenizers.base import Tokenizer

HIDE, KIND, RANDOM = 1, 2, 3  # what a random number is for


def mask_tokens(batch: dict, tokenizer: Tokenizer, rate: float, whole_word: bool, seed: int, draw: np.ndarray) -> dict:
    """The batch with M = round(rate * T) positions of each row to be predicted.

    Of a row's n tokens of content (END and padding are never chosen), round(rate * n) are: 80 % become MASK, 10 % a
    random token of content, 10 % stay. What is chosen depends on `seed`, `draw` [B] (the row's place in the stream)
    and the position alone.

    whole_word: words are hidden as a whole, as many as fit. A word is a run of letters and digits across tokens.

    Returns the columns with tokens [B, T] corrupted, and select, targets int32 and loss_mask float32 as [B, M]; where a
    row has fewer than M chosen, the rest of its M has loss_mask 0.
    """
    tokens = batch['tokens']
    size, seq_len = tokens.shape
    width = max(1, round(rate * seq_len))
    content = (batch['segment_ids'] > 0) & np.isin(tokens, tokenizer.content_ids)
    wanted = np.minimum(np.maximum(np.round(rate * content.sum(1)), content.any(1)), width).astype(np.int64)
    place = np.arange(seq_len)
    unit = _words(tokens, batch, tokenizer) if whole_word else np.broadcast_to(place, tokens.shape)
    order_key = hash_rng.random_bits(seed, HIDE, draw[:, None], unit)
    order_key = np.where(content, order_key >> np.uint64(1), np.uint64(1 << 63))  # content first
    order = np.argsort(order_key, axis=1, kind='stable')  # the tokens of one word stay together
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(place, order.shape), axis=1)
    chosen = content & (rank < wanted[:, None])
    if whole_word:
        chosen &= _whole(unit, rank, content, wanted)
    select = np.argsort(~chosen, axis=1, kind='stable')[:, :width]  # the chosen positions, ascending, then others
    taken = np.take_along_axis(chosen, select, axis=1)
    targets = np.where(taken, np.take_along_axis(tokens, select, axis=1), 0)
    at = (seed, KIND, draw[:, None], place)
    kind = hash_rng.random_bits(*at) % np.uint64(10)
    other = tokenizer.content_ids[hash_rng.random_bits(seed, RANDOM, *at[2:]) % np.uint64(len(tokenizer.content_ids))]
    hidden = np.where(kind < 8, np.int32(tokenizer.mask_id), np.where(kind == 8, other, tokens))
    spelled = {'bytes': np.take_along_axis(batch['bytes'], select, axis=1)} if 'bytes' in batch else {}
    return (
        batch
        | spelled
        | {
            'tokens': np.where(chosen, hidden, tokens).astype(np.int32),
            'select': select.astype(np.int32),
            'targets': targets.astype(np.int32),
            'loss_mask': taken.astype(np.float32),
        }
    )


def _words(tokens: np.ndarray, batch: dict, tokenizer: Tokenizer) -> np.ndarray:
    """[B, T] the position at which each token's word begins."""
    starts, ends = tokenizer.word_edges
    joined = np.zeros(tokens.shape, bool)
    joined[:, 1:] = starts[tokens[:, 1:]] & ends[tokens[:, :-1]]
    joined[:, 1:] &= batch['segment_ids'][:, 1:] == batch['segment_ids'][:, :-1]
    return np.maximum.accumulate(np.where(joined, 0, np.arange(tokens.shape[1])), axis=1)


def _whole(unit: np.ndarray, rank: np.ndarray, content: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[B, T] false for the tokens of a word that does not fit whole, unless it is the only one."""
    last = np.zeros_like(rank)  # [B, word] the highest rank among the word's tokens
    rows = np.broadcast_to(np.arange(len(rank))[:, None], rank.shape)
    np.maximum.at(last, (rows, unit), np.where(content, rank, 0))
    first = np.full_like(rank, rank.shape[1])
    np.minimum.at(first, (rows, unit), np.where(content, rank, rank.shape[1]))
    return (np.take_along_axis(last, unit, axis=1) < wanted[:, None]) | (np.take_along_axis(first, unit, axis=1) == 0)
