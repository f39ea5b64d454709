"""Packing: which pieces of the token file each row has, and a batch gathered from them.

The token file is END d1 END d2 ... END, so a document of n tokens has n + 1 targets: its tokens and the END after it.
If another token begins a document, the file is BEGIN d1 END BEGIN d2 END ..., with the same n + 1 targets per document.
A document is cut into pieces of at most L targets (tokens x[s : s + n], targets x[s + 1 : s + n + 1]), and a row
consists of whole pieces: every target is in exactly one row.
"""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Row r is the pieces first[r] : first[r + 1], side by side; a piece is `length` tokens from `start` on."""

    first: np.ndarray  # [R + 1] int64
    start: np.ndarray  # [P] int64
    length: np.ndarray  # [P] int32

    @property
    def sizes(self) -> np.ndarray:
        """[R] int64: the tokens of each row."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.length, dtype=np.int64)])
        return np.diff(ends[self.first])


def pack(begins: np.ndarray, seq_len: int, isolate: bool, gap: int = 0) -> Rows:
    """The rows of a token file.

    Args:
      begins: [D + 1] where each document begins (with its END), and the last END.
      isolate: no piece crosses a document, and pieces are packed into rows by best fit decreasing (Johnson 1973: within
        22 % of the fewest rows, in practice much nearer). Otherwise the file is one text, cut every `seq_len` tokens.
      gap: 1 if documents share no END: each begins with its own token, and the last of `begins` is the file's length.

    >>> pack([0, 3, 9], 4, isolate=True).length.tolist()  # documents of 3 and 6 targets
    [3, 4, 2]
    """
    begins = np.asarray(begins, np.int64)
    if not isolate:
        begins = begins[[0, -1]]
    ends = begins[1:] - gap
    targets = ends - begins[:-1]
    pieces = -(-targets // seq_len)
    index = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of a piece in its document
    start = np.repeat(begins[:-1], pieces) + index * seq_len
    length = np.minimum(seq_len, np.repeat(ends, pieces) - start).astype(np.int32)
    row = best_fit(length, seq_len)
    order = np.argsort(row, kind='stable')  # pieces of a row in the order of the text
    rows = int(row.max()) + 1 if len(row) else 0
    return Rows(np.searchsorted(row[order], np.arange(rows + 1)), start[order], length[order])


def best_fit(length: np.ndarray, size: int) -> np.ndarray:
    """[P] the row of each piece, by best fit decreasing; rows are numbered in the order of their first piece."""
    row = np.full(len(length), -1, np.int64)
    full = np.flatnonzero(length == size)
    row[full] = np.arange(len(full))
    count = len(full)
    open_rows: dict[int, list[int]] = collections.defaultdict(list)  # by their free space
    # Bit s is set if open_rows[s] is not empty: the tightest fit is the lowest set bit at `need` or above.
    spaces = 0
    rest = np.flatnonzero(length < size)
    for piece in rest[np.argsort(-length[rest], kind='stable')].tolist():
        need = int(length[piece])
        fitting = spaces >> need << need
        if fitting:
            space = (fitting & -fitting).bit_length() - 1
            number = open_rows[space].pop()
            if not open_rows[space]:
                spaces ^= 1 << space
        else:
            space, number, count = size, count, count + 1
        row[piece] = number
        space -= need
        if space:
            open_rows[space].append(number)
            spaces |= 1 << space
    _, first_piece, number = np.unique(row, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_piece))[number] if len(row) else row


def shift_rows(rows: Rows, chosen: np.ndarray, shift: np.ndarray, seq_len: int, end: int) -> Rows:
    """Rows `chosen` [B] of one text of `end` targets (isolate=False), each `shift` [B] < seq_len targets earlier.

    The first row is shorter by its shift. The last row gets the targets that follow it; if the text ends after it, the
    last targets, fewer than one row, are in no row.
    """
    start = rows.start[rows.first[chosen]]
    stop = np.minimum(start + seq_len - shift, end)
    start = np.maximum(start - shift, 0)
    return Rows(np.arange(len(chosen) + 1), start, (stop - start).astype(np.int32))


def gather(
    tokens: np.ndarray, rows: Rows, chosen: np.ndarray, seq_len: int, extra: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Columns tokens, targets, segment_ids, positions (int32) and loss_mask (float32), [B, T], of rows `chosen` [B].

    A row of -1 is empty: segment 0 and loss_mask 0 everywhere.

    Args:
      extra: further columns, or replacements, with an entry for every token of the file; 0 at padding.

    >>> tokens = np.array([9, 1, 2, 9, 3, 9])  # END 1 2 END 3 END
    >>> rows = pack([0, 3, 5], 6, isolate=True)
    >>> batch = gather(tokens, rows, np.array([0]), 6)
    >>> batch['tokens'].tolist(), batch['targets'].tolist(), batch['segment_ids'].tolist()
    ([[9, 1, 2, 9, 3, 0]], [[1, 2, 9, 3, 9, 0]], [[1, 1, 1, 2, 2, 0]])
    """
    existing = np.where(chosen >= 0, chosen, 0)
    first = rows.first[existing]
    count = np.where(chosen >= 0, rows.first[existing + 1] - first, 0)
    segment = _ranges(count)  # of each piece in its row, from 0
    piece = np.repeat(first, count) + segment
    length = rows.length[piece].astype(np.int64)
    position = _ranges(length)
    ends = np.cumsum(length)
    row_begin = (ends - length)[np.cumsum(count) - count - (count == 0)] if len(length) else np.zeros(0, np.int64)
    row_of_piece = np.repeat(np.arange(len(chosen)), count)
    source = np.repeat(rows.start[piece], length) + position
    target = np.repeat(row_of_piece * seq_len - row_begin[row_of_piece] + ends - length, length) + position

    def column(values, dtype=np.int32):
        flat = np.zeros(len(chosen) * seq_len, dtype)
        flat[target] = values
        return flat.reshape(len(chosen), seq_len)

    return {
        'tokens': column(tokens[source]),
        'targets': column(tokens[np.minimum(source + 1, len(tokens) - 1)]),  # a masked model reads the last token too
        'segment_ids': column(np.repeat(segment + 1, length)),
        'positions': column(position),
        'loss_mask': column(np.float32(1), np.float32),
    } | {name: column(values[source], values.dtype) for name, values in (extra or {}).items()}


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
