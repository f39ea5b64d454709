"""Fault injection: points at which a test stops, stalls or corrupts a run, selected by LMTRAIN_FAULT='point@step'."""

import os
import signal
import time

from lmtrain.errors import InputError

# The points of a save, in order. The process is killed there as by `kill -9`; a save that was not committed is lost.
SAVE_POINTS = (
    'before_save',  # nothing is written
    'in_save',  # the state is copied to the host, its files are being written
    'before_hash',  # Orbax has written all its files
    'before_rename',  # the manifest is on the disk
    'after_rename',  # committed; older checkpoints are still there
    'in_retention',  # an old checkpoint is renamed and not yet deleted
)
STALL_IN_SAVE = 'stall_in_save'  # the files are written, and the process that renames them never continues
STALL = 'stall'  # before a step: the process lives and does nothing, as in a collective whose peer is lost
ROLLOUT = 'in_rollout'  # the completions before a step are sampled, and not yet scored
KILL = 'kill'  # before a step: killed as at a save
RAISE = 'raise'  # before a step: an unexpected exception
CORRUPT = 'corrupt'  # one bit of the first of the two results of a step that is run twice
POINTS = (*SAVE_POINTS, STALL_IN_SAVE, STALL, ROLLOUT, KILL, RAISE, CORRUPT)


def inject(point: str, step: int) -> None:
    """Kills or stalls this process or raises AssertionError if LMTRAIN_FAULT requests `point` at `step`.

    Raises what `fault_requested` raises.
    """
    if not fault_requested(point, step):
        return
    if point == RAISE:
        raise AssertionError(f'LMTRAIN_FAULT={point}@{step}')  # no InputError: it must not pass for a user's mistake
    while point in (STALL, STALL_IN_SAVE):
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


def fault_requested(point: str, step: int) -> bool:
    """Whether LMTRAIN_FAULT is `point@step`.

    Raises InputError if LMTRAIN_FAULT names no point: a test that injects nothing proves nothing.
    """
    requested = os.environ.get('LMTRAIN_FAULT')
    if not requested:
        return False
    name, at, number = requested.partition('@')
    if name not in POINTS or at != '@' or not number.isdecimal():
        raise InputError(f'LMTRAIN_FAULT={requested!r}: expected point@step, point one of {", ".join(POINTS)}')
    return (name, int(number)) == (point, step)
