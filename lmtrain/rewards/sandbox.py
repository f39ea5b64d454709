"""Runs code of a model against a test in a process with limits on time, memory, files and network (`sandboxed.py`).

It keeps accidents of generated code away from the run and the machine. Code and test share one interpreter: code that
is written against this sandbox can forge a result. The limits hold for it, too.
"""

import concurrent.futures
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmtrain.errors import InputError
from lmtrain.rewards.reward import Limits

START_SECONDS = 3.0  # of Python, before the process is killed; the program's own time is measured in the process
TIME_LIMIT = 'time limit'
OUTPUT = 2000  # last bytes of the output that are returned
VERDICT = 4096  # first bytes of the verdict that are read: the program can write to its file, too
NAMESPACES = 'new network, process and mount namespaces'


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
      status: 'passed', 'failed', or a reason why the test did not end: 'time limit', 'memory limit', 'SIGSEGV',
        'ended before its test'.
      output: the end of what it printed.
      isolation: why it ran without namespaces; '' if it had them.
    """

    status: str
    output: str
    isolation: str = ''


def run(code: str, test: str, limits: Limits) -> Outcome:
    """Runs `code`, then `test` in the same namespace; passed if neither raises."""
    token = secrets.token_hex(8)  # a program that ends early does not know it
    program = {'code': code, 'test': test, 'token': token, 'seconds': limits.seconds, 'memory_mib': limits.memory_mib}
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix='lmtrain-test-') as folder,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as verdict,  # a file has a limited size, and a pipe would be read into memory
    ):
        process = subprocess.Popen(
            # No user site and no working folder in the path; no variable of the run but those that Python needs.
            [sys.executable, '-s', '-P', str(Path(__file__).with_name('sandboxed.py'))],
            cwd=folder,
            env={'PYTHONHASHSEED': '0', 'PYTHONDONTWRITEBYTECODE': '1', 'PYTHONUTF8': '1', 'OMP_NUM_THREADS': '1'},
            stdin=subprocess.PIPE,
            stdout=verdict,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(program).encode() + b'\n', limits.seconds + START_SECONDS)
            verdict.seek(0)
            message = _message(verdict.read(VERDICT), token)
            status = message.get('status') or _ended(process.returncode, started + limits.seconds < time.monotonic())
        except subprocess.TimeoutExpired:
            message, status = {}, TIME_LIMIT
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT))
        printed = output.read().decode('utf-8', 'replace')
    return Outcome(status, printed, message['reason'] if status in ('passed', 'failed') else '')


def _message(verdict: bytes, token: str) -> dict[str, str]:
    """The `status` and `reason` that the process has written with its token; {} if it wrote anything else."""
    with contextlib.suppress(Exception):  # the program can write what no parser takes: deep nesting, a missing key
        message = json.loads(verdict)
        if message['token'] == token:
            return {name: str(message[name]) for name in ('status', 'reason')}
    return {}


def _ended(code: int, is_late: bool) -> str:
    """How a process ended that wrote no verdict."""
    if is_late and code in (-signal.SIGXCPU, -signal.SIGKILL):  # the limit of processor time
        return TIME_LIMIT
    return signal.Signals(-code).name if code < 0 else 'ended before its test'


def run_all(programs: Sequence[tuple[str, str]], limits: Limits) -> list[float | str]:
    """1.0 for each (code, test) that passes, 0.0 for one that fails, else why the test did not end.

    As many run at a time as there are cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        statuses = pool.map(lambda program: run(*program, limits).status, programs)
        return [float(status == 'passed') if status in ('passed', 'failed') else status for status in statuses]


def isolation(limits: Limits) -> str:
    """How programs are isolated on this machine. Raises InputError if none can run here."""
    outcome = run('', '', limits)
    if outcome.status != 'passed':
        raise InputError(
            f'config.reward: unit tests do not run here ({outcome.status}): {outcome.output.strip() or "no output"}'
        )
    if outcome.isolation:
        return (
            f'Python audit hooks alone, against sockets, processes and files ({outcome.isolation}): run lmtrain in a '
            'container if the model may write harmful code'
        )
    return NAMESPACES
