"""run.sh with a fake Python and pip: what it installs, when, and its error messages."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ('bash', 'basename', 'cat', 'chmod', 'dirname', 'flock', 'head', 'mkdir', 'mv', 'readlink', 'rm', 'sleep')
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"v >= (3, 11)"*) exit ${OLD:-0} ;;
  *ensurepip*) exit ${NO_VENV:-0} ;;
  --version) echo Python 3.9.2 ;;
  "-m venv --clear "*)
    echo "venv" >>"$LOG"
    rm -rf "$4" && mkdir -p "$4/bin" && cat "$0" >"$4/bin/python" && chmod +x "$4/bin/python" ;;
  "-m pip install"*)
    echo "pip ${*: -1}" >>"$LOG"
    sleep ${SLOW:-0}
    [[ -z ${BROKEN:-} ]] || { echo "no matching distribution"; exit 1; }
    printf '#!/usr/bin/env bash\\nprintf "%%s|" "$PWD" "$@"\\n' >"${0%/*}/lmtrain" && chmod +x "${0%/*}/lmtrain" ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A folder with lmtrain's scripts, tools and a pretended python3; a function that runs a script on it."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f'no {tool} on this machine')
    home = tmp_path / 'my projects' / 'lmtrain'
    shutil.copytree(ROOT / 'launch', home / 'launch', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'setup.py', home)
    tools = tmp_path / 'tools'
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    script(tools / 'python3', PYTHON)

    def run(*arguments, start=subprocess.run, cwd=tmp_path, **environment):
        command = ['bash', str(home / 'launch' / 'run.sh'), *arguments]
        environment = {'PATH': str(tools), 'HOME': str(tmp_path), 'LOG': str(tmp_path / 'log'), **environment}
        return start(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, text=True, **OUTPUT[start])

    run.home, run.tools, run.log = home, tools, lambda: (tmp_path / 'log').read_text().splitlines()
    return run


OUTPUT = {
    subprocess.run: {'capture_output': True, 'timeout': 250},
    subprocess.Popen: {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE},
}


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize('name', ['launch/venv.sh', 'launch/run.sh', 'launch/test.sh', '.ci/run'])
def test_the_scripts_are_bash(name):
    subprocess.run(['bash', '-n', str(ROOT / name)], check=True)


def test_installs_once_and_passes_arguments_on(machine, tmp_path):
    first = machine('train', '--config=a b.py', cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f'{tmp_path}|train|--config=a b.py|'
    assert 'installing' in first.stderr
    assert 'installed in' in first.stderr
    assert machine.log() == ['venv', f'pip {machine.home}']
    second = machine('configs', cwd=machine.home)
    assert (second.stdout, second.stderr) == (f'{machine.home}|configs|', '')
    assert len(machine.log()) == 2


def test_quickstart_is_the_default(machine, tmp_path):
    machine('configs')
    told = machine().stdout.removeprefix(f'{tmp_path}|')
    assert told == 'train|--config=configs/quickstart.py|--workdir=runs/quickstart|'


def test_a_changed_setup_is_installed_into_the_same_environment(machine):
    machine('configs')
    (machine.home / 'setup.py').write_text('# other')
    assert machine('configs').returncode == 0
    assert [line.split()[0] for line in machine.log()] == ['venv', 'pip', 'pip']


def test_failed_installation_is_printed_and_repeated(machine):
    broken = machine('configs', BROKEN='yes')
    assert broken.returncode != 0
    assert 'no matching distribution' in broken.stderr
    assert machine('configs').returncode == 0
    assert [line.split()[0] for line in machine.log()] == ['venv', 'pip', 'venv', 'pip']


def test_failed_update_is_repeated(machine):
    machine('configs')
    (machine.home / 'setup.py').write_text('# other')
    assert machine('configs', BROKEN='yes').returncode != 0
    assert machine('configs').returncode == 0
    assert [line.split()[0] for line in machine.log()] == ['venv', 'pip', 'pip', 'venv', 'pip']


def test_moved_folder_or_other_python_recreates_the_environment(machine):
    machine('configs')
    moved = machine.home.with_name('moved')
    machine.home.rename(moved)
    shutil.copytree(moved, machine.home)
    (machine.home / '.venv' / '.made').write_text((moved / '.venv' / '.made').read_text().replace('lmtrain', 'moved'))
    assert machine('configs').returncode == 0
    assert machine('configs', PYTHON=str(machine.tools / 'python3')).returncode == 0
    assert [line.split()[0] for line in machine.log()] == ['venv', 'pip'] * 3


def test_other_devices_keep_the_environment(machine):
    """A login node and a node with a GPU may share a folder: neither removes what the other has installed."""
    machine('configs')
    made = machine.home / '.venv' / '.made'
    made.write_text(made.read_text() + '\n/dev/nvidiactl')
    assert machine('configs').returncode == 0
    assert [line.split()[0] for line in machine.log()] == ['venv', 'pip', 'pip']


@pytest.mark.parametrize('name', ['.venv', 'thesis'])
def test_a_folder_of_somebody_else_is_not_emptied(machine, name):
    own = machine.home / name
    (own / 'bin').mkdir(parents=True)
    (own / 'bin' / 'python').write_text('mine')
    refused = machine('configs', VENV=str(own))
    assert refused.returncode == 1
    assert f'{own} exists and was not made by lmtrain' in refused.stderr
    assert (own / 'bin' / 'python').read_text() == 'mine'


def test_two_concurrent_calls_install_once(machine):
    both = [machine('configs', start=subprocess.Popen, SLOW='0.5') for _ in range(2)]
    assert [process.communicate(timeout=250)[0].split('|')[1] for process in both] == ['configs', 'configs']
    assert len(machine.log()) == 2


@pytest.mark.parametrize(
    ('card', 'extra'),
    [
        ('580.65.06, 9.0', 'cuda'),
        ('580.65.06, 12.0', 'cuda'),
        ('580.65.06, 7.0', 'cuda12'),
        ('535.86.10, 9.0', 'cuda12'),
    ],
)
def test_a_gpu_gets_the_jax_that_its_driver_runs(machine, card, extra):
    script(machine.tools / 'nvidia-smi', f'#!/usr/bin/env bash\necho "{card}"\n')
    assert machine('configs').returncode == 0
    assert machine.log()[-1] == f'pip {machine.home}[{extra}]'


def test_an_nvidia_smi_without_a_card_is_a_cpu(machine):
    script(
        machine.tools / 'nvidia-smi', '#!/usr/bin/env bash\necho "failed because it couldn\'t communicate"\nexit 9\n'
    )
    machine('configs')
    assert machine.log()[-1] == f'pip {machine.home}'


def test_missing_python_message(machine):
    old = machine('configs', OLD='1')
    assert old.returncode != 0
    assert '3.11 or newer' in old.stderr
    assert 'Python 3.9.2' in old.stderr
    assert not (machine.home / '.venv').exists()
    named = machine('configs', OLD='1', PYTHON='python3')
    assert named.returncode != 0
    assert 'PYTHON=python3' in named.stderr


def test_missing_venv_module_message(machine):
    bare = machine('configs', NO_VENV='1')
    assert bare.returncode != 0
    assert 'sudo apt install python3-venv' in bare.stderr


def test_an_interpreter_is_found_behind_names_that_are_missing(tmp_path):
    hidden = tmp_path / 'versions' / '3.12.9' / 'bin' / 'python3'
    hidden.parent.mkdir(parents=True)
    hidden.write_text('#!/bin/sh\n')
    hidden.chmod(0o755)
    script = 'set -euo pipefail; source launch/venv.sh; pythons'
    found = subprocess.run(
        ['bash', '-c', script], cwd=ROOT, env=os.environ | {'PYENV_ROOT': str(tmp_path)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == str(hidden)
