import json
import pathlib
import tracemalloc
import unittest.mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.parity import token_cases
from lmtrain.data.tokenizers import subword
from lmtrain.data.tokenizers.hf_files import wordpiece
from lmtrain.data.tokenizers.load import load_tokenizer, open_tokenizer
from lmtrain.data.tokenizers.subword import Bpe, HuggingFace, cut_text, learn_bpe

PLACE = pathlib.Path(__file__)
GOLDENS = json.loads((PLACE.parent / 'goldens_tokens.json').read_text(encoding='utf-8'))

TEXT = ['the cat sat on the mat\n    and then (it) sat again\n' * 5, 'def sat(cat):\n    return cat.the(mat)\n' * 5]
MARKS = ['<|endoftext|>', '<|mask|>', '[MASK]', '[SEP]', '[CLS]', '<s>', '</s>', '<pad>', '<|im_start|>']
texts = st.lists(
    st.text(st.characters(exclude_categories=['Cs']), max_size=12) | st.sampled_from(MARKS), max_size=6
).map(''.join)

bpe = Bpe(learn_bpe(TEXT, 320))
SIZE = bpe.vocab_size - 1  # of its tokenizer.json


@settings(max_examples=300, deadline=None)
@given(texts)
def test_bpe_round_trip_without_special_tokens(text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and bpe.decode_bytes(ids) == text.encode()
    assert bpe.token_bytes[ids].sum() == len(text.encode())
    assert bpe.end_id not in ids
    feed = bpe.streamer()
    assert ''.join(feed([token]) for token in ids) == text


def test_skipped_ids_are_absent():
    spec = json.loads(bpe.content)
    added = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
    spec['added_tokens'] = [added | {'id': SIZE, 'content': '</s>'}]
    vocab = spec['model']['vocab']
    spec['model']['vocab'] = {name: token + 3 * (token == SIZE - 1) for name, token in vocab.items()}
    gaps = HuggingFace(json.dumps(spec).encode(), False)
    assert gaps.specials == {SIZE: '</s>'} and gaps.vocab_size == SIZE + 3
    assert gaps.absent == (SIZE - 1, SIZE + 1) and bpe.absent == ()


def test_words_that_were_encoded_are_not_encoded_again():
    own = Bpe(learn_bpe(TEXT, 320))
    long = 'ä' * 1000  # a word of a text without spaces may be a whole document, and is not kept
    own.encode_batch([*TEXT, long])
    own.tokenizer = None
    assert [ids.tolist() for ids in own.encode_batch(TEXT)] == [bpe.encode(text) for text in TEXT]
    with pytest.raises(AttributeError):
        own.encode_batch([long])


def test_learn_bpe_is_deterministic():
    assert learn_bpe(TEXT, 320) == learn_bpe(TEXT, 320)
    assert bpe.vocab_size <= 321 and bpe.end_id == bpe.vocab_size - 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([' ', '\n', '\n\n', 'a', "'s", '9', ' (', '\t', '。', 'é', '\r\n', '\x1c', '\x85']), max_size=40
    )
)
def test_encoding_pieces_equals_encoding_the_text(parts):
    text = ''.join(parts)
    pieces = cut_text(text, 3)
    assert ''.join(pieces) == text
    whole = HuggingFace.encode_batch(bpe, [text])[0].tolist()
    assert [token for ids in HuggingFace.encode_batch(bpe, pieces) for token in ids.tolist()] == whole


def test_cut_sizes():
    sizes = [len(piece) for piece in cut_text('word\n' * 100, 32)]
    assert sum(sizes) == 500 and set(sizes[:-1]) == {34, 35}


PARTS = [*' \n\t\'"_-.(0a\x1c\x85\xa0é²。', "'s", "'re", "''", 'the', '\r\n', '    ']
pairs = Bpe(learn_bpe([' '.join(a + b for b in PARTS) for a in PARTS] * 2, 800))  # merges any two parts of one word


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=3) | st.sampled_from(PARTS), max_size=30))
def test_encoding_words_equals_encoding_the_text(parts):
    texts = [''.join(parts), ''.join(parts[::-1])]
    for ours, theirs in zip(pairs.encode_batch(texts), HuggingFace.encode_batch(pairs, texts), strict=True):
        assert ours.dtype == theirs.dtype == 'int32' and ours.tolist() == theirs.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=3) | st.sampled_from(PARTS), max_size=30))
