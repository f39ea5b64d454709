import numpy as np
import pytest
from tokenizers import Tokenizer

from lmtrain.data import examples
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.data.tokenizers.hf_files import wordpiece
from lmtrain.data.tokenizers.load import open_tokenizer

WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s sat on un ##der'.split()
CONTEXT = 'the cat sat on the cat'


def bert(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS))
    return open_tokenizer(tmp_path / 'vocab.txt', False)


def row(**fields):
    return Row('rows.jsonl:7', fields)


def long(seq_len=64, what='error'):
    return examples.LengthPolicy(what, seq_len)


def words_of(tokens):
    return ' '.join(WORDS[token] for token in tokens)


# --- texts


def test_texts_are_framed_as_the_tokenizer_has_it(tmp_path):
    tokenizer = bert(tmp_path)
    (one,) = examples.texts([row(a='The cat')], ('a',), tokenizer, long())
    assert words_of(one.tokens) == '[CLS] the cat [SEP]' and one.flat == {}
    (two,) = examples.texts([row(a='the cat', b='cats sat')], ('a', 'b'), tokenizer, long())
    assert words_of(two.tokens) == '[CLS] the cat [SEP] cat ##s sat [SEP]'
    assert two.flat['token_types'].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ('a', 'b', 'kept'),
    [
        ('cat ' * 9, 'sat', '[CLS] cat cat cat cat [SEP] sat [SEP]'),
        ('sat', 'cat ' * 9, '[CLS] sat [SEP] cat cat cat cat [SEP]'),
        ('sat ' * 9, 'cat ' * 9, '[CLS] sat sat [SEP] cat cat cat [SEP]'),
    ],
)
def test_of_two_texts_the_longer_is_cut_first(tmp_path, a, b, kept):
    limit = long(8, 'cut')
    (found,) = examples.texts([row(a=a, b=b)], ('a', 'b'), bert(tmp_path), limit)
    assert words_of(found.tokens) == kept
    assert limit.note() == ['1 rows of more than 8 tokens cut']


def test_too_long_is_refused_or_dropped(tmp_path):
    with pytest.raises(ValueError, match=r'rows.jsonl:7: 11 tokens, and data.seq_len is 8: .*config.task.too_long'):
        examples.texts([row(a='cat ' * 9)], ('a',), bert(tmp_path), long(8))
    limit = long(8, 'drop')
    kept = examples.texts([row(a='cat ' * 9), row(a='cat')], ('a',), bert(tmp_path), limit)
    assert [each.source for each in kept] == [1] and limit.note() == ['1 rows of more than 8 tokens left out']


# --- labels


@pytest.mark.parametrize('value', ['high', float('nan'), None, True, '', 1e400])
def test_a_regression_needs_a_finite_number(value):
    with pytest.raises(ValueError, match='x:3: the label of a regression is a finite number'):
        examples.number_of(value, 'x:3')
    assert examples.number_of('2.5', '') == 2.5


# --- tags


def test_a_word_is_labelled_at_its_first_token(tmp_path):
    said = row(words=['The', 'cats', 'under', 'zzz'], tags=['O', 'B', 'O', 'B'])
    (found,) = examples.tags([said], 'words', 'tags', ('B', 'O'), bert(tmp_path), long())
    assert words_of(found.tokens) == '[CLS] the cat ##s un ##der [UNK] [SEP]'
    assert found.flat['word'].tolist() == [-1, 0, 1, -1, 2, -1, 3, -1]
    assert found.flat['label_weights'].tolist() == [0, 1, 1, 0, 1, 0, 1, 0]
    assert found.flat['labels'].tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


def test_words_of_bytes_begin_behind_their_blank():
    said = row(words=['é', 'ab'], tags=[0, 1])
    (found,) = examples.tags([said], 'words', 'tags', ('0', '1'), Bytes(), long())
    assert found.flat['word'].tolist() == [-1, 0, -1, -1, 1, -1, -1]


