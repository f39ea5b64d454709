"""Masked language modelling: selects tokens and replaces them (Devlin et al., 2019)."""

import numpy as np

from lmtrain.data import hash_rng
from lmtrain.data.hash_rng import MASK_ACTION, MASK_ORDER, MASK_TOKEN
from lmtrain.data.tokenizers.base import Tokenizer


def mask_tokens(batch: dict, tokenizer: Tokenizer, rate: float, whole_word: bool, seed: int, index: np.ndarray) -> dict:
    """The batch with M = max(1, round(rate * T)) positions of each row to be predicted.

    Of a row's n > 0 content tokens (END and padding are never masked), max(1, round(rate * n)) are selected, at most M:
    80 % become MASK, 10 % a random content token, 10 % stay. The selection is a function of `seed`, `index` and the
    position.

    Args:
      batch: columns tokens and segment_ids [B, T], bytes [B, T] if present.
      whole_word: masks whole words, as many as fit. A word is a run of letters and digits across tokens.
      index: [B] the place of each row in the stream.

    Returns the columns with masked tokens [B, T], and select and targets int32 and loss_mask float32, all [B, M]. If a
    row has fewer than M selected tokens, the loss_mask of the rest is 0.
    """
    tokens = batch['tokens']
    size, seq_len = tokens.shape
    width = max(1, round(rate * seq_len))
    content = (batch['segment_ids'] > 0) & np.isin(tokens, tokenizer.content_ids)
    count = np.minimum(np.maximum(np.round(rate * content.sum(1)), content.any(1)), width).astype(np.int64)
    position = np.arange(seq_len)
    unit = _word_starts(tokens, batch, tokenizer) if whole_word else np.broadcast_to(position, tokens.shape)
    order_key = hash_rng.random_bits(seed, MASK_ORDER, index[:, None], unit)
    order_key = np.where(content, order_key >> np.uint64(1), np.uint64(1 << 63))  # content first
    order = np.argsort(order_key, axis=1, kind='stable')  # the tokens of one word stay together
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(position, order.shape), axis=1)
    selected = content & (rank < count[:, None])
    if whole_word:
        selected &= _word_fits(unit, rank, content, count)
    select = np.argsort(~selected, axis=1, kind='stable')[:, :width]  # the selected positions, ascending, then others
    counts = np.take_along_axis(selected, select, axis=1)
    targets = np.where(counts, np.take_along_axis(tokens, select, axis=1), 0)
    masked = np.where(selected, _replacements(tokens, tokenizer, seed, index), tokens)
    columns = {
        'tokens': masked.astype(np.int32),
        'select': select.astype(np.int32),
        'targets': targets.astype(np.int32),
        'loss_mask': counts.astype(np.float32),
    }
    if 'bytes' in batch:
        columns['bytes'] = np.take_along_axis(batch['bytes'], select, axis=1)
    return batch | columns


def _replacements(tokens: np.ndarray, tokenizer: Tokenizer, seed: int, index: np.ndarray) -> np.ndarray:
    """[B, T] what each token becomes if it is selected: MASK, a random content token, or itself."""
    place = index[:, None], np.arange(tokens.shape[1])
    action = hash_rng.random_bits(seed, MASK_ACTION, *place) % np.uint64(10)
    content_ids = tokenizer.content_ids
    random = content_ids[hash_rng.random_bits(seed, MASK_TOKEN, *place) % np.uint64(len(content_ids))]
    return np.where(action < 8, np.int32(tokenizer.mask_id), np.where(action == 8, random, tokens))


def _word_starts(tokens: np.ndarray, batch: dict, tokenizer: Tokenizer) -> np.ndarray:
    """[B, T] the position at which the word of each token starts."""
    starts, ends = tokenizer.word_edges
    joined = np.zeros(tokens.shape, bool)
    joined[:, 1:] = starts[tokens[:, 1:]] & ends[tokens[:, :-1]]
    joined[:, 1:] &= batch['segment_ids'][:, 1:] == batch['segment_ids'][:, :-1]
    return np.maximum.accumulate(np.where(joined, 0, np.arange(tokens.shape[1])), axis=1)


def _word_fits(unit: np.ndarray, rank: np.ndarray, content: np.ndarray, count: np.ndarray) -> np.ndarray:
    """[B, T] whether all tokens of the word are among the first `count` [B] by rank, or it is the first word."""
    last = np.zeros_like(rank)  # [B, word] the highest rank of the word's tokens
    rows = np.broadcast_to(np.arange(len(rank))[:, None], rank.shape)
    np.maximum.at(last, (rows, unit), np.where(content, rank, 0))
    first = np.full_like(rank, rank.shape[1])
    np.minimum.at(first, (rows, unit), np.where(content, rank, rank.shape[1]))
    return (np.take_along_axis(last, unit, axis=1) < count[:, None]) | (np.take_along_axis(first, unit, axis=1) == 0)
