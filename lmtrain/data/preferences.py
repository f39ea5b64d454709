"""Rows of preferences: pairs of a chosen and a rejected completion, and completions with a label; as token ids.

The format of every row is recognised:

    prompt + chosen + rejected    texts, or messages; `conversations` is another name of the prompt (LLaMA-Factory)
    question + chosen + rejected  texts; the question (or instruction and input) is a turn, after the text in `system`
                                  and the turns in `history` (LLaMA-Factory)
    whole conversations           `chosen` and `rejected` are messages from the first turn on, or transcripts of hh-rlhf
                                  ('\\n\\nHuman: ...\\n\\nAssistant: ...'); the turns that both share are the prompt
    chosen + rejected             texts without a prompt; what both begin with is the prompt, up to a space
    prompt + completion + label   one completion and whether it is desirable (KTO)
"""

import collections
import itertools
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import (
    QUESTIONS,
    Conversation,
    history,
    is_text,
    of_messages,
    with_turns,
)
from lmtrain.data.chat.messages import check_messages
from lmtrain.data.chat.template import PLAIN, REASONING, Template
from lmtrain.data.rows import Row, check_text, value_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.files import json_type

TURN = re.compile(r'(?:^|\n\n)(Human|Assistant):')  # of a transcript
SIDES = ('chosen', 'rejected')
PROMPTS = ('prompt', 'conversations')  # two names of one field
SYSTEM = ('system', 'developer')  # roles
LABELS = {True: True, False: False, 'true': True, 'false': False, '1': True, '0': False}


class Unwritten(InputError):
    """A completion of which the template writes nothing, such as a call of a tool in many templates."""

    NOTE = 'whose completion the template does not write'


class Pair(NamedTuple):
    """Two completions of one prompt, and the name of their format."""

    form: str
    chosen: Conversation
    rejected: Conversation


class EncodedCompletion(NamedTuple):
    """A prompt and its completion as ids, from the token that begins a text to the token that ends it.

    Attributes:
      prompt: ids before the first token of the completion.
      completion: ids from there to the end.
      trained: whether each id of the completion is part of it; turns of the user between two answers are not.
    """

    prompt: list[int]
    completion: list[int]
    trained: list[bool]

    @property
    def size(self) -> int:
        """Ids of both."""
        return len(self.prompt) + len(self.completion)

    def without_beginning(self, count: int) -> 'EncodedCompletion | None':
        """The text without the `count` ids after the first one; None if its prompt has fewer."""
        return self._replace(prompt=[*self.prompt[:1], *self.prompt[1 + count :]]) if count < len(self.prompt) else None


class Notes:
    """What is counted while rows are read, for the header of a run."""

    def __init__(self):
        self.forms: collections.Counter = collections.Counter()
        self.unread: dict[str, dict[str, None]] = {}  # format: fields of its rows that are not read
        self.skipped: dict[str, list[str]] = {}  # reason: places

    def count(self, form: str, row: Row, dialogue: Conversation, names: Collection[str]) -> None:
        """Counts a row of a format, from which `dialogue` and the fields `names` were read."""
        self.forms[form] += 1
        self.unread.setdefault(form, {}).update(dict.fromkeys(_unread(row, dialogue, names)))

    def skip(self, reason: str, row: Row) -> None:
        """Counts a row that is left out."""
        self.skipped.setdefault(reason, []).append(row.place)

    def lines(self) -> list[str]:
        """One line for each format and each reason."""
        lines = []
        for name, count in self.forms.items():
            unread = ', '.join(map(repr, self.unread.get(name, ())))
            lines.append(f'{count} rows of {name}' + (f' (ignoring {unread})' if unread else ''))
        for reason, places in self.skipped.items():
            others = ', ...' if len(places) > 1 else ''
            lines.append(f'{len(places)} row{"s" * (len(places) > 1)} left out, {reason}: {places[0]}{others}')
        return lines


def with_prompt(row: Row) -> Row:
    """The row with its question as a message in `prompt`, if its field has another name or other turns precede it.

    The answers of such a row are texts; every other row is returned as it is. The rows of a run are hashed with this
    prompt, so that examples that were made without the question or the system text are not reused. Raises InputError.
    """
    sides = [row.fields.get(name) for name in (SIDES if row.fields.keys() >= {*SIDES} else ('completion',))]
    if not all(isinstance(side, str) for side in sides):
        return row
    prompt = _prompt(row)
    if prompt is None and all(map(_is_transcript, sides)):
        return row
    questions = [] if prompt else _questions(row)
    text = '\n\n'.join(check_text(row.fields[name], f'{row.place}: {name!r}') for name in questions) or prompt
    return with_turns(row, text, is_turn=bool(questions))