def test_long_texts_are_encoded_in_pieces(parts):
    texts = [''.join(parts), 'the', ''.join(parts[::-1])]
    whole = HuggingFace.encode_batch(pairs, texts)
    with unittest.mock.patch.object(subword, 'PIECE_SIZE', 4):
        for ours, theirs in zip(pairs.encode_batch(texts), whole, strict=True):
            assert ours.dtype == 'int32' and ours.tolist() == theirs.tolist()


def test_long_text_is_encoded_in_little_memory(monkeypatch):
    """The words of a whole text of short words take 30 times its size."""
    monkeypatch.setattr(subword, 'PIECE_SIZE', 1 << 12)
    text = 'the cat sat on a mat.\n' * 10_000
    bpe.encode(text)  # its words are known
    tracemalloc.start()
    (ids,) = bpe.encode_batch([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * ids.nbytes + 3 * len(text)


def test_small_vocabulary_is_rejected():
    with pytest.raises(ValueError, match='256 bytes'):
        learn_bpe(TEXT, 200)


def cases(folder):
    """(inputs, expected ids) of the published cases; the last is the empty text."""
    inputs = (folder / 'cases.inp').read_text(encoding='utf-8').split('\n__ggml_vocab_test__\n')
    return inputs, [[int(token) for token in line.split()] for line in (folder / 'cases.out').read_text().split('\n')]


def test_gpt2_published_cases(shared):
    inputs, expected = cases(shared / 'tokenizers' / 'gpt2')
    tokenizer = open_tokenizer(shared / 'tokenizers' / 'gpt2' / 'tokenizer.json', mask=False)
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.mask_id) == (50257, 50256, None)
    equal = [tokenizer.encode(text) == ids for text, ids in zip(inputs, expected, strict=True)]
    assert sum(equal) == len(equal) == 47
    assert all(tokenizer.decode(ids) == text for text, ids in zip(inputs, expected, strict=True))


def test_bert_published_cases(shared, tmp_path):
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
def test_content_never_becomes_special(shared, name):
    tokenizer = open_tokenizer(shared / name, mask=True)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    @example('▁')
    def holds(text):
        if tokenizer.leading:  # SentencePiece writes a space as '▁', so a '▁' of the text decodes as a space
            text = text.replace('▁', ' ')
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.specials)
        assert tokenizer.decode(ids) == text
        ((again, sizes),) = tokenizer.encode_with_bytes([text])
        assert again.tolist() == ids and sizes.sum() == len(text.encode()) and (sizes >= 0).all()
        pieces = [len(tokenizer.pieces[token]) for token in ids]
        pieces[:1] = [size - tokenizer.leading for size in pieces[:1]]  # the space that is added before a text
        assert sizes.tolist() == [*pieces, 0]
        feed = tokenizer.streamer()
        assert ''.join(feed([token]) for token in ids) == text

    holds()


def test_stories260k_decodes_like_sentencepiece(shared):
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


def test_added_tokens_may_be_words():
    added = [
        {'id': SIZE, 'content': '<tool>', 'special': False},
        {'id': SIZE + 1, 'content': '<eos>', 'special': True},
        {'id': SIZE + 2, 'content': ' ' * 9, 'special': False},
        {'id': SIZE + 3, 'content': 'café', 'special': False},  # 'é' represents a byte in words of the model
        {'id': SIZE + 4, 'content': '<tool>s', 'special': False},
    ]
    tokenizer = HuggingFace(wrap(added))
    assert tokenizer.end_id == SIZE + 1 and set(tokenizer.specials) == {SIZE + 1}
    text = 'a<tool>' + ' ' * 9 + '<eos>café<tool>s'
    ids = tokenizer.encode(text)
    assert ids[1:3] == [SIZE, SIZE + 2] and ids[-2:] == [SIZE + 3, SIZE + 4] and SIZE + 1 not in ids
    assert tokenizer.decode(ids) == text and tokenizer.encode_inside(text) == ids
    feed = tokenizer.streamer()
    assert ''.join(feed([token]) for token in ids) == text
    assert tokenizer.encoding != tokenizer.hash and bpe.encoding == bpe.hash  # caches of its old ids are stale


