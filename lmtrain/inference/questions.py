"""Questions: rows rendered by a template, their choices and answers."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmtrain.data.chat import conversation
from lmtrain.data.rows import Row, check_text, value_of
from lmtrain.errors import InputError
from lmtrain.inference import prompts


class Question(NamedTuple):
    """A row as a question."""

    place: str  # of the row, for errors
    context: str  # its text up to the answer; JSON of its messages
    choices: tuple[str, ...]  # () if the answer is generated
    answer: str  # the right one
    messages: tuple[dict[str, Any], ...] = ()  # up to the answer, of a row that holds a conversation
    tools: Any = None


def ask(rows: Sequence[Row], settings, demonstrations: Sequence[Row] = ()) -> tuple[list[Question], list[Question]]:
    """(the rows as questions, the demonstrations as questions), by `prompting.PromptSettings`.

    If the choices are the answers of the rows, each question has those of all demonstrations (without any, of all
    rows). InputError: a row lacks a field or its answer.
    """
    form = {'template': settings.template, 'answer': settings.answer, 'choices': settings.choices}
    if settings.choices and settings.choices == settings.answer:
        form['choices'] = distinct_answers(demonstrations or rows, settings.answer)
    return [question(row, **form) for row in rows], [question(row, **form) for row in demonstrations]


def distinct_answers(rows: Sequence[Row], answer: str) -> list[str]:
    """All different texts in the field `answer` of the rows, sorted. InputError: a row lacks it."""
    return sorted({text_of(row, answer, value_of(row, answer, 'answer')) for row in rows})


def question(row: Row, template: str, answer: str, choices: str | Sequence[str]) -> Question:
    """A row as a question. InputError: the template or the row is invalid.

    Without a template the row is a conversation (`lmtrain.data.chat.conversation`), and its last answer is compared.
    """
    if not template:
        return _dialogue(row, answer, choices)
    *pieces, (literal, last) = parse_template(template)
    if last != answer or answer in [field for _, field in pieces]:
        raise InputError(f'template {template!r} must end in {{{answer}}}, the answer, and contain it only once')
    texts = [literal + text_of(row, field, value_of(row, field, 'template')) for literal, field in pieces]
    context = ''.join([*texts, literal])
    right = value_of(row, answer, 'answer')
    if not choices:
        return Question(row.place, context, (), text_of(row, answer, right))
    listed = _choices(row, choices)
    return Question(row.place, context, listed, _right(row, answer, right, listed, not isinstance(choices, str)))


def _dialogue(row: Row, answer: str, choices: str | Sequence[str]) -> Question:
    if answer:
        raise InputError(f'answer {answer!r} without a template: set both, or neither for rows of conversations')
    _, dialogue = conversation.read(row, (), '')
    if dialogue.messages and not dialogue.trained:
        raise InputError(f'{row.place}: no message of the assistant, so there is no answer to compare')
    before, right = prompts.before_answer(dialogue)
    listed = _choices(row, choices) if choices else ()
    right = _right(row, 'the answer', right, listed, not isinstance(choices, str)) if listed else right
    if isinstance(before, str):
        return Question(row.place, before, listed, right)
    context = json.dumps([before.messages, before.tools], sort_keys=True, default=str)
    return Question(row.place, context, listed, right, tuple(before.messages), before.tools)


def _choices(row: Row, choices: str | Sequence[str]) -> tuple[str, ...]:
    """The texts that are compared: `choices`, or those in the field of that name."""
    listed = value_of(row, choices, 'choices') if isinstance(choices, str) else choices
    if not isinstance(listed, list | tuple) or not listed:
        raise InputError(f'{row.place}: {choices!r} must hold a list of choices, not {listed!r}')
    listed = tuple(check_text(choice, f'{row.place}: a choice') for choice in listed)
    if '' in listed:
        raise InputError(f'{row.place}: an empty choice has no likelihood: {list(listed)}')
    return listed


def _right(row: Row, field: str, value: Any, choices: tuple[str, ...], shared: bool) -> str:
    """The choice that `value` names by its text or by its index, which is a string of digits in csv.

    Of choices that all rows share, a number may be one itself, such as a rating: its text comes before its index, and
    if all of them are numbers, there is no index.
    """
    text = str(value) if shared and type(value) in (int, float) else value
    if text in choices:
        return text
    listed = f'{", ".join(map(repr, choices[:5]))}{", ..." if len(choices) > 5 else ""}'
    if shared and all(map(_is_number, choices)):
        raise InputError(f'{row.place}: {field!r} is {value!r}, which is none of the choices {listed}')
    index = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(index) is not int or not 0 <= index < len(choices):
        raise InputError(
            f'{row.place}: {field!r} is {value!r}, neither a choice nor the index of one of {len(choices)}: {listed}'
        )
    return choices[index]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_BRACES = re.compile(r'\{\{|\}\}|\{[^{}]*\}|[{}]')


def parse_template(template: str) -> list[tuple[str, str]]:
    """(text, the field after it) in order; '{{' and '}}' are braces.

    A field has any name without braces. It is not a format of Python: ':' and '!' are part of the name.

    >>> parse_template('{{"name": {name}}}: {Q1: How was it?}')
    [('{"name": ', 'name'), ('}: ', 'Q1: How was it?')]
    """
    pieces, text, end = [], '', 0
    for match in _BRACES.finditer(template):
        text, end, part = text + template[end : match.start()], match.end(), match[0]
        if part in ('{{', '}}'):
            text += part[0]
        elif part in ('{', '}'):
            raise InputError(
                f'template {template!r}: {part!r} at character {match.start()} has no other brace; '
                f'{2 * part!r} is the brace itself'
            )
        else:
            pieces.append((text, part[1:-1]))
            text = ''
    if any(not field for _, field in pieces):
        raise InputError(f"template {template!r} has a field without a name: '{{{{}}}}' is a pair of braces")
    if text + template[end:] or not pieces:
        raise InputError(f'template {template!r} ends in text: it is text and {{field}}s, the last of them the answer')
    return pieces


def text_of(row: Row, field: str, value: Any) -> str:
    value = str(value) if type(value) in (int, float) else value
    return check_text(value, f'{row.place}: {field!r}')