def test_a_word_without_a_token_is_not_labelled(tmp_path):
    said = row(words=['cat', '\x00', 'sat'], tags=['a', 'b', 'a'])
    (found,) = examples.tags([said], 'words', 'tags', ('a', 'b'), bert(tmp_path), long())
    assert found.flat['word'].tolist() == [-1, 0, 2, -1]


def test_tags_of_a_cut_row(tmp_path):
    said = row(words=['cats'] * 3, tags=['a'] * 3)
    (found,) = examples.tags([said], 'words', 'tags', ('a', 'b'), bert(tmp_path), long(5, 'cut'))
    assert words_of(found.tokens) == '[CLS] cat ##s cat [SEP]' and found.flat['word'].tolist() == [-1, 0, -1, 1, -1]


@pytest.mark.parametrize(
    ('words', 'tags', 'said'),
    [
        (['a', 'b'], ['O'], "rows.jsonl:7: 2 words in 'words' and 1 tags in 'tags'"),
        ('a b', ['O'], "rows.jsonl:7: 'words' must be an array"),
        ([], [], "rows.jsonl:7: no word in 'words'"),
        (['a', 3], ['O', 'O'], r"'words' \[1\] must be text, not a number"),
    ],
)
def test_words_without_their_tags_are_named(tmp_path, words, tags, said):
    with pytest.raises(ValueError, match=said):
        examples.tags([row(words=words, tags=tags)], 'words', 'tags', ('O', 'B'), bert(tmp_path), long())


def test_a_tag_outside_the_classes_is_named_by_its_line(tmp_path):
    said = Row('a.conll:4', {'tokens': ['cat', 'sat'], 'tags': ['O', 'B']}, ('a.conll:4', 'a.conll:5'))
    with pytest.raises(ValueError, match="a.conll:5: the label 'B' is none of the 2 classes: 'O', 'I'"):
        examples.tags([said], 'tokens', 'tags', ('O', 'I'), bert(tmp_path), long())


# --- answers


def question(start, text, context=CONTEXT):
    return row(question='the', context=context, answers=[{'answer_start': start, 'text': text}])


def spans(tmp_path, rows, seq_len=64, learn=True, what='cut'):
    return examples.spans(rows, ('question', 'context'), 'answers', bert(tmp_path), long(seq_len, what), learn)


def test_an_answer_becomes_its_tokens(tmp_path):
    (found,) = spans(tmp_path, [question(15, 'the cat')])
    assert words_of(found.tokens) == '[CLS] the [SEP] the cat sat on the cat [SEP]'
    assert found.values['spans'].tolist() == [7, 8]
    assert found.flat['label_weights'].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert found.flat['offsets'][7].tolist() == [15, 18]
    assert found.flat['token_types'].tolist() == [0] * 3 + [1] * 7
    (part,) = spans(tmp_path, [question(16, 'he c')])  # an answer that cuts words takes them whole
    assert part.values['spans'].tolist() == [7, 8]


def test_a_long_context_comes_in_windows_that_overlap(tmp_path):
    rows = [question(15, 'the cat')]
    every = spans(tmp_path, rows, seq_len=8, learn=False)
    assert [words_of(each.tokens)[16:] for each in every] == ['the cat sat on [SEP]', 'sat on the cat [SEP]']
    for made in (every, spans(tmp_path, rows, seq_len=8)):
        assert [each.values['spans'].tolist() for each in made] == [[0, 0], [5, 6]]
    at = every[1].flat['offsets'][5:7]
    assert CONTEXT[at[0, 0] : at[1, 1]] == 'the cat'


