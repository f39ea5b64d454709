"""Rows of a batch as text, with the annotations that a task inserts (`Task.render`); long stretches are shortened."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmtrain.data.tokenizers.base import Tokenizer

STRETCH, ROW = 240, 1200  # characters shown of a stretch between two annotations, and of a row

Batch = Mapping[str, np.ndarray]


def render_row(
    tokenizer: Tokenizer,
    batch: Batch,
    row: int,
    before: Mapping[int, str] | None = None,
    after: Mapping[int, str] | None = None,
    end: str = '',
) -> str:
    """One row of a batch as text.

    Args:
      before, after: {position of a token: text that is inserted there}.
      end: text behind the row; left out if the row is empty.
    """
    before, after = before or {}, after or {}
    pieces: list[str] = []
    stretch: list[int] = []

    def flush():
        pieces.append(shorten(decode(tokenizer, stretch)))
        stretch.clear()

    real = real_tokens(batch, row)
    for position, token in enumerate(batch['tokens'][row][real].tolist()):
        if position in before:
            flush()
            pieces.append(before[position])
        stretch.append(token)
        if position in after:
            flush()
            pieces.append(after[position])
    flush()
    return join(pieces, real, end)


def real_tokens(batch: Batch, row: int) -> np.ndarray:
    """bool [T]: which tokens of a row are not padding."""
    if 'segment_ids' in batch:
        return batch['segment_ids'][row] > 0
    return batch['loss_mask'][row] > 0 if 'select' not in batch else np.ones(batch['tokens'].shape[1], bool)


def join(pieces: Sequence[str], real: np.ndarray, end: str = '') -> str:
    """The pieces of a row in one line, with ~ for its padding and `end` behind it."""
    padding = '~' * min(int((~real).sum()), 3)
    text = ''.join([*pieces, padding, end if real.any() else '']).replace('\n', '\\n').strip()
    return text if len(text) <= ROW else f'{text[:ROW]} ...'


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids inside a row: special tokens by their names, and all blanks."""
    pieces = (
        tokenizer.specials[token].encode() if token in tokenizer.specials else tokenizer.pieces[token] for token in ids
    )
    return b''.join(pieces).decode('utf-8', 'replace')


def shorten(text: str) -> str:
    """The text without its middle if it is long."""
    return text if len(text) <= STRETCH else f'{text[: STRETCH // 2]} ... {text[-STRETCH // 2 :]}'