def test_tokenizer_config_names_special_tokens(tmp_path):
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': False}
    words = [{'id': SIZE + i, 'content': name} for i, name in enumerate(('<turn>', '<think>', '<pad>', '<aside>'))]
    (tmp_path / 'tokenizer.json').write_bytes(wrap([token | {'special': False} for token in words]))
    config = {
        'eos_token': '<turn>',
        'additional_special_tokens': ['<aside>'],
        'added_tokens_decoder': {
            str(SIZE + 1): {'content': '<think>'} | flags | {'lstrip': True},
            str(SIZE + 2): {'content': '<pad>'} | flags | {'special': True},
            str(SIZE + 4): {'content': '<more>'} | flags,
        },
    }
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path, False)
    assert tokenizer.specials == {SIZE: '<turn>', SIZE + 2: '<pad>', SIZE + 3: '<aside>'}
    assert tokenizer.encode('a  <think><more>') == [*tokenizer.encode('a'), SIZE + 1, SIZE + 4]
    assert not {SIZE, SIZE + 2, SIZE + 3} & set(tokenizer.encode('<turn><pad><aside>'))
    tokenizer.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').encode('<more><pad>') == tokenizer.encode('<more><pad>')


def test_truncation_padding_and_post_processor_are_ignored():
    truncation = {'direction': 'Right', 'max_length': 4, 'strategy': 'LongestFirst', 'stride': 0}
    tokenizer = HuggingFace(wrap([], truncation=truncation))
    assert tokenizer.decode(tokenizer.encode(TEXT[0])) == TEXT[0]
    assert tokenizer.end_id == SIZE and tokenizer.vocab_size == SIZE + 1  # no END in the file: one is added


@pytest.mark.parametrize('name', GOLDENS)
def test_added_tokens_equal_transformers(name, tmp_path):
    token_cases.write(name, tmp_path / name)
    tokenizer = open_tokenizer(tmp_path / name, False)
    texts = [golden['text'] for golden in GOLDENS[name]]
    assert token_cases.texts(name, len(texts)) == texts and len(texts) >= 50
    expected = [golden['ids'] for golden in GOLDENS[name]]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    assert [ids.tolist() for ids, _ in tokenizer.encode_with_offsets(texts)] == expected
    words = {token['id'] for token in token_cases.CASES[name]['added_tokens'] if not token['special']}
    assert words & {token for ids in expected for token in ids}
    for text, ids in zip(texts, expected):
        feed = tokenizer.streamer()
        assert ''.join(feed([token]) for token in ids) == tokenizer.decode(ids).rstrip('\ufffd')
        if name == 'qwen':  # others strip or add spaces
            assert tokenizer.decode(ids) == text


FLAGS = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}


def spec_of(model, **more):
    """A tokenizer.json of a model with the special tokens <unk> (id 0) and </s> (id 1)."""
    added = [{'id': i, 'content': name, 'special': True} | FLAGS for i, name in enumerate(('<unk>', '</s>'))]
    rest = dict.fromkeys(('truncation', 'padding', 'normalizer', 'post_processor', 'decoder', 'pre_tokenizer'))
    return json.dumps({'version': '1.0', 'added_tokens': added, 'model': model} | rest | more).encode()


def test_special_token_in_model_vocabulary_is_hidden():
    words = HuggingFace(
        spec_of(
            {'type': 'WordLevel', 'vocab': {'<unk>': 0, '</s>': 1, 'a': 2}, 'unk_token': '<unk>'},
            pre_tokenizer={'type': 'WhitespaceSplit'},
        )
    )
    assert words.encode('a b a') == [2, 0, 2] and words.encode('a </s>') == [2, 0] and words.end_id == 1
    scores = [['<unk>', 0.0], ['</s>', 0.0], ['<', -3.0], ['/', -3.0], ['s', -3.0], ['>', -3.0]]
    unigram = HuggingFace(spec_of({'type': 'Unigram', 'unk_id': 0, 'vocab': scores, 'byte_fallback': False}))
    assert unigram.encode('s</s>') == [4, 2, 3, 4, 5] and unigram.encode('sés') == [4, 0, 4]
    vocab = {'<unk>': 0, '</s>': 1, '<': 2, '/': 3, 's': 4, '>': 5, '</': 6, 's>': 7}
    merges = [['<', '/'], ['s', '>'], ['</', 's>']]
    pairs = HuggingFace(spec_of({'type': 'BPE', 'vocab': vocab, 'merges': merges, 'unk_token': '<unk>'}))
    assert pairs.encode('s</s>') == [4, 6, 7] and pairs.specials == {1: '</s>'}


