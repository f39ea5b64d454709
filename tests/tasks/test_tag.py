import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.tasks import tag


def test_loss_by_hand_at_the_labelled_tokens():
    logits = jnp.array([[[1.0, 0.0], [0.0, 3.0], [5.0, 0.0]]])
    batch = {'labels': jnp.array([[0, 0, 1]]), 'label_weights': jnp.array([[1.0, 1.0, 0.0]])}
    values, weights = tag.loss(lambda batch: {'tags': logits}, batch, head='tags')
    np.testing.assert_allclose(values['loss'][0, :2], [np.log1p(np.exp(-1)), np.log1p(np.exp(3))], rtol=1e-6)
    assert values['accuracy'].tolist() == [[1, 0, 0]] and weights.tolist() == [[1, 1, 0]]
    assert tag.predict(lambda batch: {'tags': logits}, batch, head='tags').tolist() == [[0, 1, 0]]


# --- rows -> examples


def test_word_is_labelled_at_its_first_token(bert, form, row, words_of):
    tagged = row(words=['The', 'cats', 'under', 'zzz'], tags=['O', 'B', 'O', 'B'])
    (example,) = tag.encode([tagged], form(bert, ('words',), 'tags', ('B', 'O'))).examples
    assert words_of(example.tokens) == '[CLS] the cat ##s un ##der [UNK] [SEP]'
    assert example.flat['word'].tolist() == [-1, 0, 1, -1, 2, -1, 3, -1]
    assert example.flat['label_weights'].tolist() == [0, 1, 1, 0, 1, 0, 1, 0]
    assert example.flat['labels'].tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


def test_words_of_bytes_begin_after_their_blank(form, row):
    tagged = row(words=['é', 'ab'], tags=[0, 1])
    (example,) = tag.encode([tagged], form(Bytes(), ('words',), 'tags', ('0', '1'))).examples
    assert example.flat['word'].tolist() == [-1, 0, -1, -1, 1, -1, -1]


def test_word_without_a_token_has_no_label(bert, form, row):
    tagged = row(words=['cat', '\x00', 'sat'], tags=['a', 'b', 'a'])
    (example,) = tag.encode([tagged], form(bert, ('words',), 'tags', ('a', 'b'))).examples
    assert example.flat['word'].tolist() == [-1, 0, 2, -1]


def test_tags_of_a_cut_row(bert, form, row, words_of):
    tagged = row(words=['cats'] * 3, tags=['a'] * 3)
    (example,) = tag.encode([tagged], form(bert, ('words',), 'tags', ('a', 'b'), 5, 'cut')).examples
    assert words_of(example.tokens) == '[CLS] cat ##s cat [SEP]' and example.flat['word'].tolist() == [-1, 0, -1, 1, -1]


@pytest.mark.parametrize(
    ('words', 'tags', 'message'),
    [
        (['a', 'b'], ['O'], "rows.jsonl:7: 2 words in 'words' and 1 tags in 'tags'"),
        ('a b', ['O'], "rows.jsonl:7: 'words' must be an array"),
        ([], [], "rows.jsonl:7: no word in 'words'"),
        (['a', 3], ['O', 'O'], r"'words' \[1\] must be text, not a number"),
    ],
)
def test_words_and_tags_that_do_not_match_are_rejected(words, tags, message, bert, form, row):
    with pytest.raises(ValueError, match=message):
        tag.encode([row(words=words, tags=tags)], form(bert, ('words',), 'tags', ('O', 'B')))


def test_unknown_tag_is_rejected_with_its_line(bert, form):
    tagged = Row('a.conll:4', {'tokens': ['cat', 'sat'], 'tags': ['O', 'B']}, ('a.conll:4', 'a.conll:5'))
    with pytest.raises(ValueError, match="a.conll:5: the label 'B' is none of the 2 classes: 'O', 'I'"):
        tag.encode([tagged], form(bert, ('tokens',), 'tags', ('O', 'I')))


def test_tags_without_entities_are_noted(bert, form, row):
    for labels, notes in ((('NN', 'VB'), 1), (('7', '8'), 1), (('O', 'I-x'), 0), (('O', 'U-x'), 0), (('B', 'O'), 0)):
        tagged = [row(words=['cat', 'sat'], tags=list(labels))]
        encoded = tag.encode(tagged, form(bert, ('words',), 'tags', labels))
        assert len(encoded.notes) == notes and all('entity_f1 is 0' in note for note in encoded.notes)
        assert not tag.encode(tagged, form(bert, ('words',), 'tags', labels, training=False)).notes


# --- score


@pytest.mark.parametrize(
    ('tags', 'expected'),
    [
        ('O B-a I-a O', [('a', 1, 3)]),
        ('B-a B-a I-b', [('a', 0, 1), ('a', 1, 2), ('b', 2, 3)]),
        ('I-a I-a O I-a', [('a', 0, 2), ('a', 3, 4)]),
        ('O O', []),
        ('B-a', [('a', 0, 1)]),
        ('S-a B-a I-a E-a S-a O', [('a', 0, 1), ('a', 1, 4), ('a', 4, 5)]),
        ('U-a B-b L-b L-b O I-b L-b I-b', [('a', 0, 1), ('b', 1, 3), ('b', 3, 4), ('b', 5, 7), ('b', 7, 8)]),
        ('B-a E-b S-b I-b', [('a', 0, 1), ('b', 1, 2), ('b', 2, 3), ('b', 3, 4)]),
        ('NN E-a', [('a', 1, 2)]),
    ],
)
def test_entities(tags, expected):
    assert tag.entities(tags.split()) == expected


def test_only_a_whole_entity_counts():
    expected = [['B-a', 'I-a', 'O', 'B-b'], ['O', 'B-a']]
    predicted = [['B-a', 'O', 'O', 'B-b'], ['B-b', 'B-a']]
    scores = tag.entity_scores(expected, predicted)
    assert scores == {'entity_f1': 2 * 2 / 7, 'entity_precision': 2 / 4, 'entity_recall': 2 / 3}
    assert tag.entity_scores(expected, expected)['entity_f1'] == 1
    assert tag.entity_scores([['O']], [['O']])['entity_f1'] == 0


def test_words_that_were_cut_off_count_as_outside(task_data):
    rows = [{'words': ['a', 'b', 'c'], 'tags': ['B-x', 'O', 'B-x']}]
    flat = {'word': np.array([-1, 0, -1, 1])}  # the third word is not there
    one = task_data(rows, [0, 4], [0], flat, label='tags', labels=('B-x', 'O'))
    scores = tag.score(one, 'test', [np.array([1, 0, 0, 1])])
    assert scores == {'entity_f1': 2 / 3, 'entity_precision': 1, 'entity_recall': 1 / 2}


# --- preview


def test_preview_has_the_tag_behind_the_first_token(cat):
    batch = cat | {'labels': np.ones((1, 8), int), 'label_weights': np.eye(1, 8, 1)}
    assert tag.render(Bytes(), batch, 0, ('O', 'B')) == '<|endoftext|>c{B}at<|endoftext|>~~~' and '{...}' in tag.legend(
        batch
    )
