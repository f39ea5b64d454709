"""What does a run lose if it is killed, stopped or stalled, or if its checkpoint is damaged?

    python -m experiments.reliability [--trials=12] [--damages=240]

Every run is `lmtrain train` on the tiny recipe in a process of its own; the run after the fault is the same command.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

from configs import tiny
from experiments import cli, record
from lmtrain import checkpoint
from lmtrain.runtime import faults, lifecycle
from lmtrain.training import build, resolve

STEPS, SAVED = 24, 4  # steps of a run, and between two checkpoints
POINTS = [(point, 16) for point in faults.SAVE_POINTS] + [('before_rename', STEPS), ('in_save', SAVED)]
DAMAGES = ('bit flip', 'truncated', 'page of zeros', 'deleted', 'swapped with another')
LIMIT = 120  # seconds that a process may take


def settings(folder: pathlib.Path) -> dict:
    own = {'budget.steps': STEPS, 'evaluate.every_steps': 6, 'checkpoint.every_steps': SAVED}
    return cli.small_text(folder) | own


def start(folder: pathlib.Path, workdir: pathlib.Path, fault: str = '', **more) -> subprocess.Popen:
    """`lmtrain train` in a process of its own, its words in `<workdir>.txt`."""
    environment = os.environ | ({'LMTRAIN_FAULT': fault} if fault else {})
    words = ['train', '--config=configs/tiny.py', f'--workdir={workdir}']
    output = pathlib.Path(f'{workdir}.txt')
    return cli.start(*words, config=settings(folder) | more, output=output, env=environment)


def whole_state(workdir: pathlib.Path) -> dict[str, bytes]:
    """All that the last checkpoint holds, and metrics.jsonl."""
    state, extra = read(workdir)
    content = {path: bytes(memoryview(leaf).cast('B')) if leaf.ndim else leaf.tobytes() for path, leaf in state.items()}
    return content | {'step': str(extra['step']).encode(), 'metrics': (workdir / 'metrics.jsonl').read_bytes()}


def read(workdir: pathlib.Path):
    import jax
    import numpy as np

    run = assembled(workdir.parent)
    with checkpoint.Checkpoints(workdir / 'checkpoints', **run.config.checkpoint) as checkpoints:
        state, extra = checkpoints.restore(run.initial.stored(run.shapes))
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
    return {jax.tree_util.keystr(path): np.ascontiguousarray(leaf) for path, leaf in leaves}, extra


def assembled(folder: pathlib.Path):
    config = tiny.get_config()
    for name, value in settings(folder).items():
        section, _, field = name.partition('.')
        config[section][field] = str(value) if isinstance(value, pathlib.Path) else value
    return build.build(*resolve.resolve(config))


def interrupted(folder, whole, name: str, hurt, expected: tuple[int, ...], **more) -> dict:
    """One trial: a run that `hurt(process, workdir)` disturbs, and the same command until it has ended."""
    workdir = folder / name.replace(' ', '-').replace('@', '-')
    begun = time.monotonic()
    process = start(folder, workdir, **more)
    disturbed = hurt(process, workdir)
    code = process.wait(LIMIT)
    ended = time.monotonic() - begun
    for again in [k for k in more if k.startswith('watchdog')] + ['fault']:
        more.pop(again, None)
    resumed = start(folder, workdir, **more).wait(LIMIT)
    equal = resumed == 0 and whole_state(workdir) == whole
    shutil.rmtree(workdir)
    trial = {'what': name, 'disturbed': disturbed, 'exit': code, 'resumed_exit': resumed, 'equal': equal}
    return trial | {'seconds_to_the_end': round(ended, 2), 'as_wanted': equal and code in expected}


def nothing(process, workdir):
    return ''


def at_random(number: signal.Signals, draw: random.Random):
    """Sends a signal at a random time after the run has printed its header."""

    def hurt(process, workdir):
        words, delay = pathlib.Path(f'{workdir}.txt'), draw.uniform(0, 0.8)
        while process.poll() is None and 'parameters' not in words.read_text(encoding='utf-8'):
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)
        return f'{delay:.3f} s after its header'

    return hurt


def damage(file: pathlib.Path, other: pathlib.Path, kind: str, draw: random.Random) -> bool:
    """Damages a file; False where it would be as before."""
    content = file.read_bytes()
    if kind == 'deleted':
        file.unlink()
        return True
    new = bytearray(content)
    if kind == 'swapped with another':
        new = bytearray(other.read_bytes())
        other.write_bytes(content)
    elif kind == 'bit flip' and new:
        new[draw.randrange(len(new))] ^= 1 << draw.randrange(8)
    elif kind == 'truncated':
        del new[draw.randrange(len(new)) if new else 0 :]
    elif kind == 'page of zeros' and new:
        at = draw.randrange(max(1, len(new) - 4095))
        new[at : at + 4096] = bytes(len(new[at : at + 4096]))
    file.write_bytes(new)
    return bytes(new) != content


def damages(folder: pathlib.Path, workdir: pathlib.Path, count: int, draw: random.Random) -> list[dict]:
    """Trials that damage one file of the newest checkpoint, every file and kind in turn, and open it."""
    run = assembled(folder)
    shapes, directory = run.initial.stored(run.shapes), workdir / 'checkpoints'
    files = sorted(path.relative_to(directory) for path in (directory / str(STEPS)).rglob('*') if path.is_file())
    trials, turn = [], 0
    while len(trials) < count:
        kind, name = DAMAGES[turn % len(DAMAGES)], files[turn // len(DAMAGES) % len(files)]
        turn += 1
        copy = folder / 'damaged'
        shutil.copytree(directory, copy)
        if damage(copy / name, copy / draw.choice([file for file in files if file != name]), kind, draw):
            with checkpoint.Checkpoints(copy, **run.config.checkpoint) as checkpoints:
                restored = checkpoints.restore(shapes)
            step = restored and restored[1]['step']
            aside = (copy / f'{STEPS}.corrupt').is_dir()
            trials.append({'what': kind, 'file': str(name), 'restored_step': step, 'set_aside': aside})
            trials[-1]['as_wanted'] = aside and step is not None and step < STEPS
        shutil.rmtree(copy)
    return trials


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--trials', type=int, default=12, help='of each signal at random times')
    parser.add_argument('--damages', type=int, default=240, help='files of a checkpoint damaged')
    arguments = parser.parse_args()
    draw, begun = random.Random(0), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        record.write_text(folder)
        assert start(folder, folder / 'whole').wait(LIMIT) == 0, (folder / 'whole.txt').read_text(encoding='utf-8')
        whole = whole_state(folder / 'whole')
        groups: dict[str, list[dict]] = {}

        def trial(group: str, *values, **more):
            done = interrupted(folder, whole, *values, **more)
            print(json.dumps(done), flush=True)
            groups.setdefault(group, []).append(done)

        killed = 'killed (kill -9) at a named point of a save, then resumed: equal to the bit, metrics without a hole'
        for point, step in POINTS:
            trial(killed, f'{point}@{step}', nothing, (-signal.SIGKILL,), fault=f'{point}@{step}')
        for number, name, expected in ((signal.SIGKILL, 'kill -9', (-9, 0)), (signal.SIGTERM, 'SIGTERM', (42, 0))):
            group = f'{name} at a random moment after the header, then resumed: the same'
            group += ', exit 42, or 0 after the last step' if name == 'SIGTERM' else ''
            for index in range(arguments.trials):
                trial(group, f'{name} {index}', at_random(number, draw), expected)
        group = 'a step that never ends: exit 75 after its limit with all stacks, then resumed: the same'
        trial(group, 'stall@10', nothing, (lifecycle.STALLED,), fault='stall@10', **{'watchdog.step': 5.0})
        trial('an exception in a step: exit 70, then resumed: the same', 'raise@10', nothing, (70,), fault='raise@10')
        what = 'one file of the newest checkpoint damaged: set aside before a step is taken, the one before it restored'
        groups[what] = damages(folder, folder / 'whole', arguments.damages, draw)
    record.write(
        'reliability',
        command='python -m experiments.reliability',
        figures=[cli.counted(what, trials) for what, trials in groups.items()],
        trials=[{'group': what, 'trials': trials} for what, trials in groups.items()],
        not_shown=[
            'several processes: a rank killed, stalled or raising, and SIGTERM to one of them',
            'other numbers of devices or processes after a restart, disk full, and power that fails',
        ],
        seconds=round(time.monotonic() - begun),
    )


if __name__ == '__main__':
    main()