def test_unknown_token_may_be_pad(tmp_path):
    model = {'type': 'WordLevel', 'vocab': {'<unk>': 0, '</s>': 1, 'a': 2}, 'unk_token': '<unk>'}
    (tmp_path / 'tokenizer.json').write_bytes(spec_of(model, pre_tokenizer={'type': 'WhitespaceSplit'}))
    config = {'pad_token': '<unk>', 'unk_token': '<unk>', 'eos_token': '</s>'}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    assert open_tokenizer(tmp_path, False).encode('a b') == [2, 0]


def test_encode_inside_after_added_token():
    vocab = {'<unk>': 0, '</s>': 1, '▁': 2, 'a': 3, '▁a': 4, '<t>': 5}
    spec = spec_of(
        {'type': 'BPE', 'vocab': vocab, 'merges': [['▁', 'a']], 'unk_token': '<unk>'},
        normalizer={
            'type': 'Sequence',
            'normalizers': [
                {'type': 'Prepend', 'prepend': '▁'},
                {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'},
            ],
        },
        added_tokens=[
            {'id': 1, 'content': '</s>', 'special': True} | FLAGS,
            {'id': 5, 'content': '<t>', 'special': False} | FLAGS,
        ],
    )
    tokenizer = HuggingFace(spec)
    assert tokenizer.encode('a<t>a') == [4, 5, 4] and tokenizer.encode_inside('a<t>a') == [3, 5, 4]


@pytest.mark.parametrize('content', [b'', b'{}', b'[]', b'{"model": 3}', b'\xff\xfe', b'{"model": {"type": "BPE"}}'])
def test_invalid_tokenizer_files_are_named(content, tmp_path):
    path = tmp_path / 'tokenizer.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='tokenizer.json'):
        open_tokenizer(path, mask=False)
    (tmp_path / 'a.model').write_bytes(content)
    with pytest.raises(ValueError, match='a.model'):
        open_tokenizer(tmp_path / 'a.model', mask=False)


def test_missing_tokenizer_lists_choices(tmp_path):
    with pytest.raises(FileNotFoundError, match="'bytes', 'chars', 'whitespace', 'bpe'"):
        open_tokenizer(tmp_path / 'bpee', mask=False)


def test_begin_and_end_from_tokenizer_config():
    """Without fields, the first special token of KNOWN_ENDS is both."""
    content = wrap(
        [{'id': SIZE + i, 'content': name, 'special': True} for i, name in enumerate(('<eos>', '</s>', '<s>'))]
    )
    ends = [{}, {'eos_token': '<eos>'}, {'eos_token': '<eos>', 'bos_token': '<s>'}, {'cls_token': '<s>'}]
    tokenizers = [HuggingFace(content, config_json=json.dumps(config).encode()) for config in ends]
    assert [each.end_id - SIZE for each in tokenizers] == [1, 0, 0, 1]
    assert [each.begin_id - SIZE for each in tokenizers] == [1, 0, 2, 2]


def test_text_that_encodes_to_special_token_is_rejected():
    """The end token of the file is also its unknown token."""
    model = {'type': 'WordLevel', 'vocab': {'<unk>': 0, '</s>': 1, 'a': 2}, 'unk_token': '</s>'}
    content = spec_of(model, pre_tokenizer={'type': 'WhitespaceSplit'})
    tokenizer = HuggingFace(content, config_json=b'{"eos_token": "</s>"}')
    assert tokenizer.encode('a a') == [2, 2]
    with pytest.raises(ValueError, match=r"gives content the special token '</s>' \(id 1\) in the text 'a b'"):
        tokenizer.encode('a b')


def test_token_type_of_second_text():
    tokenizer = HuggingFace(wordpiece(b'[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na'))
    assert tokenizer.layout == ((2,), (3,), (3,), 1)
