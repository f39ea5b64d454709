"""Batches: a pure function of the step, whatever was asked before and however many hosts there are.

Own arithmetic and not grain's: a row's place is one line of it, whole batches are gathered at once (grain maps a Python
function over elements), and a start does not pay for the import.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from lmtrain.data import hash_rng
from lmtrain.data.corpus import Corpus, TextBytes
from lmtrain.data.masking import mask_tokens
from lmtrain.data.pack import earlier, gather
from lmtrain.errors import InputError

SHUFFLE, CUT, SAMPLE = 0, 5, 6  # what a random number is for; corrupt.py and bucket.py have the others


def own_rows(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """`rows`, or all of a batch. Raises ValueError where they are no rows of it, ascending."""
    local = np.arange(batch_size) if rows is None else np.asarray(rows)
    if batch_size < 1 or not len(local) or local[0] < 0 or local[-1] >= batch_size or (np.diff(local) < 1).any():
        raise InputError(f'data.batch_size is {batch_size}; {local.tolist()[:8]} ... are no ascending rows of it')
    return local


class Stream:
    """The batches of one split.

    shuffle: rows in a new order every epoch, without end. An epoch is one pass over the first source; rows of another
      source with weight w come w times as often (its own order is reshuffled whenever it has been passed through).
      Batches run across the ends of epochs. One text (data.isolate=False) is cut at other places in every pass, so that
      a token is not predicted from the same context each time; which targets a pass leaves out, `earlier` says.
    Otherwise: every row of every source once, in order; the last batch is filled with empty rows (loss_mask 0,
      segment_ids 0), and there is none after it. Masked language modelling hides the same tokens every time.
      With a `limit` below the batches of a pass, a random sample of so many batches of rows, the same for every seed.
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
        """batch_size: rows a step over all processes; this one reads `rows` of them, ascending (None: all).

        limit: batches of a pass that is not shuffled, at most; 0 is all.

        Raises ValueError where they are no rows of a batch, or the split is empty.
        """
        if seed < 0:
            raise InputError(f'the seed is {seed}; it must not be negative')
        self.corpus, self.batch_size, self.seed, self.shuffle = corpus, batch_size, seed, shuffle
        self.parts = corpus.splits[split].parts
        self.sizes = [len(part.rows.first) - 1 for part in self.parts]
        if not sum(self.sizes) or shuffle and not all(self.sizes):
            raise InputError(f'the {split} split is empty: give data.{split} a share of the text')
        self.local = own_rows(batch_size, rows)
        # rows that each source gives to an epoch
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
        """{T: the first step with batches of that length}: all of them have one."""
        return {self.corpus.seq_len: 0}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the global batch of `step` (from 0), columns as in lmtrain.data.

        Raises IndexError after the last step where the stream is not shuffled.
        """
        if step < 0 or not self.shuffle and step >= self.steps_per_epoch:
            raise IndexError(f'step {step} of {self.steps_per_epoch}')
        place = step * self.batch_size + self.local
        part, row, back = self._rows(place)
        seq_len = self.corpus.seq_len
        batch: dict[str, np.ndarray] = {}
        for index, each in enumerate(self.parts):
            mine = np.flatnonzero(part == index)
            rows, chosen = each.rows, row[mine]
            if back[mine].any():
                rows = earlier(rows, chosen, back[mine], seq_len, len(each.tokens) - 1)
                chosen = np.arange(len(mine))
            spelled = {} if self.shuffle else {'bytes': TextBytes(each, self.corpus.tokenizer.token_bytes, self._ahead)}
            if len(mine) == len(place):
                batch = gather(each.tokens, rows, chosen, seq_len, spelled)
            elif len(mine):
                for name, values in gather(each.tokens, rows, chosen, seq_len, spelled).items():
                    batch.setdefault(name, np.zeros((len(place), seq_len), values.dtype))[mine] = values
        check_ids(batch['tokens'], self.corpus.tokenizer.vocab_size)
        batch['row'] = self.local.astype(np.int32)
        if self.corpus.mask_rate:
            corpus = self.corpus
            seed = self.seed if self.shuffle else 0  # evaluation hides the same tokens whatever the run's seed
            batch = mask_tokens(batch, corpus.tokenizer, corpus.mask_rate, corpus.whole_word, seed, place)
        elif not self.corpus.isolate:
            # One text, and padding at its end alone, where causal attention never looks: fused kernels need no mask.
            del batch['segment_ids']
        return batch

    @property
    def _ahead(self) -> int:
        """Tokens from one that is read to the one that is predicted from it."""
        return 0 if self.corpus.mask_rate else 1

    def _rows(self, place: np.ndarray) -> np.ndarray:
        """[3, B]: source, row in it, targets by which it is cut earlier, of each place; row -1 is beyond the end."""
        if not self.shuffle:
            place = place if self._order is None else self._order[place]
            ends = np.cumsum(self.sizes)
            # Empty rows belong to a source that has rows, which the last one need not have.
            part = np.searchsorted(ends, np.minimum(place, ends[-1] - 1), side='right')
            row = np.where(place < ends[-1], place - (ends - self.sizes)[part], -1)
            return np.stack([part, row, np.zeros_like(row)])
        epoch, offset = np.divmod(place, sum(self.quota))
        found = np.empty((3, len(place)), np.int64)
        for number in np.unique(epoch).tolist():
            mine = epoch == number
            found[:, mine] = self._epoch(number)[:, offset[mine]]
        return found

    def _epoch(self, epoch: int) -> np.ndarray:
        """[3, rows]: source, row, targets by which it is cut earlier, of an epoch's places; the last two are kept."""
        if epoch not in self._epochs:
            columns = []
            for index, (size, quota) in enumerate(zip(self.sizes, self.quota, strict=True)):
                turn, offset = np.divmod(np.arange(epoch * quota, (epoch + 1) * quota), size)
                for number in np.unique(turn).tolist():
                    order = hash_rng.permutation(size, self.seed, SHUFFLE, index, number)
                    rows = order[offset[turn == number]]
                    cut = int(hash_rng.random_bits(self.seed, CUT, index, number) % np.uint64(self.corpus.seq_len))
                    back = 0 if self.corpus.isolate else cut
                    columns.append(np.stack([np.full_like(rows, index), rows, np.full_like(rows, back)]))
            if len(self.parts) > 1:
                mixed = hash_rng.permutation(sum(self.quota), self.seed, SHUFFLE, len(self.parts), epoch)
            else:
                mixed = slice(None)
            for old in sorted(self._epochs)[:-1]:
                del self._epochs[old]
            self._epochs[epoch] = np.concatenate(columns, 1)[:, mixed]
        return self._epochs[epoch]


