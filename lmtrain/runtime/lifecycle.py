"""How a run ends: exit codes, signals that request a stop, and a watchdog."""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

# Exit codes of a process; 0 is a finished run.
NON_FINITE = 3  # too many updates in a row without a finite loss or gradient
DISK = 4  # a checkpoint could not be written
DIFFERS = 5  # a step that was run twice had two results (config.sdc_check_every)
REQUEUE = 42  # stopped on request; the step is saved, run the same command to resume
EXCEPTION = 70
LOST = 74  # a collective with the other processes failed; one of them has ended
STALLED = 75  # a step, a start, an evaluation or a save took longer than its limit


class RunEnded(Exception):
    """A run stops before the end of its budget. Carries a message for the user and the exit code of the process.

    Attributes:
      cost: of a run that diverged, what 'cost' of results.json would have of its steps so far; {} of others.
    """

    def __init__(self, code: int, message: str, cost: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.code, self.cost = code, dict(cost or {})


def exit_on_exception(kind: type[BaseException], error: BaseException, trace) -> None:
    """A `sys.excepthook` that prints the traceback and ends the process at once with EXCEPTION.

    The normal exit of Python waits in JAX's shutdown for processes that wait in a collective for this one.
    """
    traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXCEPTION)


def exit_requeue(number: int, frame: FrameType | None) -> None:
    """A signal handler for the time before training starts: ends the process at once with REQUEUE."""
    name = signal.Signals(number).name
    os.write(2, f'\n{name}: no step was taken, run the same command to resume\n'.encode())
    os._exit(REQUEUE)


class Watchdog:
    """Ends this process with STALLED and prints the stacks of all its threads if a phase exceeds its limit.

    A process that waits for ever (a lost peer, a file system that does not answer) reports nothing by itself, and
    neither do its peers.

        with lifecycle.Watchdog(start=3600, step=600) as watchdog:  # the phase 'start' begins
            ...
            watchdog.expect('step')

    Args:
      limits: seconds of each phase, on a monotonic clock; 0 is no limit.
    """

    def __init__(self, **limits: float):
        self._limits, self._expected = limits, ('', math.inf)
        self._closed = threading.Event()

    def __enter__(self) -> 'Watchdog':
        self.expect('start')  # a ConfigDict sorts its fields: it is not the first of them
        threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def expect(self, phase: str) -> None:
        """Begins a phase and ends the one before it."""
        self._expected = phase, time.monotonic() + (self._limits[phase] or math.inf)

    def _watch(self) -> None:
        while not self._closed.wait(min([1.0, *(limit / 4 for limit in self._limits.values() if limit)])):
            phase, deadline = self._expected
            if time.monotonic() > deadline:
                limit = f'config.watchdog.{phase} = {self._limits[phase]:g} s'
                # print() may wait for a lock that a stuck thread holds.
                os.write(2, f'\nstalled: longer than {limit}. The stacks of all threads:\n'.encode())
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(STALLED)


class Signals:
    """Turns the first SIGTERM or SIGINT into a flag that the loop reads; the second one ends the process at once.

        with lifecycle.Signals() as signals:
            ...
            if signals.received:
                checkpoints.save(...); checkpoints.wait(); sys.exit(lifecycle.REQUEUE)

    Enter it on the main thread: Python runs signal handlers nowhere else.

    Attributes:
      received: the name of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> 'Signals':
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        for again in self._before:
            signal.signal(again, signal.SIG_DFL)
        # print() may not be called from a handler that interrupts a print().
        message = f'\n{self.received}: the run saves this step and stops; press again to stop now.\n'
        os.write(2, message.encode())
