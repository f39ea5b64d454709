"""Batches as a pure function of the step, independent of earlier calls and of the number of hosts.

grain is not used: it maps a Python function over elements and takes long to import, whereas the place of a row is one
line of arithmetic and a whole batch is gathered at once.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lmtrain.data import hash_rng
from lmtrain.data.corpus import Corpus
from lmtrain.data.hash_rng import SAMPLE, SHIFT, SHUFFLE
from lmtrain.data.masking import mask_tokens
from lmtrain.data.pack import gather, shift_rows
from lmtrain.data.token_files import ByteColumn
from lmtrain.errors import InputError


def local_rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """`rows`, or all rows of a batch if None. Raises InputError if they are not ascending rows of it."""
    local = np.arange(batch_size) if rows is None else np.asarray(rows)
    if batch_size < 1 or not len(local) or local[0] < 0 or local[-1] >= batch_size or (np.diff(local) < 1).any():
        raise InputError(f'data.batch_size is {batch_size}; {local.tolist()[:8]} ... are not ascending rows of it')
    return local


class Stream:
    """The batches of one split.

    With `shuffle`, the stream is endless and each epoch has a new order of rows. An epoch is one pass over the first
    source; another source with weight w contributes w times as many rows as the first, and its own order is shuffled
    again after each pass over it. Batches run across the ends of epochs. One text (data.isolate=False) is shifted by
    another offset in each pass, so that a token is not always predicted from the same context; `shift_rows` says which
    targets a pass leaves out.

    Without `shuffle`, every row of every source occurs once, in order; the last batch is filled with empty rows
    (loss_mask 0, segment_ids 0), and no batch follows it. Masked language modelling masks the same tokens every time.
    With a `limit` below the number of batches, yields `limit` batches of randomly sampled rows, the same sample for
    every seed.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rows: np.ndarray | None = None,
        limit: int = 0,
    ):
        """
        Args:
          batch_size: rows per step over all processes.
          rows: the ascending rows of a batch that this process reads; None is all.
          limit: batches of a pass without `shuffle`, at most; 0 is all.

        Raises InputError if `rows` are not rows of a batch, or the split is empty.
        """
        if seed < 0:
            raise InputError(f'the seed is {seed}; it must not be negative')
        self.corpus, self.batch_size, self.seed, self.shuffle = corpus, batch_size, seed, shuffle
        self.parts = corpus.splits[split].parts
        self.sizes = [len(part.rows.first) - 1 for part in self.parts]
        if not sum(self.sizes) or shuffle and not all(self.sizes):
            raise InputError(f'the {split} split is empty: give data.{split} a share of the text')
        self.local = local_rows(batch_size, rows)
        # Rows of each source in an epoch.
        self.quota = [
            max(1, round(self.sizes[0] * part.weight)) if shuffle else size
            for part, size in zip(self.parts, self.sizes, strict=True)
        ]
        self.steps_per_epoch = -(-sum(self.quota) // batch_size)
        self._order = None
        if not shuffle and 0 < limit < self.steps_per_epoch:
            self.steps_per_epoch = limit
            self._order = hash_rng.permutation(sum(self.sizes), SAMPLE)
        self.num_rows = min(sum(self.quota), self.steps_per_epoch * batch_size)  # of a pass
        self._epochs: dict[int, np.ndarray] = {}

    def steps_of_lengths(self) -> dict[int, int]:
        """{T: the first step with batches of that length}: all batches have the same length."""
        return {self.corpus.seq_len: 0}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the global batch of `step` (from 0), columns as in lmtrain.data.

        Raises IndexError after the last step of a stream that is not shuffled.
        """
        if step < 0 or not self.shuffle and step >= self.steps_per_epoch:
            raise IndexError(f'step {step} of {self.steps_per_epoch}')
        index = step * self.batch_size + self.local
        batch = self._gather(index)
        check_ids(batch['tokens'], self.corpus.tokenizer.vocab_size)
        batch['row'] = self.local.astype(np.int32)
        if self.corpus.mask_rate:
            corpus = self.corpus
            seed = self.seed if self.shuffle else 0  # evaluation masks the same tokens whatever the run's seed
            batch = mask_tokens(batch, corpus.tokenizer, corpus.mask_rate, corpus.whole_word, seed, index)
        elif not self.corpus.isolate:
            # One text with padding only at its end, where causal attention never looks: fused kernels need no mask.
            del batch['segment_ids']
        return batch

    def _gather(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of `pack.gather`, and `bytes` in evaluation, of the rows at `index` [B] of the stream."""
        source, row, shift = self._rows(index)
        seq_len = self.corpus.seq_len
        ahead = 0 if self.corpus.mask_rate else 1  # positions from an input token to its target
        batch: dict[str, np.ndarray] = {}
        for number, part in enumerate(self.parts):
            own = np.flatnonzero(source == number)
            rows, chosen = part.rows, row[own]
            if shift[own].any():
                rows = shift_rows(rows, chosen, shift[own], seq_len, len(part.tokens) - 1)
                chosen = np.arange(len(own))
            extra = {} if self.shuffle else {'bytes': ByteColumn(part, self.corpus.tokenizer.token_bytes, ahead)}
            if len(own) == len(index):
                return gather(part.tokens, rows, chosen, seq_len, extra)
            if len(own):
                for name, values in gather(part.tokens, rows, chosen, seq_len, extra).items():
                    batch.setdefault(name, np.zeros((len(index), seq_len), values.dtype))[own] = values
        return batch

    def _rows(self, index: np.ndarray) -> np.ndarray:
        """[3, B]: source, row in it, and shift of the row, at each place of the stream; row -1 is beyond the end."""
        if not self.shuffle:
            index = index if self._order is None else self._order[index]
            ends = np.cumsum(self.sizes)
            # Empty rows belong to a source that has rows; the last source need not have any.
            source = np.searchsorted(ends, np.minimum(index, ends[-1] - 1), side='right')
            row = np.where(index < ends[-1], index - (ends - self.sizes)[source], -1)
            return np.stack([source, row, np.zeros_like(row)])
        epoch, offset = np.divmod(index, sum(self.quota))
        rows = np.empty((3, len(index)), np.int64)
        for number in np.unique(epoch).tolist():
            own = epoch == number
            rows[:, own] = self._epoch(number)[:, offset[own]]
        return rows

    def _epoch(self, epoch: int) -> np.ndarray:
        """[3, rows]: source, row and shift at each place of an epoch. The last two epochs are cached."""
        if epoch not in self._epochs:
            columns = []
            for source, (size, quota) in enumerate(zip(self.sizes, self.quota, strict=True)):
                turn, offset = np.divmod(np.arange(epoch * quota, (epoch + 1) * quota), size)
                for number in np.unique(turn).tolist():
                    order = hash_rng.permutation(size, self.seed, SHUFFLE, source, number)
                    rows = order[offset[turn == number]]
                    bits = hash_rng.random_bits(self.seed, SHIFT, source, number)
                    shift = 0 if self.corpus.isolate else int(bits % np.uint64(self.corpus.seq_len))
                    columns.append(np.stack([np.full_like(rows, source), rows, np.full_like(rows, shift)]))
            if len(self.parts) > 1:
                mixed = hash_rng.permutation(sum(self.quota), self.seed, SHUFFLE, len(self.parts), epoch)
            else:
                mixed = slice(None)
            for old in sorted(self._epochs)[:-1]:
                del self._epochs[old]
            self._epochs[epoch] = np.concatenate(columns, 1)[:, mixed]
        return self._epochs[epoch]


def check_ids(tokens: np.ndarray, vocab_size: int) -> None:
    """Raises InputError if an id is below 0 or at least `vocab_size`: JAX would clamp or wrap it silently."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise InputError(f'token ids range from {low} to {high}, the vocabulary from 0 to {vocab_size - 1}')


def batch_hash(batch: dict[str, np.ndarray]) -> str:
    """16 hex digits of the SHA-256 of every column's name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        values = np.ascontiguousarray(batch[name])
        digest.update(f'{name} {values.dtype} {values.shape};'.encode() + values.tobytes())
    return digest.hexdigest()[:16]


class Prefetch:
    """Iterates over (step, place(batch)) from step `start` on, computed up to `depth` steps ahead in a thread.

    Ends after the last step of a finite stream. An exception in the stream or in `place` is raised at the step where it
    occurred. `close()`, which `contextlib.closing` calls, ends the thread.

    Attributes:
      waited: seconds that the consumer has waited so far.
      figures, state: {}, those of a source that depends on the train state (`training.rollouts`).
    """

    figures: Mapping[str, float] = MappingProxyType({})
    state: Mapping[str, float] = MappingProxyType({})

    def __init__(self, stream: Stream, start: int, place: Callable[[dict], Any], depth: int = 2):
        self.waited = 0.0
        self._queue: queue.Queue = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(stream, start, place), name='prefetch', daemon=True)
        self._thread.start()

    def _run(self, stream: Stream, step: int, place: Callable[[dict], Any]) -> None:
        try:
            while stream.shuffle or step < stream.steps_per_epoch:
                if not self._put((step, place(stream.batch(step)))):
                    return
                step += 1
            self._put(None)
        except BaseException as error:  # raised by the consumer
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        return self.take()

    def take(self, state: Any = None) -> tuple[int, Any]:
        """(step, place(batch)), whatever the train state is. Raises StopIteration after the last step."""
        if self._stopped.is_set():
            raise StopIteration
        start = time.monotonic()
        item = self._queue.get()
        self.waited += time.monotonic() - start
        if item is None:
            self.close()
            raise StopIteration
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Ends the thread and drops the batches that are ready."""
        self._stopped.set()
        self._thread.join()
