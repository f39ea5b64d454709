"""Batches of a task: whole examples, padded to a few lengths. The rows of a step are a function of the step."""

import numpy as np

from lmtrain.data import hash_rng
from lmtrain.data.hash_rng import BATCH_ORDER, SAMPLE, SHUFFLE
from lmtrain.data.pack import gather
from lmtrain.data.stream import check_ids, local_rows
from lmtrain.errors import InputError


class PaddedStream:
    """The batches of one split of a `TaskData`; the counterpart of `lmtrain.data.Stream`, with its arguments and names.

    Every row once per epoch, in batches of one length T; the remaining rows of a length are added to those of the next
    longer one. The lengths of the steps do not depend on the seed, so that streams of several seeds run side by side.

    With `shuffle`, each epoch has a new order, without end. The last batch is completed with `repeated` rows of the
    same epoch, others in each epoch: the optimizer takes a whole step, so a few rows must not stand for a batch. If all
    rows are fewer than a batch, every step has all of them, and empty rows (segment_ids 0, weights 0).

    Without `shuffle` it is one pass, in the order of the rows within a length; the last batch is completed with empty
    rows. With a `limit` below the batches of a pass it is a random sample of so many batches, the same for every seed.
    """

    def __init__(
        self,
        data,
        split: str,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rows: np.ndarray | None = None,
        limit: int = 0,
    ):
        """batch_size: rows of a step over all processes; this one reads `rows` of them, ascending (None: all).

        Raises InputError if they are not rows of a batch, or the split is empty.
        """
        if seed < 0:
            raise InputError(f'the seed is {seed}; it must not be negative')
        self.data, self.split, self.batch_size, self.seed, self.shuffle = data, split, batch_size, seed, shuffle
        self.examples_of, self.packed = data.examples[split], data.packed[split]
        rows_of = self.packed.rows
        if len(rows_of.first) < 2:
            if data.rows[split]:
                reasons = '; '.join(note.removeprefix(f'{split}: ') for note in data.notes if note.startswith(split))
                raise InputError(f'no {split} row is left of {len(data.rows[split])}: {reasons}')
            raise InputError(
                f'the {split} split is empty: name its rows in config.task.{split}, or give data.{split} a share'
            )
        self.bucket = np.searchsorted(data.lengths, rows_of.sizes)  # of each row
        self.segments = int(np.diff(rows_of.first).max())  # of the row with the most examples
        self.local = local_rows(batch_size, rows)
        self.steps_per_epoch = -(-len(self.bucket) // batch_size)
        self.repeated = -len(self.bucket) % batch_size if shuffle and len(self.bucket) > batch_size else 0
        self.sampled = not shuffle and 0 < limit < self.steps_per_epoch
        self.steps_per_epoch = limit if self.sampled else self.steps_per_epoch
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the global batch of `step` (from 0), columns as in lmtrain.data.

        Raises IndexError after the last step if the stream is not shuffled.
        """
        chosen, length = self._rows(step)
        examples, task = self.examples_of, self.data.task
        columns = task.columns if self.shuffle else (*task.columns, 'bytes')
        flat = {name: examples.flat[name] for name in columns if name in examples.flat}
        batch = gather(examples.tokens, self.packed.rows, chosen, length, flat)
        check_ids(batch['tokens'], self.data.tokenizer.vocab_size)
        if not task.predicts_tokens:
            del batch['targets'], batch['loss_mask']
        example = self._examples(chosen)
        for name, values in examples.values.items():
            column = values[np.maximum(example, 0)]
            if name == 'scored':
                column = np.broadcast_to(1 + np.arange(self.segments), example.shape)
            empty = -1 if name == 'spans' else 0
            real = (example >= 0).reshape(*example.shape, *[1] * (column.ndim - example.ndim))
            batch[name] = np.where(real, column, empty).astype(values.dtype)
        return batch | {'row': self.local.astype(np.int32)}

    def examples(self, step: int) -> np.ndarray:
        """[B] the index of the example in each row of this process's batch; -1 for an empty row.

        With the column `scored`, [B, S]: those of the S segments of each row, -1 for a segment that a row lacks.
        """
        return self._examples(self._rows(step)[0])

    @property
    def num_rows(self) -> int:
        """Rows of a pass, without empty ones."""
        return int(np.sum(self._epoch(0)[0] >= 0))

    @property
    def mean_length(self) -> float:
        """T of the batches, averaged over an epoch."""
        return float(np.mean(self._epoch(0)[1]))

    def steps_of_lengths(self) -> dict[int, int]:
        """{T: the first step with a batch of that length}; each length is a program of its own."""
        lengths = self._epoch(0)[1].tolist()
        return {length: lengths.index(length) for length in sorted(set(lengths))}

    def _examples(self, chosen: np.ndarray) -> np.ndarray:
        row, first = np.maximum(chosen, 0), self.packed.rows.first
        if 'scored' not in self.examples_of.values:
            return np.where(chosen >= 0, self.packed.example[first[row]], -1)
        piece = first[row][:, None] + np.arange(self.segments)
        real = (chosen >= 0)[:, None] & (piece < first[row + 1][:, None])
        return np.where(real, self.packed.example[np.where(real, piece, 0)], -1)

    def _rows(self, step: int) -> tuple[np.ndarray, int]:
        """(indices of the rows of this process's batch, -1 if empty, T)."""
        if step < 0 or not self.shuffle and step >= self.steps_per_epoch:
            raise IndexError(f'step {step} of {self.steps_per_epoch}')
        epoch, place = divmod(step, self.steps_per_epoch)
        rows, lengths = self._epoch(epoch)
        return rows[place][self.local], int(lengths[place])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows [steps, B], -1 if empty, lengths [steps]) of an epoch; the last two epochs are cached."""
        if epoch not in self._epochs:
            for old in sorted(self._epochs)[:-1]:
                del self._epochs[old]
            rows, lengths = self._batches(self._order(epoch))
            if self.shuffle or self.sampled:
                order = hash_rng.permutation(len(rows), BATCH_ORDER, epoch)[: self.steps_per_epoch]
                rows, lengths = rows[order], lengths[order]
            self._epochs[epoch] = rows, lengths
        return self._epochs[epoch]

    def _order(self, epoch: int) -> np.ndarray:
        """The rows in the order in which batches take them."""
        count = len(self.bucket)
        if self.shuffle:
            return hash_rng.permutation(count, self.seed, SHUFFLE, epoch)
        return hash_rng.permutation(count, SAMPLE) if self.sampled else np.arange(count)

    def _batches(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows [batches, B], -1 if empty, lengths [batches]), by ascending length."""
        size = self.batch_size
        batches, lengths, left, longest = [], [], order[:0], 0
        for bucket, length in enumerate(self.data.lengths):
            rows = np.concatenate([left, order[self.bucket[order] == bucket]])
            full = len(rows) // size
            batches.append(rows[: full * size].reshape(full, size))
            longest = length if len(rows) > len(left) else longest  # of the rows that are left, the longest
            lengths += [length] * full
            left = rows[full * size :]
        if len(left):
            again = order[~np.isin(order, left)][: self.repeated]
            empty = np.full(size - len(left) - len(again), -1)
            batches.append(np.concatenate([left, again, empty])[None])
            lengths.append(longest)
        return np.concatenate(batches), np.array(lengths)
