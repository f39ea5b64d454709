import json

import pytest
import tokenizers

from lmtrain.data.tokenizers.hf_files import TOKEN_FLAGS, read_config, wordpiece
from lmtrain.data.tokenizers.load import load_tokenizer, open_tokenizer
from lmtrain.errors import InputError

WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s sat on un ##der'.split()


def bert(tmp_path, words=WORDS):
    (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
    return open_tokenizer(tmp_path / 'vocab.txt', False)


def test_bert_vocabulary(tmp_path):
    tokenizer = bert(tmp_path)
    assert [WORDS[token] for token in tokenizer.encode('The Cäts  sat under [SEP] zzz')] == (
        'the cat ##s sat un ##der [UNK] [UNK] [UNK] [UNK]'.split()
    )
    assert tokenizer.layout == ((2,), (3,), (3,), 1)
    assert (tokenizer.begin_id, tokenizer.end_id) == (2, 3)


def test_bert_token_types_of_a_pair():
    """[CLS] A [SEP] are of type 0, B [SEP] of type 1 (Devlin et al., 2018, figure 2)."""
    encoded = tokenizers.Tokenizer.from_str(wordpiece('\n'.join(WORDS).encode()).decode()).encode('the cat', 'sat')
    assert encoded.tokens == '[CLS] the cat [SEP] sat [SEP]'.split() and encoded.type_ids == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_only_line_ends_separate_the_tokens_of_a_vocabulary(end):
    words = [*WORDS, '\x85', 'a\u2028b', '\x0c', '\x1c', '', 'last']
    for content in (end.join(words), end.join(words) + end):
        vocabulary = json.loads(wordpiece(content.encode()))['model']['vocab']
        assert vocabulary == {word: token for token, word in enumerate(words)}


def test_cased_vocabulary_is_not_lowercased(tmp_path):
    words = [*WORDS, 'The']
    assert [words[token] for token in bert(tmp_path, words).encode('The the')] == ['The', 'the']


def test_vocabulary_without_special_token_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r'vocab\.txt: .*the vocabulary lacks \[SEP\]'):
        bert(tmp_path, [word for word in WORDS if word != '[SEP]'])


def test_special_tokens_from_config_files(tmp_path, bpe):
    plain = bpe(tmp_path / 'plain')
    assert plain.begin_id == plain.end_id == 271 and plain.config_json == b''
    tokenizer = bpe(
        tmp_path / 'named',
        special_tokens_map={'bos_token': '</s>', 'eos_token': {'content': '</s>'}},
        tokenizer_config={'bos_token': '<s>', 'eos_token': '<|im_end|>', 'chat_template': '{{ messages }}'},
    )
    assert (tokenizer.begin_id, tokenizer.end_id) == (270, 273)
    assert tokenizer.encode('the<s>') == plain.encode('the<s>') and 270 not in tokenizer.encode('<s>')
    tokenizer.save(tmp_path / 'saved')
    again = load_tokenizer(tmp_path / 'saved')
    assert (again.begin_id, again.end_id, again.hash) == (270, 273, tokenizer.hash)
    assert json.loads(again.config_json)['chat_template'] == '{{ messages }}'
    assert tokenizer.hash != plain.hash
    assert open_tokenizer(tmp_path / 'saved', False).hash == tokenizer.hash


ADDED = {'id': 7, 'content': '<x>'} | dict.fromkeys(TOKEN_FLAGS, False)


@pytest.mark.parametrize(
    ('special', 'changed', 'kept'),
    [
        (True, {}, False),
        (True, {'normalized': True, 'single_word': True}, False),  # content is not searched for special tokens
        (True, {'rstrip': True}, True),
        (False, {'normalized': True}, True),
        (False, {'single_word': True}, True),
        (False, {}, False),
    ],
)
def test_added_tokens_are_kept_if_their_flags_differ(tmp_path, special, changed, kept):
    known = ADDED | {'special': special}
    flags = {name: value for name, value in (known | changed).items() if name != 'id'}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'added_tokens_decoder': {'7': flags}}))
    config = json.loads(read_config(tmp_path, {}, {'<x>': known}) or b'{}')
    assert config.get('added_tokens_decoder') == ({'7': flags} if kept else None)


def test_added_tokens_json(tmp_path):
    (tmp_path / 'added_tokens.json').write_text('{"<x>": 7, "<y>": 8}')
    config = json.loads(read_config(tmp_path, {}, {'<x>': ADDED}))
    assert config['added_tokens_decoder'] == {'8': {'content': '<y>'} | dict.fromkeys(TOKEN_FLAGS, False)}
    assert read_config(tmp_path, {}, {'<x>': ADDED, '<y>': ADDED}) == b''


