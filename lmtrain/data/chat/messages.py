"""The messages of a conversation and its tools: checked, and in the one form that a chat template reads."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lmtrain.data.chat.template import REASONING
from lmtrain.data.chat.traced import JsonText
from lmtrain.data.rows import Row, check_text
from lmtrain.errors import InputError
from lmtrain.files import json_type, parse_json

ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
SHAREGPT = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant'} | {role: role for role in ROLES}
SHAREGPT |= {'function_call': 'assistant', 'observation': 'tool'}  # of LLaMA-Factory
# Whether a message is trained: `weight` of OpenAI and Mistral, `train` and `training` of axolotl, `loss` of ms-swift.
TRAIN_FIELDS = ('weight', 'train', 'training', 'loss')
UNSUPPORTED = ('train_detail', 'training_detail', 'loss_scale', 'mask', 'masked')  # parts of a message


def tools_of(row: Row) -> list | None:
    """The field `tools`: a list of JSON schemas, or the JSON of one; None if it is empty."""
    tools, place = row.fields.get('tools'), f"{row.place}: 'tools'"
    if isinstance(tools, str) and tools.strip():
        tools = parse_json(tools, place)
    if not tools or isinstance(tools, str):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f'{place} must be an array of objects, not {json_type(tools)}')
    check_text(_json(tools), place)
    return tools


def check_messages(messages: Any, place: str) -> list[dict[str, Any]]:
    """Messages, each with a role and a text. Raises InputError naming the invalid one.

    Null fields are removed. Text parts become one text. An answer that only calls tools has the text ''.
    """
    if not isinstance(messages, list) or not messages:
        kind = 'an empty one' if messages == [] else json_type(messages)
        raise InputError(f'{place} must be an array of at least one message, not {kind}')
    return [_message(message, f'{place} [{index}]') for index, message in enumerate(messages)]


def _message(message: Any, at: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f'{at}: expected an object, not {message!r:.80}')
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
            f"{at}: expected an object with 'role' and 'content' (or 'from' and 'value'), not {message!r:.80}"
        )
    if not isinstance(role, str) or role not in roles:
        raise InputError(f'{at}: {names[0]!r} is {role!r}, which is none of {", ".join(roles)}')
    if isinstance(content, list):
        content = ''.join(_part(part, f'{at}: {names[1]!r} [{index}]') for index, part in enumerate(content))
    _check_train_fields(message, roles[role], at)
    rest = _with_objects({name: value for name, value in message.items() if name not in names})
    check_text(_json(rest), at)
    return {'role': roles[role], 'content': check_text(content, f'{at}: {names[1]!r}')} | rest


def _part(part: Any, at: str) -> str:
    """The text of a part of `content`."""
    if isinstance(part, dict) and part.get('type') == 'text':
        return check_text(part.get('text'), f"{at}: 'text'")
    kind = f'a part of type {part.get("type")!r}' if isinstance(part, dict) else json_type(part)
    raise InputError(f"{at} is {kind}; only parts of type 'text' are read: remove it, or leave out the row")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # parquet has dates, decimals and bytes


def _with_objects(value: Any, within: bool = False) -> Any:
    """A message, with the JSON texts of objects in the `arguments` of its `tool_calls` as `JsonText`.

    Files for OpenAI have `arguments` as text, which a template with `tojson` would encode a second time. A text of
    anything else than an object stays as it is. `within` says whether the value is part of tool calls.
    """
    if isinstance(value, list):
        return [_with_objects(each, within) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _decoded(each) if within and name == 'arguments' else _with_objects(each, within or name == 'tool_calls')
        for name, each in value.items()
    }


def _decoded(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return JsonText(value, arguments) if isinstance(value, dict) else arguments


def has_json_arguments(value: Any) -> bool:
    """Whether tool calls in a value of a row have JSON texts as `arguments`, which templates once read as text."""
    if isinstance(value, list):
        return any(map(has_json_arguments, value))
    if not isinstance(value, Mapping):
        return False
    if value.get('from') == 'function_call' and isinstance(text := value.get('value'), str):
        return bool(re.search(r'"arguments"\s*:\s*"', text))
    calls = value.get('tool_calls')
    return _with_objects(calls, True) != calls or any(map(has_json_arguments, value.values()))


def _calls(value: Any, at: str) -> list[dict[str, Any]]:
    """A `function_call`, the JSON of one object with `name` and `arguments` or of several, as `tool_calls`."""
    calls = parse_json(value, f"{at}: 'value' of a function_call") if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and {'name', 'arguments'} <= call.keys() for call in calls):
        raise InputError(f"{at}: 'value' of a function_call needs an object with 'name' and 'arguments': {value!r:.60}")
    return [{'type': 'function', 'function': call} for call in calls]


def _check_train_fields(message: Mapping, role: str, at: str) -> None:
    """Raises InputError if a field trains a part of a message, or a message of another role than the assistant."""
    for name in _present(UNSUPPORTED, message):
        raise InputError(
            f'{at}: {name!r} is not supported: an answer is trained as a whole or, with "train": false, not at all'
        )
    for name in _present(TRAIN_FIELDS, message):
        value = message[name]
        if value not in (0, 1):
            raise InputError(f'{at}: {name!r} is {value!r}; it must be 0 or 1, or false or true')
        if value and role != 'assistant' and name != 'weight':  # `weight` concerns only answers
            raise InputError(
                f'{at}: {name!r} is {value!r} on a message of {role!r}: only messages of the assistant are '
                'trained, so remove the field here'
            )


def _present(names: Iterable[str], message: Mapping) -> list[str]:
    return [name for name in names if name in message]
