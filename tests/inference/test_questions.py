"""Templates: the names of fields are those of the columns of any file."""

import pytest

from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference.prompting import PromptSettings
from lmtrain.inference.questions import ask, parse_template, question

OWN = PromptSettings('{q} {a}', 'a', 'c')


def rows_of(*pairs):
    return [Row(f'rows:{i}', {'q': '?', 'c': choices.split(), 'a': a}) for i, (choices, a) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ('pairs', 'answers'),
    [
        ([('3 1 2 0', '0'), ('4 1 3 2', '3')], ['0', '3']),
        ([('3 1 2 0', '0'), ('seven eight', '1')], ['3', 'eight']),
        ([('3 1 2 0', '0'), ('seven eight', 'eight')], ['0', 'eight']),
        ([('3 1 2 0', 0), ('4 1 3 2', '3')], ['3', '3']),  # a number of JSON is an index
        ([('no yes', 'no'), ('seven eight', '1'), ('5 7', '7'), ('x y', 1)], ['no', 'eight', '7', 'y']),
        ([('0 1', '0'), ('seven eight', '1'), ('5 7', '7')], ['0', 'eight', '7']),  # '0' is the same either way
    ],
    ids=['texts', 'indices', 'texts and words', 'numbers', 'one way each', 'both ways alike'],
)
def test_digits_are_read_in_one_way_in_all_rows(pairs, answers):
    rows = rows_of(*pairs)
    assert [q.answer for q in ask(rows, OWN)[0]] == answers
    asked, shown = ask(rows[:1], OWN, rows[1:])  # also if the other rows are demonstrations
    assert [q.answer for q in asked + shown] == answers


CHATS = PromptSettings('', '', 'c')


def chat(choices, answer, form):
    """A conversation in one of the formats that are read."""
    turns = [{'role': 'user', 'content': '?'}, {'role': 'assistant', 'content': answer}]
    shared = [{'from': 'system', 'value': 's'}, {'from': 'human', 'value': '?'}, {'from': 'gpt', 'value': answer}]
    fields = {
        'messages': {'messages': [*turns, {'role': 'user', 'content': 'thanks'}], 'system': 's'},
        'sharegpt': {'conversations': shared},
        'completion': {'prompt': '?', 'completion': answer},
        'turns': {'prompt': turns[:1], 'completion': turns[1:]},
        'alpaca': {'instruction': '?', 'output': answer},
        'question': {'question': '?', 'answer': answer, 'history': [['a', 'b']]},
    }[form]
    return fields | {'c': choices.split()}


@pytest.mark.parametrize('form', ['messages', 'sharegpt', 'completion', 'turns', 'alpaca', 'question'])
def test_digits_are_read_in_one_way_in_all_conversations(form):
    def rows(*pairs):
        return [Row(f'rows:{number}', chat(*pair, form)) for number, pair in enumerate(pairs, 1)]

    indices = rows(('3 1 2 0', '0'), ('seven eight', '1'))
    assert [q.answer for q in ask(indices, CHATS)[0]] == ['3', 'eight']
    asked, shown = ask(indices[:1], CHATS, indices[1:])
    assert [q.answer for q in asked + shown] == ['3', 'eight']
    before = [question(row, '', '', 'c') for row in indices]
    assert [q._replace(answer='') for q in ask(indices, CHATS)[0]] == [q._replace(answer='') for q in before]
    assert [q.answer for q in ask(rows(('3 1 2 0', '0'), ('4 1 3 2', '3')), CHATS)[0]] == ['0', '3']
    with pytest.raises(InputError, match=r"rows:2: 'the answer' is '0', one of the choices and the index of '3'"):
        ask(rows(('5 7', '7'), ('3 1 0', '0'), ('x y', '1')), CHATS)


@pytest.mark.parametrize(
    ('pairs', 'message'),
    [
        ([('3 1', '1'), ('5 7', '7'), ('x y', '2')], "rows:3: 'a' is '2', neither a choice nor the index"),
        (
            [('5 7', '7'), ('3 1 0', '0'), ('x y', '1')],
            r"rows:2: 'a' is '0', one of the choices and the index of '3'.*texts \(rows:3: 'x', 'y'\).*"
            r"indices \(rows:1: '5', '7'\).*write each answer as the text of its choice",
        ),
    ],
)
def test_digits_that_may_mean_two_choices_are_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        ask(rows_of(*pairs), OWN)


@pytest.mark.parametrize('name', ['Q1: How was it?', 'Great!', 'a!r', 'size:', 'a.b[0]', ' '])
def test_punctuation_is_part_of_the_name_of_a_field(name):
    template = f'{{{{{{{name}}}}}}} is {{{name}2}}'
    assert parse_template(template) == [('{', name), ('} is ', f'{name}2')]
    asked = question(Row('here', {name: 'x', f'{name}2': 'y'}), template, f'{name}2', ())
    assert (asked.context, asked.answer) == ('{x} is ', 'y')


@pytest.mark.parametrize(
    ('template', 'message'),
    [
        ('{a', r"'{' at character 0 has no other brace; '{{' is the brace itself"),
        ('{a}} {b}', r"'}' at character 3 has no other brace; '}}' is the brace itself"),
        ('{a{b}}', r"'{' at character 0 has no other brace"),
        ('{a} {}', r"a field without a name: '{{}}' is a pair of braces"),
        ('{a}.', 'ends in text'),
        ('{{a}}', 'ends in text'),
        ('', 'ends in text'),
    ],
)
def test_invalid_templates_are_refused(template, message):
    with pytest.raises(InputError, match=message):
        parse_template(template)
