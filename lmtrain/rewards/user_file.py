"""The reward of a user's Python file, whose function runs in a process of its own (`worker.py`)."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError
from lmtrain.rewards.reward import Reward

START_SECONDS = 120.0  # of the import of a file
CHUNK = 1 << 16  # bytes


class WorkerFailure(Exception):
    """A call without a result; the message is the reason."""


class Worker:
    """A process that calls the function of a file. It is started by the first call, and again after a failure.

    Its working folder is empty and temporary; it is a session of its own, which is killed as a whole.
    """

    def __init__(self, file: Path):
        self._file = file
        self._process: subprocess.Popen | None = None
        self._folder = ''

    def start(self) -> None:
        """Raises WorkerFailure if the file cannot be imported or has no function of the right signature."""
        self._folder = tempfile.mkdtemp(prefix='lmtrain-reward-')
        command = [sys.executable, str(Path(__file__).with_name('worker.py')), str(self._file)]
        self._process = subprocess.Popen(
            command,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            self._reply(b'', START_SECONDS)
        except WorkerFailure:
            self.close()
            raise

    def call(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        seconds: float,
    ) -> list[float | str]:
        """The scores of the completions; a text is the reason why there is none. Raises WorkerFailure."""
        if self._process is None:
            self.start()
        request = {'prompts': list(prompts), 'completions': list(completions), 'rows': list(rows)}
        values = self._reply((json.dumps(request, default=str) + '\n').encode(), seconds)['values']
        return ['returned None' if value is None else value for value in values]

    def _reply(self, request: bytes, seconds: float) -> dict[str, Any]:
        """The next message, after `request` is written; the process is killed if it takes longer than `seconds`."""
        inward, outward = self._process.stdin.fileno(), self._process.stdout.fileno()
        deadline, received = time.monotonic() + seconds, b''
        while not received.endswith(b'\n'):
            left = deadline - time.monotonic()
            readable, writable, _ = select.select([outward], [inward] if request else [], [], max(left, 0.0))
            if not readable and not writable:
                self.close()
                raise WorkerFailure('time limit')
            if readable:
                chunk = os.read(outward, CHUNK)
                if not chunk:
                    raise WorkerFailure(self._death())
                received += chunk
            if writable:
                with contextlib.suppress(BrokenPipeError):  # its end is then read
                    request = request[os.write(inward, request) :]
        message = json.loads(received)
        if 'error' in message:
            raise WorkerFailure(message['error'])
        return message

    def _death(self) -> str:
        code = self._process.wait()
        self.close()
        return f'the process ended with {signal.Signals(-code).name if code < 0 else f"exit code {code}"}'

    def close(self) -> None:
        """Kills the process and what it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


def reward(file: Path, seconds: float, strict: bool = True) -> Reward:
    """The reward of a file with one function (prompts, completions) -> rewards, or with `rows` as a third argument.

    A call that raises, takes longer than `seconds`, ends its process, or returns another number of rewards is a failure
    of all its completions. If `strict`, the first call raises InputError instead, since nothing is lost by then. A run
    that is resumed is not strict: the call may be one that an uninterrupted run would count.

    Raises InputError if the file is missing, cannot be imported, or has no such function.
    """
    if not file.is_file():
        raise InputError(f'config.reward.file: no such file: {file}')
    worker = Worker(file.absolute())
    try:
        worker.start()
    except WorkerFailure as failure:
        raise InputError(f'{file}: {failure}') from None
    counted = not strict

    def score(prompts, completions, rows):
        nonlocal counted
        try:
            values = worker.call(prompts, completions, rows, seconds)
        except WorkerFailure as failure:
            if counted:
                return [str(failure)] * len(completions)
            worker.close()
            raise InputError(
                f'{file}: the first call failed: {failure} (config.reward.seconds is the limit of a call)'
            ) from None
        counted = True
        return values

    return Reward(score, note=f'rewards of {file}', close=worker.close)
