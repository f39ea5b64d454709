"""Scores of generated texts, by cases."""

import pytest

from lmtrain.evaluation import scoring

CASES = [('blue', ['blue'], 1), (' blue\n', ['a', 'blue '], 1), ('Blue', ['blue'], 0), ('', [''], 1)]


@pytest.mark.parametrize('text, answers, score', CASES)
def test_exact(text, answers, score):
    assert scoring.exact(text, answers) == {'exact_match': score}


def test_normalised_match_takes_the_best_answer():
    scores = scoring.normalised('the Eiffel Tower, Paris', ['A tower', 'Eiffel tower'])
    assert scoring.normalised('a tower', ['The tower!', 'Eiffel tower'])['normalised_match'] == 1
    assert scores['normalised_match'] == 0 and scores['word_f1'] == pytest.approx(0.8)  # 2 x 2 / (3 + 2)


@pytest.mark.parametrize(
    'text, answers, score',
    [
        ('1 + 1 = 2\n#### 42', ['six times seven #### 42'], 1),
        ('#### 42', ['42'], 1),
        ('#### 42 #### 43', ['43'], 0),  # the first match counts
        ('42', ['#### 42'], 0),  # a text without a match is wrong
    ],
)
def test_regex_compares_first_groups(text, answers, score):
    assert scoring.regex('#### (-?[0-9]+)', 'here')(text, answers) == {'regex_match': score}


def test_regex_without_groups_compares_matches():
    assert scoring.regex('[0-9]+', 'here')('about 12 cats', ['12 dogs']) == {'regex_match': 1}
    with pytest.raises(ValueError, match=r"here: '\(' is not a regular expression"):
        scoring.regex('(', 'here')


@pytest.mark.parametrize(
    'text, valid, match',
    [
        ('{"name": "Ada"}', 1, 1),
        ('{ "name" : "Bob" }', 1, 0),
        ('{"name": 3}', 0, 0),
        ('{"name": "Ada"', 0, 0),
        ('', 0, 0),
    ],
)
def test_json_is_valid_and_equal(text, valid, match):
    schema = {'type': 'object', 'required': ['name'], 'properties': {'name': {'type': 'string'}}}
    assert scoring.json_answer(schema, 'here')(text, ['{"name":"Ada"}']) == {'json_valid': valid, 'json_match': match}


@pytest.mark.parametrize('text', ['NaN', '[Infinity]', '', '{'])
def test_what_is_no_json(text):
    assert scoring.json_answer({}, 'here')(text, [text]) == {'json_valid': 0, 'json_match': 0}


def test_an_answer_that_is_no_json_matches_nothing():
    assert scoring.json_answer({}, 'here')('null', ['no json'])['json_match'] == 0