def test_windows_and_spans_are_those_of_run_qa(tmp_path):
    """transformers' examples/pytorch/question-answering/run_qa.py, prepare_train_features, on `tokenizers` alone."""
    context = ' '.join(np.random.RandomState(0).choice(['the', 'cat', 'cats', 'sat', 'on', 'under'], 60))
    starts = [0, *np.flatnonzero(np.array(list(context)) == ' ') + 1]
    rows = [question(int(at), ' '.join(context[at:].split()[: 1 + at % 3]), context) for at in starts]
    rows.append(row(question='the', context=context, answers=[]))
    ours = spans(tmp_path, rows, seq_len=17)
    room = 17 - 4
    theirs = Tokenizer.from_str(wordpiece((tmp_path / 'vocab.txt').read_bytes()).decode())
    theirs.enable_truncation(17, stride=room - room // 2, strategy='only_second')
    wanted = []
    for number, each in enumerate(rows):
        encoding = theirs.encode(each.fields['question'], context)
        for window in (encoding, *encoding.overflowing):
            inside = [i for i, kind in enumerate(window.sequence_ids) if kind == 1]
            answers = each.fields['answers']
            start = answers[0]['answer_start'] if answers else -1
            end = start + len(answers[0]['text']) if answers else -1
            first, last = window.offsets[inside[0]][0], window.offsets[inside[-1]][1]
            span = [0, 0]
            if answers and first <= start and last >= end:
                span = [max(i for i in inside if window.offsets[i][0] <= start)]
                span.append(min(i for i in inside if window.offsets[i][1] >= end))
            wanted.append((number, window.ids, span))
    found = [(each.source, each.tokens.tolist(), each.values['spans'].tolist()) for each in ours]
    assert sorted(found) == sorted(wanted) and len({tuple(span) for *_, span in found}) > 5


def test_answers_as_an_object_of_arrays(tmp_path):
    said = row(question='the', context=CONTEXT, answers={'text': ['sat'], 'answer_start': [8]})
    assert spans(tmp_path, [said])[0].values['spans'].tolist() == [5, 5]


@pytest.mark.parametrize(
    ('start', 'text', 'said'),
    [
        (20, 'cat', r"rows.jsonl:7: the answer 'cat' at 20 lies outside the text of 22 characters"),
        (-1, 'cat', 'lies outside the text'),
        ('4', 'cat', 'lies outside the text'),
        (5, 'cat', r"rows.jsonl:7: the answer 'cat' does not stand at 5: there is 'at '"),
        (4, '', 'lies outside the text'),
        (7, ' ', 'has no token of its own'),
    ],
)
def test_an_answer_outside_the_text_is_named(tmp_path, start, text, said):
    with pytest.raises(ValueError, match=said):
        spans(tmp_path, [question(start, text)])


def test_an_answer_that_no_window_holds_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="rows.jsonl:7: no window of 4 tokens holds the whole answer 'cat sat on the c"
    ):
        spans(tmp_path, [question(4, 'cat sat on the cat')], seq_len=8)
    assert len(spans(tmp_path, [question(4, 'cat sat on the cat')], seq_len=8, learn=False)) == 2


def test_answers_of_another_form_are_named(tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl:7: 'answers' must be"):
        spans(tmp_path, [row(question='the', context=CONTEXT, answers=['the'])])


def test_every_answer_of_xquad_is_found_again(shared):
    from lmtrain.data.rows import read_rows

    rows = read_rows('xquad.en.json', str(shared / 'tasks' / 'xquad'))[:200]
    tokenizer = open_tokenizer(shared / 'tokenizers' / 'bert-uncased' / 'vocab.txt', False)
    windows = examples.spans(rows, ('question', 'context'), 'answers', tokenizer, long(384, 'cut'), True)
    found = [each for each in windows if each.values['spans'].any()]
    exact = 0
    for each in found:
        at, (first, last) = each.flat['offsets'], each.values['spans']
        fields = rows[each.source].fields
        text = fields['context'][at[first, 0] : at[last, 1]]
        assert fields['answers'][0]['text'] in text
        exact += fields['answers'][0]['text'] == text
    assert exact > 0.95 * len(found)
    assert {each.source for each in found} == set(range(200))
    assert all(each.tokens.dtype == np.int32 and len(each.tokens) <= 384 for each in found)
