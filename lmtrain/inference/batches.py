"""Batches of texts, and of prompts with their continuations packed into rows: shapes, and what each row holds.

A new shape is a program, which takes seconds to compile. A large model computes the rows of a batch in a similar time,
so padding is what counts; a small one in milliseconds, so the number of shapes is.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from lmtrain import tree
from lmtrain.cost import hardware
from lmtrain.data.pack import best_fit

ROW = 256  # tokens of a row that several prompts share
MAX_TOKENS = 2**13  # of a batch, unless it is one row
MAX_LOGITS = 2**26  # of a batch, if they are materialised
BATCH_COST = 512  # tokens that take as long as a batch beside its tokens; many batches are a program of their own
COMPILE_SECONDS = 1.0  # of a program, at the peak of the device: it takes a few, and batches do not reach the peak
UNKNOWN_FLOPS = 1e11  # FLOP/s of a device without a data sheet, such as a CPU


class Least(NamedTuple):
    """Tokens to which a text, and the beginning of several texts, are padded at least; the same for predicted tokens.

    A beginning is one row, whose padding costs little.
    """

    text: int
    beginning: int
    predicted: int


FINE, COARSE = Least(16, 16, 4), Least(32, 256, 16)  # of a large and of a small model


class Grid(NamedTuple):
    """The shapes that batches may have.

    Attributes:
      context: tokens of a text at most.
      batch_size: rows of a batch at most.
      vocabulary: number of logits of a predicted token, if they are materialised; else 0.
      coarse: few shapes (`is_coarse`): lengths are at least `COARSE`, and every batch has as many rows as its lengths
        allow.
    """

    context: int
    batch_size: int
    vocabulary: int = 0
    coarse: bool = False

    @property
    def least(self) -> Least:
        """The shortest lengths."""
        return COARSE if self.coarse else FINE

    def text(self, length: int) -> int:
        """Tokens to which a text is padded."""
        return min(rounded(length, self.least.text), self.context)

    def beginning(self, length: int) -> int:
        """Tokens to which the beginning of several texts is padded."""
        return min(rounded(length, self.least.beginning), self.context)

    def most_rows(self, T: int, M: int = 0) -> int:
        """Unless it is one row, a batch has at most `MAX_TOKENS` tokens and `MAX_LOGITS` logits, of M tokens a row."""
        limits = MAX_TOKENS // max(T, M), MAX_LOGITS // max(M * self.vocabulary, 1)
        return max(1, min(self.batch_size, *limits))

    def rows(self, count: int, T: int, M: int = 0) -> int | None:
        """Rows of a batch that holds `count`; None if they are too many."""
        most = self.most_rows(T, M)
        B = most if self.coarse else min(rounded(count), most)
        return B if count <= most else None


def is_coarse(model, params: tree.Params, batch_size: int) -> bool:
    """Whether the largest batch is computed before its program is compiled, at 2 FLOPs per parameter and token.

    Decided by the model and the kind of device alone: what was compiled before changes no digit of a score. A single
    row is never padded to many: its latency may be measured.
    """
    speed = hardware.peak_flops(jax.local_devices()[0].device_kind, model.dtype) or UNKNOWN_FLOPS
    return batch_size > 1 and 2 * tree.count(params) * MAX_TOKENS < COMPILE_SECONDS * speed


def divide(lengths: Sequence[int], grid: Grid) -> list[tuple[list[int], tuple[int, int]]]:
    """[(texts of similar length, the shape (B, T) of their batch, one text in a row)].

    The division of the sorted texts that computes the fewest tokens, padding included, where each batch counts as
    `BATCH_COST` more.

    >>> divide([20, 300, 17], Grid(context=512, batch_size=32))
    [([0, 2], (2, 24)), ([1], (1, 384))]
    >>> divide([20, 300, 17], Grid(context=512, batch_size=32, coarse=True))
    [([0, 2, 1], (21, 384))]
    """
    padded = [grid.text(length) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda text: padded[text])
    rows_of = functools.cache(grid.rows)
    # cost[j]: of the first j texts; last[j]: where the last batch of them begins, and its shape.
    cost, last = [0.0], [(0, (0, 0))]
    for j in range(1, len(order) + 1):
        least, best = math.inf, last[0]
        T = padded[order[j - 1]]
        for i in range(j - 1, -1, -1):
            if not (B := rows_of(j - i, T)):
                break
            total = cost[i] + B * T + BATCH_COST
            if total < least:
                least, best = total, (i, (B, T))
        cost.append(least)
        last.append(best)
    batches, j = [], len(order)
    while j:
        i, shape = last[j]
        batches.append((order[i:j], shape))
        j = i
    return batches[::-1]


def pack(
    sizes: Sequence[tuple[int, int]], grid: Grid, alone: bool = False
) -> list[tuple[list[list[int]], tuple[int, int, int]]]:
    """[(the prompts of each row of a batch, its shape (B, T, M): rows, tokens and predicted tokens of a row)].

    Short prompts share rows of `ROW` tokens, by best fit; a longer one has a row of its own, on a coarse grid one of
    the length of the longest, which it may share.

    Args:
      sizes: of each prompt (tokens of its text and its continuations, predicted tokens).
      alone: whether every prompt has a row of its own.

    >>> pack([(100, 3), (300, 3), (90, 2)], Grid(context=512, batch_size=32))
    [([[0, 2]], (1, 192, 6)), ([[1]], (1, 384, 4))]
    >>> pack([(100, 3), (90, 2)], Grid(context=512, batch_size=32), alone=True)
    [([[1]], (1, 96, 4)), ([[0]], (1, 128, 4))]
    """
    lengths, predicted = np.array(sizes, np.int64).reshape(-1, 2).T
    widths = np.array([rounded(length, grid.least.text) for length in lengths.tolist()])
    if not alone:
        short = lengths <= ROW
        widths[short] = ROW if grid.coarse else rounded(min(ROW, int(lengths[short].sum())), grid.least.text)
        if grid.coarse:
            widths[~short] = widths.max()
    batches = []
    for T in np.unique(widths).tolist():
        members = np.flatnonzero(widths == T)
        row = np.arange(len(members)) if alone else best_fit(lengths[members], T)
        order = np.argsort(row, kind='stable')
        rows = np.split(members[order], np.flatnonzero(np.diff(row[order])) + 1)
        M = rounded(max(int(predicted[each].sum()) for each in rows), grid.least.predicted)
        first, most = 0, grid.most_rows(T, M)
        while left := len(rows) - first:
            B = grid.rows(min(left, most), T, M)
            if not grid.coarse and (B - left) * T > BATCH_COST:  # empty rows, which cost more than a second batch
                B = max(count for count in range(1, left + 1) if rounded(count) == count)
            batches.append(([each.tolist() for each in rows[first : first + B]], (B, T, M)))
            first += min(B, left)
    return batches


def rounded(n: int, least: int = 1) -> int:
    """n rounded up to `least` times a power of two, or one and a half times that.

    >>> [rounded(n, 16) for n in (5, 17, 25, 33, 50, 100)], [rounded(n) for n in (1, 3, 5, 7)]
    ([16, 24, 32, 48, 64, 128], [1, 3, 6, 8])
    """
    power = max(least, 1 << (n - 1).bit_length())
    return power * 3 // 4 if n <= power * 3 // 4 and power > least and power > 2 else power
