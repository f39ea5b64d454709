"""The examples of a split as flat arrays on disk, and how they are packed into rows of batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmtrain.data.examples import Example
from lmtrain.data.pack import Rows, best_fit

ROUND = 8  # lengths of batches are multiples of this


class Examples(NamedTuple):
    """E examples of a split with N tokens in total, concatenated.

    Attributes:
      tokens: [N + 1] int32; the last one is padding, so that each token has a next one.
      begins: [E + 1] int64, the first token of each example, and N.
      source: [E] int64, the index of the row that each was encoded from.
      flat: columns with an entry for each token, [N, ...].
      values: columns with an entry for each example, [E, ...]. With the column `scored`, so many consecutive examples
        as its largest entry are a group, such as the two sides of a pair, and stay in one row of a batch.
    """

    tokens: np.ndarray
    begins: np.ndarray
    source: np.ndarray
    flat: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    @property
    def group(self) -> int:
        """Examples of a group."""
        return int(self.values['scored'].max()) if 'scored' in self.values else 1


class PackedExamples(NamedTuple):
    """Examples in rows of batches: piece p of `rows` is the example with index `example[p]`."""

    rows: Rows
    example: np.ndarray  # [P] int64


def pack_examples(examples: Examples, unread: int, seq_len: int, pack: bool) -> PackedExamples:
    """Rows of at most `seq_len` tokens: one group of examples each or, with `pack`, several by best fit.

    unread: last tokens of an example that no row contains: 1 if the last token is only a target.

    Raises ValueError for a group of more than `seq_len` tokens: no batch would have it.
    """
    start, length = examples.begins[:-1], (np.diff(examples.begins) - unread).astype(np.int32)
    of_groups = length.reshape(-1, examples.group).sum(axis=1, dtype=np.int32)
    if len(longer := np.flatnonzero(of_groups > seq_len)):
        source = examples.source[longer[0] * examples.group]
        raise ValueError(
            f'the {examples.group} examples of row {source} have {of_groups[longer[0]]} tokens together, and a row of '
            f'a batch has {seq_len}: Task.encode must cut or drop them'
        )
    row = best_fit(of_groups, seq_len) if pack else np.arange(len(of_groups))
    row = np.repeat(row, examples.group)
    order = np.argsort(row, kind='stable')
    count = int(row.max()) + 1 if len(row) else 0
    return PackedExamples(Rows(np.searchsorted(row[order], np.arange(count + 1)), start[order], length[order]), order)


def batch_lengths(sizes: np.ndarray, buckets: int, seq_len: int) -> tuple[int, ...]:
    """At most `buckets` lengths, ascending, that hold all `sizes` with the least padding; with one, only `seq_len`.

    By dynamic programming over the sorted sizes, each rounded up to a multiple of ROUND.

    >>> batch_lengths(np.array([5, 7, 30, 31]), buckets=2, seq_len=64)
    (8, 32)
    """
    if buckets == 1:
        return (seq_len,)
    rounded, counts = np.unique(np.minimum(-(-sizes // ROUND) * ROUND, seq_len), return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(counts)])
    # cost[i]: tokens of the rows of the i shortest lengths. splits[k][i]: how many of them the k shorter buckets take,
    # the others have the length rounded[i - 1].
    cost, splits = np.where(up_to > 0, np.inf, 0.0), []
    for _ in range(min(buckets, len(rounded))):
        costs = [cost[:i] + rounded[i - 1] * (up_to[i] - up_to[:i]) for i in range(1, len(up_to))]
        splits.append([0, *(int(np.argmin(each)) for each in costs)])
        cost = np.array([0.0, *(each.min() for each in costs)])
    chosen, left = [], len(rounded)
    for split in reversed(splits):
        chosen, left = [int(rounded[left - 1]), *chosen] if left else chosen, split[left]
    return tuple(chosen)


def collect(examples: Sequence[Example]) -> Examples:
    """Examples as flat arrays in memory."""

    def columns(kind: str, join) -> dict[str, np.ndarray]:
        names = getattr(examples[0], kind) if examples else ()
        return {name: join([getattr(each, kind)[name] for each in examples]) for name in names}

    return Examples(
        np.concatenate([each.tokens for each in examples] + [np.zeros(1, np.int32)]),
        np.cumsum([0, *(len(each.tokens) for each in examples)]),
        np.array([each.source for each in examples], np.int64),
        columns('flat', np.concatenate),
        columns('values', np.stack),
    )


def save(directory: Path, examples: Sequence[Example]) -> None:
    """Writes examples into a new directory; `load` reads them."""
    directory.mkdir()
    whole = collect(examples)
    arrays = {'tokens': whole.tokens, 'begins': whole.begins, 'source': whole.source}
    arrays |= {f'flat.{name}': column for name, column in whole.flat.items()}
    arrays |= {f'value.{name}': column for name, column in whole.values.items()}
    for column, values in arrays.items():
        np.save(directory / f'{column}.npy', values)


def load(directory: Path) -> Examples:
    """The examples that `save` wrote, memory-mapped."""
    arrays = {path.name.removesuffix('.npy'): np.load(path, mmap_mode='r') for path in sorted(directory.glob('*.npy'))}

    def columns(kind: str) -> dict[str, np.ndarray]:
        return {name.partition('.')[2]: values for name, values in arrays.items() if name.startswith(f'{kind}.')}

    return Examples(arrays['tokens'], arrays['begins'], arrays['source'], columns('flat'), columns('value'))
