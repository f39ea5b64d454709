"""The files that every run writes: metrics.jsonl, timings.jsonl, completions.jsonl and TensorBoard events."""

import errno
import json
import math
import os
import pathlib
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lmtrain.files import read_json_lines

MEMBERS = '_members'  # suffix of the names of lists, one value for each member of a sweep


class Tracker(Protocol):
    """Attributes:
    errors: exceptions of `log` after which the run continues without these figures.
    """

    errors: tuple[type[Exception], ...]

    def log(self, step: int, values: Mapping[str, Any]) -> None: ...

    def finish(self) -> None: ...


class JsonLines:
    """Appends JSON lines to a file, each of them complete or absent, on a disk that may be full."""

    errors = (OSError,)

    def __init__(self, path: pathlib.Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line {'step', *values}. Raises OSError; nothing of the line is then left in the file."""
        line = (json.dumps({'step': step} | dict(values)) + '\n').encode()
        end = os.fstat(self._file).st_size
        if (written := os.write(self._file, line)) < len(line):
            os.ftruncate(self._file, end)
            raise OSError(errno.ENOSPC, f'{os.strerror(errno.ENOSPC)} ({written} of {len(line)} bytes were written)')

    def finish(self) -> None:
        os.close(self._file)


class TensorBoard:
    """TensorBoard scalars, written synchronously: a writer thread that dies would block the run.

    The members of a sweep are runs of their own in TensorBoard, in folders below.
    """

    errors = (OSError,)

    def __init__(self, folder: pathlib.Path, start: int, members: Sequence[str] = ()):
        from tensorboardX.event_file_writer import EventsWriter  # late: protobuf
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._members = [TensorBoard(folder / member, start) for member in members]
        self._writer = EventsWriter(str(folder / 'events'), f'.{time.time_ns()}')
        # TensorBoard then drops the points of earlier starts after `start`.
        self._writer.write_event(
            Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Raises OSError."""
        scalars = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in values.items()
            if isinstance(value, int | float) and name + MEMBERS not in values
        ]
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))
        self._writer.flush()
        for index, member in enumerate(self._members):
            member.log(step, of_member(values, index))

    def finish(self) -> None:
        self._writer.close()
        for member in self._members:
            member.finish()


def of_member(values: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The values of one member of a sweep under their own names.

    >>> of_member({'loss': 2.0, 'loss_members': [1.0, 3.0]}, 1)
    {'loss': 3.0}
    """
    lists = {name.replace(MEMBERS, ''): value for name, value in values.items() if isinstance(value, list)}
    return {name: value[index] for name, value in lists.items()}


def plain(value: Any) -> Any:
    """A number as JSON stores it exactly: float32 as the shortest decimal of its float64, 'nan' and 'inf' as text.

    Of lists (one number per member of a sweep) and dicts, every number.
    """
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    value = value.item() if hasattr(value, 'item') else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def numbers(value: Any) -> Any:
    """What `plain` was called with, but for dtypes.

    >>> numbers(plain({'loss': float('inf'), 'loss_members': [1.5, float('nan')]}))
    {'loss': inf, 'loss_members': [1.5, nan]}
    """
    if isinstance(value, dict):
        return {name: numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [numbers(each) for each in value]
    return float(value) if value in ('nan', 'inf', '-inf') else value


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
