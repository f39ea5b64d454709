"""What does a run of two processes lose if one of them is killed, stopped or stalled, or its disk is full?

    python -m experiments.processes [--trials=12] [--minutes=25]

Every run is `lmtrain train` on the tiny recipe in two processes on this machine; the run after the fault is the same
command without it. Trials that the minutes do not suffice for are left out and listed.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from experiments import cli, record
from lmtrain.runtime import lifecycle

STEPS = 100
LIMIT = 180  # seconds that a process may take
DOWN = 15.0  # seconds in which all processes are down after one of them is


def start(folder, workdir, faults=(None, None), limits=(None, None), processes=2, **more) -> list[subprocess.Popen]:
    """The processes of one run, the words of each in `<workdir>.<rank>.txt`; `limits` are bytes of a file."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    settings = cli.small_text(folder) | {'budget.steps': STEPS, 'data.batch_size': 8, 'checkpoint.every_steps': 10}
    settings |= {'evaluate.every_steps': 25, 'evaluate.max_batches': 3, 'mesh.data': 1, 'mesh.fsdp': 8}
    settings |= more
    flags = ['train', '--config=configs/tiny.py', f'--workdir={workdir}']
    flags += [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}']
    environment = {name: value for name, value in os.environ.items() if 'proxy' not in name.lower()}
    environment |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '4'}
    running = []
    for rank, fault, limit in zip(range(processes), faults, limits, strict=True):
        # A write beyond the limit fails like one on a full disk.
        shell = ['bash', '-c', f'ulimit -f {limit // 1024}; trap "" XFSZ; exec "$@"', 'bash'] if limit else []
        running.append(
            cli.start(
                *flags,
                f'--process_id={rank}',
                config=settings,
                output=pathlib.Path(f'{workdir}.{rank}.txt'),
                prefix=shell,
                env=environment | ({'LMTRAIN_FAULT': fault} if fault else {}),
            )
        )
    return running


def wait(processes) -> tuple[list[int], float]:
    """Exit codes, and the seconds from the first end to the last. What outlasts the limit is killed, and is -9."""
    codes, first, deadline = {}, None, time.monotonic() + LIMIT
    while len(codes) < len(processes):
        for rank, process in enumerate(processes):
            if rank not in codes and process.poll() is not None:
                codes[rank] = process.returncode
                first = first or time.monotonic()
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.02)
    return [codes[rank] for rank in range(len(processes))], time.monotonic() - first


def words(workdir, rank) -> str:
    return pathlib.Path(f'{workdir}.{rank}.txt').read_text(encoding='utf-8')


