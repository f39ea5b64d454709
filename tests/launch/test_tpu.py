"""The commands for a TPU slice, and the order in which a stand-in for gcloud meets them."""

import json
import pathlib
import shlex
import stat
import subprocess
import sys

import pytest

from launch import cli, tpu
from lmtrain import survive

NASTY = "/mnt/a b $(touch pwned) 'c'"
SLICE = ['--zone=us-west4-a', '--accelerator_type=v5litepod-256', '--runtime_version=v2-alpha-tpuv5-lite']
TRAIN = ['--', 'train', '--config=tiny', f'--workdir={NASTY}']
# Notes its arguments; `ssh` of the run ends with the next of the codes, `describe` says the next of the states.
GCLOUD = f"""#!{sys.executable}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
argv = sys.argv[1:]
with open(folder / 'asked', 'a') as file:
    file.write(json.dumps(argv) + '\\n')
def pop(name):
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(found[1:]))
    return found[0]
if argv[3] == 'describe':
    print(pop('states'))
if argv[3] == 'create' and '--node-count=9' in argv:
    sys.exit(1)
if argv[3] == 'ssh' and 'flock' in argv[-1]:
    sys.exit(pop('codes'))
"""


def steps(*argv):
    values = cli.parse(tpu, [*SLICE, *argv, *TRAIN])
    return tpu.commands(values, values.command, pathlib.Path('/tmp/lmtrain.tar.gz'))


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """gcloud(states, codes, *flags): runs the launcher; (its exit code, the verbs that gcloud was asked)."""
    (tmp_path / 'gcloud').write_text(GCLOUD)
    (tmp_path / 'gcloud').chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setattr(tpu, 'POLL', 0.0)
    monkeypatch.setattr(tpu.signal, 'signal', lambda *_: None)

    def run(states, codes, *argv):
        (tmp_path / 'states').write_text(json.dumps(states))
        (tmp_path / 'codes').write_text(json.dumps(codes))
        code = cli.main(['tpu', *SLICE, *argv, *TRAIN])
        asked = [json.loads(line) for line in (tmp_path / 'asked').read_text().splitlines()]
        return code, [words[3] for words in asked if words[3] != 'describe']

    return run


def test_the_commands():
    found = {name: shlex.join(argv) for name, argv in steps('--spot', '--project=mine').items()}
    qr, where = 'gcloud compute tpus queued-resources', '--zone=us-west4-a --project=mine'
    kind = '--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite'
    assert found['create'] == f'{qr} create lmtrain --node-id=lmtrain {kind} {where} --spot'
    assert found['state'] == f"{qr} describe lmtrain {where} '--format=value(state.state)'"
    assert found['copy'] == f'{qr} scp /tmp/lmtrain.tar.gz lmtrain: --node=all --worker=all {where}'
    assert found['run'].startswith(f'{qr} ssh lmtrain --node=all --worker=all {where} ')
    assert found['delete'] == f'{qr} delete lmtrain {where} --force --quiet'
    assert '--node-count=2 --node-prefix=lmtrain' in shlex.join(steps('--node_count=2')['create'])


def test_what_a_worker_reads(tmp_path):
    """Both shells, ours and the worker's, take the words of the user as they are."""
    remote = steps('--setup=true; false')
    (text,) = [word.removeprefix('--command=') for word in remote['run'] if word.startswith('--command=')]
    (tmp_path / 'curl').write_text('#!/bin/sh\necho 0\n')
    (tmp_path / 'flock').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 42\n')
    for name in ('curl', 'flock'):
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / 'lmtrain-tree').mkdir()
    path = f'{tmp_path}:/usr/bin:/bin'
    done = subprocess.run(['bash', '-c', text], cwd=tmp_path, env={'PATH': path}, capture_output=True, text=True)
    assert done.returncode == 42
    words = ['.running', 'bash', 'launch/run.sh', 'train', '--config=tiny', f'--workdir={NASTY}', '--distributed']
    assert done.stdout.splitlines() == words
    assert remote['install'][-1].endswith('&& (true; false)')
    assert not (tmp_path / 'lmtrain-tree' / 'pwned').exists()


def test_goes_on_where_it_is_and_on_a_new_one_and_deletes(gcloud):
    begin = ['create', 'scp', 'ssh']
    # It waits; then 42 on a TPU that is there, 134 on one that is gone, and the end.
    states = ['WAITING_FOR_RESOURCES', 'ACTIVE', 'ACTIVE', 'SUSPENDED', 'ACTIVE', 'ACTIVE']
    code, verbs = gcloud(states, [42, 134, 0], '--spot')
    assert code == 0
    assert verbs == [*begin, 'ssh', 'ssh', 'delete', *begin, 'ssh', 'delete']


@pytest.mark.parametrize(
    ('states', 'codes', 'argv', 'code', 'last'),
    [
        (['ACTIVE'] * 2, [survive.NON_FINITE], [], survive.NON_FINITE, 'delete'),
        (['ACTIVE'] * 2, [42], ['--retries=0', '--keep'], 42, 'ssh'),
        (['FAILED'], [], [], 2, 'delete'),
    ],
)
def test_ends_with_the_code_of_the_run(states, codes, argv, code, last, gcloud):
    found, verbs = gcloud(states, codes, *argv)
    assert (found, verbs[-1]) == (code, last)


def test_what_it_has_not_made_it_does_not_delete(gcloud):
    assert gcloud([], [], '--node_count=9') == (2, ['create'])


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (TRAIN, ['--zone is missing', 'us-west4-a']),
        ([*SLICE, '--name=A b', *TRAIN], ["--name='A b'", 'small letters']),
        ([*SLICE, '--', 'train', '--workdir=runs/x'], ["--workdir='runs/x'", '--setup']),
        (SLICE, ['nothing stands after --', 'lmtrain tpu']),
        ([*SLICE, *TRAIN], ['gcloud is not on PATH', 'https://']),
    ],
)
def test_what_cannot_be_started_is_one_line(argv, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert cli.main(['tpu', *argv]) == 2
    out, said = capsys.readouterr()
    assert out == ''
    assert said.count('\n') == 1
    assert all(part in said for part in parts)


def test_print_only_is_a_script(capsys):
    assert cli.main(['tpu', *SLICE, '--print_only', *TRAIN]) == 0
    said = capsys.readouterr().out
    assert subprocess.run(['bash', '-n'], input=said, text=True).returncode == 0
    assert [shlex.split(line) for line in said.splitlines()][1:] == list(steps().values())[1:]
