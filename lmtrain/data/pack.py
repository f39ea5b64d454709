"""Rows from documents: which pieces of the token file stand in which row, and a batch gathered from them.

The token file holds END d1 END d2 ... END, so a document of n tokens, with the END on either side, has n + 1 targets:
its tokens and the END after it. Where another token begins a document it holds BEGIN d1 END BEGIN d2 END ..., with the
same n + 1 targets a document. It is cut into windows of at most L targets (tokens x[s : s + n], targets
x[s + 1 : s + n + 1]); windows are pieces, and a row is made of whole pieces: every target stands in exactly one row.
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


def pack(begins: np.ndarray, seq_len: int, isolate: bool, gap: int = 0) -> Rows:
    """The rows of a token file whose documents begin (with their END) at `begins` [D + 1], the last being the last END.

    gap: 1 where documents share no END: each begins with its own token, and the last of `begins` is the file's length.
    isolate: no piece holds two documents, and pieces are put into rows best fit first, longest first (Johnson 1973:
    within 22 % of the fewest rows, far nearer in practice). Without, the file is one text cut every `seq_len` tokens.
    """
    begins = np.asarray(begins, np.int64)
    if not isolate:
        begins = begins[[0, -1]]
    ends = begins[1:] - gap
    targets = ends - begins[:-1]
    windows = -(-targets // seq_len)
    index = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)  # of a window in its document
    start = np.repeat(begins[:-1], windows) + index * seq_len
    length = np.minimum(seq_len, np.repeat(ends, windows) - start).astype(np.int32)
    row = best_fit(length, seq_len)
    order = np.argsort(row, kind='stable')  # pieces of a row in the order of the text
    rows = int(row.max()) + 1 if len(row) else 0
    return Rows(np.searchsorted(row[order], np.arange(rows + 1)), start[order], length[order])


def best_fit(length: np.ndarray, size: int) -> np.ndarray:
    """[P] the row of each piece; rows are numbered in the order in which the text reaches them."""
    row = np.full(len(length), -1, np.int64)
    full = np.flatnonzero(length == size)
    row[full] = np.arange(len(full))
    count = len(full)
    open_rows: dict[int, list[int]] = collections.defaultdict(list)  # by the room that is left in them
    room = 0  # bit r is set where open_rows[r] is not empty
    rest = np.flatnonzero(length < size)
    for piece in rest[np.argsort(-length[rest], kind='stable')].tolist():
        need = int(length[piece])
        fitting = room >> need << need
        if fitting:
            left = (fitting & -fitting).bit_length() - 1  # the tightest room that is enough
            number = open_rows[left].pop()
            if not open_rows[left]:
                room ^= 1 << left
        else:
            left, number, count = size, count, count + 1
        row[piece] = number
        left -= need
        if left:
            open_rows[left].append(number)
            room |= 1 << left
    _, reached, number = np.unique(row, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(reached))[number] if len(row) else row


def earlier(rows: Rows, chosen: np.ndarray, back: np.ndarray, seq_len: int, end: int) -> Rows:
    """Rows `chosen` [B] of one text of `end` targets (isolate=False), cut `back` [B] < seq_len targets earlier.

    The first row is shorter by that much, and the last takes what comes into its reach: where the text ends behind it,
    the last targets, fewer than a row of them, stand in none.
    """
    start = rows.start[rows.first[chosen]]
    stop = np.minimum(start + seq_len - back, end)
    start = np.maximum(start - back, 0)
    return Rows(np.arange(len(chosen) + 1), start, (stop - start).astype(np.int32))


def gather(
    tokens: np.ndarray, rows: Rows, chosen: np.ndarray, seq_len: int, more: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Columns tokens, targets, segment_ids, positions (int32) and loss_mask (float32), [B, T], of rows `chosen` [B].

    A row of -1 is empty: segment 0 and loss_mask 0 throughout. `more`: further columns, or others in their place, with
    an entry for every token; 0 at padding.
    """
    there = np.where(chosen >= 0, chosen, 0)
    first = rows.first[there]
    count = np.where(chosen >= 0, rows.first[there + 1] - first, 0)
    segment = _within(count)  # of each piece in its row, from 0
    piece = np.repeat(first, count) + segment
    length = rows.length[piece].astype(np.int64)
    position = _within(length)
    ends = np.cumsum(length)
    row_begin = (ends - length)[np.cumsum(count) - count - (count == 0)] if len(length) else np.zeros(0, np.int64)
    row_of_piece = np.repeat(np.arange(len(chosen)), count)
    source = np.repeat(rows.start[piece], length) + position
    place = np.repeat(row_of_piece * seq_len - row_begin[row_of_piece] + ends - length, length) + position

    def column(values, dtype=np.int32):
        flat = np.zeros(len(chosen) * seq_len, dtype)
        flat[place] = values
        return flat.reshape(len(chosen), seq_len)

    return {
        'tokens': column(tokens[source]),
        'targets': column(tokens[np.minimum(source + 1, len(tokens) - 1)]),  # a masked model reads the very last, too
        'segment_ids': column(np.repeat(segment + 1, length)),
        'positions': column(position),
        'loss_mask': column(np.float32(1), np.float32),
    } | {name: column(values[source], values.dtype) for name, values in (more or {}).items()}


def _within(lengths: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
