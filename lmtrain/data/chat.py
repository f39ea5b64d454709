"""Conversations: rows recognised, written by a chat template, and what the assistant says marked as what is learned."""

import collections
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain import paths
from lmtrain.data.contents import bar
from lmtrain.data.examples import LABEL, Example, Long
from lmtrain.data.rows import Row, check_text, text_of, value_of
from lmtrain.data.source import kind_of
from lmtrain.data.template import PLAIN, Template, encode, guard, names_of
from lmtrain.data.text import Tokenizer

# The fields that mark a format, and all that it needs.
FORMATS = {
    'messages': ('messages',),
    'prompt + completion': ('prompt', 'completion'),
    'alpaca': ('instruction', 'output'),
    'sharegpt': ('conversations',),
}
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
SHAREGPT = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant'} | {role: role for role in ROLES}


class Conversation(NamedTuple):
    """What a row says: messages, or a prompt and its completion that stand as they are."""

    messages: list[dict[str, Any]]  # without any, `texts` is it
    learned: int  # the first message whose saying may be learned
    texts: tuple[str, str] = ('', '')
    tools: Any = None


def template_of(template: str, tokenizer: Tokenizer, root: str) -> Template:
    """'auto': the tokenizer's own chat template, else 'plain'; or a file. Raises FileNotFoundError."""
    own = json.loads(tokenizer.about or b'{}').get('chat_template')
    if template == 'auto' and own:
        return Template(own, "the tokenizer's chat template")
    if template in ('auto', 'plain'):
        return Template(PLAIN, 'the plain template')
    path = paths.local(template, 'task.template', root)
    if not path.is_file():
        raise FileNotFoundError(
            f"config.task.template: no file {path}; it is 'auto', 'plain', or a Jinja chat template"
        )
    return Template(path.read_text(encoding='utf-8'), f'the chat template {path}')


def conversations(
    rows: Sequence[Row], text: tuple[str, ...], label: str, tokenizer: Tokenizer, template: Template, long: Long
) -> tuple[list[Example], list[str]]:
    """(examples, what was recognised, a line each).

    Column: `loss_mask` float32 [n], 1 where the next token is one that the assistant says.

    Args:
      text, label: fields of prompt and completion; () recognises the format of every row by its fields.

    Raises ValueError naming the row: fields of two formats or of none, a template that fails or is not built up turn by
    turn, no token to learn.
    """
    examples, formats, beyond = [], collections.Counter(), []
    for number, row in enumerate(bar(rows, 'writing conversations', len(rows))):
        if text:
            form, said = ' + '.join((*text, label)), _completion(row, '\n\n', text, label)
        else:
            form = recognise(row)
            said = READERS[form](row)
        formats[form, bool(said.messages)] += 1
        ids, learns = tokens(said, tokenizer, template, row.place)
        if not _says(ids, learns, tokenizer):
            raise ValueError(f'{row.place}: not a single token to learn: the assistant says nothing')
        if not long.fits(row, len(ids) - 1):
            continue
        ids, learns = ids[: long.seq_len + 1], learns[: long.seq_len + 1]
        if not _says(ids, learns, tokenizer):
            beyond.append(row.place)
            continue
        mask = np.array([*learns[1:], False], np.float32)
        examples.append(Example(number, np.array(ids, np.int32), {'loss_mask': mask}, {}))
    notes = [
        f'{count} rows of {form}, {f"written by {template.name}" if by_template else "as they stand"}'
        for (form, by_template), count in formats.items()
    ]
    if beyond:
        notes.append(
            f'{len(beyond)} of the cut rows are left out, what they teach lies behind the cut: {beyond[0]}, ...'
        )
    return examples, notes


def _says(ids: list[int], learns: list[bool], tokenizer: Tokenizer) -> bool:
    """Whether a token of content is learned, which the first one cannot be."""
    return any(learn and token not in tokenizer.specials for token, learn in zip(ids[1:], learns[1:]))


def tokens(said: Conversation, tokenizer: Tokenizer, template: Template, place: str) -> tuple[list[int], list[bool]]:
    """(ids, whether each is learned) of a conversation: BOS once at its beginning, the end of every answer learned."""
    if said.messages:
        text, spans = written(said, tokenizer, template, place)
    else:
        prompt, completion = (guard(each, tokenizer, place) for each in said.texts)
        text, spans = prompt + completion, [(len(prompt), len(prompt) + len(completion))]
    ids, learns = encode(text, spans, tokenizer)
    _end_at_the_mark(ids, learns, tokenizer)
    if learns and learns[-1] and ids[-1] not in tokenizer.specials:
        ids, learns = [*ids, tokenizer.end_id], [*learns, True]
    begin = tokenizer.begin_id
    if ids[:1] != [begin] and (begin in tokenizer.layout.prefix or template.source == PLAIN or not said.messages):
        ids, learns = [begin, *ids], [False, *learns]
    if ids[:2] == [begin, begin]:
        name = tokenizer.specials[begin]
        raise ValueError(f'{place}: {template.name} begins with {name!r} twice; a text begins with it once')
    return ids, learns


