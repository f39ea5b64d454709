"""The job that is handed to SLURM: what sbatch reads, what bash reads, and what the script does with exit codes.

A real SLURM is met in experiments/launchers; here its commands are stand-ins.
"""

import importlib.util
import os
import pathlib
import re
import stat
import subprocess
import sys

import pytest

from launch import cli, slurm

NASTY = "runs/a b $(touch pwned) 'c'"
TRAIN = ['--', 'train', '--config=tiny', f'--workdir={NASTY}']
# srun runs the task twice as two processes of one node; scontrol answers about it and notes what it is asked.
COMMANDS = {
    'srun': """while [[ $1 == --* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i SLURMD_NODENAME=n0 "$@" & pids[i]=$!; done
wait "${pids[0]}"; a=$?; wait "${pids[1]}"; b=$?; exit $((a > b ? a : b))""",
    'scontrol': """echo "$*" >>"$NOTES"
case $1 in hostnames | show) [[ $2 == hostnames ]] && echo n0 || echo "   NodeAddr=127.0.0.1 NodeHostName=n0" ;; esac
[[ $1 != requeue ]] || kill $PPID""",
}


def flags(*argv):
    return cli.parse(slurm, list(argv))


def script(tmp_path, *argv):
    values = flags('--time=1:00:00', *argv, *TRAIN)
    return slurm.script(values, values.command, pathlib.Path('/a tree'), tmp_path)