def read_pair(row: Row, template: Template | None) -> Pair:
    """The pair of a row. Raises InputError naming the row, the field, and what was expected.

    Transcripts become messages if the tokenizer has a chat template of its own; else they stay as they are written.
    """
    row = with_prompt(row)
    chosen, rejected = (value_of(row, name, '') for name in SIDES)
    prompt = _prompt(row)
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if texts and prompt is None and _is_transcript(chosen) and _is_transcript(rejected):
        return _transcripts(row, chosen, rejected, template)
    if texts and isinstance(prompt, str):
        sides = (_texts(row, prompt, side) for side in SIDES)
        return Pair('prompt + chosen + rejected', *sides)
    if texts and prompt is None:
        chosen, rejected = (check_text(row.fields[name], f'{row.place}: {name!r}') for name in SIDES)
        common = os.path.commonprefix([chosen, rejected])
        common = common[: common.rfind(' ') + 1]
        return Pair(
            'chosen + rejected, texts without a prompt',
            *(Conversation([], (), (common, text.removeprefix(common))) for text in (chosen, rejected)),
        )
    sides = [_messages(row.fields[name], f'{row.place}: {name!r}') for name in SIDES]
    if all(side[0]['role'] != 'assistant' for side in sides):
        return _from_first_turn(row, prompt, *sides)
    if prompt is None:
        raise InputError(f"{row.place}: 'chosen' and 'rejected' begin with an answer, and there is no field 'prompt'")
    prompt = _prompt_messages(prompt, row)
    dialogues = [_conversation(row, name, prompt, side) for side, name in zip(sides, SIDES)]
    if template is None and texts and _is_question(row, prompt):
        return Pair('prompt + chosen + rejected', *map(_as_texts, dialogues))
    return Pair('prompt + chosen + rejected as messages', *dialogues)


def read_labelled(row: Row, template: Template | None) -> tuple[str, Conversation, bool]:
    """(name of the format, conversation, whether the completion is desirable) of a row. Raises InputError."""
    row = with_prompt(row)
    prompt, completion, label = (value_of(row, name, '') for name in ('prompt', 'completion', 'label'))
    label = LABELS.get(label.strip().lower() if isinstance(label, str) else label if label in (0, 1) else None)
    if label is None:
        raise InputError(
            f"{row.place}: 'label' is {row.fields['label']!r}; it must be true (desirable) or false (undesirable)"
        )
    if isinstance(prompt, str) and isinstance(completion, str):
        return 'prompt + completion + label', _texts(row, prompt, 'completion'), label
    messages = _messages(completion, f"{row.place}: 'completion'")
    prompt = _prompt_messages(prompt, row)
    dialogue = _conversation(row, 'completion', prompt, messages)
    if template is None and isinstance(completion, str) and _is_question(row, prompt):
        return 'prompt + completion + label', _as_texts(dialogue), label
    return 'prompt + completion + label as messages', dialogue, label


def dialogues(row: Row) -> tuple[Conversation, ...]:
    """The conversations of a row, of a pair or of a completion with a label. Raises InputError."""
    if {*SIDES} <= row.fields.keys():
        return read_pair(row, None)[1:]
    return (read_labelled(row, None)[1],)


def is_empty(dialogue: Conversation) -> bool:
    """Whether the completion of a conversation is empty, or white space; a call of a tool or reasoning is content."""
    if not dialogue.messages:
        return not ''.join(dialogue.texts[1::2]).strip()
    answers = (dialogue.messages[index] for index in dialogue.trained)
    return not any(
        answer['content'].strip() or any(answer.get(name) for name in ('tool_calls', *REASONING)) for answer in answers
    )