def written(said: Conversation, tokenizer: Tokenizer, template: Template, place: str):
    """(the guarded text of a conversation, [(begin, end)] of what the assistant says in it).

    What it says is what a message adds to the text of those before it and the cue to speak (`add_generation_prompt`).
    Raises ValueError where the template does not write a conversation as a beginning of the longer one.
    """
    messages = [guard(each, tokenizer, place) | {'role': each['role']} for each in said.messages]
    names, tools = names_of(tokenizer), guard(said.tools, tokenizer, place)

    def text(count: int, cue: bool) -> str:
        return template.render(messages[:count], names, place, add_generation_prompt=cue, tools=tools)

    whole, spans = text(len(messages), False), []
    for index, message in enumerate(messages):
        if message['role'] != 'assistant' or index < said.learned:
            continue
        before, after = text(index, True), text(index + 1, False)
        if not after.startswith(before) or not whole.startswith(after):
            raise ValueError(
                f'{place}: {template.name} writes message {index + 1} otherwise once more is said, so what the '
                'assistant says cannot be found in it: give each answer a row of its own, or another template'
            )
        spans.append((len(before), len(after)))
    return whole, spans


def _end_at_the_mark(ids: list[int], learns: list[bool], tokenizer: Tokenizer) -> None:
    """Blanks that a template writes behind the mark that ends an answer are not learned: nobody waits for them."""
    for at in range(len(ids)):
        if learns[at] and ids[at] not in tokenizer.specials and (at + 1 == len(ids) or not learns[at + 1]):
            back = at
            while learns[back] and ids[back] not in tokenizer.specials and not tokenizer.pieces[ids[back]].strip():
                back -= 1
            if back >= 0 and learns[back] and ids[back] in tokenizer.specials:
                learns[back + 1 : at + 1] = [False] * (at - back)


# --- formats


def recognise(row: Row) -> str:
    """The format that a row's fields mark. Raises ValueError where they mark two or none, or one is not whole."""
    there = [name for name, value in row.fields.items() if value is not None]
    found = [form for form, marks in FORMATS.items() if any(mark in there for mark in marks)]
    if len(found) > 1:
        clash = ', '.join(f'{name!r} of {form}' for form in found for name in FORMATS[form] if name in there)
        raise ValueError(
            f'{row.place}: fields of two formats: {clash}. Leave one out, or name config.task.text and label'
        )
    if not found:
        known = '; '.join(f'{form}: {", ".join(marks)}' for form, marks in FORMATS.items())
        raise ValueError(
            f'{row.place}: the fields {", ".join(map(repr, there))} are of no format that is known ({known}): name '
            'those of prompt and completion in config.task.text and config.task.label'
        )
    missing = [name for name in FORMATS[found[0]] if name not in there]
    if missing:
        raise ValueError(
            f'{row.place}: {found[0]} needs the field {missing[0]!r}; there are {", ".join(map(repr, there))}'
        )
    return found[0]


def _messages(row: Row) -> Conversation:
    return Conversation(_checked(row.fields['messages'], f"{row.place}: 'messages'"), 0, tools=row.fields.get('tools'))


def _completion(row: Row, between: str, text: tuple[str, ...] = ('prompt',), label: str = 'completion') -> Conversation:
    prompts = [value_of(row, name, 'config.task.text') for name in text]
    if len(prompts) == 1 and isinstance(prompts[0], list):
        prompt = _checked(prompts[0], f'{row.place}: {text[0]!r}')
        completion = _checked(value_of(row, label, LABEL), f'{row.place}: {label!r}')
        return Conversation(prompt + completion, len(prompt), tools=row.fields.get('tools'))
    return Conversation([], 0, (between.join(text_of(row, name) for name in text), text_of(row, label, LABEL)))


def _alpaca(row: Row) -> Conversation:
    told = [text_of(row, name) for name in ('instruction', 'input') if row.fields.get(name) not in (None, '')]
    said = [('user', '\n\n'.join(told)), ('assistant', text_of(row, 'output'))]
    return Conversation(_system(row) + [{'role': role, 'content': content} for role, content in said], 0)


def _sharegpt(row: Row) -> Conversation:
    place, found = f"{row.place}: 'conversations'", row.fields['conversations']
    if not isinstance(found, list):
        raise ValueError(f'{place} must be an array, here it is {kind_of(found)}')
    messages = []
    for index, each in enumerate(found):
        if not isinstance(each, dict) or not {'from', 'value'} <= each.keys():
            raise ValueError(f"{place} [{index}]: an object with 'from' and 'value' is expected")
        if each['from'] not in SHAREGPT:
            raise ValueError(f"{place} [{index}]: 'from' is {each['from']!r}, which is none of {', '.join(SHAREGPT)}")
        messages.append({'role': SHAREGPT[each['from']], 'content': each['value']})
    return Conversation(_checked(_system(row) + messages, place), 0)


def _system(row: Row) -> list[dict[str, Any]]:
    system = row.fields.get('system')
    return [{'role': 'system', 'content': text_of(row, 'system')}] if system else []


def _checked(messages: Any, place: str) -> list[dict[str, Any]]:
    """Messages with a role and text. Raises ValueError naming the one that has none."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{place} must be an array of messages, here it is {messages and kind_of(messages)!r}')
    checked = []
    for index, message in enumerate(messages):
        at = f'{place} [{index}]'
        if not isinstance(message, dict) or not {'role', 'content'} <= message.keys():
            raise ValueError(f"{at}: an object with 'role' and 'content' is expected, here is {message!r:.80}")
        if message['role'] not in ROLES:
            raise ValueError(f"{at}: 'role' is {message['role']!r}, which is none of {', '.join(ROLES)}")
        content = message['content']
        if isinstance(content, list) and all(isinstance(part, dict) and part.get('type') == 'text' for part in content):
            content = ''.join(check_text(part.get('text'), f"{at}: 'text'") for part in content)
        if content is None and message.get('tool_calls'):
            content = ''
        checked.append(message | {'content': check_text(content, f"{at}: 'content'")})
    return checked


READERS = {
    'messages': _messages,
    'prompt + completion': lambda row: _completion(row, ''),
    'alpaca': _alpaca,
    'sharegpt': _sharegpt,
}
