import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.masking import mask_tokens
from lmtrain.data.pack import gather, pack
from lmtrain.data.tokenizers.base import Bytes

TOKENIZER = Bytes(mask=True)


def rows_of(texts, seq_len):
    tokens = [TOKENIZER.end_id]
    begins = [0]
    for text in texts:
        tokens += [*text.encode(), TOKENIZER.end_id]
        begins.append(len(tokens) - 1)
    rows = pack(np.array(begins), seq_len, True)
    return gather(np.array(tokens), rows, np.arange(len(rows.first) - 1), seq_len)


PIECES = ['a', 'word', 'longerword', ' ', '(', 'é', '\n']
words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map(''.join)


@settings(max_examples=150, deadline=None)
@given(st.lists(words, min_size=1, max_size=5), st.integers(4, 40), st.sampled_from([0.15, 0.25]), st.booleans())
def test_only_content_is_masked_and_targets_restore_it(texts, seq_len, rate, whole_word):
    plain = rows_of(texts, seq_len)
    draw = np.arange(len(plain['tokens'])) + 100
    batch = mask_tokens(plain, TOKENIZER, rate, whole_word, 3, draw)
    width = max(1, round(rate * seq_len))
    assert batch['select'].shape == batch['targets'].shape == batch['loss_mask'].shape == (len(draw), width)
    again = mask_tokens(plain, TOKENIZER, rate, whole_word, 3, draw)
    alone = mask_tokens({name: values[:1] for name, values in plain.items()}, TOKENIZER, rate, whole_word, 3, draw[:1])
    for name in batch:
        np.testing.assert_array_equal(batch[name], again[name])
        np.testing.assert_array_equal(batch[name][:1], alone[name])  # rows are independent
    for row in range(len(draw)):
        chosen = batch['select'][row][batch['loss_mask'][row] == 1]
        content = (plain['segment_ids'][row] > 0) & (plain['tokens'][row] != TOKENIZER.end_id)
        assert len(set(chosen)) == len(chosen) and content[chosen].all()
        expected = min(width, max(round(rate * content.sum()), 1)) if content.any() else 0
        assert len(chosen) <= expected and (len(chosen) > 0) == (expected > 0)
        assert whole_word or len(chosen) == expected
        np.testing.assert_array_equal(batch['targets'][row][: len(chosen)], plain['tokens'][row][chosen])
        untouched = np.setdiff1d(np.arange(seq_len), chosen)
        np.testing.assert_array_equal(batch['tokens'][row][untouched], plain['tokens'][row][untouched])
        assert TOKENIZER.end_id not in batch['tokens'][row][chosen]


def test_mask_random_keep_fractions_are_80_10_10():
    plain = rows_of(['abcdefgh' * 16] * 400, 128)
    batch = mask_tokens(plain, TOKENIZER, 0.25, False, 0, np.arange(len(plain['tokens'])))
    assert batch['loss_mask'].shape[1] == 32
    shown = np.take_along_axis(batch['tokens'], batch['select'], axis=1)[batch['loss_mask'] == 1]
    target = batch['targets'][batch['loss_mask'] == 1]
    assert abs((shown == TOKENIZER.mask_id).mean() - 0.8) < 0.02
    assert abs((shown == target).mean() - 0.1) < 0.02
    random = shown[(shown != TOKENIZER.mask_id) & (shown != target)]
    assert len(set(random.tolist())) > 200 and random.max() < 256
    places = np.bincount(batch['select'][batch['loss_mask'] == 1], minlength=128)
    assert places[1:].min() > 0.5 * places[1:].mean()  # every position is masked sometimes


def test_masking_depends_on_seed_and_stream_index():
    plain = rows_of(['abcdefgh' * 16] * 2, 128)
    draw = np.arange(len(plain['tokens']))
    selects = [
        mask_tokens(plain, TOKENIZER, 0.25, False, seed, at)['select']
        for seed, at in ((0, draw), (1, draw), (0, draw + 9))
    ]
    assert not (selects[0] == selects[1]).all() and not (selects[0] == selects[2]).all()


def test_whole_word_masking():
    plain = rows_of(['the quick brown fox jumps over (lazy) dogs ' * 6] * 20, 64)
    batch = mask_tokens(plain, TOKENIZER, 0.25, True, 0, np.arange(len(plain['tokens'])))
    counts = batch['loss_mask'].sum(1)
    assert counts.mean() > 0.75 * 16
    for row, tokens in enumerate(plain['tokens']):
        hidden = np.zeros(64, bool)
        hidden[batch['select'][row][batch['loss_mask'][row] == 1]] = True
        letters = np.array([token < 256 and chr(token).isalnum() for token in tokens])
        inside = letters[1:] & letters[:-1]
        assert (hidden[1:][inside] == hidden[:-1][inside]).all()


def test_words_do_not_cross_documents():
    """In a row, the end of one document may be followed by a piece of another that begins inside a word."""
    tokens, segments = np.frombuffer(b'abcdefgh', np.uint8).astype(np.int32), np.repeat(np.int32([1, 2]), 4)
    plain = {'tokens': np.tile(tokens, (20, 1)), 'segment_ids': np.tile(segments, (20, 1))}
    batch = mask_tokens(plain, TOKENIZER, 0.5, True, 0, np.arange(20))
    assert set(map(tuple, batch['select'].tolist())) == {(0, 1, 2, 3), (4, 5, 6, 7)} and batch['loss_mask'].all()


@pytest.mark.parametrize('rate', [0.15, 0.25])
def test_number_of_masked_tokens_follows_rate(rate):
    plain = rows_of(['x' * 5000], 100)
    batch = mask_tokens(plain, TOKENIZER, rate, False, 0, np.arange(len(plain['tokens'])))
    assert (batch['loss_mask'][1:-1].sum(1) == round(rate * 100)).all()
