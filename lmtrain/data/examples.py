"""Rows as examples: token ids with their special tokens, and the label, tags or answer span aligned to them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.labels import class_of
from lmtrain.data.rows import Row, check_text, place_of, text_of, value_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.files import json_type

LABEL = 'config.task.label'
NULL_SPAN = (0, 0)  # of a window without an answer


class Example(NamedTuple):
    """One row of a batch before it is padded."""

    source: int  # the number of its row
    tokens: np.ndarray  # [n] int32
    flat: dict[str, np.ndarray]  # columns with an entry a token, [n] or [n, 2]
    values: dict[str, Any]  # columns with one entry


class LengthPolicy:
    """What is done with rows of more than `seq_len` tokens, and how often it was."""

    def __init__(self, what: str, seq_len: int):
        self.what, self.seq_len, self.count = what, seq_len, 0

    def fits(self, row: Row, size: int) -> bool:
        """Whether a row of `size` tokens is kept: whole, or to be cut. Raises ValueError where 'error' is asked for."""
        if size <= self.seq_len:
            return True
        if self.what == 'error':
            raise InputError(
                f'{row.place}: {size} tokens, and data.seq_len is {self.seq_len}: set it higher, or '
                "config.task.too_long to 'cut' or 'drop'"
            )
        self.count += 1
        return self.what == 'cut'

    def note(self) -> list[str]:
        """The line that says how many rows it was."""
        done = 'cut' if self.what == 'cut' else 'left out'
        return [f'{self.count} rows of more than {self.seq_len} tokens {done}'] * bool(self.count)


# --- labels


def number_of(value: Any, place: str) -> float:
    """The number that a row of 'regress' is labelled with. Raises ValueError where it is none."""
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f'{place}: the label of a regression is a finite number, here it is {value!r}')
    return number


def tags_of(row: Row, words: str, label: str) -> tuple[list[str], list]:
    """(words, tags) of a row. Raises ValueError where they are no lists of one length."""
    found = []
    for name, field in ((words, 'config.task.text'), (label, LABEL)):
        value = value_of(row, name, field)
        if not isinstance(value, list):
            raise InputError(f'{row.place}: {name!r} must be an array, one entry a word; here it is {json_type(value)}')
        found.append(value)
    if len(found[0]) != len(found[1]):
        raise InputError(f'{row.place}: {len(found[0])} words in {words!r} and {len(found[1])} tags in {label!r}')
    if not found[0]:
        raise InputError(f'{row.place}: no word in {words!r}')
    return [check_text(word, f'{row.place}: {words!r} [{i}]') for i, word in enumerate(found[0])], found[1]


# --- whole rows


def texts(rows: Sequence[Row], fields: tuple[str, ...], tokenizer: Tokenizer, long: LengthPolicy) -> list[Example]:
    """The examples of one text a row, or a pair, framed as the tokenizer's layout has it."""
    if len(fields) not in (1, 2):
        raise InputError(f'config.task.text is {fields!r}; one field is expected, or two')
    prefix, between, suffix, _ = tokenizer.layout
    columns = [tokenizer.encode_batch([text_of(row, name) for row in rows]) for name in fields]
    examples = []
    for number, row in enumerate(rows):
        parts = [column[number].tolist() for column in columns]
        marks = len(prefix) + len(suffix) + len(between) * (len(parts) - 1)
        if not any(parts):
            raise InputError(f'{row.place}: {", ".join(map(repr, fields))} holds no token')
        if not long.fits(row, marks + sum(map(len, parts))):
            continue
        parts = _shortened(parts, long.seq_len - marks)
        tokens = [*prefix, *parts[0], *([*between, *parts[1]] if len(parts) == 2 else []), *suffix]
        flat = types(tokenizer, len(tokens), len(parts[1]) + len(suffix)) if len(parts) == 2 else {}
        examples.append(Example(number, np.array(tokens, np.int32), flat, {}))
    return examples


def types(tokenizer: Tokenizer, size: int, second: int) -> dict[str, np.ndarray]:
    """{'token_types': int32 [size]}, the last `second` tokens being of the second type; {} where there is one type."""
    of = np.repeat([0, tokenizer.layout.second], [size - second, second]).astype(np.int32)
    return {'token_types': of} if tokenizer.layout.second else {}


