"""starts the processes of one run on this machine, with simulated devices or its GPUs divided among them.

The first process writes as it is, the others behind [their number]. A signal is passed on to all; where one fails, the
others end, and its exit code is the answer.

lmtrain local --processes=2 --devices=4 -- train --config=configs/tiny.py --workdir=runs/two
lmtrain local --processes=4 --retries=3 -- train --config=configs/pretrain_gpt2.py
"""

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from absl import flags

from launch import launcher
from lmtrain.errors import InputError
from lmtrain.runtime import lifecycle

FLAGS = flags.FlagValues()
launcher.define(FLAGS, retries=0)
text = 'how many processes; each is told the others by --coordinator'
flags.DEFINE_integer('processes', 2, text, lower_bound=1, flag_values=FLAGS)
text = 'simulated CPU devices of each process; 0: the GPUs of this machine, divided'
flags.DEFINE_integer('devices', 0, text, lower_bound=0, flag_values=FLAGS)

GRACE = 5.0  # seconds for the others to leave by themselves once one has failed
SAVING = 120.0  # the same where it asked to be started again: they may be writing the checkpoint


class Outcome(NamedTuple):
    code: int  # as a shell counts: 128 + n for the end by signal n; 0 where every process ended with 0
    process: int  # which one failed first
    asked: bool  # whether this launcher was signalled


def run(values: flags.FlagValues) -> None:
    """Raises ValueError for what cannot be started, survive.Ended with the exit code of the first process to fail."""
    words = launcher.train(values, 'local')
    shares = devices(values.processes, values.devices)
    for attempt in range(values.retries + 1):
        starts = commands(words, shares, free_port())
        if values.print_only:
            print('\n'.join(launcher.line(*start) for start in starts))
            return
        outcome = watch(starts)
        if not outcome.code:
            return
        if outcome.asked or outcome.code not in launcher.AGAIN or attempt == values.retries:
            raise lifecycle.RunEnded(
                outcome.code, f'process {outcome.process} ended first, with exit code {outcome.code}'
            )
        print(f'lmtrain local: exit code {outcome.code}; again, {attempt + 1} of {values.retries}', file=sys.stderr)


def devices(processes: int, simulated: int) -> list[dict[str, str]]:
    """The environment of each process. Raises ValueError where there is no GPU or they do not divide."""
    if simulated:
        return [{'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(simulated)}] * processes
    found = gpus()
    if not found or len(found) % processes:
        raise InputError(
            f'{len(found)} GPUs do not divide over --processes={processes}; --devices=4 simulates four on the CPU'
        )
    share = len(found) // processes
    return [{'CUDA_VISIBLE_DEVICES': ','.join(found[i * share : (i + 1) * share])} for i in range(processes)]


def gpus() -> list[str]:
    """Names of the GPUs that a process here would see, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return [name for name in visible.split(',') if name]
    if not shutil.which('nvidia-smi'):
        return []
    asked = ['nvidia-smi', '--query-gpu=index', '--format=csv,noheader']
    done = subprocess.run(asked, capture_output=True, encoding='utf-8', errors='replace')
    return done.stdout.split() if done.returncode == 0 else []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as tried:
        tried.bind(('127.0.0.1', 0))
        return tried.getsockname()[1]


def commands(words: list[str], shares: list[dict[str, str]], port: int) -> list[tuple[list[str], dict[str, str]]]:
    """(argv, environment on top of this one) of each process."""
    unproxied = ','.join(filter(None, [os.environ.get('no_proxy'), '127.0.0.1']))
    more = {'PYTHONPATH': launcher.path(), 'no_proxy': unproxied, 'JAX_CHECK_PROXY_ENVS': 'false'}
    peers = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={len(shares)}']
    return [(launcher.python([*words, *peers, f'--process_id={i}']), more | share) for i, share in enumerate(shares)]


def watch(starts: list[tuple[list[str], dict[str, str]]], grace: float = GRACE) -> Outcome:
    """Runs the processes to the end of all of them; none is left behind."""
    children, echoes, asked = [], [], []

    def forward(number, frame):
        number = signal.SIGTERM if number == signal.SIGHUP else number
        asked.append(number)
        for child in children:
            child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last where the terminal is closed
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        for i, (argv, more) in enumerate(starts):
            output = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace'}
            # A session of its own: Ctrl-C reaches a process once, through `forward`, and not a second time.
            child = subprocess.Popen(
                argv,
                env=os.environ | more,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **(output if i else {}),
            )
            children.append(child)
            for number in asked:  # while it was starting
                child.send_signal(number)
            if i:
                echoes.append(threading.Thread(target=_echo, args=(i, child.stdout), daemon=True))
                echoes[-1].start()
        first, deadline = None, math.inf
        while True:
            alive = [child for child in children if child.poll() is None]
            if first is None:
                first = _failed(children)
                if first is not None:
                    saved = children[first].returncode == lifecycle.REQUEUE
                    deadline = time.monotonic() + (SAVING if saved else grace)
            if not alive:
                break
            if time.monotonic() > deadline:
                _end(alive)
            time.sleep(0.05)
    finally:
        _end(children)
        for number, handler in before.items():
            signal.signal(number, handler)
    for echo in echoes:
        echo.join()
    code = 0 if first is None else children[first].returncode
    return Outcome(code if code >= 0 else 128 - code, first or 0, bool(asked))


def _failed(children: list[subprocess.Popen]) -> int | None:
    """The one to blame: of those that failed, one that did so by itself before those that only lost a peer."""
    failed = [i for i, child in enumerate(children) if child.returncode]
    lost = (lifecycle.LOST, -signal.SIGABRT)  # JAX's own end of a process whose peer is gone
    return min(failed, key=lambda i: children[i].returncode in lost, default=None)


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _echo(number: int, lines) -> None:
    with lines:
        for text in lines:
            print(f'[{number}] {text}', end='', flush=True)
