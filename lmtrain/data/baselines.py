"""What the validation text costs without a neural network: a unigram, a bigram, and xz. All in bits per byte."""

import lzma
from collections.abc import Sequence

import numpy as np

COUNTED = 1 << 26  # tokens of the train split that the counts are made of, at most
PRESSED = 1 << 26  # bytes of validation text that xz is given, at most


def bits_per_byte(
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    text: bytes,
    vocab_size: int,
    begin_id: int | None = None,
) -> dict[str, float]:
    """{'unigram', 'bigram', 'xz'} of one validation text, see `of_each`; {} if it is empty."""
    return of_each(train, [(validation, text)], vocab_size, begin_id)[0]


def of_each(
    train: Sequence[np.ndarray],
    validations: Sequence[tuple[Sequence[np.ndarray], bytes]],
    vocab_size: int,
    begin_id: int | None = None,
) -> list[dict[str, float]]:
    """{'unigram', 'bigram', 'xz'} of each validation text, (token files, text), under the counts of one train split.

    The token files hold END d1 END ... END; every token but the first END is paid for, and none that is `begin_id`,
    which documents begin with if it is not END.

    unigram: counts of the train split, one added to each of the V entries.
    bigram: interpolated Witten-Bell (Witten, Bell 1991; Chen, Goodman 1999, section 2.5):
      p(w | c) = (n(c, w) + t(c) p(w)) / (n(c) + t(c)), t(c) the number of different tokens seen after c.
    xz: `xz -9e` of the validation text alone, which has seen no train split.
    """
    if not any(text for _, text in validations):
        return [{} for _ in validations]
    context, token = _pairs(train, COUNTED, begin_id)
    unigram = np.bincount(token, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs, counts = np.unique(context * vocab_size + token, return_counts=True)
    after = np.bincount(context, minlength=vocab_size)
    different = np.bincount(pairs // vocab_size, minlength=vocab_size)

    def costs(validation: Sequence[np.ndarray], text: bytes) -> dict[str, float]:
        if not text:
            return {}
        context, token = _pairs(validation, None, begin_id)
        asked = context * vocab_size + token
        at = np.searchsorted(pairs, asked)
        at[at == len(pairs)] = 0
        seen = np.where(pairs[at] == asked, counts[at], 0)
        known = after[context] > 0
        whole = np.where(known, after[context] + different[context], 1)
        share = np.where(known, different[context], 1)
        bigram = (seen + share * unigram[token]) / whole
        pressed = lzma.compress(text[:PRESSED], preset=9 | lzma.PRESET_EXTREME)
        return {
            'unigram': float(-np.log2(unigram[token]).sum() / len(text)),
            'bigram': float(-np.log2(bigram).sum() / len(text)),
            'xz': 8 * len(pressed) / min(len(text), PRESSED),
        }

    return [costs(validation, text) for validation, text in validations]


def _pairs(files: Sequence[np.ndarray], limit: int | None, begin_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(context, token) int64 over all files, `limit` tokens of each."""
    cut = [np.asarray(file[:limit], np.int64) for file in files]
    context, token = np.concatenate([ids[:-1] for ids in cut]), np.concatenate([ids[1:] for ids in cut])
    paid = token != (-1 if begin_id is None else begin_id)
    return context[paid], token[paid]