def _shortened(parts: list[list[int]], room: int) -> list[list[int]]:
    """The parts cut at their ends to `room` tokens together; of two the longer one is cut first."""
    if len(parts) == 1:
        return [parts[0][:room]]
    first = min(len(parts[0]), max(room - len(parts[1]), room // 2))
    return [parts[0][:first], parts[1][: room - first]]


# --- words


def tags(
    rows: Sequence[Row], words: str, label: str, names: tuple[str, ...], tokenizer: Tokenizer, long: LengthPolicy
) -> list[Example]:
    """The examples of tagged words: joined by blanks, the label of each at its first sub-token.

    Columns: `labels` int32 and `label_weights` float32 [n] (0 at all other tokens), `word` int32 [n], the number of the
    word that begins there, else -1. A word of which no token begins is not labelled.
    """
    prefix, _, suffix, _ = tokenizer.layout
    found = [tags_of(row, words, label) for row in rows]
    encoded = tokenizer.encode_with_offsets([' '.join(each) for each, _ in found])
    examples = []
    for number, (row, (each, tags), (ids, offsets)) in enumerate(zip(rows, found, encoded, strict=True)):
        labels = [class_of(tag, names, place_of(row, i)) for i, tag in enumerate(tags)]
        word = first_tokens(each, ids, offsets)
        if not long.fits(row, len(prefix) + len(ids) + len(suffix)):
            continue
        room = long.seq_len - len(prefix) - len(suffix)
        ids, word = ids[:room], word[:room]
        word = np.concatenate([np.full(len(prefix), -1), word, np.full(len(suffix), -1)]).astype(np.int32)
        begins = word >= 0
        aligned = np.where(begins, np.array(labels, np.int32)[np.maximum(word, 0)], 0).astype(np.int32)
        tokens = np.concatenate([prefix, ids, suffix]).astype(np.int32)
        flat = {'labels': aligned, 'label_weights': begins.astype(np.float32), 'word': word}
        examples.append(Example(number, tokens, flat, {}))
    return examples


def first_tokens(words: Sequence[str], ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[n] the number of the word that begins with each token, else -1; `offsets` [n, 2]: of words joined by blanks."""
    text = ' '.join(words)
    of_char = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
    starts = trimmed(text, offsets)
    word, last = np.full(len(ids), -1, np.int32), -1
    for token, (start, end) in enumerate(starts.tolist()):
        if start < end and of_char[start] > last:
            word[token] = last = of_char[start]
    return word


def trimmed(text: str, offsets: np.ndarray) -> np.ndarray:
    """`offsets` [n, 2] without the blanks at either end of each token's text."""
    found = offsets.copy()
    for token, (start, end) in enumerate(offsets.tolist()):
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        found[token] = start, end
    return found


# --- answers


def answers_of(row: Row, label: str, context: str) -> list[tuple[int, str]]:
    """[(first character, text)] of the answers: SQuAD's array of objects, or an object of arrays; [] without any.

    Raises ValueError if one is not in the context at its place.
    """
    value = value_of(row, label, LABEL)
    try:
        if isinstance(value, dict):
            found = list(zip(value['answer_start'], value['text'], strict=True))
        else:
            found = [(each['answer_start'], each['text']) for each in value]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{row.place}: {label!r} must be [{{'answer_start': 34, 'text': '308'}}, ...]") from None
    for start, text in found:
        check_text(text, f'{row.place}: an answer')
        if type(start) is not int or not text or not 0 <= start <= len(context) - len(text):
            raise InputError(
                f'{row.place}: the answer {text!r} at {start!r} lies outside the text of {len(context)} characters'
            )
        if context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            raise InputError(f'{row.place}: the answer {text!r} does not stand at {start}: there is {there!r}')
    return found


def spans(
    rows: Sequence[Row], fields: tuple[str, ...], label: str, tokenizer: Tokenizer, long: LengthPolicy, learn: bool
) -> list[Example]:
    """The examples of questions on a context, one a window of it; windows overlap by half.

    Columns: `label_weights` float32 [n], 1 at the context; `offsets` int32 [n, 2], characters of the context; `spans`
    int32 [2], the first and last token of the first answer. A window that lacks a part of it, and a question without
    an answer (SQuAD 2), have the null span (0, 0), the first token of the row, as in transformers' run_qa.py.
    learn: raises ValueError if no window holds the whole answer.
    """
    if len(fields) != 2:
        raise InputError(f"config.task.text is {fields!r}; the fields of question and context, ('question', 'context')")
    prefix, between, suffix, _ = tokenizer.layout
    questions = tokenizer.encode_batch([text_of(row, fields[0]) for row in rows])
    contexts = [text_of(row, fields[1]) for row in rows]
    encoded = tokenizer.encode_with_offsets(contexts)
    examples = []
    for number, (row, question, context, (ids, offsets)) in enumerate(
        zip(rows, questions, contexts, encoded, strict=True)
    ):
        exact = trimmed(context, offsets)
        answers = answers_of(row, label, context)
        first, last = _tokens_of(answers[0], exact, row.place) if answers else (-1, -1)
        head = np.concatenate([prefix, question, between]).astype(np.int32)
        room = long.seq_len - len(head) - len(suffix)
        if not long.fits(row, len(head) + len(ids) + len(suffix)):
            continue
        if room < len(ids) and room < long.seq_len // 4:
            raise InputError(
                f'{row.place}: the question of {len(question)} tokens leaves {room} of data.seq_len={long.seq_len} to '
                'its context: set it higher'
            )
        begins = [0]
        while begins[-1] + room < len(ids):
            begins.append(begins[-1] + max(room // 2, 1))
        holding = 0
        for begin in begins:
            window = slice(begin, begin + room)
            whole = bool(answers) and begin <= first and last < begin + room
            holding += whole
            tokens = np.concatenate([head, ids[window], suffix]).astype(np.int32)
            context_at = np.zeros(len(tokens), np.float32)
            context_at[len(head) : len(tokens) - len(suffix)] = 1
            at = np.zeros((len(tokens), 2), np.int32)
            at[len(head) : len(tokens) - len(suffix)] = exact[window]
            ahead = len(head) - begin
            span = np.array([first + ahead, last + ahead] if whole else NULL_SPAN, np.int32)
            flat = {'label_weights': context_at, 'offsets': at} | types(tokenizer, len(tokens), len(tokens) - len(head))
            examples.append(Example(number, tokens, flat, {'spans': span}))
        if learn and answers and not holding:
            raise InputError(f'{row.place}: no window of {room} tokens holds the whole answer {answers[0][1][:60]!r}')
    return examples


def _tokens_of(answer: tuple[int, str], offsets: np.ndarray, place: str) -> tuple[int, int]:
    """The tokens of an answer (first character, text), first and last; `offsets` [n, 2] are without blanks."""
    start, text = answer
    inside = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
    if not len(inside):
        raise InputError(f'{place}: the answer {text!r} has no token of its own')
    return int(inside[0]), int(inside[-1])
