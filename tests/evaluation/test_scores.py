from types import SimpleNamespace

import numpy as np
import pytest

from lmtrain.data.example_store import Examples
from lmtrain.data.rows import Row
from lmtrain.evaluation.scores import entities, entity_scores, normal, score, word_f1


@pytest.mark.parametrize(
    ('tags', 'wanted'),
    [
        ('O B-a I-a O', [('a', 1, 3)]),
        ('B-a B-a I-b', [('a', 0, 1), ('a', 1, 2), ('b', 2, 3)]),
        ('I-a I-a O I-a', [('a', 0, 2), ('a', 3, 4)]),
        ('O O', []),
        ('B-a', [('a', 0, 1)]),
    ],
)
def test_entities(tags, wanted):
    assert entities(tags.split()) == wanted


def test_only_a_whole_entity_counts():
    wanted = [['B-a', 'I-a', 'O', 'B-b'], ['O', 'B-a']]
    found = [['B-a', 'O', 'O', 'B-b'], ['B-b', 'B-a']]
    scores = entity_scores(wanted, found)
    assert scores == {'entity_f1': 2 * 2 / 7, 'entity_precision': 2 / 4, 'entity_recall': 2 / 3}
    assert entity_scores(wanted, wanted)['entity_f1'] == 1
    assert entity_scores([['O']], [['O']])['entity_f1'] == 0


def test_answers_as_squad_compares_them():
    assert normal(' The  Cat-sat, on a mat! ') == 'catsat on mat'
    assert word_f1('the black cat', 'a cat') == 2 / 3 and word_f1('the', 'an') == 1 and word_f1('cat', '') == 0
    assert word_f1('cat cat', 'cat dog cat') == 4 / 5 and word_f1('cat cat', 'cat') == 2 / 3  # a word counts as often


def task(name, rows, begins, source, flat=None, values=None, **fields):
    examples = Examples(None, np.array(begins), np.array(source), flat or {}, values or {})
    return SimpleNamespace(
        name=name, rows={'test': [Row('', row) for row in rows]}, examples={'test': examples}, **fields
    )


def test_classes_weigh_alike():
    one = task('classify', [], [0], [], values={'labels': np.array([0, 0, 0, 1])})
    assert score(one, 'test', [0, 0, 0, 0])['macro_f1'] == pytest.approx((6 / 7 + 0) / 2)
    assert score(one, 'test', [0, 0, 0, 1])['macro_f1'] == 1
    # A class that is predicted alone has an F1 of 0, as scikit-learn counts it.
    assert score(one, 'test', [0, 0, 2, 1])['macro_f1'] == pytest.approx((4 / 5 + 1 + 0) / 3)


def test_correlation():
    one = task('regress', [], [0], [], values={'labels': np.array([1.0, 2.0, 3.0])})
    assert score(one, 'test', [10.0, 20.0, 30.0])['pearson'] == pytest.approx(1)
    assert score(one, 'test', [5.0, 5.0, 5.0])['pearson'] == 0


def test_tags_of_words_that_were_cut_off_are_outside():
    rows = [{'words': ['a', 'b', 'c'], 'tags': ['B-x', 'O', 'B-x']}]
    flat = {'word': np.array([-1, 0, -1, 1])}  # the third word is not there
    one = task('tag', rows, [0, 4], [0], flat, label='tags', labels=('B-x', 'O'))
    scores = score(one, 'test', [np.array([1, 0, 0, 1])])
    assert scores == {'entity_f1': 2 / 3, 'entity_precision': 1, 'entity_recall': 1 / 2}


def test_the_best_window_answers():
    context = 'bees make honey'
    rows = [{'q': '?', 'c': context, 'a': {'text': ['the honey', 'x'], 'answer_start': [0, 0]}}]
    offsets = np.array([[0, 0], [0, 4], [5, 9], [0, 0], [5, 9], [10, 15]])
    one = task('span', rows, [0, 3, 6], [0, 0], {'offsets': offsets}, text=('q', 'c'), label='a')
    right = [(np.array([1, 2]), 3.0, 9.0), (np.array([2, 2]), 5.0, 9.0)]
    assert score(one, 'test', right) == {'exact_match': 1, 'answer_f1': 1}
    wrong = [(np.array([1, 2]), 3.0, 9.0), (np.array([2, 2]), 2.0, 9.0)]
    assert score(one, 'test', wrong)['exact_match'] == 0


def test_questions_without_an_answer_as_in_squad_2():
    """The lowest null score of the windows is compared with the best score."""
    context = 'bees make honey'
    answers = [{'text': [], 'answer_start': []}, {'text': ['honey'], 'answer_start': [10]}]
    rows = [{'q': '?', 'c': context, 'a': each} for each in answers]
    offsets = np.array([[0, 0], [0, 4], [0, 0], [10, 15], [0, 0], [10, 15]])
    one = task('span', rows, [0, 2, 4, 6], [0, 0, 1], {'offsets': offsets}, text=('q', 'c'), label='a')
    at = np.array([1, 1])
    assert score(one, 'test', [(at, 3.0, 9.0), (at, 5.0, 5.5), (at, 2.0, 1.0)])['exact_match'] == 1
    assert score(one, 'test', [(at, 3.0, 9.0), (at, 5.0, 4.5), (at, 2.0, 1.0)])['exact_match'] == 0.5
    assert score(one, 'test', [(at, 3.0, 9.0), (at, 5.0, 5.5), (at, 2.0, 3.0)])['answer_f1'] == 0.5
