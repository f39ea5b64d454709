"""A task's examples side by side, kept in a directory, and the rows and lengths of the batches they come in."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmtrain.data.examples import Example
from lmtrain.data.pack import Rows, best_fit

ROUND = 8  # lengths are multiples of this


class Examples(NamedTuple):
    """The examples of a split, side by side."""

    tokens: np.ndarray  # [N + 1] int32, one more than there are, so that each has a token after it
    begins: np.ndarray  # [E + 1] int64
    source: np.ndarray  # [E] the row of the file that each was made from
    flat: dict[str, np.ndarray]  # columns with an entry a token, [N, ...]
    values: dict[str, np.ndarray]  # columns with an entry an example, [E, ...]


class PackedExamples(NamedTuple):
    """Examples in rows of batches: piece p of `rows` is example `example[p]`."""

    rows: Rows
    example: np.ndarray  # [P]


def pack_examples(examples: Examples, shorter: int, pack: int) -> PackedExamples:
    """Rows of one example each, or of several, best fit first, up to `pack` tokens (0 is one each).

    shorter: tokens of an example that no row reads: 1 where the last one is a target alone.
    """
    start, length = examples.begins[:-1], (np.diff(examples.begins) - shorter).astype(np.int32)
    row = best_fit(length, pack) if pack else np.arange(len(length))
    order = np.argsort(row, kind='stable')
    count = int(row.max()) + 1 if len(row) else 0
    return PackedExamples(Rows(np.searchsorted(row[order], np.arange(count + 1)), start[order], length[order]), order)


def lengths(sizes: np.ndarray, buckets: int, seq_len: int) -> tuple[int, ...]:
    """At most `buckets` lengths, ascending, that hold all `sizes` with the least padding; with one, `seq_len` alone."""
    if buckets == 1:
        return (seq_len,)
    found, counts = np.unique(np.minimum(-(-sizes // ROUND) * ROUND, seq_len), return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(counts)])
    # cost[i]: tokens of the rows of the i shortest lengths; chosen[k][i]: how many are left to k fewer buckets
    cost, chosen = np.where(up_to > 0, np.inf, 0.0), []
    for _ in range(min(buckets, len(found))):
        each = [cost[:i] + found[i - 1] * (up_to[i] - up_to[:i]) for i in range(1, len(up_to))]
        chosen.append([0, *(int(np.argmin(ways)) for ways in each)])
        cost = np.array([0.0, *(ways.min() for ways in each)])
    kept, left = [], len(found)
    for ways in reversed(chosen):
        kept, left = [int(found[left - 1]), *kept] if left else kept, ways[left]
    return tuple(kept)


def save(directory: Path, made: Sequence[Example]) -> None:
    """Writes examples into a new directory; `load` reads them back."""
    directory.mkdir()
    empty = [np.zeros(0, np.int32)]
    arrays = {
        'tokens': np.concatenate([each.tokens for each in made] + [np.zeros(1, np.int32)]),
        'begins': np.cumsum([0, *(len(each.tokens) for each in made)]),
        'source': np.array([each.source for each in made], np.int64),
    }
    for column in made[0].flat if made else ():
        arrays[f'flat.{column}'] = np.concatenate([each.flat[column] for each in made] or empty)
    for column in made[0].values if made else ():
        arrays[f'value.{column}'] = np.stack([each.values[column] for each in made])
    for column, values in arrays.items():
        np.save(directory / f'{column}.npy', values)


def load(directory: Path) -> Examples:
    """What `save` wrote, left on disk."""
    arrays = {path.name.removesuffix('.npy'): np.load(path, mmap_mode='r') for path in sorted(directory.glob('*.npy'))}

    def under(kind: str) -> dict[str, np.ndarray]:
        return {name.partition('.')[2]: values for name, values in arrays.items() if name.startswith(f'{kind}.')}

    return Examples(arrays['tokens'], arrays['begins'], arrays['source'], under('flat'), under('value'))
