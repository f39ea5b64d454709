from types import SimpleNamespace

import pytest

from lmtrain.data.tokenizers.base import Bytes
from lmtrain.data.tokenizers.load import check_fits, learn, load_tokenizer, open_tokenizer
from lmtrain.errors import InputError

TEXT = [f'the cat {number} sat on the mat and it sang of tea and {number * number} hills' for number in range(40)]


@pytest.mark.parametrize('mask', [False, True])
def test_vocab_size_includes_special_tokens(mask):
    tokenizer = learn('bpe', TEXT, 300, mask)
    assert tokenizer.vocab_size == 300 and len(tokenizer.specials) == 1 + mask


@pytest.mark.parametrize(('limit', 'largest', 'needed'), [(None, 9, 0), (10, 9, 0), (9, 9, 10), (6, 5, 0), (5, 5, 6)])
@pytest.mark.parametrize('mask_id', [None, 3])
def test_check_fits_counts_only_needed_entries(limit, largest, needed, mask_id):
    tokenizer = SimpleNamespace(
        vocab_size=10, begin_id=1, end_id=2, mask_id=mask_id, specials={}, decode=lambda ids: 'x'
    )
    if not needed:
        check_fits(tokenizer, 'a', limit, largest, 'a row')
        return
    with pytest.raises(
        ValueError, match=f"set model.vocab_size to at least {needed}, since a row has 'x', id {largest}"
    ):
        check_fits(tokenizer, 'a', limit, largest, 'a row')


@pytest.mark.parametrize(('name', 'token'), [('begin_id', 7), ('end_id', 8), ('mask_id', 9)])
def test_check_fits_counts_begin_end_and_mask(name, token):
    marks = {'begin_id': 1, 'end_id': 2, 'mask_id': 3} | {name: token}
    tokenizer = SimpleNamespace(vocab_size=10, specials={token: '<m>'}, **marks)
    check_fits(tokenizer, 'a', token + 1, 4, 'a row')
    with pytest.raises(ValueError, match=f"at least {token + 1}, since every document needs '<m>', id {token}"):
        check_fits(tokenizer, 'a', token, 4, 'a row')


def test_tokenizer_of_a_base_without_an_end_token_is_refused():
    tokenizer = SimpleNamespace(vocab_size=10, specials={9: '<|endoftext|>'}, begin_id=9, end_id=9, mask_id=None)
    with pytest.raises(
        InputError, match="tokenizer 'DIR' has no token that ends a text.*'eos_token' in tokenizer_conf"
    ):
        check_fits(tokenizer, 'DIR', 9, 4, 'a row')
    with pytest.raises(InputError, match='set model.vocab_size to at least 10, since every document needs'):
        check_fits(tokenizer, 'bpe', 9, 4, 'a row')


def test_mask_token_is_added_to_tokenizer_of_a_run(tmp_path):
    Bytes().save(tmp_path / 'plain')
    Bytes(mask=True).save(tmp_path / 'hiding')
    assert open_tokenizer(tmp_path / 'plain', False).mask_id is None
    assert open_tokenizer(tmp_path / 'plain', True).mask_id == 257
    assert (
        open_tokenizer(tmp_path / 'hiding', False).mask_id == open_tokenizer(tmp_path / 'hiding', True).mask_id == 257
    )
    about = (tmp_path / 'hiding' / 'lmtrain_tokenizer.json').read_text(encoding='utf-8')
    (tmp_path / 'plain' / 'lmtrain_tokenizer.json').write_text(about.replace('true', 'false'), encoding='utf-8')
    with pytest.raises(ValueError, match='plain is damaged: its hash is'):
        load_tokenizer(tmp_path / 'plain')
