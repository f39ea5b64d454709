"""Rows as examples: token ids with their special tokens. What a task adds (labels, tags, spans) is in lmtrain.tasks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.rows import Row, text_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError

LABEL = 'config.task.label'


class Example(NamedTuple):
    """One segment of a row of a batch: a row holds one example, a group of `scored` ones, or with packing several.

    Attributes:
      source: index of its row.
      tokens: [n] int32.
      flat: columns with an entry for each token, [n] or [n, 2].
      values: columns with one entry for the example.
    """

    source: int
    tokens: np.ndarray
    flat: dict[str, np.ndarray]
    values: dict[str, Any]


class LengthPolicy:
    """What happens to rows of more than `seq_len` tokens, and to how many it happened.

    policy: 'error' | 'cut' | 'drop' (config.task.too_long).
    """

    def __init__(self, policy: str, seq_len: int):
        self.policy, self.seq_len, self.count = policy, seq_len, 0

    def fits(self, row: Row, size: int) -> bool:
        """Whether a row of `size` tokens is used: whole, or cut. Raises InputError if the policy is 'error'."""
        if size <= self.seq_len:
            return True
        if self.policy == 'error':
            raise InputError(
                f'{row.place}: {size} tokens, and data.seq_len is {self.seq_len}: set it higher, or '
                "config.task.too_long to 'cut' or 'drop'"
            )
        self.count += 1
        return self.policy == 'cut'

    def note(self) -> list[str]:
        """One line with the number of these rows; none if there are none."""
        action = 'cut' if self.policy == 'cut' else 'left out'
        rows = f'{self.count} row' + 's' * (self.count > 1)
        return [f'{rows} of more than {self.seq_len} tokens {action}'] if self.count else []


def texts(rows: Sequence[Row], fields: tuple[str, ...], tokenizer: Tokenizer, length: LengthPolicy) -> list[Example]:
    """Examples of one text or a pair of texts for each row, with the special tokens of the tokenizer's layout."""
    if len(fields) not in (1, 2):
        raise InputError(f'config.task.text is {fields!r}; one field is expected, or two')
    prefix, between, suffix, _ = tokenizer.layout
    columns = [tokenizer.encode_batch([text_of(row, name) for row in rows]) for name in fields]
    examples = []
    for index, row in enumerate(rows):
        parts = [column[index].tolist() for column in columns]
        specials = len(prefix) + len(suffix) + len(between) * (len(parts) - 1)
        if not any(parts):
            raise InputError(f'{row.place}: {", ".join(map(repr, fields))} holds no token: leave out the row')
        if not length.fits(row, specials + sum(map(len, parts))):
            continue
        parts = _truncated(parts, length.seq_len - specials)
        second = [*between, *parts[1]] if len(parts) == 2 else []
        tokens = [*prefix, *parts[0], *second, *suffix]
        flat = token_types(tokenizer, len(tokens), len(parts[1]) + len(suffix)) if len(parts) == 2 else {}
        examples.append(Example(index, np.array(tokens, np.int32), flat, {}))
    return examples


def labelled_texts(
    rows: Sequence[Row],
    fields: tuple[str, ...],
    tokenizer: Tokenizer,
    length: LengthPolicy,
    label_of: Callable[[Row], np.generic | np.ndarray],
) -> list[Example]:
    """`texts` with the columns `labels`, the result of `label_of` (a scalar or an array), and `label_weights`, 1.0."""
    examples = texts(rows, fields, tokenizer, length)
    labels = [label_of(row) for row in rows]  # of dropped rows too, so that a wrong label is always an error
    for example in examples:
        example.values.update(labels=labels[example.source], label_weights=np.float32(1))
    return examples


def token_types(tokenizer: Tokenizer, size: int, second: int) -> dict[str, np.ndarray]:
    """{'token_types': int32 [size]}, 1 at the last `second` tokens; {} if the tokenizer has one type only."""
    types = np.repeat([0, tokenizer.layout.second], [size - second, second]).astype(np.int32)
    return {'token_types': types} if tokenizer.layout.second else {}


def _truncated(parts: list[list[int]], limit: int) -> list[list[int]]:
    """The parts cut at their ends to `limit` tokens in total; of two, the longer one is cut first."""
    if len(parts) == 1:
        return [parts[0][:limit]]
    first = min(len(parts[0]), max(limit - len(parts[1]), limit // 2))
    return [parts[0][:first], parts[1][: limit - first]]


def trim_offsets(text: str, offsets: np.ndarray) -> np.ndarray:
    """`offsets` [n, 2] without the blanks at either end of each token's text."""
    trimmed = offsets.copy()
    for token, (start, end) in enumerate(offsets.tolist()):
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        trimmed[token] = start, end
    return trimmed
