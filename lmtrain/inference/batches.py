"""Batches of texts and their continuations: shapes, and the division of rows into them.

A new shape is a program, which takes seconds to compile. A large model computes the rows of a batch in a similar time,
so padding is what counts; a small one in milliseconds, so the number of shapes is.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from lmtrain import tree
from lmtrain.cost import hardware

MAX_TOKENS = 2**13  # of a batch, unless it is one row
MAX_LOGITS = 2**26  # of a batch, if they are materialised
BATCH_COST = 512  # tokens that take as long as a batch beside its tokens; many batches are a program of their own
COMPILE_SECONDS = 1.0  # of a program, at the peak of the device: it takes a few, and batches do not reach the peak
UNKNOWN_FLOPS = 1e11  # FLOP/s of a device without a data sheet, such as a CPU


class Least(NamedTuple):
    """Tokens to which a text, and the beginning of several texts, are padded at least; the same for continuations.

    A beginning is one row, whose padding costs little.
    """

    text: int
    beginning: int
    continuations: int


FINE, COARSE = Least(16, 16, 4), Least(32, 256, 16)  # of a large and of a small model

Shape = tuple[int, int, int]  # (B, T, M): rows, tokens of a text, tokens of its continuations


class Grid(NamedTuple):
    """The shapes that batches may have.

    Attributes:
      context: tokens of a text at most.
      batch_size: rows of a batch at most.
      vocabulary: number of logits of a token of a continuation, if they are materialised; else 0.
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

    def continuations(self, number: int) -> int:
        """Number to which continuations, or their tokens, are padded; 0 stays."""
        return number and rounded(number, self.least.continuations)

    def most_rows(self, T: int, M: int) -> int:
        """Unless it is one row, a batch has at most `MAX_TOKENS` tokens, and of continuations `MAX_LOGITS` logits."""
        limits = MAX_TOKENS // max(T, M), MAX_LOGITS // max(M * self.vocabulary, 1)
        return max(1, min(self.batch_size, *limits))

    def shape(self, rows: int, T: int, M: int) -> Shape | None:
        """The shape of a batch of rows; None if they are too many."""
        most = self.most_rows(T, M)
        B = most if self.coarse else min(rounded(rows), self.batch_size)
        return (B, T, M) if rows <= most else None


def is_coarse(model, params: tree.Params, batch_size: int) -> bool:
    """Whether the largest batch is computed before its program is compiled, at 2 FLOPs per parameter and token.

    Decided by the model and the kind of device alone: what was compiled before changes no digit of a score. A single
    row is never padded to many: its latency may be measured.
    """
    speed = hardware.peak_flops(jax.local_devices()[0].device_kind, model.dtype) or UNKNOWN_FLOPS
    return batch_size > 1 and 2 * tree.count(params) * MAX_TOKENS < COMPILE_SECONDS * speed


def divide(sizes: Sequence[tuple[int, int]], grid: Grid) -> list[tuple[list[int], Shape]]:
    """[(rows of similar length, the shape of their batch)].

    The division of the sorted rows that computes the fewest tokens, padding included, where each batch counts as
    `BATCH_COST` more.

    Args:
      sizes: of each row (tokens of its text, tokens of its continuations).

    >>> divide([(20, 3), (300, 3), (17, 2)], Grid(context=512, batch_size=32))
    [([0, 2], (2, 24, 4)), ([1], (1, 384, 4))]
    >>> divide([(20, 3), (300, 3), (17, 2)], Grid(context=512, batch_size=32, coarse=True))
    [([0, 2, 1], (21, 384, 16))]
    """
    lengths = [(grid.text(text), grid.continuations(rest)) for text, rest in sizes]
    order = sorted(range(len(sizes)), key=lambda row: lengths[row])
    shape_of = functools.cache(grid.shape)
    # cost[j]: of the first j rows; last[j]: where the last batch of them begins, and its shape.
    cost, last = [0.0], [(0, (0, 0, 0))]
    for j in range(1, len(order) + 1):
        least, best, M = math.inf, last[0], 0
        T, _ = lengths[order[j - 1]]
        for i in range(j - 1, -1, -1):
            M = max(M, lengths[order[i]][1])
            if not (shape := shape_of(j - i, T, M)):
                break
            total = cost[i] + shape[0] * (T + M) + BATCH_COST
            if total < least:
                least, best = total, (i, shape)
        cost.append(least)
        last.append(best)
    batches, j = [], len(order)
    while j:
        i, shape = last[j]
        batches.append((order[i:j], shape))
        j = i
    return batches[::-1]


def rounded(n: int, least: int = 1) -> int:
    """n rounded up to `least` times a power of two, or one and a half times that.

    >>> [rounded(n, 16) for n in (5, 17, 25, 33, 50, 100)], [rounded(n) for n in (1, 3, 5, 7)]
    ([16, 24, 32, 48, 64, 128], [1, 3, 6, 8])
    """
    power = max(least, 1 << (n - 1).bit_length())
    return power * 3 // 4 if n <= power * 3 // 4 and power > least and power > 2 else power
