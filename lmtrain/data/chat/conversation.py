"""Rows as conversations: recognises the format, reads the messages, and selects the answers to train."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lmtrain.data.chat.messages import TRAIN_FIELDS, check_messages, tools_of
from lmtrain.data.examples import LABEL
from lmtrain.data.rows import Row, check_text, text_of, value_of
from lmtrain.errors import InputError

CONTINUED = 'prompt + completion'  # a text that no template writes
# {format: its fields}. 'alpaca' may have `input`.
FORMATS = {
    'messages': ('messages',),
    CONTINUED: ('prompt', 'completion'),
    'alpaca': ('instruction', 'output'),
    'sharegpt': ('conversations',),
}
# Fields of a question and its answer, any of the first with any of the second, written by the template.
QUESTIONS = ('prompt', 'question', 'instruction', 'input')
ANSWERS = ('completion', 'response', 'answer', 'output', 'target')
WITH_PROMPT = ('messages', 'sharegpt')  # formats that contain the prompt: a further field `prompt` repeats it
HISTORY = ('question', 'answer')  # the fields of an earlier turn in `history`


class Conversation(NamedTuple):
    """The conversation of a row: messages, or texts that no template writes.

    Texts are a prompt and its completion, or longer: every second text is trained.
    """

    messages: list[dict[str, Any]]  # [] if the conversation is `texts`
    trained: tuple[int, ...] = ()  # the indices of the messages that are trained
    texts: tuple[str, ...] = ('', '')
    tools: list | None = None


def read(row: Row, text: tuple[str, ...], label: str) -> tuple[str, Conversation]:
    """(the name of its format, the conversation) of a row.

    Args:
      text, label: config.task.text and label, the fields of prompt and completion. One field without a label: a
        conversation. (): the format is recognised.

    Raises InputError naming the row and the field.
    """
    if text and label:
        return ' + '.join((*text, label)), _completion(row, '\n\n', text, label)
    if text:
        return text[0], _dialogue(row, text[0])
    row = with_known_fields(row)
    form, _ = recognise_format(row)
    return form, _read_format(row, form)


def _read_format(row: Row, form: str) -> Conversation:
    if form == 'messages':
        return _dialogue(row, 'messages')
    if form == 'sharegpt':
        return _dialogue(row, 'conversations')
    if form == CONTINUED:
        return _completion(row, '')
    *questions, answer = ('instruction', 'input', 'output') if form == 'alpaca' else _fields_of(form)
    return _turn(row, questions, answer)


def with_known_fields(row: Row) -> Row:
    """The row with fields that `read` knows, from those of other data sets; the row itself if it needs none.

    `context` becomes the `input` of an instruction (Dolly), `system_prompt` becomes `system` (OpenOrca), and the pairs
    of texts in `history` (LLaMA-Factory) become objects. The rows of a run are hashed with these fields, so that
    examples that were made without them are not reused.
    """
    try:
        form, _ = recognise_format(row)
    except InputError:  # `read` raises it
        return row
    added: dict[str, Any] = {}
    if _reads_system(row, form) and not row.fields.get('system') and is_text(row.fields.get('system_prompt')):
        added['system'] = row.fields['system_prompt']
    if form not in (CONTINUED, *WITH_PROMPT):
        context, turns = row.fields.get('context'), row.fields.get('history')
        if 'instruction' in _fields_of(form) and row.fields.get('input') in (None, '') and is_text(context):
            added['input'] = context
        if isinstance(turns, list) and turns and all(map(_is_exchange, turns)):
            added['history'] = [dict(zip(HISTORY, exchange)) for exchange in turns]
    return row._replace(fields=row.fields | added) if added else row


def with_answer(row: Row, text: str) -> Row:
    """The row with another text as the last trained answer of its conversation. Raises what `read` raises."""
    form, dialogue = read(row, (), '')
    name = FORMATS.get(form, form.split(' + '))[-1]
    messages = row.fields[name]
    if isinstance(messages, str):
        return row._replace(fields=row.fields | {name: text})
    last = dialogue.trained[-1] - (len(dialogue.messages) - len(messages))  # after a prompt or a system text
    content = 'content' if messages[last].get('role') else 'value'
    changed = [*messages[:last], {**messages[last], content: text}, *messages[last + 1 :]]
    return row._replace(fields=row.fields | {name: changed})


def with_turns(row: Row, prompt: Any, is_turn: bool = False) -> Row:
    """The row with the text `prompt` as messages in its field `prompt`: the turns of its history, and a user turn.

    A text of `system_prompt` becomes `system`. The row itself if `prompt` is no text, or if there is neither a system
    text nor a history, unless `is_turn`.
    """
    system = next(filter(is_text, map(row.fields.get, ('system', 'system_prompt'))), None)
    earlier = history(row)
    if not prompt or not isinstance(prompt, str) or not (is_turn or system or earlier):
        return row
    turns = [*earlier, {'role': 'user', 'content': prompt}]
    return row._replace(fields=row.fields | {'prompt': turns} | ({'system': system} if system else {}))


def is_text(value: Any) -> bool:
    """Whether a value is text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _is_exchange(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def recognise_format(row: Row) -> tuple[str, list[str]]:
    """(the format of a row, its fields that are not read).

    A format of FORMATS whose fields are complete, else one of QUESTIONS with one of ANSWERS: 'question + answer'.

    Raises InputError if the fields belong to two formats, to none, or to preferences.
    """
    names = [name for name, value in row.fields.items() if value is not None]
    marked = [form for form, fields in FORMATS.items() if all(field in names for field in fields)]
    forms = [form for form in marked if form in WITH_PROMPT] or marked
    if len(forms) > 1:
        raise _clash(row, [f'{name!r} of {form}' for form in forms for name in FORMATS[form]])
    if forms:
        form = forms[0]
    elif {'chosen', 'rejected'} <= {*names}:
        raise InputError(_preferences(row))
    else:
        form = ' + '.join(_question_and_answer(row, names))
    read = _fields_read(row, form)
    return form, [name for name in names if name not in read and row.fields[name] not in ('', [])]


def _fields_of(form: str) -> tuple[str, ...]:
    return FORMATS.get(form, tuple(form.split(' + '))) + (('input',) if form == 'alpaca' else ())


def _fields_read(row: Row, form: str) -> set[str]:
    """The fields of a row that are read, including those from which `with_known_fields` made others."""
    read = {*_fields_of(form)}
    if form != CONTINUED or isinstance(row.fields['prompt'], list):
        read.add('tools')
    if _reads_system(row, form):
        read.add('system')
    if form not in (CONTINUED, *WITH_PROMPT) and history(row):
        read.add('history')
    copies = (('system_prompt', 'system'), ('context', 'input'))
    return read | {name for name, copy in copies if copy in read and row.fields.get(name) == row.fields.get(copy)}


def _reads_system(row: Row, form: str) -> bool:
    """Whether the field `system` is read: a text that is continued has none, and messages may have one of their own."""
    messages = row.fields[FORMATS[form][0]] if form in WITH_PROMPT else []
    first = messages[0] if isinstance(messages, list) and messages else None
    role = first.get('role') or first.get('from') if isinstance(first, Mapping) else None
    return form != CONTINUED and role not in ('system', 'developer')


def _question_and_answer(row: Row, names: list[str]) -> tuple[str, ...]:
    """The fields of a question and its answer. Raises InputError unless there is one of each."""
    questions = [name for name in QUESTIONS if name in names]
    answers = [name for name in ANSWERS if name in names]
    if set(questions) == {'instruction', 'input'}:
        questions = ['instruction', 'input']
    elif len(questions) > 1:
        raise _clash(row, [*map(repr, questions)])
    if len(answers) > 1 and questions:
        raise _clash(row, [*map(repr, answers)])
    if questions and answers:
        return *questions, answers[0]
    there = ', '.join(map(repr, names)) or 'none'
    if questions or answers:
        raise InputError(
            f'{row.place}: {(questions or answers)[0]!r} needs a field {", ".join(ANSWERS if questions else QUESTIONS)}'
            f'; there are {there}. Or set config.task.text and config.task.label'
        )
    known = '; '.join(f'{form}: {", ".join(fields)}' for form, fields in FORMATS.items())
    raise InputError(
        f'{row.place}: the fields {there} belong to no known format ({known}; one of {", ".join(QUESTIONS)} and one of '
        f'{", ".join(ANSWERS)}): rename them to question and answer, a turn each. For a prompt and a completion that '
        'continues it without turns, set config.task.text and config.task.label'
    )


def _clash(row: Row, fields: list[str]) -> InputError:
    return InputError(
        f'{row.place}: fields of two formats: {", ".join(fields)}. Remove one, or set config.task.text and '
        'config.task.label'
    )


def _preferences(row: Row) -> str:
    """The message on a row of preferences for the task of chat."""
    prompted = isinstance(row.fields['chosen'], str) and row.fields.get('prompt') is not None
    chosen = 'task.text=prompt and task.label=chosen train' if prompted else 'task.text=chosen trains'
    return (
        f"{row.place}: 'chosen' and 'rejected' are preferences: --config=configs/dpo.py learns from both answers, "
        f'--config=configs/reward_model.py to tell them apart; {chosen} on the chosen ones alone'
    )


def _dialogue(row: Row, name: str) -> Conversation:
    """The messages in one field, after the text in the field `system` if they have no system message."""
    messages = check_messages(value_of(row, name, 'config.task.text'), f'{row.place}: {name!r}')
    first = [] if messages[0]['role'] in ('system', 'developer') else _system(row)
    return of_messages(first + messages, row)


def _completion(row: Row, between: str, text: tuple[str, ...] = ('prompt',), label: str = 'completion') -> Conversation:
    prompts = [value_of(row, name, 'config.task.text') for name in text]
    if len(prompts) == 1 and isinstance(prompts[0], list):
        prompt = check_messages(prompts[0], f'{row.place}: {text[0]!r}')
        completion = check_messages(value_of(row, label, LABEL), f'{row.place}: {label!r}')
        return of_messages(prompt + completion, row, len(prompt))
    return Conversation([], (), (between.join(text_of(row, name) for name in text), text_of(row, label, LABEL)))


def _turn(row: Row, questions: list[str], answer: str) -> Conversation:
    """A question, in one field or an instruction with its input, and the answer, after the turns in `history`."""
    filled = [name for name in questions if row.fields.get(name) not in (None, '')] or questions[:1]
    content = '\n\n'.join(text_of(row, name) for name in filled)
    turn = [{'role': 'user', 'content': content}, {'role': 'assistant', 'content': text_of(row, answer)}]
    return of_messages(_system(row) + history(row) + turn, row)


def _system(row: Row) -> list[dict[str, Any]]:
    system = row.fields.get('system')
    return [{'role': 'system', 'content': text_of(row, 'system')}] if system else []


def history(row: Row) -> list[dict[str, Any]]:
    """The earlier turns in the field `history`, pairs of texts or objects with HISTORY; [] if it is neither."""
    turns = row.fields.get('history')
    if not isinstance(turns, list):
        return []
    turns = [dict(zip(HISTORY, turn)) if _is_exchange(turn) else turn for turn in turns]
    if not all(isinstance(turn, dict) and turn.keys() == {*HISTORY} for turn in turns):
        return []
    place, roles = f"{row.place}: 'history'", ('user', 'assistant')
    return [
        {'role': role, 'content': check_text(turn[name], f'{place} [{index}]')}
        for index, turn in enumerate(turns)
        for role, name in zip(roles, HISTORY)
    ]


def of_messages(messages: list[dict[str, Any]], row: Row, first: int = 0) -> Conversation:
    """A conversation whose answers from message `first` on are trained, unless one of TRAIN_FIELDS is false."""
    trained = tuple(
        index
        for index, message in enumerate(messages)
        if message['role'] == 'assistant' and index >= first and all(message.get(name, True) for name in TRAIN_FIELDS)
    )
    rest = [{name: value for name, value in message.items() if name not in TRAIN_FIELDS} for message in messages]
    return Conversation(rest, trained, tools=tools_of(row))
