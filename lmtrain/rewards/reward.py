"""The record of a reward: a score for each of N completions, and what it needs from the rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain.data.rows import Row

# (prompts, completions, fields of their rows), each of N entries -> N scores, or texts that say why there is no score.
Score = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float | str]]


def accept_all(row: Row) -> None:
    """The check of a reward that reads no field of the rows."""


class Reward(NamedTuple):
    """One part of config.reward: a verifier, a reward model or a user's file.

    Attributes:
      score: see `Score`. Raises nothing that a completion causes.
      check: raises InputError naming a row that lacks what the reward reads.
      note: a line for the header of a run; '' is none.
      close: ends the processes that it started.
      flops: () -> FLOPs of its model in the last call.
    """

    score: Score
    check: Callable[[Row], None] = accept_all
    note: str = ''
    close: Callable[[], None] = lambda: None
    flops: Callable[[], float] = lambda: 0.0


class Limits(NamedTuple):
    """Limits of code in another process: wall-clock seconds, and MiB of memory of each process of a unit test."""

    seconds: float
    memory_mib: int
