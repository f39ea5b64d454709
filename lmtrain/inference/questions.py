"""Questions: rows rendered by a template, their choices and answers."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmtrain.data.chat import conversation
from lmtrain.data.rows import Row, check_text, value_of
from lmtrain.errors import InputError
from lmtrain.inference import prompts

LAST = 'the answer'  # of a conversation, in errors


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
    rows). InputError: a row lacks a field or its answer, or an answer may mean two choices (`answers_as_texts`).
    """
    form = {'template': settings.template, 'answer': settings.answer, 'choices': settings.choices}
    if settings.choices and settings.choices == settings.answer:
        form['choices'] = distinct_answers(demonstrations or rows, settings.answer)
    rows, demonstrations = answers_as_texts(rows, settings, demonstrations)
    return [question(row, **form) for row in rows], [question(row, **form) for row in demonstrations]


def distinct_answers(rows: Sequence[Row], answer: str) -> list[str]:
    """All different texts in the field `answer` of the rows, sorted. InputError: a row lacks it."""
    return sorted({text_of(row, answer, value_of(row, answer, 'answer')) for row in rows})


def answers_as_texts(rows: Sequence[Row], settings, demonstrations: Sequence[Row] = ()) -> tuple[list[Row], list[Row]]:
    """(the rows, the demonstrations), where each has its own choices with the text of the right one as its answer.

    An answer of digits is the text of a choice or an index, the same in all rows: texts if every answer that is a
    string is one of the choices of its row, else indices if every one is an index; else each must have one meaning.
    The answer of a conversation is its last one. A caller that leaves rows out calls this before.

    Raises InputError naming the first row whose answer has no meaning, or two.
    """
    answer, choices = settings.answer, settings.choices
    if not choices or choices == answer or not isinstance(choices, str) or bool(settings.template) != bool(answer):
        return list(rows), list(demonstrations)
    count, rows = len(rows), [*rows, *demonstrations]
    listed = [_choices(row, choices) for row in rows]
    values = [value_of(row, answer, 'answer') if answer else _last_answer(row)[1] for row in rows]
    name = answer or LAST
    right = [_right(row, name, *each, shared=False) for row, *each in zip(rows, values, listed, strict=True)]
    texts = [number for number, value in enumerate(values) if isinstance(value, str)]
    no_text = [number for number in texts if values[number] not in listed[number]]
    no_index = [number for number in texts if _index(values[number], listed[number]) is None]
    for number in texts if no_text else ():
        value, own = values[number], listed[number]
        index = _index(value, own)
        if index is None or own[index] == right[number]:
            continue
        if no_index:
            text, other = no_text[0], no_index[0]
            raise InputError(
                f'{rows[number].place}: {name!r} is {value!r}, one of the choices and the index of {own[index]!r}; '
                f'not all answers are texts ({rows[text].place}: {_shown(listed[text])}), and not all are indices '
                f'({rows[other].place}: {_shown(listed[other])}): write each answer as the text of its choice'
            )
        right[number] = own[index]
    for number, (row, text) in enumerate(zip(rows, right, strict=True)):
        if text != values[number]:
            fields = row.fields | {answer: text}
            rows[number] = row._replace(fields=fields) if answer else conversation.with_answer(row, text)
    return rows[:count], rows[count:]


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
    before, right = _last_answer(row)
    listed = _choices(row, choices) if choices else ()
    right = _right(row, LAST, right, listed, not isinstance(choices, str)) if listed else right
    if isinstance(before, str):
        return Question(row.place, before, listed, right)
    context = json.dumps([before.messages, before.tools], sort_keys=True, default=str)
    return Question(row.place, context, listed, right, tuple(before.messages), before.tools)


def _last_answer(row: Row) -> tuple[prompts.Prompt, str]:
    """(what comes before the last answer of a conversation, the answer). InputError: it has none."""
    _, dialogue = conversation.read(row, (), '')
    if dialogue.messages and not dialogue.trained:
        raise InputError(f'{row.place}: no message of the assistant, so there is no answer to compare')
    return prompts.before_answer(dialogue)


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

    Of a row with its own choices, the text comes first too; what other rows tell is in `answers_as_texts`.
    Of choices that all rows share, a number may be one itself, such as a rating: its text comes before its index, and
    if all of them are numbers, there is no index.
    """
    text = str(value) if shared and type(value) in (int, float) else value
    if text in choices:
        return text
    if shared and all(map(_is_number, choices)):
        raise InputError(f'{row.place}: {field!r} is {value!r}, which is none of the choices {_shown(choices)}')
    index = _index(value, choices)
    if index is None:
        raise InputError(
            f'{row.place}: {field!r} is {value!r}, neither a choice nor the index of one of {len(choices)}: '
            f'{_shown(choices)}'
        )
    return choices[index]


def _index(value: Any, choices: Sequence[str]) -> int | None:
    """`value` as the index of a choice, a whole number or its digits; None if it is none."""
    index = int(value) if isinstance(value, str) and value.isdecimal() else value
    return index if type(index) is int and 0 <= index < len(choices) else None


def _shown(choices: Sequence[str]) -> str:
    return f'{", ".join(map(repr, choices[:5]))}{", ..." if len(choices) > 5 else ""}'


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
