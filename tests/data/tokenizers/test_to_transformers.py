import json

import pytest
import tokenizers

from experiments.parity import token_cases
from lmtrain.data.tokenizers.base import END
from lmtrain.data.tokenizers.load import learn, open_tokenizer
from lmtrain.data.tokenizers.to_transformers import tokenizer_files

TEXTS = [f'the cat {END} sat\non é日 mat', 'a\x1cb  c\x85d']  # two separators of str.split that \s does not match
KINDS = ('bytes', 'chars', 'whitespace', 'bpe')


def written(tokenizer, directory, framed=False):
    for name, content in tokenizer_files(tokenizer, framed).items():
        (directory / name).write_bytes(content)
    return tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))


@pytest.mark.parametrize('mask', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_learned_tokenizer_ids_in_transformers(tmp_path, kind, mask):
    tokenizer = learn(kind, TEXTS, 300, mask)
    library = written(tokenizer, tmp_path)
    config = json.loads((tmp_path / 'tokenizer_config.json').read_text(encoding='utf-8'))
    assert config['bos_token'] == config['eos_token'] == END and config['tokenizer_class'] == 'PreTrainedTokenizerFast'
    assert config.get('mask_token') == ('<|mask|>' if mask else None)
    added = {token.content: (i, token.special) for i, token in library.get_added_tokens_decoder().items()}
    assert added == {name: (i, True) for i, name in tokenizer.specials.items()}
    for text in ('the cat', 'sat\n on', 'b\x1cc', 'c\x85d', 'é日'):
        if kind != 'whitespace' or text != 'é日':
            assert library.encode(text).ids == [tokenizer.end_id, *tokenizer.encode(text)]
            assert library.decode(library.encode(text).ids) == tokenizer.decode(tokenizer.encode(text))
    assert library.encode(f'the {END}').ids[-1] == tokenizer.end_id

    again = open_tokenizer(tmp_path, mask)
    assert (again.specials, again.end_id, again.mask_id) == (tokenizer.specials, tokenizer.end_id, tokenizer.mask_id)
    assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1]) and again.vocab_size == tokenizer.vocab_size
    assert again.decode(again.encode('the cat')) == 'the cat' and again.encode_prompt('') == tokenizer.encode_prompt('')


@pytest.mark.parametrize('kind', KINDS)
def test_framed_texts_equal_task_rows(tmp_path, kind):
    tokenizer = learn(kind, TEXTS, 300, False)
    library = written(tokenizer, tmp_path, framed=True)
    (prefix, between, suffix, _), ids = tokenizer.layout, tokenizer.encode('the cat')
    assert library.encode('the cat').ids == [*prefix, *ids, *suffix]
    assert library.encode('the cat', 'the cat').ids == [*prefix, *ids, *between, *ids, *suffix]
    assert open_tokenizer(tmp_path, False).layout == tokenizer.layout


def test_unknown_symbol_is_named_by_transformers(tmp_path):
    library = written(learn('chars', ['abc'], 0, False), tmp_path)
    with pytest.raises(Exception, match='UNK'):
        library.encode('abd')
    with pytest.raises(ValueError, match='cannot encode the text'):
        open_tokenizer(tmp_path, False).encode('abd')


def test_published_tokenizer_is_unchanged(tmp_path):
    token_cases.write('qwen', tmp_path / 'qwen')
    tokenizer = open_tokenizer(tmp_path / 'qwen', False)
    files = tokenizer_files(tokenizer)
    assert files['tokenizer.json'] == (tmp_path / 'qwen' / 'tokenizer.json').read_bytes()
    assert json.loads(files['tokenizer_config.json']) == json.loads(tokenizer.config_json)


def test_distinct_begin_and_end(bpe, tmp_path):
    """A tokenizer_config.json may name only the begin token; the end token is then one of KNOWN_ENDS."""
    tokenizer = bpe(tmp_path / 'x', tokenizer_config={'bos_token': '<s>'})
    config = json.loads(tokenizer_files(tokenizer)['tokenizer_config.json'])
    assert (config['bos_token'], config['eos_token']) == ('<s>', '</s>')


def test_end_token_is_added(tmp_path):
    spec = token_cases.byte_level({'COVID': {}})
    (tmp_path / 'tokenizer.json').write_text(json.dumps(spec), encoding='utf-8')
    tokenizer = open_tokenizer(tmp_path / 'tokenizer.json', True)
    library = written(tokenizer, tmp_path)
    assert library.encode('COVID a').ids == [tokenizer.end_id, *tokenizer.encode('COVID a')]
    assert library.token_to_id(END) == tokenizer.end_id and library.token_to_id('<|mask|>') == tokenizer.mask_id