def encode(dialogue: Conversation, tokenizer: Tokenizer, template: Template | None, place: str) -> EncodedCompletion:
    """A conversation as ids; it ends with the token that ends an answer, which is added if the template has none.

    If the template writes a conversation as several texts, the one of its last answer is used. Raises Unwritten if the
    template writes no completion.
    """
    *_, (ids, trained, _) = encoding.encode_conversation(dialogue, tokenizer, template, place)[1]
    if True not in trained[1:]:
        raise Unwritten(f'{place}: the template writes no token of the completion')
    stop = len(trained) - trained[::-1].index(True)
    ids, trained = ids[:stop], trained[:stop]
    if ids[-1] not in tokenizer.specials:
        ids, trained = [*ids, tokenizer.end_id], [*trained, True]
    first = trained.index(True, 1)
    return EncodedCompletion(ids[:first], ids[first:], trained[first:])


def _prompt(row: Row) -> Any:
    return next((row.fields[name] for name in PROMPTS if row.fields.get(name) is not None), None)


def _questions(row: Row) -> list[str]:
    """The fields of a question, other than `prompt`, that hold text."""
    return [name for name in QUESTIONS if name not in PROMPTS and is_text(row.fields.get(name))]


def _unread(row: Row, dialogue: Conversation, names: Collection[str]) -> list[str]:
    """The fields of a row that have a value, and are neither among `names` nor read for its prompt or tools."""
    row = with_prompt(row)
    fields, prompt = row.fields, _prompt(row)
    read = {*names, *(['tools'] if dialogue.tools else [])}
    if _holds(row, dialogue, prompt):
        read |= {name for name in PROMPTS if fields.get(name) is prompt}
    if isinstance(prompt, list) and prompt:
        earlier, questions = history(row), _questions(row)
        question = {'role': 'user', 'content': '\n\n'.join(fields[name] for name in questions)}
        read |= {'history'} if earlier and prompt[: len(earlier)] == earlier else set()
        read |= {*questions} if prompt[-1] == question else set()
    begin = f'{dialogue.messages[0]["content"]}\n' if dialogue.messages else dialogue.texts[0]
    if is_text(fields.get('system')) and begin.startswith(f'{fields["system"]}\n'):
        read |= {'system', *(['system_prompt'] if fields.get('system_prompt') == fields['system'] else [])}
    return [name for name, value in fields.items() if name not in read and value not in (None, '', [])]


def _holds(row: Row, dialogue: Conversation, prompt: Any) -> bool:
    """Whether a conversation has a message of its row's prompt; whole conversations may have none."""
    if not dialogue.messages or not prompt or not isinstance(prompt, (str, list, Mapping)):
        return not dialogue.messages
    keys = {('user', prompt.strip())} if isinstance(prompt, str) else {*map(_key, _prompt_messages(prompt, row))}
    return not keys.isdisjoint(map(_key, dialogue.messages))


def _is_question(row: Row, prompt: list[dict]) -> bool:
    """Whether the prompt is a text that `with_prompt` made a message, after those of the history."""
    earlier = history(row)
    return len(prompt) == 1 + len(earlier) and bool(_questions(row) or row.fields.get('system') or earlier)


def _as_texts(dialogue: Conversation) -> Conversation:
    """The conversation without a template: a line for each message of the prompt, as the plain template writes them."""
    *before, answer = (message['content'] for message in dialogue.messages)
    return Conversation([], (), (''.join(f'{content}\n' for content in before), answer))


def _is_transcript(text: str) -> bool:
    return bool(TURN.match(text)) and '\n\nAssistant:' in text


def _turns(text: str, place: str) -> list[dict[str, Any]]:
    """The messages of a transcript."""
    roles = {'Human': 'user', 'Assistant': 'assistant'}
    parts = TURN.split(check_text(text, place))[1:]
    return [{'role': roles[who], 'content': content.strip()} for who, content in zip(parts[::2], parts[1::2])]


