import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.subword import Bpe, HuggingFace, cut, learn_bpe
from lmtrain.data.tokenizer import load_tokenizer, open_tokenizer

TEXT = ['the cat sat on the mat\n    and then (it) sat again\n' * 5, 'def sat(cat):\n    return cat.the(mat)\n' * 5]
MARKS = ['<|endoftext|>', '<|mask|>', '[MASK]', '[SEP]', '[CLS]', '<s>', '</s>', '<pad>', '<|im_start|>']
texts = st.lists(
    st.text(st.characters(exclude_categories=['Cs']), max_size=12) | st.sampled_from(MARKS), max_size=6
).map(''.join)

bpe = Bpe(learn_bpe(TEXT, 320))
SIZE = bpe.vocab_size - 1  # of its tokenizer.json


@settings(max_examples=300, deadline=None)
@given(texts)
def test_bpe_gives_back_any_text_and_no_special(text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and bpe.decode_bytes(ids) == text.encode()
    assert bpe.token_bytes[ids].sum() == len(text.encode())
    assert bpe.end_id not in ids
    feed = bpe.streamer()
    assert ''.join(feed([token]) for token in ids) == text


def test_learning_twice_gives_the_same():
    assert learn_bpe(TEXT, 320) == learn_bpe(TEXT, 320)
    assert bpe.vocab_size <= 321 and bpe.end_id == bpe.vocab_size - 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([' ', '\n', '\n\n', 'a', "'s", '9', ' (', '\t', '。', 'é', '\r\n', '\x1c', '\x85']), max_size=40
    )
)
def test_encoding_pieces_is_encoding_the_text(parts):
    text = ''.join(parts)
    pieces = cut(text, 3)
    assert ''.join(pieces) == text
    whole = HuggingFace.encode_batch(bpe, [text])[0].tolist()
    assert [token for ids in HuggingFace.encode_batch(bpe, pieces) for token in ids.tolist()] == whole


PARTS = [*' \n\t\'"_-.(0a\x1c\x85\xa0é²。', "'s", "'re", "''", 'the', '\r\n', '    ']
pairs = Bpe(learn_bpe([' '.join(a + b for b in PARTS) for a in PARTS] * 2, 800))  # would join any two that are one word


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=3) | st.sampled_from(PARTS), max_size=30))
def test_encoding_words_is_encoding_the_text(parts):
    texts = [''.join(parts), ''.join(parts[::-1])]
    for ours, theirs in zip(pairs.encode_batch(texts), HuggingFace.encode_batch(pairs, texts), strict=True):
        assert ours.dtype == theirs.dtype == 'int32' and ours.tolist() == theirs.tolist()


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match='256 bytes'):
        learn_bpe(TEXT, 200)


def cases(folder):
    """(inputs, expected ids) of the published cases; the last is the empty text."""
    inputs = (folder / 'cases.inp').read_text(encoding='utf-8').split('\n__ggml_vocab_test__\n')
    return inputs, [[int(token) for token in line.split()] for line in (folder / 'cases.out').read_text().split('\n')]


def test_gpt2_equals_the_published_cases(shared):
    inputs, expected = cases(shared / 'tokenizers' / 'gpt2')
    tokenizer = open_tokenizer(shared / 'tokenizers' / 'gpt2' / 'tokenizer.json', mask=False)
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.mask_id) == (50257, 50256, None)
    equal = [tokenizer.encode(text) == ids for text, ids in zip(inputs, expected, strict=True)]
    assert sum(equal) == len(equal) == 47
    assert all(tokenizer.decode(ids) == text for text, ids in zip(inputs, expected, strict=True))


def test_bert_equals_the_published_cases(shared, tmp_path):
    import tokenizers

    folder = shared / 'tokenizers' / 'bert-uncased'
    vocabulary = tokenizers.models.WordPiece.read_file(str(folder / 'vocab.txt'))
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token='[UNK]'))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.decoder = tokenizers.decoders.WordPiece()
    model.add_special_tokens(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'])
    model.save(str(tmp_path / 'tokenizer.json'))
    tokenizer = open_tokenizer(tmp_path / 'tokenizer.json', mask=True)
    assert tokenizer.decode([tokenizer.end_id]) == '[SEP]' and tokenizer.decode([tokenizer.mask_id]) == '[MASK]'
    inputs, expected = cases(folder)
    equal = [tokenizer.encode(text) == ids for text, ids in zip(inputs, expected, strict=True)]
    assert sum(equal) == len(equal) == 47
    assert tokenizer.decode(tokenizer.encode('unbelievably good')) == 'unbelievably good'
    assert not {101, 102, 103} & set(tokenizer.encode('[CLS] a [MASK] b [SEP]'))


@pytest.mark.parametrize('name', ['tokenizers/gpt2/tokenizer.json', 'models/stories260K/hf/tokenizer.json'])
def test_no_special_comes_from_content(shared, name):
    tokenizer = open_tokenizer(shared / name, mask=True)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def holds(text):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.specials)
        assert tokenizer.decode(ids) == text
        assert not ids or tokenizer.token_bytes[[*ids, tokenizer.end_id]].sum() == len(text.encode())
        feed = tokenizer.streamer()
        assert ''.join(feed([token]) for token in ids) == text

    holds()


