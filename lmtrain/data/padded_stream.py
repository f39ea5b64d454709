"""Batches of a task: whole examples, padded to a few lengths; which rows a step has is a function of the step alone."""

import numpy as np

from lmtrain.data import hash_rng
from lmtrain.data.hash_rng import BATCH_ORDER, SAMPLE, SHUFFLE
from lmtrain.data.pack import gather
from lmtrain.data.stream import check_ids, local_rows
from lmtrain.errors import InputError


class PaddedStream:
    """The batches of one split of a `TaskData`; the counterpart of `lmtrain.data.Stream`, with its arguments and names.

    Every row once an epoch, in batches of one length T; what is left of a length goes with the next longer one. The
    lengths of the steps do not depend on the seed, so that streams of several seeds run side by side.
    shuffle: a new order every epoch, without end. What is left of all lengths is filled up with `repeated` rows of the
      same epoch, others in each: a whole step is taken, so few rows must not stand for a batch.
    Otherwise: one pass, in the order of the rows within a length; what is left is filled with empty rows (segment_ids
      0, weights 0). So it is in training if all rows are fewer than a batch: then every step has all of them. With a
      `limit` below the batches of a pass, a random sample of so many batches, the same for every seed.
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
        """batch_size: rows a step over all processes; this one reads `rows` of them, ascending (None: all).

        Raises ValueError where they are no rows of a batch, or the split is empty.
        """
        if seed < 0:
            raise InputError(f'the seed is {seed}; it must not be negative')
        self.data, self.split, self.batch_size, self.seed, self.shuffle = data, split, batch_size, seed, shuffle
        self.examples_of, self.packed = data.examples[split], data.packed[split]
        rows_of = self.packed.rows
        if len(rows_of.first) < 2:
            raise InputError(
                f'the {split} split is empty: name its rows in config.task.{split}, or give data.{split} a share'
            )
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows_of.length)])[rows_of.first]
        self.bucket = np.searchsorted(data.lengths, np.diff(ends))  # of each row
        self.local = local_rows(batch_size, rows)
        self.steps_per_epoch = -(-len(self.bucket) // batch_size)
        self.repeated = -len(self.bucket) % batch_size if shuffle and len(self.bucket) > batch_size else 0
        self.sampled = not shuffle and 0 < limit < self.steps_per_epoch
        self.steps_per_epoch = limit if self.sampled else self.steps_per_epoch
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the global batch of `step` (from 0), columns as in lmtrain.data.

        Raises IndexError after the last step where the stream is not shuffled.
        """
        chosen, length = self._rows(step)
        examples, task = self.examples_of, self.data.task
        columns = task.columns if self.shuffle else (*task.columns, 'bytes')
        flat = {name: examples.flat[name] for name in columns if name in examples.flat}
        batch = gather(examples.tokens, self.packed.rows, chosen, length, flat)
        check_ids(batch['tokens'], self.data.tokenizer.vocab_size)
        if not task.predicts_tokens:
            del batch['targets'], batch['loss_mask']
        for name, values in examples.values.items():
            at = self._examples(chosen)
            some = values[np.maximum(at, 0)]
            empty = -1 if name == 'spans' else 0
            batch[name] = np.where((at >= 0).reshape(-1, *[1] * (some.ndim - 1)), some, empty).astype(values.dtype)
        return batch | {'row': self.local.astype(np.int32)}

    def examples(self, step: int) -> np.ndarray:
        """[B] the example of the split that stands in each row of this process's batch; -1 is an empty row."""
        return self._examples(self._rows(step)[0])

    @property
    def num_rows(self) -> int:
        """Rows of a pass that are not empty."""
        return int(np.sum(self._epoch(0)[0] >= 0))

    @property
    def mean_length(self) -> float:
        """T of the batches, averaged over an epoch."""
        return float(np.mean(self._epoch(0)[1]))

    def steps_of_lengths(self) -> dict[int, int]:
        """{T: the first step with batches of that length}: what is to be compiled."""
        of_step = self._epoch(0)[1].tolist()
        return {length: of_step.index(length) for length in sorted(set(of_step))}

    def _examples(self, chosen: np.ndarray) -> np.ndarray:
        first = self.packed.rows.first[np.maximum(chosen, 0)]
        return np.where(chosen >= 0, self.packed.example[first], -1)

    def _rows(self, step: int) -> tuple[np.ndarray, int]:
        """([B] rows of this process's batch, T)."""
        if step < 0 or not self.shuffle and step >= self.steps_per_epoch:
            raise IndexError(f'step {step} of {self.steps_per_epoch}')
        epoch, place = divmod(step, self.steps_per_epoch)
        rows, of_step = self._epoch(epoch)
        return rows[place][self.local], int(of_step[place])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """([steps, B] rows, -1 where there is none, [steps] lengths) of an epoch; the last two epochs are kept."""
        if epoch not in self._epochs:
            size, count = self.batch_size, len(self.bucket)
            order = hash_rng.permutation(count, self.seed, SHUFFLE, epoch) if self.shuffle else np.arange(count)
            order = hash_rng.permutation(count, SAMPLE) if self.sampled else order
            batches, of_step, left, longest = [], [], order[:0], 0
            for bucket, length in enumerate(self.data.lengths):
                mine = np.concatenate([left, order[self.bucket[order] == bucket]])
                whole = len(mine) // size
                batches.append(mine[: whole * size].reshape(whole, size))
                longest = length if len(mine) > len(left) else longest
                of_step += [length] * whole
                left = mine[whole * size :]
            if len(left):
                again = order[~np.isin(order, left)][: self.repeated]
                batches.append(np.concatenate([left, again, np.full(size - len(left) - len(again), -1)])[None])
                of_step.append(longest)
            rows, of_step = np.concatenate(batches), np.array(of_step)
            if self.shuffle or self.sampled:
                mixed = hash_rng.permutation(len(rows), BATCH_ORDER, epoch)[: self.steps_per_epoch]
                rows, of_step = rows[mixed], of_step[mixed]
            for old in sorted(self._epochs)[:-1]:
                del self._epochs[old]
            self._epochs[epoch] = rows, of_step
        return self._epochs[epoch]
