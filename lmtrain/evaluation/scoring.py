"""Scores of generated answers: each metric maps a text and the accepted answers to numbers in [0, 1]."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmtrain.errors import InputError
from lmtrain.evaluation import json_schema
from lmtrain.tasks import span

Metric = Callable[[str, Sequence[str]], dict[str, float]]  # (text, accepted answers) -> {name: score}, the main first


def exact(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Equality, apart from white space at both ends.

    >>> exact(' blue ', ['red', 'blue'])
    {'exact_match': 1.0}
    """
    return {'exact_match': float(text.strip() in [answer.strip() for answer in answers])}


def normalised(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Equality and F1 of words after SQuAD's normalisation: case, punctuation, articles and blanks do not count.

    >>> normalised('The cat.', ['a cat', 'a grey cat'])
    {'normalised_match': 1.0, 'word_f1': 1.0}
    """
    match = max(span.normal(text) == span.normal(answer) for answer in answers)
    return {'normalised_match': float(match), 'word_f1': max(span.word_f1(text, answer) for answer in answers)}


def regex(pattern: str, place: str) -> Metric:
    """Equality of the first group of `pattern` (without groups, of the match) in the text and in an answer.

    The first match counts. An answer without a match is compared as a whole; a text without one is wrong.

    >>> regex('= (-?[0-9]+)', 'here')('so 6 * 7 = 42, I think', ['6 * 7 = 42'])
    {'regex_match': 1.0}
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f'{place}: {pattern!r} is not a regular expression ({error})') from None

    def extract(text: str) -> str | None:
        match = compiled.search(text)
        return match and (match[1] if compiled.groups else match[0])

    def metric(text: str, answers: Sequence[str]) -> dict[str, float]:
        extracted, accepted = extract(text), [extract(answer) for answer in answers]
        accepted = [answer if part is None else part for answer, part in zip(answers, accepted, strict=True)]
        return {'regex_match': 0.0 if extracted is None else exact(extracted, accepted)['exact_match']}

    return metric


def json_answer(schema: Mapping[str, Any], place: str) -> Metric:
    """Whether a text is JSON that follows a schema (`json_schema`), and whether it equals an answer as JSON.

    >>> json_answer({'type': 'object', 'required': ['a']}, 'here')('{"a": 1.0, "b": []}', ['{"b": [], "a": 1}'])
    {'json_valid': 1.0, 'json_match': 1.0}
    """
    json_schema.check(schema, place)

    def parse(text: str) -> Any:
        try:
            return json.loads(text, parse_constant=int)  # NaN and Infinity are no JSON: int raises ValueError
        except (ValueError, RecursionError):
            return ...  # which equals no JSON value

    def metric(text: str, answers: Sequence[str]) -> dict[str, float]:
        value = parse(text)
        valid = value is not ... and not json_schema.violation(value, schema)
        match = value is not ... and any(json_schema.equal(value, parse(answer)) for answer in answers)
        return {'json_valid': float(valid), 'json_match': float(match)}

    return metric
