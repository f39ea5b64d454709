"""How a run ends: exit codes, the signal that asks it to stop, and named points at which a test may kill it."""

import os
import signal
from types import FrameType

FINISHED = 0
NON_FINITE = 3  # too many updates in a row without a finite loss or gradient
DISK = 4  # a checkpoint could not be written
REQUEUE = 42  # asked to stop; the step is saved, start the same command again
EXCEPTION = 70
STALLED = 75  # no step within the limit


class Ended(Exception):
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


def fault(point: str, step: int) -> None:
    """Kill this process as `kill -9` would, where LMTRAIN_FAULT is `point@step`; else do nothing.

    Raises ValueError where LMTRAIN_FAULT names no point of POINTS: a test that kills nothing proves nothing.
    """
    wanted = os.environ.get('LMTRAIN_FAULT')
    if not wanted:
        return
    name, at, number = wanted.partition('@')
    if name not in POINTS or at != '@' or not number.isdecimal():
        raise ValueError(f'LMTRAIN_FAULT={wanted!r}: expected point@step, point one of {", ".join(POINTS)}')
    if (name, int(number)) == (point, step):
        os.kill(os.getpid(), signal.SIGKILL)


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