def _merged(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns of a transcript, of which several of one role are one: many templates require that roles alternate."""
    groups = itertools.groupby(turns, lambda turn: turn['role'])
    contents = [(role, [turn['content'] for turn in group]) for role, group in groups]
    return [{'role': role, 'content': '\n\n'.join(filter(None, each))} for role, each in contents]


def _transcripts(row: Row, chosen: str, rejected: str, template: Template | None) -> Pair:
    sides = [_turns(text, f'{row.place}: {name!r}') for text, name in zip((chosen, rejected), SIDES)]
    if template and template.source != PLAIN:
        merged = [_merged(side) for side in sides]
        form = 'hh-rlhf transcripts' + (', several turns of one role merged' if merged != sides else '')
        return _whole(form, row, *merged)
    pair = _whole('hh-rlhf transcripts, unchanged', row, *sides)
    unchanged = []
    for text, dialogue in ((chosen, pair.chosen), (rejected, pair.rejected)):
        turns = list(TURN.finditer(text))
        ends = [turn.start() for turn in turns[1:]] + [len(text)]
        before = len(dialogue.messages) - len(turns)  # messages that are no turn: the text of the field `system`
        answers = [(turns[index - before].end(), ends[index - before]) for index in dialogue.trained]
        bounds = [0, *itertools.chain(*answers)]
        unchanged.append(Conversation([], (), tuple(text[begin:end] for begin, end in itertools.pairwise(bounds))))
    return Pair(pair.form, *unchanged)


def _from_first_turn(row: Row, prompt: Any, chosen: list[dict], rejected: list[dict]) -> Pair:
    """A pair of sides that begin with no answer: whole conversations, or what follows a prompt that is no question.

    A prompt that ends with a call whose result both sides begin with precedes them, and so do its system texts. Any
    other prompt is that of both, as in UltraFeedback, or is not read. Raises InputError if a side begins with the
    result of a call that is missing.
    """
    before = _prompt_messages(prompt, row) if prompt and isinstance(prompt, (list, Mapping)) else []
    lacking = [not {*map(_key, before)} <= {*map(_key, side)} for side in (chosen, rejected)]
    begins = {side[0]['role'] for side in (chosen, rejected)}
    if any(lacking) and begins == {'tool'}:
        return _whole('prompt + chosen + rejected as messages', row, before + chosen, before + rejected)
    if 'tool' in begins:
        name = next(name for name, side in zip(SIDES, (chosen, rejected)) if side[0]['role'] == 'tool')
        raise InputError(
            f'{row.place}: {name!r} begins with the result of a tool, and no message before it has the call: begin '
            f'both {" and ".join(map(repr, SIDES))} with it, and write the turns up to the call as messages in '
            f'{PROMPTS[0]!r}'
        )
    system = list(itertools.takewhile(lambda message: message['role'] in SYSTEM, before))
    others = {*map(_key, before[len(system) :])}
    if any(lacking) and begins == {'user'} and all(others <= {*map(_key, side)} for side in (chosen, rejected)):
        return _whole('prompt + chosen + rejected as messages', row, system + chosen, system + rejected)
    return _whole('whole conversations', row, chosen, rejected)


def _key(message: dict[str, Any]) -> tuple[str, str]:
    """By which a message is found again in a conversation."""
    return message['role'], message['content'].strip()


def _whole(form: str, row: Row, chosen: list[dict], rejected: list[dict]) -> Pair:
    """A pair of conversations from the first turn on; the turns that both share before the last are the prompt."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1]):
        if one != other:
            break
        shared += 1
    sides = zip((chosen, rejected), SIDES)
    return Pair(form, *(_conversation(row, name, side[:shared], side[shared:]) for side, name in sides))


def _messages(value: Any, place: str) -> list[dict[str, Any]]:
    """Messages of one side: a list, one message, or the text of an answer."""
    if isinstance(value, str):
        return [{'role': 'assistant', 'content': check_text(value, place)}]
    if isinstance(value, Mapping):
        value = [value]
    elif not isinstance(value, list):
        raise InputError(f'{place} must be text or messages, not {json_type(value)}')
    return check_messages(value, place)


def _prompt_messages(prompt: Any, row: Row) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{'role': 'user', 'content': check_text(prompt, f"{row.place}: 'prompt'")}]
    prompt = [prompt] if isinstance(prompt, Mapping) else prompt
    return check_messages(prompt, f"{row.place}: 'prompt'")


def _texts(row: Row, prompt: str, side: str) -> Conversation:
    prompt = check_text(prompt, f"{row.place}: 'prompt'")
    return Conversation([], (), (prompt, check_text(row.fields[side], f'{row.place}: {side!r}')))


def _conversation(row: Row, side: str, prompt: list[dict], completion: list[dict]) -> Conversation:
    if not completion or completion[-1]['role'] != 'assistant':
        raise InputError(f'{row.place}: the last message of {side!r} must be of the assistant')
    messages = [*prompt, *completion]
    system = row.fields.get('system')
    if system and messages[0]['role'] not in SYSTEM:
        first = {'role': 'system', 'content': check_text(system, f"{row.place}: 'system'")}
        prompt, messages = [first, *prompt], [first, *messages]
    return of_messages(messages, row, len(prompt))
