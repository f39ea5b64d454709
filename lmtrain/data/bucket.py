"""Batches of a task: whole examples, padded to a few lengths; which rows a step has is a function of the step alone."""

import numpy as np


class TaskStream:
    """The batches of one split of a `Task`; the counterpart of `lmtrain.data.Stream` with the same arguments and names.

    Every example once an epoch, in batches of one length T; what is left of a length goes with the next longer one,
    and the very last batch of an epoch is filled with empty rows (segment_ids 0, weights 0).
    shuffle: a new order every epoch, without end; else one pass, in the order of the rows within a length.
    """

    shuffle: bool
    steps_per_epoch: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the global batch of `step` (from 0), columns as in lmtrain.data."""
        raise NotImplementedError

    def examples(self, step: int) -> np.ndarray:
        """[B] the example of the split that stands in each row of this process's batch; -1 is an empty row."""
        raise NotImplementedError

    def steps_of_lengths(self) -> dict[int, int]:
        """{T: the first step with batches of that length}: what is to be compiled."""
        raise NotImplementedError
