import pytest

from lmtrain.data import examples
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.load import open_tokenizer

WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s sat on un ##der'.split()


def bert(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS))
    return open_tokenizer(tmp_path / 'vocab.txt', False)


def row(**fields):
    return Row('rows.jsonl:7', fields)


def long(seq_len=64, what='error'):
    return examples.LengthPolicy(what, seq_len)


def words_of(tokens):
    return ' '.join(WORDS[token] for token in tokens)


def test_texts_have_the_special_tokens_of_the_tokenizer(tmp_path):
    tokenizer = bert(tmp_path)
    (one,) = examples.texts([row(a='The cat')], ('a',), tokenizer, long())
    assert words_of(one.tokens) == '[CLS] the cat [SEP]' and one.flat == {}
    (two,) = examples.texts([row(a='the cat', b='cats sat')], ('a', 'b'), tokenizer, long())
    assert words_of(two.tokens) == '[CLS] the cat [SEP] cat ##s sat [SEP]'
    assert two.flat['token_types'].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_null_is_an_empty_text_of_a_pair(tmp_path):
    tokenizer = bert(tmp_path)
    pairs = [row(a='cat', b=None), row(a='cat', b=''), row(a=None, b='cat')]
    null, empty, first = examples.texts(pairs, ('a', 'b'), tokenizer, long())
    assert words_of(null.tokens) == words_of(empty.tokens) == '[CLS] cat [SEP] [SEP]'
    assert words_of(first.tokens) == '[CLS] [SEP] cat [SEP]'
    with pytest.raises(ValueError, match="rows.jsonl:7: no field 'b'; the fields there are: 'a'"):
        examples.texts([row(a='cat')], ('a', 'b'), tokenizer, long())


@pytest.mark.parametrize(
    ('a', 'b', 'expected'),
    [
        ('cat ' * 9, 'sat', '[CLS] cat cat cat cat [SEP] sat [SEP]'),
        ('sat', 'cat ' * 9, '[CLS] sat [SEP] cat cat cat cat [SEP]'),
        ('sat ' * 9, 'cat ' * 9, '[CLS] sat sat [SEP] cat cat cat [SEP]'),
    ],
)
def test_longer_of_two_texts_is_cut_first(tmp_path, a, b, expected):
    limit = long(8, 'cut')
    (example,) = examples.texts([row(a=a, b=b)], ('a', 'b'), bert(tmp_path), limit)
    assert words_of(example.tokens) == expected
    assert limit.note() == ['1 row of more than 8 tokens cut']


def test_long_rows_are_rejected_or_dropped(tmp_path):
    with pytest.raises(ValueError, match=r'rows.jsonl:7: 11 tokens, and data.seq_len is 8: .*config.task.too_long'):
        examples.texts([row(a='cat ' * 9)], ('a',), bert(tmp_path), long(8))
    limit = long(8, 'drop')
    short = examples.texts([row(a='cat ' * 9), row(a='cat')], ('a',), bert(tmp_path), limit)
    assert [each.source for each in short] == [1] and limit.note() == ['1 row of more than 8 tokens left out']
