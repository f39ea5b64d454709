"""submits a run to SLURM: one process per node, saved before the time limit, requeued on exit code 42 or 75.

For options without a flag, set sbatch's own variables, such as SBATCH_QOS, SBATCH_EXCLUSIVE=1, SBATCH_CONSTRAINT.

lmtrain slurm --nodes=4 --gpus_per_node=8 --time=24:00:00 -- train --config=configs/pretrain_gpt2.py --workdir=runs/gpt2
lmtrain slurm --nodes=2 --time=1:00:00 --partition=a100 --interface=ib0 --print_only -- train --config=configs/tiny.py
"""

import pathlib
import re
import shlex
import subprocess

from absl import flags

from launch import launcher
from lmtrain.errors import InputError

FLAGS = flags.FlagValues()
launcher.define(FLAGS, retries=20)
for name, help in {
    'time': "limit of one start, in sbatch's format: 24:00:00",
    'account': 'account that is charged',
    'partition': 'partition of the cluster',
    'interface': "network interface of the coordinator, such as ib0; by default SLURM's address of the first node",
    'name': 'name of the job',
}.items():
    flags.DEFINE_string(name, 'lmtrain' if name == 'name' else '', help, flag_values=FLAGS)
for name, default, least, help in (
    ('nodes', 1, 1, 'number of nodes'),
    ('gpus_per_node', 0, 0, 'GPUs per node'),
    ('tasks_per_node', 1, 1, 'processes per node, which divide its GPUs'),
    ('cpus_per_task', 0, 0, 'cores per process'),
    ('devices', 0, 0, 'simulated CPU devices of each process, for a rehearsal'),
    ('save_seconds', 300, 1, 'seconds before the limit at which SIGTERM is sent to save the step'),
):
    flags.DEFINE_integer(name, default, help, lower_bound=least, flag_values=FLAGS)
text = 'runs a copy of the last commit in .lmtrain-trees/, so that later edits do not affect queued jobs'
flags.DEFINE_bool('copy', False, text, flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    """Submits the job. Raises InputError naming a flag, or the reason of sbatch."""
    words = launcher.train(values, 'slurm')
    if not values.time:
        raise InputError('--time is missing, such as --time=24:00:00: the step is saved before it')
    steps, tree = commit_copy() if values.copy else ([], launcher.ROOT)
    text = script(values, words, tree, pathlib.Path.cwd())
    if values.print_only:
        quoted = [launcher.line(step) for step in steps]
        print('\n'.join([*quoted, "sbatch --parsable <<'END_OF_JOB'", text + 'END_OF_JOB']))
        return
    launcher.need('sbatch', 'run this on a login node of the cluster')
    for step in steps:
        subprocess.run(step, check=True)
    done = subprocess.run(['sbatch', '--parsable'], input=text, capture_output=True, encoding='utf-8', errors='replace')
    if done.returncode:
        raise InputError(f'sbatch refuses: {" ".join(done.stderr.split())}')
    job = done.stdout.strip().partition(';')[0]
    print(f'job {job}\n  squeue --job {job}\n  tail -F slurm-{job}.out\n  scancel {job}')


def seconds(limit: str) -> int | None:
    """Seconds of a time limit of sbatch(1): M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for any other."""
    if not re.fullmatch(r'(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})', limit):
        return None
    days, dash, clock = limit.rpartition('-')
    parts = [int(part) for part in clock.split(':')]
    hours, minutes, rest = [*parts, 0, 0][:3] if dash or len(parts) == 3 else [0, *parts, 0][:3]
    return ((24 * int(days or 0) + hours) * 60 + minutes) * 60 + rest


def commit_copy() -> tuple[list[list[str]], pathlib.Path]:
    """(commands that copy the last commit, the folder of the copy). Raises InputError outside a git repository."""
    query = ['git', '-C', str(launcher.ROOT), 'rev-parse', 'HEAD']
    done = subprocess.run(query, capture_output=True, encoding='utf-8', errors='replace')
    if done.returncode:
        raise InputError(f'--copy needs a git repository, and {launcher.ROOT} is none; leave --copy out')
    tree = pathlib.Path.cwd() / '.lmtrain-trees' / done.stdout[:12]
    archive = f'{shlex.join([*query[:3], "archive", "HEAD"])} | {shlex.join(["tar", "-x", "-C", str(tree)])}'
    return [['mkdir', '-p', str(tree)], ['bash', '-c', f'set -o pipefail; {archive}']], tree


def script(values: flags.FlagValues, words: list[str], tree: pathlib.Path, folder: pathlib.Path) -> str:
    """The job: #SBATCH lines, variables, and launch/slurm.sh. Raises InputError naming a flag."""
    tasks, gpus = values.tasks_per_node, values.gpus_per_node
    if gpus % tasks:
        raise InputError(f'--gpus_per_node={gpus} do not divide over --tasks_per_node={tasks}')
    options = {
        'job-name': values.name,
        'nodes': values.nodes,
        'ntasks': values.nodes * tasks,
        'ntasks-per-node': tasks,
        'time': values.time,
        'account': values.account,
        'partition': values.partition,
        'cpus-per-task': values.cpus_per_task,
        # A single process sees all GPUs of its node.
        'gpus-per-node' if tasks == 1 else 'gpus-per-task': gpus // tasks,
        'signal': f'TERM@{values.save_seconds}',
        'output': 'slurm-%j.out',
        'open-mode': 'append',
    }
    for option, text in options.items():  # sbatch has its own quoting rules: reject what needs them
        if not re.fullmatch(r'[\w.,:@%+-]*', str(text), re.ASCII):
            raise InputError(
                f'--{"name" if option == "job-name" else option}={text!r}: letters, digits and . , : @ % + - only'
            )
    limit = seconds(values.time)
    if limit is not None and limit <= values.save_seconds:
        raise InputError(
            f'--time={values.time} is not longer than --save_seconds={values.save_seconds}: the signal to save would '
            'come before the first step'
        )
    exported = {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(values.devices)} if values.devices else {}
    if values.cpus_per_task:
        exported['SRUN_CPUS_PER_TASK'] = str(values.cpus_per_task)  # not inherited by a step since SLURM 22.05
    variables = {'folder': folder, 'tree': tree, 'interface': values.interface, 'retries': values.retries}
    return '\n'.join(
        [
            '#!/bin/bash',
            *(f'#SBATCH --{option}={text}' for option, text in options.items() if text),
            '#SBATCH --requeue',
            *(f'{name}={shlex.quote(str(text))}' for name, text in variables.items()),
            *(f'export {name}={shlex.quote(text)}' for name, text in exported.items()),
            f'train=({shlex.join(launcher.python(words))})',
            (launcher.ROOT / 'launch' / 'slurm.sh').read_text(encoding='utf-8'),
        ]
    )
