"""The validator agrees with the cases of the specification's own test suite that use its keywords."""

import pytest

from lmtrain.evaluation.json_schema import check, violation

PERSON = {
    'type': 'object',
    'required': ['name', 'tags'],
    'additionalProperties': False,
    'properties': {
        'name': {'type': ['string', 'null']},
        'tags': {'type': 'array', 'items': {'enum': ['a', 1, True]}},
        'age': {'type': 'integer'},
    },
}


@pytest.mark.parametrize(
    'value, message',
    [
        ({'name': 'x', 'tags': []}, ''),
        ({'name': None, 'tags': ['a', 1, True], 'age': 3.0}, ''),
        ({'name': 1, 'tags': []}, '$.name: 1 is not string or null'),
        ({'name': 'x'}, "$: no 'tags'"),
        ({'name': 'x', 'tags': ['a', 'b']}, "$.tags[1]: 'b' is none of ['a', 1, True]"),
        ({'name': 'x', 'tags': [], 'age': True}, '$.age: True is not integer'),
        ({'name': 'x', 'tags': [], 'age': 3.5}, '$.age: 3.5 is not integer'),
        ({'name': 'x', 'tags': [], 'sex': 'f'}, "$: 'sex' is not allowed"),
        (['name', 'tags'], "$: ['name', 'tags'] is not object"),
    ],
)
def test_violations(value, message):
    assert violation(value, PERSON) == message


def test_true_is_not_one():
    assert violation(True, {'enum': [1]}) and violation(1, {'enum': [True]}) and violation(True, {'type': 'number'})
    assert not violation(1.0, {'enum': [1]})


def test_keywords_of_other_types_are_ignored():
    assert not violation('text', {'required': ['a'], 'items': {'type': 'null'}})


@pytest.mark.parametrize(
    'schema, message',
    [
        ({'tpye': 'object'}, "here: 'tpye' is none of the supported.*did you mean 'type'"),
        ({'properties': {'a': {'minimum': 3}}}, r"here\.properties\.a: 'minimum' is none"),
        ({'items': {'type': 'int'}}, "here.items: the type 'int' is none of object"),
        ({'type': 5}, 'here.type: 5 is neither a text nor a list of texts'),
        ({'type': True}, 'here.type: True is neither a text nor a list of texts'),
        ({'type': ['string', 1]}, r"here.type: \['string', 1\] is neither"),
        ({'type': {'object': 1}}, r"here.type: {'object': 1} is neither"),
        ({'required': 'a'}, "here.required: 'a' has the wrong type"),
        ('object', "a JSON schema is a table of type, .*, not 'object'"),
    ],
)
def test_unknown_keywords_are_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        check(schema, 'here')
