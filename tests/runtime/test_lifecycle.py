"""A run can be killed where a test says, and asked to stop in one way only."""

import os
import signal
import subprocess
import sys

import pytest

from lmtrain.runtime import lifecycle


def run(code: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, '-c', 'from lmtrain import survive\n' + code]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_fault_kills_at_its_point_and_step_alone():
    code = """
for step in range(5):
    survive.fault('before_rename', step)
    survive.fault('before_save', step)
    print(step, flush=True)
"""
    process = run(code, LMTRAIN_FAULT='before_save@3')
    said, error = process.communicate(timeout=250)
    assert (process.returncode, said.split()) == (-signal.SIGKILL, ['0', '1', '2']), error


def test_without_the_variable_nothing_happens(monkeypatch):
    monkeypatch.delenv('LMTRAIN_FAULT', raising=False)
    lifecycle.fault('before_save', 1)


@pytest.mark.parametrize('wanted', ['before_sav@1', 'before_save', 'before_save@', 'before_save@x', '@1'])
def test_a_misspelt_fault_is_an_error(monkeypatch, wanted):
    monkeypatch.setenv('LMTRAIN_FAULT', wanted)
    with pytest.raises(ValueError, match='expected point@step, point one of before_save'):
        lifecycle.fault('after_rename', 9)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_flag(number, capfd):
    before = signal.getsignal(number)
    with lifecycle.Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
    assert f'{number.name}: this step is saved' in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_the_process():
    process = run("""
import time
with survive.Signals():
    print('ready', flush=True)
    while True:
        time.sleep(0.01)
""")
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    said = process.stderr.readline() + process.stderr.readline()  # the handler is through: no second may come before
    assert 'SIGTERM: this step is saved' in said
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=250)
    assert process.returncode == -signal.SIGINT


def test_exit_codes_differ():
    names = 'FINISHED', 'NON_FINITE', 'DISK', 'DIFFERS', 'REQUEUE', 'EXCEPTION', 'LOST', 'STALLED'
    assert [getattr(lifecycle, name) for name in names] == [0, 3, 4, 5, 42, 70, 74, 75]


STALL = """
import time
with survive.Watchdog(start=100.0, step=0.2, save=0.0) as watchdog:
    for phase in ('start', 'save', {phase!r}):
        watchdog.expect(phase)
        time.sleep(1)
print('through')
"""


def test_a_stalled_phase_ends_the_process_with_its_stacks():
    process = run(STALL.format(phase='step'))
    said, error = process.communicate(timeout=250)
    assert (process.returncode, said) == (lifecycle.STALLED, ''), error
    assert 'config.watchdog.step = 0.2 s' in error
    assert 'File "<string>"' in error.partition('most recent call first')[2]


def test_a_phase_without_a_limit_or_within_it_goes_on():
    process = run(STALL.format(phase='save'))
    said, error = process.communicate(timeout=250)
    assert (process.returncode, said, error) == (0, 'through\n', '')


def test_an_exception_ends_the_process_at_once():
    process = run(
        """
import atexit, sys, time
atexit.register(time.sleep, 1000)  # as JAX's shutdown waits for a peer that waits for this process
sys.excepthook = survive.exit_on_exception
survive.fault('raise', 3)
""",
        LMTRAIN_FAULT='raise@3',
    )
    _, error = process.communicate(timeout=250)
    assert process.returncode == lifecycle.EXCEPTION
    assert error.endswith('AssertionError: LMTRAIN_FAULT=raise@3\n')