def test_stories260k_decodes_as_the_library_does(shared):
    import tokenizers

    path = shared / 'models' / 'stories260K' / 'hf' / 'tokenizer.json'
    tokenizer, library = open_tokenizer(path, mask=False), tokenizers.Tokenizer.from_file(str(path))
    text = 'Once upon a time, there was a café 🦙 named Lily.\nShe  ran.'
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(text).ids) == text


def wrap(added, **spec):
    """The test BPE's tokenizer.json with other added tokens."""
    plain = json.loads(learn_bpe(TEXT, 320))
    about = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    return json.dumps(plain | {'added_tokens': [about | token for token in added]} | spec).encode()


def test_added_tokens_are_specials_whatever_they_are_called_and_blanks_are_text():
    added = [
        {'id': SIZE, 'content': '<tool>', 'special': False},
        {'id': SIZE + 1, 'content': '<eos>', 'special': True},
        {'id': SIZE + 2, 'content': ' ' * 9, 'special': False},
    ]
    tokenizer = HuggingFace(wrap(added))
    assert tokenizer.end_id == SIZE + 1 and set(tokenizer.specials) == {SIZE, SIZE + 1}
    text = 'a<tool>' + ' ' * 9 + '<eos>'
    ids = tokenizer.encode(text)
    assert SIZE + 2 in ids and not {SIZE, SIZE + 1} & set(ids) and tokenizer.decode(ids) == text


def test_truncation_padding_and_templates_of_the_file_are_not_used():
    truncation = {'direction': 'Right', 'max_length': 4, 'strategy': 'LongestFirst', 'stride': 0}
    tokenizer = HuggingFace(wrap([], truncation=truncation))
    assert tokenizer.decode(tokenizer.encode(TEXT[0])) == TEXT[0]
    assert tokenizer.end_id == SIZE and tokenizer.vocab_size == SIZE + 1  # no END in the file: one is added


def test_a_special_that_is_a_word_of_the_model_is_refused():
    spec = {
        'version': '1.0', 'truncation': None, 'padding': None, 'normalizer': None, 'post_processor': None,
        'decoder': None, 'pre_tokenizer': {'type': 'WhitespaceSplit'},
        'model': {'type': 'WordLevel', 'vocab': {'<unk>': 0, '</s>': 1, 'a': 2}, 'unk_token': '<unk>'},
        'added_tokens': [
            {'id': 1, 'content': '</s>', 'special': True, 'single_word': False, 'lstrip': False, 'rstrip': False,
             'normalized': False}
        ],
    }  # fmt: skip
    tokenizer = HuggingFace(json.dumps(spec).encode())
    assert tokenizer.encode('a b a') == [2, 0, 2]
    with pytest.raises(ValueError, match="gives content the special token '</s>'"):
        tokenizer.encode('a </s>')


@pytest.mark.parametrize('content', [b'', b'{}', b'[]', b'{"model": 3}', b'\xff\xfe', b'{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_named(content, tmp_path):
    path = tmp_path / 'tokenizer.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='tokenizer.json'):
        open_tokenizer(path, mask=False)
    (tmp_path / 'a.model').write_bytes(content)
    with pytest.raises(ValueError, match='a.model'):
        open_tokenizer(tmp_path / 'a.model', mask=False)


def test_a_missing_tokenizer_says_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="'bytes', 'chars', 'whitespace', 'bpe'"):
        open_tokenizer(tmp_path / 'bpee', mask=False)


def test_sentencepiece(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    sentences = iter(['the cat sat on the mat', 'and it sang of tea', 'over seven hills'] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, vocab_size=300, model_type='bpe', byte_fallback=True,
        normalization_rule_name='identity', remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    (tmp_path / 'a.model').write_bytes(model.getvalue())
    tokenizer = open_tokenizer(tmp_path / 'a.model', mask=True)
    assert tokenizer.decode([tokenizer.end_id]) == '</s>' and tokenizer.mask_id == tokenizer.vocab_size - 1
    for text in ('the cat sang', ' two  blanks ', 'é🦙</s><s>', 'a\nb'):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.specials)
    tokenizer.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').encode('the cat') == tokenizer.encode('the cat')
