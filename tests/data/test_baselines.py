import lzma
import math

import numpy as np
import pytest

from lmtrain.data.baselines import bits_per_byte


def naive_bigram(train, validation, size, text):
    """Witten-Bell by its definition, one token at a time."""
    counts = {}
    for context, token in zip(train[:-1], train[1:], strict=True):
        counts.setdefault(context, {})
        counts[context][token] = counts[context].get(token, 0) + 1
    unigram = {token: (list(train[1:]).count(token) + 1) / (len(train) - 1 + size) for token in range(size)}
    bits = 0.0
    for context, token in zip(validation[:-1], validation[1:], strict=True):
        seen = counts.get(context, {})
        total, different = sum(seen.values()), len(seen)
        p = (seen.get(token, 0) + different * unigram[token]) / (total + different) if seen else unigram[token]
        bits -= math.log2(p)
    return bits / len(text), -sum(math.log2(unigram[token]) for token in validation[1:]) / len(text)


def test_unigram_and_bigram_match_their_formulas():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 9, 400).astype(np.uint16) ** 2 % 11
    validation = rng.integers(0, 12, 60).astype(np.uint16)  # 11 is not in the train split
    text = b'some text of sixty bytes or so, which stands for these tokens'
    got = bits_per_byte([train], [validation], text, 12)
    bigram, unigram = naive_bigram(train.tolist(), validation.tolist(), 12, text)
    assert got['bigram'] == pytest.approx(bigram) and got['unigram'] == pytest.approx(unigram)
    assert got['xz'] == 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def test_xz_uses_highest_level(poem):
    text = ' '.join(poem(number) for number in range(200)).encode()
    extreme, usual = (8 * len(lzma.compress(text, preset=n)) / len(text) for n in (9 | lzma.PRESET_EXTREME, 6))
    ids = np.array([0, 1, 0])
    assert bits_per_byte([ids], [ids], text, 2)['xz'] == extreme != usual


def test_bigram_probabilities_sum_to_one():
    train = np.array([0, 1, 2, 1, 0, 0, 2, 1], np.uint16)
    for context in (0, 3):  # in the train split, and not
        files = [[np.array([context, token], np.uint16)] for token in range(4)]
        assert sum(2 ** -bits_per_byte([train], file, b'x', 4)['bigram'] for file in files) == pytest.approx(1)


def test_bigram_costs_less_than_unigram(prepare, poem):
    corpus = prepare([f'{number}: {poem(number)}' for number in range(800)])
    costs = corpus.baselines()
    assert 0 < costs['bigram'] < costs['unigram'] < 8.1
    assert corpus.baselines() == costs


def test_begin_token_is_not_counted():
    shared = [np.array([2, 0, 1, 2, 1, 2])]
    own = [np.array([3, 0, 1, 2, 3, 1, 2])]
    one, other = (bits_per_byte(ids, ids, b'abc', 4, begin) for ids, begin in ((shared, None), (own, 3)))
    assert one['unigram'] == other['unigram']
