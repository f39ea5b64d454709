"""Verifiers: programs that decide whether a completion is right. 1 is right, 0 is wrong."""

import decimal
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.data.rows import Row, value_of
from lmtrain.errors import InputError
from lmtrain.evaluation import json_schema, scoring
from lmtrain.files import parse_json
from lmtrain.rewards import sandbox, user_file
from lmtrain.rewards.reward import Limits, Reward

# A comma is a part of a number between groups of three digits alone, and a sign not after a digit or a letter ('10-5').
NUMBER = re.compile(r'(?:(?<![\dA-Za-z])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?')
TYPESET_COMMA = re.compile(r'\{,\}|\\,|,\\!')  # between thousands, in LaTeX: 1{,}200, 1\,200, 1,\!200
FENCED = re.compile(r'```[^\n]*\n(.*?)```', re.DOTALL)
FIELD = 'config.reward.field'
LONGEST_NUMBER = 1000  # characters


class VerifierSettings(NamedTuple):
    """What verifiers read of config.reward."""

    field: str
    pattern: str
    limits: Limits


def exact(completion: str, expected: Any) -> float:
    """Equality with the expected text, or with one of several, apart from white space at both ends.

    >>> exact(' 12\\n', '12'), exact('12', ['a', '12'])
    (1.0, 1.0)
    """
    accepted = expected if isinstance(expected, list) else [expected]
    return scoring.exact(completion, [str(answer) for answer in accepted])['exact_match']


def number(completion: str, expected: Any) -> float:
    """Equality of the last number of the completion and of the expected text, as decimals.

    >>> number('6 * 7 = 42.0', 42), number('about 1,200', '... #### 1200'), number('no idea', 42)
    (1.0, 1.0, 0.0)
    >>> number('\\\\boxed{1{,}200}', '1200'), number('1\\\\,200', '1200')
    (1.0, 1.0)
    """
    return float(last_number(completion) == last_number(str(expected)))


def last_number(text: str) -> decimal.Decimal | None:
    """The last number of a text, with commas between thousands, of LaTeX too.

    None if there is none, or if it is too long.
    """
    text = TYPESET_COMMA.sub(',', text.replace('\u2212', '-'))  # the minus sign of typeset text
    texts = [match[0].replace(',', '') for match in NUMBER.finditer(text)]
    return decimal.Decimal(texts[-1]) if texts and len(texts[-1]) <= LONGEST_NUMBER else None


def json_valid(completion: str, expected: Any) -> float:
    """Whether the completion is JSON that follows the expected schema (`evaluation.json_schema`).

    >>> json_valid('{"a": 1}', {'required': ['a']}), json_valid('{"a": 1', {})
    (1.0, 0.0)
    """
    return scoring.json_answer(_schema(expected), FIELD)(completion, [])['json_valid']


def _schema(expected: Any) -> Mapping[str, Any]:
    return parse_json(expected, FIELD) if isinstance(expected, str) else expected


def _check_number(value: Any, place: str) -> None:
    if isinstance(value, bool) or last_number(str(value)) is None:
        raise InputError(f'{place}: {value!r} has no number')


def _check_schema(value: Any, place: str) -> None:
    schema = parse_json(value, place) if isinstance(value, str) else value
    json_schema.check(schema, place)


def _check_text(value: Any, place: str) -> None:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str | int | float) for text in texts):
        raise InputError(f'{place} must be a text or several, not {value!r}')


def _of_rows(
    verify: Callable[[str, Any], float], check: Callable[[Any, str], None], settings: VerifierSettings, note: str = ''
) -> Reward:
    """A verifier of one completion and the value of the row's field."""

    def score_one(completion: str, row: Mapping[str, Any]) -> float | str:
        try:
            return verify(completion, row[settings.field])
        except Exception as error:  # whatever a completion causes is a failure of that completion
            return f'{type(error).__name__}: {error}'

    def score(prompts, completions, rows):
        return [score_one(completion, row) for completion, row in zip(completions, rows, strict=True)]

    return Reward(score, _field_check(check, settings.field), note)


def _field_check(check: Callable[[Any, str], None], field: str) -> Callable[[Row], None]:
    return lambda row: check(value_of(row, field, FIELD), f'{row.place}: {field!r}')


def regex(settings: VerifierSettings) -> Reward:
    """Whether the pattern matches somewhere in the completion.

    A match may take exponential time, so that it runs in a worker, with a limit for each completion.
    """
    if settings.pattern:
        _check_pattern(settings.pattern, 'config.reward.pattern')
    worker = user_file.Worker(Path(__file__).with_name('regex_match.py'))
    seconds = settings.limits.seconds

    def score(prompts, completions, rows):
        patterns = [{'pattern': settings.pattern or row[settings.field], 'seconds': seconds} for row in rows]
        limit = (seconds + 1.0) * len(completions)
        try:
            return worker.call(prompts, completions, patterns, limit)
        except user_file.WorkerFailure as failure:
            return [str(failure)] * len(completions)

    check = Reward(score).check if settings.pattern else _field_check(_check_pattern, settings.field)
    return Reward(score, check, close=worker.close)


def _check_pattern(value: Any, place: str) -> None:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise InputError(f'{place}: {value!r} is not a regular expression ({error})') from None


def unit_test(settings: VerifierSettings) -> Reward:
    """Whether the Python code of the completion passes the test in the row's field (`sandbox`).

    The code is the first block between ``` lines, or the whole completion.
    """
    isolation = sandbox.isolation(settings.limits)

    def score(prompts, completions, rows):
        programs = [(_code(completion), row[settings.field]) for completion, row in zip(completions, rows, strict=True)]
        return sandbox.run_all(programs, settings.limits)

    return Reward(score, _field_check(_check_code, settings.field), f'unit tests run with {isolation}')


def _code(completion: str) -> str:
    fenced = FENCED.search(completion)
    return fenced[1] if fenced else completion


def _check_code(value: Any, place: str) -> None:
    try:
        compile(value, place, 'exec')
    except (SyntaxError, TypeError, ValueError) as error:
        raise InputError(f'{place} is not Python code ({error})') from None


VERIFIERS: dict[str, Callable[[VerifierSettings], Reward]] = {
    'exact': functools.partial(_of_rows, exact, _check_text),
    'number': functools.partial(_of_rows, number, _check_number),
    'json': functools.partial(_of_rows, json_valid, _check_schema),
    'regex': regex,
    'unit_test': unit_test,
}