def check_ids(tokens: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError where an id is below 0 or not below `vocab_size`: JAX would clamp or wrap it in silence."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise InputError(f'token ids run from {low} to {high}, the vocabulary from 0 to {vocab_size - 1}')


def batch_hash(batch: dict[str, np.ndarray]) -> str:
    """16 hex digits of the sha256 of every column's name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        values = np.ascontiguousarray(batch[name])
        digest.update(f'{name} {values.dtype} {values.shape};'.encode() + values.tobytes())
    return digest.hexdigest()[:16]


class prefetch:
    """Iterates (step, place(batch)) from `start` on, `depth` steps ahead in a thread, in the order of steps.

    Ends after the last step of a stream that has one. An exception of the stream or of `place` is raised by the
    iteration that would have given its step. `waited`: seconds that the consumer has spent waiting so far. Leave by
    `with` or `close()`, which end the thread.
    """

    def __init__(self, stream: Stream, start: int, place: Callable[[dict], object], depth: int = 2):
        self.waited = 0.0
        self._queue: queue.Queue = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(stream, start, place), name='prefetch', daemon=True)
        self._thread.start()

    def _run(self, stream: Stream, step: int, place: Callable[[dict], object]) -> None:
        try:
            while stream.shuffle or step < stream.steps_per_epoch:
                if not self._put((step, place(stream.batch(step)))):
                    return
                step += 1
            self._put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)

    def _put(self, item) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[tuple[int, object]]:
        return self

    def __next__(self) -> tuple[int, object]:
        if self._stopped.is_set():
            raise StopIteration
        begun = time.monotonic()
        item = self._queue.get()
        self.waited += time.monotonic() - begun
        if item is None:
            self.close()
            raise StopIteration
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Ends the thread and forgets what it had ready."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> 'prefetch':
        return self

    def __exit__(self, *_) -> None:
        self.close()