@pytest.fixture
def job(tmp_path):
    """Runs the script for two processes that end with these codes: (exit code, what was said, what SLURM was asked)."""
    bin = tmp_path / 'bin'
    bin.mkdir()
    for name, body in COMMANDS.items():
        (bin / name).write_text(f'#!/bin/bash\n{body}\n')
        (bin / name).chmod(stat.S_IRWXU)
    folder = tmp_path / 'a $(touch pwned) folder'
    folder.mkdir()

    def run(*codes, restarts=0):
        train = f'import sys; print(sys.argv[1:]); sys.exit({codes}[int(sys.argv[-1].split("=")[1])])'
        text = script(folder, '--retries=3')
        text = re.sub(
            '^train=.*$', f"train=({sys.executable} -c '{train}' {TRAIN[-1].split('=')[0]})", text, flags=re.M
        )
        notes = tmp_path / 'notes'
        notes.write_text('')
        of_slurm = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_JOB_NODELIST': 'n0', 'NOTES': str(notes)}
        environment = os.environ | of_slurm | {'PATH': f'{bin}:{os.environ["PATH"]}'}
        if restarts:
            environment['SLURM_RESTART_COUNT'] = str(restarts)
        done = subprocess.run(['bash'], input=text, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert list(folder.iterdir()) == []  # nothing is left
        return done.returncode, done.stdout + done.stderr, notes.read_text()

    return run


def test_sbatch_options(tmp_path):
    text = script(tmp_path, '--nodes=4', '--gpus_per_node=8', '--account=me', '--partition=a100', '--save_seconds=60')
    options = dict(re.findall('^#SBATCH --(.*?)=(.*)$', text, re.MULTILINE))
    assert options == {
        'job-name': 'lmtrain',
        'nodes': '4',
        'ntasks': '4',
        'ntasks-per-node': '1',
        'gpus-per-node': '8',
        'time': '1:00:00',
        'account': 'me',
        'partition': 'a100',
        'signal': 'TERM@60',
        'output': 'slurm-%j.out',
        'open-mode': 'append',
    }
    assert '#SBATCH --requeue' in text
    text = script(tmp_path, '--nodes=2', '--gpus_per_node=8', '--tasks_per_node=4', '--cpus_per_task=6')
    assert '#SBATCH --gpus-per-task=2\n' in text and '#SBATCH --ntasks=8\n' in text
    assert '#SBATCH --cpus-per-task=6\n' in text and 'export SRUN_CPUS_PER_TASK=6\n' in text


def test_variables_of_the_script(tmp_path):
    text = script(tmp_path, '--interface=ib0; touch pwned', '--devices=2')
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    head = text[: text.index('set -uo')]
    shown = f'{head}\nprintf "%s\\n" "$tree" "$folder" "$interface" "$JAX_NUM_CPU_DEVICES" "${{train[@]}}"'
    done = subprocess.run(['bash'], input=shown, capture_output=True, text=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[:4] == ['/a tree', str(tmp_path), 'ib0; touch pwned', '2']
    assert lines[-3:] == ['train', '--config=tiny', f'--workdir={NASTY}']
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (TRAIN, ['--time is missing', '--time=24:00:00']),
        (['--time=1', '--partition=a b', *TRAIN], ['--partition', "'a b'"]),
        (['--time=1', '--name=a\n#SBATCH --uid=0', *TRAIN], ['--name=', 'letters']),
        (['--time=1', '--gpus_per_node=8', '--tasks_per_node=3', *TRAIN], ['--gpus_per_node=8', '--tasks_per_node=3']),
        (['--time=1:30', '--save_seconds=90', *TRAIN], ['--time=1:30', '--save_seconds=90', 'before the first step']),
        (['--time=1'], ['nothing after --', 'lmtrain slurm']),
        (['--time=60', *TRAIN], ['sbatch is not on PATH', 'login node']),
    ],
)
def test_invalid_flags_are_one_line(argv, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert cli.main(['slurm', *argv]) == 2
    out, said = capsys.readouterr()
    assert out == ''
    assert said.count('\n') == 1
    assert all(part in said for part in parts)


def test_print_only_prints_the_job(capsys):
    assert cli.main(['slurm', '--time=1:00:00', '--print_only', *TRAIN]) == 0
    said = capsys.readouterr().out
    assert said.startswith("sbatch --parsable <<'END_OF_JOB'\n#!/bin/bash\n")
    assert said.endswith('END_OF_JOB\n')


def test_every_process_has_the_coordinator(job):
    code, said, asked = job(0, 0)
    assert (code, 'requeue' in asked) == (0, False)
    for i in range(2):
        assert f"'--coordinator=127.0.0.1:61496', '--num_processes=2', '--process_id={i}'" in said


@pytest.mark.parametrize(
    ('codes', 'restarts', 'requeued'), [((42, 42), 0, True), ((0, 75), 2, True), ((42, 42), 3, False)]
)
def test_requeue(codes, restarts, requeued, job):
    code, said, asked = job(*codes, restarts=restarts)
    assert ('requeue 7' in asked) == requeued
    if not requeued:
        assert code == 42  # not that of srun, which hides it


@pytest.mark.parametrize('codes', [(0, 70), (74, 70), (134, 70)], ids=str)
def test_other_exit_codes_name_the_first_process(codes, job):
    code, said, asked = job(*codes)
    assert (code, 'requeue' in asked) == (70, False)
    assert 'process 1 on n0 ended first, with exit code 70' in said


@pytest.mark.parametrize(
    ('limit', 'seconds'),
    [
        ('5', 300),
        ('5:30', 330),
        ('1:00:00', 3600),
        ('2-3', 183600),
        ('1-0:30', 88200),
        ('1-1:1:1', 90061),
        ('UNLIMITED', None),
    ],
)
def test_time_limits_of_sbatch(limit, seconds):
    assert slurm.seconds(limit) == seconds


def test_a_copy_is_that_of_the_last_commit(tmp_path, monkeypatch):
    root = tmp_path / 'a tree'
    root.mkdir()
    (root / 'said').write_text('committed')
    mine = ['git', '-C', str(root), '-c', 'user.name=me', '-c', 'user.email=me@here']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'it']):
        subprocess.run([*mine, *words], check=True)
    (root / 'said').write_text('edited later')
    monkeypatch.setattr(slurm.launcher, 'ROOT', root)
    monkeypatch.chdir(tmp_path)
    steps, tree = slurm.commit_copy()
    for step in steps:
        subprocess.run(step, check=True)
    assert (tree / 'said').read_text() == 'committed'


@pytest.mark.skipif('LMTRAIN_SLURM' not in os.environ, reason='starts the daemons of SLURM, as root: set LMTRAIN_SLURM')
def test_real_slurm_requeues_and_finishes_a_job(tmp_path, monkeypatch):
    path = pathlib.Path(__file__).parents[2] / 'experiments' / 'launchers' / 'run.py'
    spec = importlib.util.spec_from_file_location('launchers', path)
    launchers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launchers)
    monkeypatch.setattr(launchers, 'STEPS', 60)
    launchers.record.write_text(tmp_path)
    whole, signalled = launchers.slurm_jobs(tmp_path, signalled=(5,), hurt=False)
    assert (whole['code'], whole['metrics']) == ('0:0', True)
    assert (signalled['code'], signalled['requeued'], signalled['same']) == ('0:0', 1, True)