def state(workdir) -> dict[str, str]:
    """SHA-256 of metrics.jsonl, and the files' own hashes of every leaf of the last checkpoint."""
    import hashlib

    import jax
    import numpy as np

    from lmtrain import checkpoint

    directory = workdir / 'checkpoints'
    leaves = json.loads((directory / str(STEPS) / 'manifest.json').read_text(encoding='utf-8'))['leaves']
    shapes = {path: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype']) for path, leaf in leaves.items()}
    leaves, _ = checkpoint.restore(directory, shapes, STEPS)
    hashed = {path: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for path, leaf in leaves.items()}
    return hashed | {'metrics': hashlib.sha256((workdir / 'metrics.jsonl').read_bytes()).hexdigest()}


def steps(workdir) -> int:
    path = workdir / 'metrics.jsonl'
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def after_step(rank, number, step, delay=0.0):
    """Sends a signal to one process some time after the run has written a step."""

    def hurt(processes, workdir):
        while steps(workdir) < step and all(process.poll() is None for process in processes):
            time.sleep(0.005)
        time.sleep(delay)
        processes[rank].send_signal(number)

    return hurt


def after_words(rank, number, text):
    """Sends a signal to one process as soon as the run has printed a text, or a file exists."""

    def hurt(processes, workdir):
        def there():
            return list(workdir.glob(text)) if '/' in text else text in words(workdir, 0)

        while not there() and all(process.poll() is None for process in processes):
            time.sleep(0.002)
        processes[rank].send_signal(number)

    return hurt


def nothing(processes, workdir):
    pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--trials', type=int, default=12, help='of a random process killed at a random time')
    parser.add_argument('--minutes', type=float, default=25.0, help='after which no further trial is begun')
    arguments = parser.parse_args()
    draw, begun = random.Random(0), time.monotonic()
    groups: dict[str, list[dict]] = {}
    left_out = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        record.write_text(folder)
        whole = folder / 'whole'
        codes, _ = wait(start(folder, whole))
        assert codes == [0, 0], words(whole, 0) + words(whole, 1)
        expected = state(whole)

        def trial(group, name, hurt, exit_codes, says='', **more):
            """One run that is hurt, and the same command until it has ended; `exit_codes`: sets of codes by rank."""
            if time.monotonic() - begun > 60 * arguments.minutes:
                left_out.append(name)
                return
            workdir = folder / name.replace(' ', '-').replace('@', '-')
            processes = start(folder, workdir, **more)
            with contextlib.suppress(FileNotFoundError):
                hurt(processes, workdir)
            codes, apart = wait(processes)
            output = words(workdir, 0) + words(workdir, 1)
            good = all(code in them for code, them in zip(codes, exit_codes, strict=True)) and says in output
            done = {'what': name, 'exit': ' '.join(map(str, codes)), 'seconds_from_first_to_last_end': round(apart, 2)}
            again, _ = wait(start(folder, workdir))
            done |= {'resumed_exit': again, 'equal': again == [0, 0] and state(workdir) == expected}
            done['as_wanted'] = good and apart < DOWN and done['equal']
            if not done['as_wanted']:
                done['said'] = output[-3000:]
            shutil.rmtree(workdir, ignore_errors=True)
            print(json.dumps(done), flush=True)
            groups.setdefault(group, []).append(done)

        kills, others = [], []
        gone = (lifecycle.LOST, -signal.SIGABRT)  # an exchange failed, or JAX ended the process before it could say so
        killed = f'{STEPS} steps in 2 x 4, a random process killed at a random time, then resumed: equal to the bit, '
        killed += 'metrics without hole or duplicate'
        for index in range(arguments.trials):
            rank, step, delay = draw.randrange(2), draw.randrange(STEPS), draw.uniform(0, 0.3)
            name, hurt = f'kill {index}, process {rank}, step {step}', after_step(rank, signal.SIGKILL, step, delay)
            kills.append((killed, name, hurt, [(-9,) if other == rank else gone for other in range(2)], {}))
        group = (
            'SIGTERM to one process in a step, in compiling, in an evaluation, in a save: both 42, then resumed: equal'
        )
        for rank in range(2):
            for where, hurt in (
                ('a step', after_step(rank, signal.SIGTERM, 33)),
                ('compiling', after_words(rank, signal.SIGTERM, 'parameters')),
                ('an evaluation', after_step(rank, signal.SIGTERM, 25)),
                ('a save', after_words(rank, signal.SIGTERM, 'checkpoints/tmp.*')),
            ):
                others.append((group, f'SIGTERM to process {rank} in {where}', hurt, [(42,), (42,)], {}))
        for rank in range(2):
            for what, point, code in (('stalls', 'stall', 75), ('raises', 'raise', 70)):
                faults = [f'{point}@33' if other == rank else None for other in range(2)]
                more = {'faults': faults} | ({'watchdog.step': 10.0} if point == 'stall' else {})
                exit_codes = [(code,) if other == rank else (code, *gone) for other in range(2)]
                group = f'a process that {what}: {code}, and the other is down with it; then resumed: equal'
                others.append((group, f'{point} in process {rank}', nothing, exit_codes, more))
        group = 'a bit of a step taken twice is turned: both 5, step and leaf named; then resumed: equal'
        faults = ['corrupt@40'] * 2
        more = {'says': 'step 40, run twice', 'faults': faults, 'sdc_check_every': 20}
        others.insert(0, (group, 'corrupt', nothing, [(5,), (5,)], more))
        full = 'the disk is full for one process: 4, and the other is down with it; with room again, resumed: equal'
        size = max(path.stat().st_size for path in (whole / 'checkpoints').rglob('*') if path.is_file())
        for rank in range(2):
            limits = [size // 4 if other == rank else None for other in range(2)]
            exit_codes = [(4,) if other == rank else (4, *gone) for other in range(2)]
            more = {'says': 'Intact checkpoints', 'limits': limits}
            others.insert(1, (full, f'disk full for process {rank}', nothing, exit_codes, more))
        # By turns, so that what the minutes do not suffice for is not all of one kind.
        turns = itertools.chain.from_iterable(itertools.zip_longest(others[::2] + others[1::2], kills))
        for *values, more in filter(None, turns):
            trial(*values, **more)
    worst = max(trial['seconds_from_first_to_last_end'] for group in groups.values() for trial in group)
    record.write(
        'processes',
        command='python -m experiments.processes',
        figures=[cli.counted(what, trials) for what, trials in groups.items()]
        + [
            {
                'what': 'seconds from the end of the first process to that of the last, worst of all trials',
                'figure': f'{worst:.1f}',
                'target': f'< {DOWN:.0f}',
                'reached': worst < DOWN,
            }
        ],
        trials=[{'group': what, 'trials': trials} for what, trials in groups.items()],
        not_shown=[
            'several machines, and devices other than simulated ones: both processes are on one CPU',
            'a network that is cut, and a machine whose power fails',
            *([f'for want of time: {", ".join(left_out)}'] if left_out else []),
        ],
        seconds=round(time.monotonic() - begun),
    )


if __name__ == '__main__':
    main()
