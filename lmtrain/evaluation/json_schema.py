"""A subset of JSON Schema (draft 2020-12) that describes the answers of a task."""

from collections.abc import Mapping
from typing import Any

from lmtrain.errors import InputError, did_you_mean

TYPES = {
    'object': lambda value: isinstance(value, dict),
    'array': lambda value: isinstance(value, list),
    'string': lambda value: isinstance(value, str),
    'number': lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    'integer': lambda value: type(value) is int or type(value) is float and value.is_integer(),
    'boolean': lambda value: isinstance(value, bool),
    'null': lambda value: value is None,
}
KEYWORDS = ('type', 'required', 'properties', 'additionalProperties', 'items', 'enum')


def check(schema: Any, place: str) -> None:
    """Raises InputError naming `place` if a schema uses a keyword or a type that `violation` does not know."""
    if not isinstance(schema, Mapping):
        raise InputError(f'{place}: a JSON schema is a table of {", ".join(KEYWORDS)}, not {schema!r}')
    for keyword in schema:
        if keyword not in KEYWORDS:
            hint = did_you_mean(keyword, KEYWORDS)
            raise InputError(f'{place}: {keyword!r} is none of the supported keywords {", ".join(KEYWORDS)}{hint}')
    types = schema.get('type', '')
    if not isinstance(types, str) and not (isinstance(types, list) and all(isinstance(name, str) for name in types)):
        raise InputError(f'{place}.type: {types!r} is neither a text nor a list of texts')
    for name in _types(schema):
        if name not in TYPES:
            raise InputError(f'{place}: the type {name!r} is none of {", ".join(TYPES)}')
    for keyword, kind in (('required', list), ('enum', list), ('properties', dict), ('additionalProperties', bool)):
        if not isinstance(schema.get(keyword, kind()), kind):
            raise InputError(f'{place}.{keyword}: {schema[keyword]!r} has the wrong type')
    for name, inner in schema.get('properties', {}).items():
        check(inner, f'{place}.properties.{name}')
    if 'items' in schema:
        check(schema['items'], f'{place}.items')


def violation(value: Any, schema: Mapping[str, Any], path: str = '$') -> str:
    """The first way in which a JSON value differs from a schema, or '' if it is valid.

    >>> schema = {'type': 'object', 'required': ['age'], 'properties': {'age': {'type': 'integer'}}}
    >>> violation({'age': 3}, schema), violation({'age': '3'}, schema)
    ('', "$.age: '3' is not integer")
    """
    if (types := _types(schema)) and not any(TYPES[name](value) for name in types):
        return f'{path}: {value!r} is not {" or ".join(types)}'
    if 'enum' in schema and not any(equal(value, each) for each in schema['enum']):
        return f'{path}: {value!r} is none of {schema["enum"]}'
    if isinstance(value, dict):
        properties = schema.get('properties', {})
        for name in schema.get('required', ()):
            if name not in value:
                return f'{path}: no {name!r}'
        if schema.get('additionalProperties', True) is False and (others := sorted(value.keys() - properties)):
            return f'{path}: {others[0]!r} is not allowed'
        inner = ((f'{path}.{name}', value[name], properties[name]) for name in properties if name in value)
    else:
        items = value if isinstance(value, list) and 'items' in schema else ()
        inner = ((f'{path}[{index}]', item, schema['items']) for index, item in enumerate(items))
    return next((text for place, item, own in inner if (text := violation(item, own, place))), '')


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    types = schema.get('type', ())
    return (types,) if isinstance(types, str) else tuple(types)


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, but not true.

    >>> equal({'a': [1]}, {'a': [1.0]}), equal({'a': [1]}, {'a': [True]})
    (True, False)
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)
