"""The path that a reader of a run has to follow does not grow."""

import os
import re
import subprocess
import sys

import pytest

from experiments import call_path
from experiments.record import ROOT


def test_calls_are_counted():
    from lmtrain import tree

    path = call_path.measure(lambda: [tree.join({'a': 1}, {'b': 2}), tree.join({'a': 1}, {'b': 2})])
    assert path == ({'tree.py': 3}, {'tree.py': 1})  # join, flatten, unflatten


@pytest.mark.slow
def test_a_run_enters_no_more_functions():
    env = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}  # several devices add collectives
    command = [sys.executable, '-m', 'experiments.call_path']
    output = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    functions, changes = map(int, re.findall(r'\d+', output))
    assert functions <= 482 and changes <= 667, f'{output}python -m experiments.call_path --files shows where'
