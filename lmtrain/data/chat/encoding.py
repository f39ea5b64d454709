"""Conversations as token ids: training examples, prompts, and the token that ends an answer."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmtrain.data.chat.answers import Written, flagged_spans, render, write
from lmtrain.data.chat.conversation import Conversation, read, recognise_format, with_known_fields
from lmtrain.data.chat.messages import check_messages
from lmtrain.data.chat.template import Template, as_text, encode
from lmtrain.data.chat.traced import ANSWER
from lmtrain.data.example_store import Examples
from lmtrain.data.examples import Example, LengthPolicy
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.runtime import progress

Tokens = tuple[list[int], list[bool], list[int]]  # ids; whether each is trained; bytes of the text behind each


def encode_prompt(
    messages: str | list[dict[str, Any]], tokenizer: Tokenizer, template: Template, system: str = '', tools: Any = None
) -> list[int]:
    """Ids of a conversation, including the generation prompt.

    Args:
      messages: one user turn, or messages with `role` and `content`.
      system: a system text before them; '' is none.

    Raises InputError if a message is invalid or the template fails.
    Example: `encode_prompt('Hi', tokenizer, trained_template(config.task, tokenizer))`.
    """
    messages = [{'role': 'user', 'content': messages}] if isinstance(messages, str) else list(messages)
    first = [{'role': 'system', 'content': system}] if system else []
    dialogue = Conversation(check_messages(first + messages, 'the prompt'), tools=tools)
    text = render(dialogue, tokenizer, template, 'the prompt', True)
    return _with_begin(encode(text, [], tokenizer)[0], tokenizer, template, 'the prompt')


def answer_end(tokenizer: Tokenizer, template: Template | None) -> int | None:
    """The id of the token that ends an answer: the special token that the template writes after it, else the end token.

    None if the template rejects a question and its answer, also after a system text: the end of its answers is then
    only known from rows (`common_answer_end`).
    """
    if template is None:
        return tokenizer.end_id
    pair = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    for messages in (pair, [{'role': 'system', 'content': 'c'}, *pair]):
        dialogue = Conversation(messages, (len(messages) - 1,))
        try:
            (text, _), *_ = write(dialogue, tokenizer, template, 'a short conversation').texts
        except InputError:
            continue
        spans = flagged_spans(text.origin, ANSWER)
        after = [special.token for special in text.specials if spans and special.begin >= spans[-1][1]]
        return after[0] if after else tokenizer.end_id
    return None


def common_answer_end(examples: Examples, tokenizer: Tokenizer) -> int:
    """The id of the special token that most answers of the examples end with, else the end token."""
    trained = np.append(examples.flat['loss_mask'] > 0, False)
    last = examples.tokens[1:][trained[:-1] & ~trained[1:]].tolist()
    ends = collections.Counter(token for token in last if token in tokenizer.specials)
    return ends.most_common(1)[0][0] if ends else tokenizer.end_id


class _Notes:
    """Counts for the lines that describe a split."""

    def __init__(self, template: Template | None):
        self._template = template
        self.formats: collections.Counter = collections.Counter()  # of (format, whether the template writes it)
        self.unread: dict[tuple[str, bool], dict[str, None]] = {}  # the fields of those rows that are not read
        self.methods: collections.Counter = collections.Counter()
        self.unwritten: collections.Counter = collections.Counter()
        self.separate_texts = 0
        self.untrained: list[str] = []  # places of rows without a token to train
        self.cut_away: list[str] = []  # places of rows whose answers are beyond the limit

    @property
    def templated(self) -> bool:
        return any(by_template for _, by_template in self.formats)

    def lines(self) -> list[str]:
        lines = []
        for (name, by_template), count in self.formats.items():
            unread = ', '.join(map(repr, self.unread[name, by_template]))
            ignoring = f' (ignoring {unread})' if unread else ''
            written = f'written by {self._template.name}' if by_template else 'unchanged'
            lines.append(f'{count} rows of {name}{ignoring}, {written}')
        if count := self.methods['marked']:
            lines.append(f'{count} rows: trained is what the template marks with {{% generation %}}')
        if count := self.methods['separate']:
            lines.append(
                f'{count} rows as {self.separate_texts} texts, one per answer: the template rewrites earlier answers'
            )
        lines += [f'{count} rows: the template does not write their {name}' for name, count in self.unwritten.items()]
        if self.untrained:
            count, others = len(self.untrained), ', ...' if len(self.untrained) > 1 else ''
            lines.append(
                f'{count} row{"s" * (count > 1)} left out, without a token to train: {self.untrained[0]}{others}'
            )
        if self.cut_away:
            lines.append(
                f'{len(self.cut_away)} of the cut rows are left out because their answers are behind the cut: '
                f'{self.cut_away[0]}, ...'
            )
        return lines


def encode_rows(
    rows: Sequence[Row],
    text: tuple[str, ...],
    label: str,
    tokenizer: Tokenizer,
    template: Template | None,
    length: LengthPolicy,
) -> tuple[list[Example], list[str], bool]:
    """(examples, lines about what was recognised, whether the template has written any row).

    Columns: `loss_mask` float32 [n], 1 if the next token is part of a trained answer; `bytes` int32 [n], bytes of text
    behind the next token.

    Args:
      text, label: fields of prompt and completion, or of a conversation; () recognises the format of every row.

    Rows without a token to train, such as those with an empty answer, are left out and counted.

    Raises InputError naming the row: fields of two formats or of none, a template that fails, no token to train in any.
    """
    examples, notes = [], _Notes(template)
    for number, row in enumerate(progress.each(rows, 'encoding conversations')):
        name, dialogue = read(row, text, label)
        written, texts = encode_conversation(dialogue, tokenizer, template, row.place)
        notes.unwritten.update(written.unwritten)
        if not any(_trains_content(ids, trained, tokenizer) for ids, trained, _ in texts):
            notes.untrained.append(row.place)
            continue
        form = name, bool(dialogue.messages)
        notes.formats[form] += 1
        unread = [] if text else recognise_format(with_known_fields(row))[1]
        notes.unread.setdefault(form, {}).update(dict.fromkeys(unread))
        notes.methods[written.method] += 1
        notes.separate_texts += len(texts) if written.method == 'separate' else 0
        for ids, trained, sizes in texts:
            if not _trains_content(ids, trained, tokenizer) or not length.fits(row, len(ids) - 1):
                continue
            ids, trained = ids[: length.seq_len + 1], trained[: length.seq_len + 1]
            if not _trains_content(ids, trained, tokenizer):
                notes.cut_away.append(row.place)
                continue
            columns = {
                'loss_mask': np.array([*trained[1:], False], np.float32),
                'bytes': np.array([*sizes[1 : len(ids)], 0], np.int32),
            }
            examples.append(Example(number, np.array(ids, np.int32), columns, {}))
    if rows and len(notes.untrained) == len(rows):
        missing = f'; the template does not write the {" and ".join(notes.unwritten)}' if notes.unwritten else ''
        others = f', like the other {len(rows) - 1:,} rows' if len(rows) > 1 else ''
        raise InputError(
            f'{notes.untrained[0]}: no token to train{others}: the assistant says nothing, or nothing that is to be '
            f'trained ("weight", "train"){missing}'
        )
    return examples, notes.lines(), notes.templated


def _trains_content(ids: list[int], trained: list[bool], tokenizer: Tokenizer) -> bool:
    """Whether a content token is trained; the first token cannot be."""
    return any(each and token not in tokenizer.specials for token, each in zip(ids[1:], trained[1:]))


def encode_conversation(
    dialogue: Conversation, tokenizer: Tokenizer, template: Template | None, place: str
) -> tuple[Written, list[Tokens]]:
    """(the conversation as texts, the tokens of each).

    BOS occurs once at the beginning, and the end of every answer is trained.
    """
    if not dialogue.messages:
        ends = list(itertools.accumulate(map(len, dialogue.texts)))
        spans = list(zip(ends[::2], ends[1::2]))
        written = Written('unchanged', [(as_text(''.join(dialogue.texts), tokenizer), spans)], [])
    elif template is None:
        raise InputError(f"{place}: a conversation, and config.task.template is 'none': set it to 'auto'")
    else:
        written = write(dialogue, tokenizer, template, place)
    texts = []
    for text, spans in written.texts:
        ids, trained, sizes = encode(text, spans, tokenizer)
        _untrain_trailing_space(ids, trained, tokenizer)
        if trained and trained[-1] and ids[-1] not in tokenizer.specials:
            ids, trained, sizes = [*ids, tokenizer.end_id], [*trained, True], [*sizes, 0]
        begun = _with_begin(ids, tokenizer, template if dialogue.messages else None, place)
        added = len(begun) - len(ids)
        texts.append((begun, [False] * added + trained, [0] * added + sizes))
    return written, texts


def _with_begin(ids: list[int], tokenizer: Tokenizer, template: Template | None, place: str) -> list[int]:
    """The ids with the token that begins a text, if the tokenizer requires it. Raises InputError if it occurs twice."""
    begin = tokenizer.begin_id
    if ids[:1] != [begin] and (template is None or begin in tokenizer.layout.prefix):
        ids = [begin, *ids]
    if template and ids[:2] == [begin, begin]:
        name = tokenizer.specials[begin]
        raise InputError(f'{place}: {template.name} begins with {name!r} twice; a text begins with it once')
    return ids


def _untrain_trailing_space(ids: list[int], trained: list[bool], tokenizer: Tokenizer) -> None:
    """Clears `trained` for white space that a template writes after the special token that ends an answer.

    Generation stops at that token, so a model never has to produce what follows.
    """
    for at in range(len(ids)):
        if trained[at] and ids[at] not in tokenizer.specials and (at + 1 == len(ids) or not trained[at + 1]):
            back = at
            while trained[back] and ids[back] not in tokenizer.specials and not tokenizer.pieces[ids[back]].strip():
                back -= 1
            if back >= 0 and trained[back] and ids[back] in tokenizer.specials:
                trained[back + 1 : at + 1] = [False] * (at - back)
