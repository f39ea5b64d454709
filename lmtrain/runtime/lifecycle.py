"""How a run ends: exit codes, the signal that asks it to stop, a watchdog, and points at which a test may hurt it."""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType

from lmtrain.errors import InputError

FINISHED = 0
NON_FINITE = 3  # too many updates in a row without a finite loss or gradient
DISK = 4  # a checkpoint could not be written
DIFFERS = 5  # a step that was taken twice had two results (config.sdc_check_every)
REQUEUE = 42  # asked to stop; the step is saved, start the same command again
EXCEPTION = 70
LOST = 74  # an exchange with the other processes failed; one of them has ended
STALLED = 75  # a step, a start, an evaluation or a save took longer than its limit


class RunEnded(Exception):
    """A run that stops before its end, with a word for a person and the exit code of the process."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


# Every moment of a save, in order; what may be lost at each is what was not committed (renamed) before.
POINTS = (
    'before_save',  # nothing is written
    'in_save',  # the state is copied to the host, its files are being written
    'before_hash',  # Orbax has written all its files
    'before_rename',  # the manifest is on the disk
    'after_rename',  # committed; older checkpoints still there
    'in_retention',  # an old checkpoint is set aside, not yet deleted
)
STALL_IN_SAVE = 'stall_in_save'  # the files are written, and the process that is to rename them waits for ever
# What may befall a step before it is taken.
STEP = (
    'stall',  # the process lives and does nothing, as in a collective whose peer is lost
    'raise',  # an exception that nobody foresaw
)
CORRUPT = 'corrupt'  # a bit of the first result of a step that is taken twice


def fault(point: str, step: int) -> None:
    """Kill this process as `kill -9` would, or do what STEP says, where `wanted`; else nothing. Raises as `wanted`."""
    if not fault_requested(point, step):
        return
    if point == 'raise':
        raise AssertionError(f'LMTRAIN_FAULT={point}@{step}')  # never taken for a word to the user
    while point in ('stall', STALL_IN_SAVE):
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


def fault_requested(point: str, step: int) -> bool:
    """Whether LMTRAIN_FAULT is `point@step`.

    Raises ValueError where LMTRAIN_FAULT names no point: a test that hurts nothing proves nothing.
    """
    asked = os.environ.get('LMTRAIN_FAULT')
    if not asked:
        return False
    points = (*POINTS, STALL_IN_SAVE, *STEP, CORRUPT)
    name, at, number = asked.partition('@')
    if name not in points or at != '@' or not number.isdecimal():
        raise InputError(f'LMTRAIN_FAULT={asked!r}: expected point@step, point one of {", ".join(points)}')
    return (name, int(number)) == (point, step)


def fault_in_step(step: int) -> None:
    """The faults of STEP."""
    for point in STEP:
        fault(point, step)


def exit_on_exception(kind: type[BaseException], error: BaseException, trace) -> None:
    """A `sys.excepthook` that prints the traceback and ends the process at once with EXCEPTION.

    Python's own way out waits in JAX's shutdown for processes that wait in a collective for this one.
    """
    traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXCEPTION)


def exit_requeue(number: int, frame: FrameType | None) -> None:
    """A handler of signals for while nothing has begun: ends the process at once with REQUEUE."""
    os.write(2, f'\n{signal.Signals(number).name}: nothing had begun; the same command goes on\n'.encode())
    os._exit(REQUEUE)


class Watchdog:
    """Ends this process with STALLED, the stacks of all its threads on stderr, where a phase outlasts its limit.

    A process that waits for ever (a lost peer, a dead file system) says nothing by itself, and its peers neither.

        with survive.Watchdog(start=3600, step=600) as watchdog:  # the first of them begins
            ...
            watchdog.expect('step')

    Args:
      limits: seconds of each phase, on a clock that never goes back; 0 is none.
    """

    def __init__(self, **limits: float):
        self._limits, self._expected = limits, ('', math.inf)
        self._left = threading.Event()

    def __enter__(self) -> 'Watchdog':
        self.expect(next(iter(self._limits)))
        threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def expect(self, phase: str) -> None:
        """The phase begins, and the one before it has ended."""
        self._expected = phase, time.monotonic() + (self._limits[phase] or math.inf)

    def _watch(self) -> None:
        while not self._left.wait(min([1.0, *(limit / 4 for limit in self._limits.values() if limit)])):
            phase, deadline = self._expected
            if time.monotonic() > deadline:
                limit = f'config.watchdog.{phase} = {self._limits[phase]:g} s'
                # print() may wait for a lock that a stuck thread holds.
                os.write(2, f'\nstalled: longer than {limit}. Where every thread stands:\n'.encode())
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(STALLED)


class Signals:
    """Turns the first SIGTERM or SIGINT into a flag that the loop reads; the second one ends the process at once.

        with survive.Signals() as signals:
            ...
            if signals.received:
                checkpoints.save(...); checkpoints.wait(); sys.exit(survive.REQUEUE)

    To be entered on the main thread (Python runs handlers nowhere else). `received` is the name of the signal or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

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
        os.write(2, f'\n{self.received}: this step is saved, then the run stops; again stops it at once.\n'.encode())
