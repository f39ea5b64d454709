"""Fixtures of the tests of whole runs."""

import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# The process imports JAX once and forks a child for each call, before any device is opened. The children print into
# stderr; the exit codes are printed.
KILLED = """
import ast, os, sys
from configs import base
from lmtrain.training import pipeline, train

def config_of(values):
    config = base.get_config()
    config.update(values)
    return config

for fault, function, *arguments in ast.literal_eval(sys.stdin.read()):
    if not os.fork():
        os.dup2(2, 1)
        os.environ['LMTRAIN_FAULT'] = fault
        eval(function)(*arguments)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope='session')
def kill():
    """The function [(fault, lambda expression, literals as its arguments)]: a process for each ends by SIGKILL."""

    def kill(calls):
        done = subprocess.run(
            [sys.executable, '-W', 'ignore:os.fork:RuntimeWarning', '-c', KILLED],
            input=repr(calls),
            cwd=ROOT,
            capture_output=True,
            encoding='utf-8',
            timeout=250,
        )
        assert done.stdout.split() == [str(-signal.SIGKILL)] * len(calls), done.stderr

    return kill
