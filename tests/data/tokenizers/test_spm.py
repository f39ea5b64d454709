import io
import json

import pytest

from lmtrain.data.tokenizers.load import load_tokenizer, open_tokenizer
from lmtrain.data.tokenizers.spm import SentencePiece

FLAGS = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized', 'special'), False)


def learned(**options):
    """A .model of a few sentences."""
    import sentencepiece

    model = io.BytesIO()
    sentences = iter(['the cat sat on the mat', 'and it sang of tea', 'over seven hills'] * 20)
    fixed = {'sentence_iterator': sentences, 'model_writer': model, 'minloglevel': 3}
    defaults = {'vocab_size': 300, 'model_type': 'bpe', 'byte_fallback': True, 'hard_vocab_limit': False}
    sentencepiece.SentencePieceTrainer.train(**fixed, **(defaults | options))
    return model.getvalue()


@pytest.fixture(scope='module')
def plain():
    return learned(normalization_rule_name='identity', remove_extra_whitespaces=False)


def test_sentencepiece(tmp_path, plain):
    (tmp_path / 'a.model').write_bytes(plain)
    tokenizer = open_tokenizer(tmp_path / 'a.model', mask=True)
    assert tokenizer.decode([tokenizer.end_id]) == '</s>' and tokenizer.mask_id == tokenizer.vocab_size - 1
    for text in ('the cat sang', ' two  blanks ', 'é🦙</s><s>', 'a\nb'):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.specials)
    tokenizer.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').encode('the cat') == tokenizer.encode('the cat')


def test_encode_inside_adds_no_space(plain):
    tokenizer = SentencePiece(plain)
    inside = tokenizer.encode_inside('cat sat')
    assert b''.join(tokenizer.pieces[token] for token in inside) == b'cat sat'
    assert tokenizer.encode('cat sat') != inside and tokenizer.encode_inside('') == []


def test_bytes_and_offsets_cover_the_text():
    tokenizer = SentencePiece(learned())  # NFKC; spaces are merged and stripped
    text = '  the  cat ﬁ 🦙 '
    ((ids, offsets),) = tokenizer.encode_with_offsets([text])
    assert ids.tolist() == tokenizer.encode(text) and tokenizer.decode(ids.tolist()) == 'the cat fi 🦙'
    assert [text[begin:end] for begin, end in offsets if begin < end][:2] == ['the', '  c']
    ((_, sizes),) = tokenizer.encode_with_bytes([text])
    assert sizes.sum() == len(text.encode()) and (sizes >= 0).all() and sizes[-1] == 1
    ((ids, sizes),) = tokenizer.encode_with_bytes(['the cat'])
    pieces = [len(tokenizer.pieces[token]) for token in ids]
    assert sizes.tolist() == [pieces[0] - 1, *pieces[1:], 0]  # the model adds the space before a text


def test_files_beside_the_model_are_read(tmp_path, plain):
    (tmp_path / 'tokenizer.model').write_bytes(plain)
    bare = open_tokenizer(tmp_path, False)
    size = bare.vocab_size
    config = {
        'bos_token': '<s>',
        'eos_token': '<|im_end|>',
        'unk_token': '<unk>',
        'chat_template': '{{ messages }}',
        'added_tokens_decoder': {
            '0': {'content': '<unk>'} | FLAGS | {'special': True},
            '1': {'content': '<s>'} | FLAGS | {'special': True},
            str(size): {'content': '<|im_end|>'} | FLAGS,
            str(size + 1): {'content': '<think>'} | FLAGS | {'rstrip': True},
            str(size + 2): {'content': 'mat'} | FLAGS | {'single_word': True},
        },
    }
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    (tmp_path / 'added_tokens.json').write_text(json.dumps({'<think>': size + 1, '<tool>': size + 3}))
    tokenizer = open_tokenizer(tmp_path, False)
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.vocab_size) == (bare.special_ids['<s>'], size, size + 4)
    assert json.loads(tokenizer.config_json)['chat_template'] == '{{ messages }}'
    text = 'the<think> \ncat mats mat<tool><|im_end|>'
    a, b, end = (bare.encode(part) for part in ('the', 'cat mats ', '<|im_end|>'))
    assert tokenizer.encode(text) == [*a, size + 1, *b, size + 2, size + 3, *end]
    ((_, sizes),) = tokenizer.encode_with_bytes([text])
    assert sizes.sum() == len(text.encode()) and sizes[len(a)] == len('<think> \n')
    ((_, offsets),) = tokenizer.encode_with_offsets([text])
    assert ''.join(text[begin:end] for begin, end in offsets) == text  # in order
    assert tokenizer.specials == bare.specials | {size: '<|im_end|>'}  # content may have the unknown token
    tokenizer.save(tmp_path / 'saved')
    again = load_tokenizer(tmp_path / 'saved')
    assert again.encode(text) == tokenizer.encode(text) and again.hash == tokenizer.hash != bare.hash


def test_longest_added_token_matches(tmp_path, plain):
    (tmp_path / 'tokenizer.model').write_bytes(plain)
    size = open_tokenizer(tmp_path, False).vocab_size
    (tmp_path / 'added_tokens.json').write_text(json.dumps({'<think>': size, '<think>er': size + 1}))
    tokenizer = open_tokenizer(tmp_path, False)
    assert tokenizer.encode('<think><think>er<think>') == [size, size + 1, size]


@pytest.mark.parametrize('model_type', ['bpe', 'unigram'])
def test_special_symbol_of_the_model_is_text_in_content(tmp_path, model_type):
    """Gemma's <start_of_turn> is a user-defined symbol of its model, which SentencePiece finds in every text."""
    names = ('<start_of_turn>', '<unused0>', '<tool>')
    (tmp_path / 'tokenizer.model').write_bytes(learned(user_defined_symbols=[*names], model_type=model_type))
    bare = open_tokenizer(tmp_path, False)
    turn, unused, tool = (bare.processor.piece_to_id(name) for name in names)
    special = FLAGS | {'special': True}
    added = {str(turn): {'content': names[0]} | special, str(unused): {'content': '<end_of_turn>'} | special}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'added_tokens_decoder': added}))
    tokenizer = open_tokenizer(tmp_path, False)
    assert tokenizer.special_ids.items() >= {names[0]: turn, '<end_of_turn>': unused}.items()
    for text in ('<start_of_turn>', 'the<start_of_turn>cat', '＜start_of_turn＞', '<unused0> <end_of_turn>'):
        ((ids, offsets),) = tokenizer.encode_with_offsets([text])
        inside = tokenizer.encode_inside(text)
        assert not {*ids.tolist(), *inside} & tokenizer.specials.keys() and tokenizer.encode(text) == ids.tolist()
        assert tokenizer.decode(ids.tolist()) == text.replace('＜', '<').replace('＞', '>')  # the model is of NFKC
        assert ''.join(text[begin:end] for begin, end in offsets if begin < end) == text
    assert tool in tokenizer.encode('the <tool>')  # a word, as the config does not name it
    assert tokenizer.encode('the cat sat') == bare.encode('the cat sat') and tokenizer.hash != bare.hash
    tokenizer.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').encode(names[0]) == tokenizer.encode(names[0])
