"""The metrics of a run: metrics.jsonl, timings.jsonl, TensorBoard events, means over steps, and speed."""

import dataclasses
import math
import os
import pathlib
import resource
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmtrain.files import read_json_lines
from lmtrain.report.trackers import JsonLines, TensorBoard, Tracker


def plain(value: Any) -> int | float | str | list:
    """A number as JSON stores it exactly: float32 as the shortest decimal of its float64, 'nan' and 'inf' as text.

    Lists of numbers (one per member of a sweep) stay lists.
    """
    if isinstance(value, list):
        return [plain(each) for each in value]
    value = value.item() if hasattr(value, 'item') else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Writers:
    """The files of one run, until `close`; only one process of a run may open them.

    metrics.jsonl has what another run of the same config reproduces exactly, without times; timings.jsonl has times;
    tensorboard/ and other trackers have both. Lines are appended: truncate the files to the step of the checkpoint
    before a resumed run opens them.

    If a write fails, `warn` is called once per file, and the run continues without that line. OSError if a file cannot
    be opened.

    Args:
      workdir: the existing folder of the run.
      tensorboard: whether to write events too.
      start: the step that the run starts from.
      warn: receives one line of text for the user.
      trackers: {name: tracker} beside these, from `trackers.start`.
      members: labels of the members of a sweep.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tensorboard: bool,
        start: int = 0,
        warn: Callable[[str], Any] = print,
        trackers: Mapping[str, Tracker] = types.MappingProxyType({}),
        members: Sequence[str] = (),
    ):
        self._folder, self._warn, self._broken = pathlib.Path(workdir), warn, set()
        self._files = {name: JsonLines(self._folder / name) for name in ('metrics.jsonl', 'timings.jsonl')}
        self._trackers = dict(trackers)
        if tensorboard:
            self._trackers['tensorboard'] = TensorBoard(self._folder / 'tensorboard', start, members)

    def metrics(self, step: int, values: Mapping[str, Any], batch: str) -> None:
        """One line {'step', 'batch', *values} of metrics.jsonl. `batch` is the hash of the step's batch."""
        self._write('metrics.jsonl', step, {'batch': batch} | dict(values), 'train/')

    def validation(self, step: int, values: Mapping[str, Any]) -> None:
        """One line {'step', 'validation_...'} of metrics.jsonl; for a source of a mixture 'validation_.../NAME'."""
        line = {f'validation_{name}': value for name, value in values.items() if name != 'sources'}
        for source, own in values.get('sources', {}).items():
            line |= {f'validation_{name}/{source}': value for name, value in own.items()}
        self._write('metrics.jsonl', step, line, '')

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lines {'step', 'prompt', 'completion', 'reward', 'ended'} of completions.jsonl; `step` learns from them."""
        name = 'completions.jsonl'
        if name not in self._files:
            self._files[name] = JsonLines(self._folder / name)
        for row in rows:
            line = {key: plain(value) for key, value in row.items()}
            self._attempt(name, self._files[name], int(step), line)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return read_json_lines(self._folder / 'metrics.jsonl')

    def timings(self, step: int, values: Mapping[str, Any]) -> None:
        """One line {'step', *values} of timings.jsonl, such as `Meter.read` gives."""
        self._write('timings.jsonl', step, values, 'speed/')

    def _write(self, name: str, step: int, values: Mapping[str, Any], prefix: str) -> None:
        line = {key: plain(value) for key, value in values.items()}
        self._attempt(name, self._files[name], int(step), line)
        named = {prefix + key.replace('validation_', 'validation/'): value for key, value in line.items()}
        for tracker, each in self._trackers.items():
            self._attempt(tracker, each, int(step), named)

    def _attempt(self, name: str, tracker: Tracker, step: int, values: Mapping[str, Any]) -> None:
        try:
            tracker.log(step, values)
        except tracker.errors as error:
            if name not in self._broken:
                self._warn(
                    f'{self._folder / name} cannot be written at step {step}: '
                    f'{getattr(error, "strerror", None) or error}. '
                    'The run continues without its lines; they continue when there is free space'
                )
            self._broken.add(name)
        else:
            if name in self._broken:
                self._warn(f'{self._folder / name} can be written again from step {step} on')
                self._broken.remove(name)

    def close(self) -> None:
        """Closes the files and ends the trackers; warns if one could not be flushed."""
        for name, tracker in (self._files | self._trackers).items():
            try:
                tracker.finish()
            except tracker.errors as error:
                reason = getattr(error, 'strerror', None) or error
                self._warn(f'{self._folder / name} may lack its last lines: {reason}')


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
    """The share of the budget that is spent: of its steps, or of its hours over all starts of the run."""

    total_steps: int | None
    hours: float | None
    before: float  # seconds of earlier starts
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
        return step / self.total_steps if self.total_steps else min(self.elapsed / (3600 * self.hours), 1.0)


def peak_memory() -> int:
    """Peak memory in bytes: the maximum over the devices of this process, or of the process itself on CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stat['peak_bytes_in_use'] for stat in stats if stat and 'peak_bytes_in_use' in stat]
    if peaks:
        return max(peaks)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == 'darwin' else resident * 1024  # kilobytes on Linux
