"""Figures of the steps of a run: means since the last line, speed, the share of the budget that is spent, memory."""

import dataclasses
import math
import resource
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


class Means:
    """Means of the objective's values over the targets of all steps since the last line of metrics.jsonl.

    Steps with a value that is not finite (their update was skipped and counted) are left out, unless all are. Sums are
    Python floats, and `state` is part of the checkpoint, so that a resumed run writes exactly the same lines.

    Args:
      state: {name: (sum of value x targets, sum of targets)}, numbers or, for the members of a sweep, lists.
    """

    # Values of the last step alone, which are not means over targets.
    LATEST = {'targets', 'learning_rate', 'grad_norm', 'update_norm', 'param_norm', 'skipped', 'skipped_in_a_row'}

    def __init__(self, state: Mapping[str, Any] = types.MappingProxyType({})):
        self.state = dict(state)

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds the metrics of one step, the result of `step.make_train_step`."""
        for name, value in values.items():
            base, members, _ = name.partition('_members')
            if base in self.LATEST:
                continue
            value, weight = np.asarray(value, np.float64), np.asarray(values['targets' + members], np.float64)
            weight = np.where(np.isfinite(value), weight, 0.0)
            old = self.state.get(name, (0.0, 0.0))
            new = np.where(weight > 0, value, 0.0) * weight, weight
            self.state[name] = tuple((np.asarray(a) + b).tolist() for a, b in zip(old, new, strict=True))

    def take(self) -> dict[str, Any]:
        """{name: mean} of the values since the last call; nan if none is finite."""
        state, self.state = self.state, {}
        totals = {name: np.asarray(pair) for name, pair in state.items()}
        return {
            name: np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), math.nan).tolist()
            for name, (total, weight) in totals.items()
        }


@dataclasses.dataclass
class Meter:
    """Speed from one log point to the next, and the remaining time.

    Attributes:
      tokens_per_step: positions of a global batch.
      flops_per_step: `cost.Flops.total`, over all devices.
      peak: FLOP/s of all devices together; None if unknown, then there is no MFU.
      clock: monotonic seconds.
    """

    tokens_per_step: int
    flops_per_step: float
    peak: float | None
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, float] | None = None  # time and progress of the first restart

    def restart(self, step: int, progress: float, waited: float) -> None:
        """Starts a window: before the first step, and after an evaluation or a compilation.

        Args:
          progress: share of the budget that is spent.
          waited: seconds spent so far in waiting for data.
        """
        self._window = self.clock(), step, waited
        self._first = self._first or (self._window[0], progress)

    def read(self, step: int, progress: float, waited: float) -> dict[str, float]:
        """Ends the window and starts the next one. Call it after the step has been computed, not after its dispatch.

        Returns:
          {'seconds_per_step', 'tokens_per_second', 'flops_per_second', 'mfu' (share; only known chips), 'data_wait'
          (share of the time), 'seconds_left' (with evaluations at the rate so far), 'memory' (bytes, `peak_memory`)}.
        """
        now = self.clock()
        begun, first_step, waited_before = self._window
        seconds, steps = max(now - begun, 1e-9), step - first_step
        speed = {
            'seconds_per_step': seconds / max(steps, 1),
            'tokens_per_second': steps * self.tokens_per_step / seconds,
            'flops_per_second': steps * self.flops_per_step / seconds,
        }
        if self.peak:
            speed['mfu'] = speed['flops_per_second'] / self.peak
        since, progress_then = self._first
        spent = progress - progress_then
        speed['data_wait'] = min((waited - waited_before) / seconds, 1.0)
        speed['seconds_left'] = (1.0 - progress) * (now - since) / spent if spent > 0 else math.inf
        speed['memory'] = peak_memory()
        self.restart(step, progress, waited)
        return speed


@dataclasses.dataclass
class Clock:
    """The share of the budget that is spent: of its steps, or of its hours over all starts of the run.

    Attributes:
      share: the function steps -> share, of a budget whose steps and hours are not known.
    """

    total_steps: int | None
    hours: float | None
    before: float  # seconds of earlier starts
    share: Callable[[int], float] | None = None
    begun: float | None = None  # when the loop of this start began: compilation does not count

    def start(self) -> None:
        """Starts the clock when the loop begins."""
        self.begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training with its evaluations, earlier starts included."""
        return self.before + (time.monotonic() - self.begun if self.begun else 0.0)

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the budget that are left; None for a budget of steps, whose time `Meter` estimates."""
        return max(3600 * self.hours - self.elapsed, 0.0) if self.hours else None

    def spent(self, step: int) -> float:
        """Share of the budget after `step` updates; 1 is its end."""
        if self.share:
            return min(self.share(step), 1.0)
        return step / self.total_steps if self.total_steps else min(self.elapsed / (3600 * self.hours), 1.0)


def peak_memory() -> int:
    """Peak memory in bytes: the maximum over the devices of this process, or of the process itself on CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stat['peak_bytes_in_use'] for stat in stats if stat and 'peak_bytes_in_use' in stat]
    if peaks:
        return max(peaks)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == 'darwin' else resident * 1024  # kilobytes on Linux
