"""Bits per byte of the validation text without a neural network: a unigram, a bigram, and xz."""

import lzma
from collections.abc import Sequence

import numpy as np

COUNT_LIMIT = 1 << 26  # tokens of the train split that are counted, at most
XZ_LIMIT = 1 << 26  # bytes of validation text that xz compresses, at most


def bits_per_byte(
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    text: bytes,
    vocab_size: int,
    begin_id: int | None = None,
) -> dict[str, float]:
    """{'unigram', 'bigram', 'xz'} of one validation text, see `bits_per_byte_of_texts`; {} if it is empty."""
    return bits_per_byte_of_texts(train, [(validation, text)], vocab_size, begin_id)[0]


def bits_per_byte_of_texts(
    train: Sequence[np.ndarray],
    validations: Sequence[tuple[Sequence[np.ndarray], bytes]],
    vocab_size: int,
    begin_id: int | None = None,
) -> list[dict[str, float]]:
    """{'unigram', 'bigram', 'xz'} of each validation text, (token files, text), with the counts of one train split.

    The token files are END d1 END ... END. Every token counts except the first END and `begin_id`, the token that
    begins documents if it is not END.

    unigram: counts of the train split, plus one for each of the V entries.
    bigram: interpolated Witten-Bell (Witten, Bell 1991; Chen, Goodman 1999, section 2.5):
      p(w | c) = (n(c, w) + t(c) p(w)) / (n(c) + t(c)), where t(c) is the number of different tokens after c.
    xz: `xz -9e` of the validation text alone, without the train split.
    """
    if not any(text for _, text in validations):
        return [{} for _ in validations]
    context, token = _bigrams(train, COUNT_LIMIT, begin_id)
    unigram = np.bincount(token, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs, counts = np.unique(context * vocab_size + token, return_counts=True)
    after = np.bincount(context, minlength=vocab_size)
    different = np.bincount(pairs // vocab_size, minlength=vocab_size)

    def costs(validation: Sequence[np.ndarray], text: bytes) -> dict[str, float]:
        if not text:
            return {}
        context, token = _bigrams(validation, None, begin_id)
        pair = context * vocab_size + token
        at = np.searchsorted(pairs, pair)
        at[at == len(pairs)] = 0
        count = np.where(pairs[at] == pair, counts[at], 0)
        seen = after[context] > 0
        total = np.where(seen, after[context] + different[context], 1)
        backoff = np.where(seen, different[context], 1)
        bigram = (count + backoff * unigram[token]) / total
        compressed = lzma.compress(text[:XZ_LIMIT], preset=9 | lzma.PRESET_EXTREME)
        return {
            'unigram': float(-np.log2(unigram[token]).sum() / len(text)),
            'bigram': float(-np.log2(bigram).sum() / len(text)),
            'xz': 8 * len(compressed) / min(len(text), XZ_LIMIT),
        }

    return [costs(validation, text) for validation, text in validations]


def _bigrams(files: Sequence[np.ndarray], limit: int | None, begin_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(context, token) int64 over all files, `limit` tokens of each."""
    cut = [np.asarray(file[:limit], np.int64) for file in files]
    context, token = np.concatenate([ids[:-1] for ids in cut]), np.concatenate([ids[1:] for ids in cut])
    counts = token != (-1 if begin_id is None else begin_id)
    return context[counts], token[counts]
