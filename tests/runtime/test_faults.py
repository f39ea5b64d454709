"""A fault is injected at its point and step alone, and a misspelt one is an error."""

import os
import signal
import subprocess
import sys

import pytest

from lmtrain.runtime import faults

CODE = """from lmtrain.runtime import faults
for step in range(5):
    faults.inject('before_rename', step)
    faults.inject('before_save', step)
    print(step, flush=True)
"""


def test_fault_kills_at_its_point_and_step_alone():
    process = subprocess.Popen(
        [sys.executable, '-c', CODE],
        env=os.environ | {'LMTRAIN_FAULT': 'before_save@3'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, error = process.communicate(timeout=250)
    assert (process.returncode, output.split()) == (-signal.SIGKILL, ['0', '1', '2']), error


def test_nothing_happens_without_the_variable(monkeypatch):
    monkeypatch.delenv('LMTRAIN_FAULT', raising=False)
    faults.inject('before_save', 1)


@pytest.mark.parametrize('fault', ['before_sav@1', 'before_save', 'before_save@', 'before_save@x', '@1'])
def test_misspelt_fault_is_an_error(monkeypatch, fault):
    monkeypatch.setenv('LMTRAIN_FAULT', fault)
    with pytest.raises(ValueError, match='expected point@step, point one of before_save'):
        faults.inject('after_rename', 9)
