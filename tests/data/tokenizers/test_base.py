import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.tokenizers.base import END, JOINED, Bytes, Chars, Tokenizer, Whitespace, _bytes_between
from lmtrain.data.tokenizers.load import learn, load_tokenizer

texts = st.text(st.characters(exclude_categories=['Cs']), max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.booleans())
def test_decode_inverts_encode(documents, mask):
    for kind in ('bytes', 'chars', 'whitespace'):
        tokenizer = learn(kind, documents, 0, mask)
        for text in documents:
            ids = tokenizer.encode(text)
            expected = ' '.join(text.split()) if kind == 'whitespace' else text
            assert tokenizer.decode(ids) == expected
            assert tokenizer.decode_bytes(ids) == expected.encode()
            assert not set(ids) & {tokenizer.end_id, tokenizer.mask_id}
            feed = tokenizer.streamer()
            assert ''.join(feed([token]) for token in ids) == expected
            ((again, sizes),) = tokenizer.encode_with_bytes([text])
            assert again.tolist() == ids and sizes.sum() == len(text.encode()) and (sizes >= 0).all()
            if kind != 'whitespace':
                assert [len(piece) for piece in map(tokenizer.pieces.__getitem__, ids)] + [0] == sizes.tolist()


def test_long_text_is_decoded_in_little_memory():
    """Without slices the join alone has 90 bytes for each token, which here is a byte."""
    text = ' the cat é' * 20_000
    tokenizer = Bytes()
    tracemalloc.start()
    ((ids, sizes),) = tokenizer.encode_with_bytes([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(text) and sizes.sum() == len(text.encode())
    assert tokenizer.decode_bytes(ids) == tokenizer.decode_bytes(ids.tolist()) == text.encode()
    assert tokenizer.decode_bytes(iter(ids[: JOINED + 1].tolist())) == text.encode()[: JOINED + 1]


def test_streamer_yields_whole_characters():
    tokenizer = Bytes()
    feed = tokenizer.streamer()
    assert [feed([token]) for token in tokenizer.encode('é🦙.')] == ['', 'é', '', '', '', '🦙', '.']


def test_special_tokens_have_names_but_no_bytes():
    tokenizer = Bytes(mask=True)
    assert (tokenizer.end_id, tokenizer.mask_id, tokenizer.vocab_size) == (256, 257, 258)
    assert tokenizer.decode([256, 65]) == END + 'A'
    assert tokenizer.decode_bytes([256, 65]) == b'A'
    assert tokenizer.token_bytes[[256, 257, 65]].tolist() == [0, 0, 1]
    assert tokenizer.content_ids.tolist() == list(range(256))
    assert Bytes().mask_id is None


def test_literal_end_token_is_content():
    for tokenizer in (Bytes(), learn('chars', [END], 0, False), learn('whitespace', [END + ' b'], 0, False)):
        ids = tokenizer.encode(END)
        assert tokenizer.end_id not in ids
        assert tokenizer.decode_bytes(ids) == END.encode()


def test_unknown_symbol_is_named():
    with pytest.raises(ValueError, match="'z' is not among the 2 symbols of the 'chars' tokenizer"):
        learn('chars', ['abba'], 0, False).encode('abz')
    with pytest.raises(ValueError, match="'Qh5'"):
        learn('whitespace', ['e4 e5'], 0, False).encode('e4 Qh5')


@pytest.mark.parametrize('kind', ['bytes', 'chars', 'whitespace', 'bpe'])
@pytest.mark.parametrize('mask', [False, True])
def test_save_and_load(kind, mask, tmp_path):
    tokenizer = learn(kind, ['the cat sat on the mat', 'so it did'], 300, mask)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hash == tokenizer.hash and again.kind == kind
    assert again.encode('the cat sat') == tokenizer.encode('the cat sat')
    assert (again.end_id, again.mask_id, again.vocab_size) == (
        tokenizer.end_id,
        tokenizer.mask_id,
        tokenizer.vocab_size,
    )
    np.testing.assert_array_equal(again.token_bytes, tokenizer.token_bytes)


def test_damaged_tokenizer_is_rejected(tmp_path):
    learn('chars', ['abc'], 0, False).save(tmp_path)
    (tmp_path / 'symbols.json').write_text(json.dumps(['a', 'b', 'd']))
    with pytest.raises(ValueError, match='damaged'):
        load_tokenizer(tmp_path)


def test_hash_depends_on_content():
    tokenizers = [Bytes(), Bytes(mask=True), Chars(b'["a"]'), Chars(b'["b"]'), Whitespace(b'["a"]')]
    assert len({tokenizer.hash for tokenizer in tokenizers}) == len(tokenizers)


def test_bytes_between_decreasing_or_short_offsets():
    assert _bytes_between('aébcd', np.array([3, 2, 4])).tolist() == [4, 0, 1, 1]
    tokenizer = Bytes()
    assert tokenizer.bytes_behind('é', [0xC3, 0xA9]) == [1, 1] and tokenizer.bytes_behind('abc', [97]) == [3]
    assert tokenizer.bytes_behind('a', [97, 98, 99]) == [1, 0, 0] and tokenizer.bytes_behind('', []) == []


def test_own_mask_token_has_priority():
    pieces, specials = [b''] * 4, {0: '[MASK]', 1: '<mask>', 2: '<|mask|>', 3: END}
    assert Tokenizer(pieces, specials, 3, mask=True).mask_id == 2
    assert Tokenizer(pieces, {0: '[MASK]', 1: '<mask>', 3: END}, 3, mask=True).mask_id == 1


def test_encode_prompt_starts_with_begin_token():
    tokenizer = Bytes()
    tokenizer.begin_id = 7
    assert tokenizer.encode_prompt('ab') == [7, 97, 98] and tokenizer.encode_prompt('') == [7]


def test_offsets_are_in_characters():
    ((ids, offsets),) = Bytes().encode_with_offsets(['é日a'])
    assert bytes(ids.tolist()) == 'é日a'.encode()
    assert offsets.tolist() == [[0, 1], [0, 1], [1, 2], [1, 2], [1, 2], [2, 3]]