def test_chat_templates_from_all_files(tmp_path, bpe):
    """Files of transformers 5 (chat_template.jinja, additional_chat_templates) have priority over the config."""
    several = [{'name': 'tool_use', 'template': 'b'}, {'name': 'default', 'template': 'a'}]

    def templates():
        return json.loads(open_tokenizer(tmp_path / 'x', False).config_json)['chat_template']

    assert (
        json.loads(bpe(tmp_path / 'x', tokenizer_config={'chat_template': several}).config_json)['chat_template']
        == several
    )
    (tmp_path / 'x' / 'chat_template.jinja').write_text('c é', encoding='utf-8')
    assert templates() == [several[0], {'name': 'default', 'template': 'c é'}]
    bpe(tmp_path / 'x', tokenizer_config={'chat_template': 'a'})
    assert templates() == 'c é'
    (tmp_path / 'x' / 'additional_chat_templates').mkdir()
    (tmp_path / 'x' / 'additional_chat_templates' / 'rag.jinja').write_text('d')
    assert templates() == [{'name': 'default', 'template': 'c é'}, {'name': 'rag', 'template': 'd'}]
    (tmp_path / 'x' / 'chat_template.jinja').write_bytes('c\r\né'.encode('utf-8-sig'))
    (tmp_path / 'x' / 'additional_chat_templates' / 'rag.jinja').write_bytes('d'.encode('utf-8-sig'))
    assert templates() == [{'name': 'default', 'template': 'c\né'}, {'name': 'rag', 'template': 'd'}]
    (tmp_path / 'x' / 'chat_template.jinja').write_bytes(b'\xe9')
    with pytest.raises(InputError, match='chat_template.jinja:1: not UTF-8 at byte 0'):
        templates()
    (tmp_path / 'x' / 'chat_template.jinja').unlink()
    bpe(tmp_path / 'x', tokenizer_config={})
    assert templates() == [{'name': 'rag', 'template': 'd'}]


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'bos_token': '<bos>'}, "names '<bos>', which is none of its added tokens"),
        ({'eos_token': 3}, 'eos_token is 3; it must be the text of a token'),
        ({'chat_template': {'a': 'b'}}, 'chat_template must be text'),
        ({'chat_template': [{'name': 'a'}]}, 'chat_template must be text, or a list'),
        ({'chat_template': [{'name': 'a', 'template': 3}]}, 'chat_template must be text, or a list'),
        ([], 'expected a JSON object .*'),
    ],
)
def test_invalid_fields_are_named(tmp_path, bpe, config, message):
    with pytest.raises(ValueError, match=message):
        bpe(tmp_path / 'x', tokenizer_config=config)


def test_empty_directory_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no tokenizer.json, tokenizer.model or vocab.txt'):
        open_tokenizer(tmp_path, False)


def test_layout_follows_post_processor(shared):
    llama = open_tokenizer(shared / 'models' / 'stories260K' / 'hf', False)
    newline = tuple(llama.encode_inside('\n'))
    assert llama.layout == ((1,), newline, (), 0)  # its post-processor would begin a pair twice
    assert llama.encode_inside('time') != llama.encode('time') == llama.encode_inside(' time')
    gpt2 = open_tokenizer(shared / 'tokenizers' / 'gpt2' / 'tokenizer.json', False)
    assert gpt2.layout == ((), (198,), (), 0)


def test_cases_from_bert_repository(shared):
    folder = shared / 'tokenizers' / 'bert-uncased'
    tokenizer = open_tokenizer(folder / 'vocab.txt', False)
    texts = (folder / 'cases.inp').read_text().split('\n__ggml_vocab_test__\n')
    ids = [list(map(int, line.split())) for line in (folder / 'cases.out').read_text().splitlines()]
    for text, expected in zip(texts, ids):
        assert expected in (tokenizer.encode(text), [101, *tokenizer.encode(text), 102])


def test_mask_token_is_added_to_saved_tokenizer(tmp_path, bpe):
    (tmp_path / 'bert').mkdir()
    for number, saved in enumerate((bert(tmp_path / 'bert'), bpe(tmp_path / 'bpe'))):
        saved.save(tmp_path / f'saved{number}')
        assert open_tokenizer(tmp_path / f'saved{number}', False).mask_id is None
        hiding = open_tokenizer(tmp_path / f'saved{number}', True)
        assert hiding.mask_id == (saved.vocab_size if number else 4)
        assert (hiding.begin_id, hiding.end_id) == (saved.begin_id, saved.end_id)
