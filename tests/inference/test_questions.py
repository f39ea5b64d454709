"""Templates: the names of fields are those of the columns of any file."""

import pytest

from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference.questions import parse_template, question


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
