"""Exit codes, signals and the watchdog end a process as documented."""

import os
import signal
import subprocess
import sys

import pytest

from lmtrain.runtime import lifecycle


def run(code: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, '-c', 'from lmtrain.runtime import faults, lifecycle\n' + code]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_signal_sets_a_flag(number, capfd):
    before = signal.getsignal(number)
    with lifecycle.Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
    assert f'{number.name}: the run saves this step' in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_second_signal_ends_the_process():
    process = run("""
import time
with lifecycle.Signals():
    print('ready', flush=True)
    while True:
        time.sleep(0.01)
""")
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    output = process.stderr.readline() + process.stderr.readline()  # the handler is through: no second may come before
    assert 'SIGTERM: the run saves this step' in output
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=250)
    assert process.returncode == -signal.SIGINT


def test_exit_codes_differ():
    names = 'NON_FINITE', 'DISK', 'DIFFERS', 'REQUEUE', 'EXCEPTION', 'LOST', 'STALLED'
    assert [getattr(lifecycle, name) for name in names] == [3, 4, 5, 42, 70, 74, 75]


STALL = """
import time
with lifecycle.Watchdog(start=100.0, step=0.2, save=0.0) as watchdog:
    for phase, seconds in (('start', 0.3), ('save', 0.3), {last}):  # all longer than a step may take
        watchdog.expect(phase)
        time.sleep(seconds)
print('through')
"""


def test_stalled_phase_ends_the_process_and_prints_stacks():
    process = run(STALL.format(last=('step', 60)))
    output, error = process.communicate(timeout=250)
    assert (process.returncode, output) == (lifecycle.STALLED, ''), error
    assert 'config.watchdog.step = 0.2 s' in error
    assert 'File "<string>"' in error.partition('most recent call first')[2]


def test_phase_within_its_limit_continues():
    process = run(STALL.format(last=('save', 0.3)))
    output, error = process.communicate(timeout=250)
    assert (process.returncode, output, error) == (0, 'through\n', '')


def test_exception_ends_the_process_at_once():
    process = run(
        """
import atexit, sys, time
atexit.register(time.sleep, 1000)  # as JAX's shutdown waits for a peer that waits for this process
sys.excepthook = lifecycle.exit_on_exception
faults.inject('raise', 3)
""",
        LMTRAIN_FAULT='raise@3',
    )
    _, error = process.communicate(timeout=250)
    assert process.returncode == lifecycle.EXCEPTION
    assert error.endswith('AssertionError: LMTRAIN_FAULT=raise@3\n')
