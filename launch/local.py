"""starts the processes of one run on this machine, with simulated devices or its GPUs divided among them.

The output of all processes but the first is prefixed with [their number]. Signals are forwarded to all. If a process
fails, the others are ended and its exit code is returned.

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
text = 'number of processes; they find each other by --coordinator'
flags.DEFINE_integer('processes', 2, text, lower_bound=1, flag_values=FLAGS)
text = 'simulated CPU devices of each process; 0: the GPUs of this machine, divided'
flags.DEFINE_integer('devices', 0, text, lower_bound=0, flag_values=FLAGS)

GRACE = 5.0  # seconds for the others to end by themselves after one has failed
SAVING = 120.0  # the same if it exited to be restarted: they may be writing the checkpoint


class Outcome(NamedTuple):
    code: int  # as in a shell: 128 + n if ended by signal n; 0 if every process exited with 0
    process: int  # which one failed first
    signalled: bool  # whether this launcher received a signal


def run(values: flags.FlagValues) -> None:
    """Raises InputError if the run cannot be started, RunEnded with the exit code of the first process to fail."""
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
        if outcome.signalled or outcome.code not in launcher.AGAIN or attempt == values.retries:
            raise lifecycle.RunEnded(
                outcome.code, f'process {outcome.process} ended first, with exit code {outcome.code}'
            )
        print(f'lmtrain local: exit code {outcome.code}; again, {attempt + 1} of {values.retries}', file=sys.stderr)


def devices(processes: int, simulated: int) -> list[dict[str, str]]:
    """The environment of each process. Raises InputError if there is no GPU or they do not divide."""
    if simulated:
        return [{'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(simulated)}] * processes
    names = gpus()
    if not names or len(names) % processes:
        raise InputError(
            f'{len(names)} GPUs do not divide over --processes={processes}; --devices=4 simulates four on the CPU'
        )
    share = len(names) // processes
    return [{'CUDA_VISIBLE_DEVICES': ','.join(names[i * share : (i + 1) * share])} for i in range(processes)]


def gpus() -> list[str]:
    """Names of the visible GPUs, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return [name for name in visible.split(',') if name]
    if not shutil.which('nvidia-smi'):
        return []
    query = ['nvidia-smi', '--query-gpu=index', '--format=csv,noheader']
    done = subprocess.run(query, capture_output=True, encoding='utf-8', errors='replace')
    return done.stdout.split() if done.returncode == 0 else []


def free_port() -> int:
    """An unused port of 127.0.0.1."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def commands(words: list[str], shares: list[dict[str, str]], port: int) -> list[tuple[list[str], dict[str, str]]]:
    """(argv, additions to the environment) of each process."""
    unproxied = ','.join(filter(None, [os.environ.get('no_proxy'), '127.0.0.1']))
    more = {'PYTHONPATH': launcher.path(), 'no_proxy': unproxied, 'JAX_CHECK_PROXY_ENVS': 'false'}
    peers = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={len(shares)}']
    return [(launcher.python([*words, *peers, f'--process_id={i}']), more | share) for i, share in enumerate(shares)]


def watch(starts: list[tuple[list[str], dict[str, str]]], grace: float = GRACE) -> Outcome:
    """Runs the processes until all have ended."""
    children, echoes, received = [], [], []

    def forward(number, frame):
        number = signal.SIGTERM if number == signal.SIGHUP else number
        received.append(number)
        for child in children:
            child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal is closed
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        for i, (argv, more) in enumerate(starts):
            output = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace'}
            # In a session of its own: Ctrl-C reaches a process only through `forward`.
            child = subprocess.Popen(
                argv,
                env=os.environ | more,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **(output if i else {}),
            )
            children.append(child)
            for number in received:  # while it was starting
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
    return Outcome(code if code >= 0 else 128 - code, first or 0, bool(received))


def _failed(children: list[subprocess.Popen]) -> int | None:
    """The process that failed first: one that failed by itself precedes those that only lost a peer."""
    failed = [i for i, child in enumerate(children) if child.returncode]
    lost = (lifecycle.LOST, -signal.SIGABRT)  # JAX aborts a process that lost a peer
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
