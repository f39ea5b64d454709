"""Rows as conversations: their format recognised, their messages checked, and which answers are learned."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lmtrain.data.chat.template import REASONING
from lmtrain.data.examples import LABEL
from lmtrain.data.rows import Row, check_text, text_of, value_of
from lmtrain.errors import InputError
from lmtrain.files import json_type, parse_json

# The fields that mark a format, and all that it needs.
FORMATS = {
    'messages': ('messages',),
    'prompt + completion': ('prompt', 'completion'),
    'alpaca': ('instruction', 'output'),
    'sharegpt': ('conversations',),
}
WHOLE = ('messages', 'sharegpt')  # formats that hold the prompt as well, so a field `prompt` beside them repeats it
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
SHAREGPT = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant'} | {role: role for role in ROLES}
SHAREGPT |= {'function_call': 'assistant', 'observation': 'tool'}  # of LLaMA-Factory
# Whether a message is learned: OpenAI and Mistral say `weight`, axolotl `train` or `training`, ms-swift `loss`.
LEARN = ('weight', 'train', 'training', 'loss')
REFUSED = ('train_detail', 'training_detail', 'loss_scale', 'mask', 'masked')  # they say more than yes or no


class Conversation(NamedTuple):
    """What a row holds: messages, or a prompt and its completion that stand as they are."""

    messages: list[dict[str, Any]]  # if there are none, `texts` is it
    learned: tuple[int, ...] = ()  # the numbers of the messages that are learned
    texts: tuple[str, str] = ('', '')
    tools: list | None = None


def read(row: Row, text: tuple[str, ...], label: str) -> tuple[str, Conversation]:
    """(the name of its format, the conversation) of a row.

    Args:
      text, label: config.task.text and label: fields of prompt and completion; one field and no label: of a
        conversation; () recognises the format.

    Raises ValueError naming the row and the field.
    """
    if text and label:
        return ' + '.join((*text, label)), _completion(row, '\n\n', text, label)
    if text:
        return text[0], _dialogue(row, text[0])
    form, beside = recognise(row)
    return form + beside, READERS[form](row)


def recognise(row: Row) -> tuple[str, str]:
    """(the format that a row's fields mark, a remark on fields that are not read).

    Raises ValueError if they mark two formats of equal rank or none, or if one lacks a field.
    """
    there = [name for name, value in row.fields.items() if value is not None]
    marked = [form for form, marks in FORMATS.items() if any(mark in there for mark in marks)]
    forms = [form for form in marked if form in WHOLE] or marked
    if len(forms) > 1:
        clash = ', '.join(f'{name!r} of {form}' for form in forms for name in FORMATS[form] if name in there)
        raise InputError(
            f'{row.place}: fields of two formats: {clash}. Leave one out, or name config.task.text and label'
        )
    if not forms:
        known = '; '.join(f'{form}: {", ".join(marks)}' for form, marks in FORMATS.items())
        raise InputError(
            f'{row.place}: the fields {", ".join(map(repr, there))} are of no format that is known ({known}): name '
            'those of prompt and completion in config.task.text and config.task.label'
        )
    missing = [name for name in FORMATS[forms[0]] if name not in there]
    if missing:
        raise InputError(
            f'{row.place}: {forms[0]} needs the field {missing[0]!r}; there are {", ".join(map(repr, there))}'
        )
    unread = [repr(name) for form in marked if form != forms[0] for name in FORMATS[form] if name in there]
    return forms[0], f' (beside {", ".join(unread)}, not read)' if unread else ''


def _dialogue(row: Row, name: str) -> Conversation:
    """The messages in one field; if they begin with no system, the text in the field `system` before them."""
    messages = checked(value_of(row, name, 'config.task.text'), f'{row.place}: {name!r}')
    first = [] if messages[0]['role'] in ('system', 'developer') else _system(row)
    return _of(first + messages, row)


def _completion(row: Row, between: str, text: tuple[str, ...] = ('prompt',), label: str = 'completion') -> Conversation:
    prompts = [value_of(row, name, 'config.task.text') for name in text]
    if len(prompts) == 1 and isinstance(prompts[0], list):
        prompt = checked(prompts[0], f'{row.place}: {text[0]!r}')
        completion = checked(value_of(row, label, LABEL), f'{row.place}: {label!r}')
        return _of(prompt + completion, row, len(prompt))
    return Conversation([], (), (between.join(text_of(row, name) for name in text), text_of(row, label, LABEL)))


def _alpaca(row: Row) -> Conversation:
    told = [text_of(row, name) for name in ('instruction', 'input') if row.fields.get(name) not in (None, '')]
    pairs = [('user', '\n\n'.join(told)), ('assistant', text_of(row, 'output'))]
    return _of(_system(row) + [{'role': role, 'content': content} for role, content in pairs], row)


def _system(row: Row) -> list[dict[str, Any]]:
    system = row.fields.get('system')
    return [{'role': 'system', 'content': text_of(row, 'system')}] if system else []


def _of(messages: list[dict[str, Any]], row: Row, first: int = 0) -> Conversation:
    """A conversation whose answers from the message `first` on are learned, unless a field says otherwise."""
    learned = tuple(
        index
        for index, message in enumerate(messages)
        if message['role'] == 'assistant' and index >= first and all(message.get(name, True) for name in LEARN)
    )
    plain = [{name: value for name, value in message.items() if name not in LEARN} for message in messages]
    return Conversation(plain, learned, tools=_tools(row))


def _tools(row: Row) -> list | None:
    """The field `tools`: a list of JSON schemas, or JSON of one; None if it is empty."""
    tools, place = row.fields.get('tools'), f"{row.place}: 'tools'"
    if isinstance(tools, str) and tools.strip():
        tools = parse_json(tools, place)
    if not tools or isinstance(tools, str):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f'{place} must be an array of objects, here it is {json_type(tools)}')
    check_text(json.dumps(tools, ensure_ascii=False), place)
    return tools


def checked(messages: Any, place: str) -> list[dict[str, Any]]:
    """Messages, each with a role and text. Raises ValueError naming the one that is wrong.

    Fields that are null are left out. Text parts become one text. An answer that only calls tools has the text ''.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError(f'{place} must be an array of messages, here it is {messages and json_type(messages)!r}')
    return [_message(message, f'{place} [{index}]') for index, message in enumerate(messages)]


def _message(message: Any, at: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f'{at}: an object is expected, here is {message!r:.80}')
    message = {name: value for name, value in message.items() if value is not None}
    names, roles = ('role', 'content'), dict(zip(ROLES, ROLES))
    if 'from' in message and 'role' not in message:
        names, roles = ('from', 'value'), SHAREGPT
    role, content = (message.get(name) for name in names)
    if role == 'function_call' and 'from' in names:
        content, message = '', message | {'tool_calls': _calls(content, at)}
    if content is None and role is not None and any(message.get(name) for name in ('tool_calls', *REASONING)):
        content = ''
    if role is None or content is None:
        raise InputError(
            f"{at}: an object with 'role' and 'content' (or 'from' and 'value') is expected, here is {message!r:.80}"
        )
    if role not in roles:
        raise InputError(f'{at}: {names[0]!r} is {role!r}, which is none of {", ".join(roles)}')
    if isinstance(content, list) and all(isinstance(part, dict) and part.get('type') == 'text' for part in content):
        content = ''.join(check_text(part.get('text'), f"{at}: 'text'") for part in content)
    _check_learn(message, roles[role], at)
    rest = {name: value for name, value in message.items() if name not in names}
    check_text(json.dumps(rest, ensure_ascii=False), at)
    return {'role': roles[role], 'content': check_text(content, f'{at}: {names[1]!r}')} | rest


def _calls(value: Any, at: str) -> list[dict[str, Any]]:
    """The value of a `function_call`, JSON of an object with `name` and `arguments` or of several, as `tool_calls`."""
    calls = parse_json(value, f"{at}: 'value' of a function_call") if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and {'name', 'arguments'} <= call.keys() for call in calls):
        raise InputError(f"{at}: 'value' of a function_call needs an object with 'name' and 'arguments': {value!r:.60}")
    return [{'type': 'function', 'function': call} for call in calls]


def _check_learn(message: Mapping, role: str, at: str) -> None:
    """Raises ValueError if a field says of a message what lmtrain cannot do: learn parts of it, or another role."""
    for name in _there(REFUSED, message):
        raise InputError(
            f'{at}: {name!r} is not supported: an answer is learned as a whole or, with "train": false, not at all'
        )
    for name in _there(LEARN, message):
        value = message[name]
        if value not in (0, 1):
            raise InputError(f'{at}: {name!r} is {value!r}; it must be 0 or 1, or false or true')
        if value and role != 'assistant' and name != 'weight':  # `weight` is said of answers alone
            raise InputError(
                f'{at}: {name!r} is {value!r} on a message of {role!r}: only what the assistant says is '
                'learned, so leave the field out here'
            )


def _there(names: Iterable[str], message: Mapping) -> list[str]:
    return [name for name in names if name in message]


READERS = {
    'messages': lambda row: _dialogue(row, 'messages'),
    'prompt + completion': lambda row: _completion(row, ''),
    'alpaca': _alpaca,
    'sharegpt': lambda row: _dialogue(row, 'conversations'),
}
