"""Prequential code length of the labels of a training set: how well an arm learns from few rows, without a test set.

Labels are sent block by block. The first block is sent with the uniform code over the classes, every other one with the
model that was trained on, or prompted with, all blocks before it: -log2 p(label) bits a row (Dawid 1984, Journal of the
Royal Statistical Society A 147(2); Blier and Ollivier 2018, arXiv 1802.07044, prequential coding; Voita and Titov 2020,
arXiv 2003.12298, online code). A receiver who trains the same models can decode them, so a short code is one of a
method that predicts well and does so early.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lmtrain.errors import InputError


class CodeLength(NamedTuple):
    """The length of a code of labels.

    Attributes:
      bits: of all rows.
      uniform_bits: of all rows with the uniform code.
      blocks: [[number of the block's last row, bits of the block], ...].
      compression: uniform_bits / bits; below 1, the model predicts worse than the uniform distribution.
    """

    bits: float
    uniform_bits: float
    blocks: list[list[float]]
    compression: float


def code_length(ends: Sequence[int], nats: Sequence[float], num_classes: int) -> CodeLength:
    """The prequential code length from the losses of the models.

    Args:
      ends: sizes of the nested subsets; block i holds the rows ends[i - 1] to ends[i] - 1.
      nats: of each block after the first, the sum over its rows of -ln p(label) by the model of the blocks before it.
      num_classes: of the uniform code.

    Raises InputError if sizes do not increase, numbers of blocks differ, or a loss is negative or not finite.

    >>> code = code_length([8, 32], [24 * 0.5 * math.log(2)], num_classes=4)  # half a bit a row
    >>> code.bits, code.uniform_bits, code.blocks
    (28.0, 64.0, [[8, 16.0], [32, 12.0]])
    """
    if not ends or ends[0] < 1 or any(end >= later for end, later in zip(ends, ends[1:], strict=False)):
        raise InputError(f'sizes of the subsets are {list(ends)}: they must increase, and the first is at least 1')
    if len(nats) != len(ends) - 1:
        raise InputError(f'{len(ends)} subsets and {len(nats)} losses: every block but the first needs one')
    if num_classes < 2:
        raise InputError(f'num_classes={num_classes}: labels of at least two classes have a code')
    if wrong := [loss for loss in nats if not 0 <= loss < math.inf]:
        raise InputError(f'the loss of a block is {wrong[0]}: it is a sum of -ln p, at least 0 and finite')
    row_bits = math.log2(num_classes)
    lengths = [ends[0] * row_bits, *(loss / math.log(2) for loss in nats)]
    blocks = [[end, bits] for end, bits in zip(ends, lengths, strict=True)]
    return CodeLength(sum(lengths), ends[-1] * row_bits, blocks, ends[-1] * row_bits / sum(lengths))
