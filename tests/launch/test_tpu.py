"""The commands for TPU slices, what a shell makes of them on the workers, and what the launcher makes of the answers.

The stand-in for gcloud ends as the real one does: with 0 where it has left out a node, else with the code of the lowest
worker that failed. A worker is a folder, its home.
"""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import stat
import subprocess
import sys
import time

import pytest

from launch import cli, tpu
from lmtrain.runtime import lifecycle

NASTY = "/mnt/a b $(touch pwned) 'c'"
SLICE = ['--zone=us-west4-a', '--accelerator_type=v5litepod-256', '--runtime_version=v2-alpha-tpuv5-lite']
SETUP = '--setup=touch mounted'
TRAIN = ['--', 'train', '--config=tiny', f'--workdir={NASTY}']
# `hurt` is what befalls the next calls of a verb, `states` what the queue says; a new TPU has new homes.
GCLOUD = """import json, os, pathlib, shutil, signal, subprocess, sys, time
folder = pathlib.Path(__file__).parent.parent
argv = sys.argv[1:]
verb, hurt, workers = argv[3], json.loads((folder / 'hurt').read_text()), json.loads((folder / 'workers').read_text())
if verb == 'ssh':
    (text,) = [word.removeprefix('--command=') for word in argv if word.startswith('--command=')]
    verbs = {'lmtrain-installed': 'install', 'setsid': 'start', '--pid': 'follow', 'say': 'codes'}
    verb = next(verb for word, verb in verbs.items() if word in text)
with open(folder / 'asked', 'a') as file:
    file.write(verb + '\\n')
befalls = hurt.get(verb, [])[:1]
(folder / 'hurt').write_text(json.dumps(hurt | {verb: hurt.get(verb, [])[1:]}))
if befalls == ['fails']:
    sys.exit('ERROR: (gcloud) the network is down')
if befalls == ['stopped']:
    assert (os.getsid(0) == os.getpid()) == (verb != 'follow')  # out of reach of the terminal
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getppid(), number)
    time.sleep(60 if verb == 'follow' else 0.5)  # subprocess.run would let it live for 0.25 s
if verb == 'describe':
    states = json.loads((folder / 'states').read_text())
    (folder / 'states').write_text(json.dumps(states[1:]))
    print(*(states[:1] or ['ACTIVE']))
if verb in ('create', 'delete'):
    shutil.rmtree(folder / 'homes', ignore_errors=True)
    (folder / 'last').write_text(verb)
if verb == 'create':
    slices = [word.partition('=')[2] for word in argv if word.startswith('--node-count=')] or ['1']
    (folder / 'slices').write_text(slices[0])
    for i in range(workers):
        (folder / 'homes' / str(i) / 'lmtrain-tree' / 'launch').mkdir(parents=True)
if verb == 'scp':
    for i in range(workers):
        home = folder / 'homes' / str(i)
        for name in ('lmtrain.tar.gz', 'lmtrain-tree/launch/run.sh', 'lmtrain-installed'):
            shutil.copy(folder / 'run.sh', home / name)
        if befalls == ['garbles']:
            (home / 'lmtrain-installed').unlink()
if verb in ('install', 'start', 'follow', 'codes') and befalls != ['dropped']:
    told = range(workers - (befalls == ['all but one']))
    running, each = [], workers // int((folder / 'slices').read_text())
    for i in told if '--worker=all' in argv else [0]:
        environment = os.environ | {'WORKER': str(i), 'WORKERS': str(each), 'BREAKS': str(befalls == ['breaks'])}
        running.append(subprocess.Popen(['bash', '-c', text], cwd=folder / 'homes' / str(i), env=environment))
    sys.exit(next(filter(None, [worker.wait() for worker in running]), 0))
"""
# What is found on PATH. Broken off, `tail` shows a line and no end.
PROGRAMS = {
    'hostname': 'echo "w-$WORKER"',
    'python3.11': '',
    'curl': 'seq -s , "$WORKERS"',
    'git': 'for word; do case $word in --output=*) : >"${word#*=}" ;; esac; done',
    'tail': """for log; do :; done
case $BREAKS$* in True*--pid*) until [ -s "$log" ]; do sleep 0.02; done; head -n 1 "$log"; kill -9 $PPID; exit ;; esac
exec /usr/bin/tail -s 0.02 "$@\"""",
}
# Its n-th run ends as the n-th word of `ends` says for the worker.
RUN = """begun=$(cat ../../../begun-$WORKER | wc -l)
echo begun >>../../../begun-$WORKER
echo "begins $begun"
echo "lmtrain tpu: w-9 of 9: 0: not a word of the launcher"
exit $(cut -d ' ' -f $((begun + 1)) ../../../ends-$WORKER)
"""


def steps(*argv, attempt=0, workdir=NASTY):
    values = cli.parse(tpu, [*SLICE, SETUP, *argv, *TRAIN[:-1], f'--workdir={workdir}'])
    return tpu.commands(values, values.command, pathlib.Path('/tmp/lmtrain.tar.gz'), attempt)


def executable(path, text):
    path.write_text(text)
    path.chmod(stat.S_IRWXU)


@pytest.fixture
def bin(tmp_path, monkeypatch):
    """A folder before the others on PATH."""
    (tmp_path / 'bin').mkdir()
    for name, text in PROGRAMS.items():
        executable(tmp_path / 'bin' / name, f'#!/bin/sh\n{text}\n')
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'), prepend=':')
    return tmp_path / 'bin'


@pytest.fixture
def launch(tmp_path, bin, monkeypatch, capfd):
    """launch(*flags, ends=('42 0', '42 0'), states=[...], verb=[hurt, ...]): (exit code, verbs asked, words said)."""
    executable(bin / 'gcloud', f'#!{sys.executable} -IS\n{GCLOUD}')
    monkeypatch.setattr(tpu, 'POLL', 0.0)
    monkeypatch.setattr(tpu, 'TRIES', 3)
    monkeypatch.setattr(tpu, 'PATIENCE', 3)

    def run(*argv, ends=('0', '0'), states=(), **hurt):
        (tmp_path / 'run.sh').write_text(RUN)
        for i, word in enumerate(ends):
            (tmp_path / f'ends-{i}').write_text(word)
            (tmp_path / f'begun-{i}').touch()
        for name, value in {'states': list(states), 'hurt': hurt, 'workers': len(ends)}.items():
            (tmp_path / name).write_text(json.dumps(value))
        code = cli.main(['tpu', *SLICE, SETUP, *argv, *TRAIN])
        verbs = (tmp_path / 'asked').read_text().split()
        return code, [verb for verb in verbs if verb != 'describe'], capfd.readouterr()

    return run


FIRST = ['create', 'scp', 'install', 'start', 'follow', 'codes']


def test_the_commands():
    found = {name: shlex.join(argv) for name, argv in steps('--spot', '--project=mine').items()}
    qr, where = 'gcloud compute tpus queued-resources', '--zone=us-west4-a --project=mine'
    kind = '--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite'
    assert list(found) == 'archive create state copy install start follow codes delete'.split()
    assert found['create'] == f'{qr} create lmtrain --node-id=lmtrain {kind} {where} --spot'
    assert found['state'] == f"{qr} describe lmtrain {where} '--format=value(state.state)'"
    assert found['copy'] == f'{qr} scp /tmp/lmtrain.tar.gz lmtrain: --node=all --worker=all {where}'
    for name, workers in {'install': 'all', 'start': 'all', 'follow': '0', 'codes': 'all'}.items():
        assert found[name].startswith(f'{qr} ssh lmtrain --node={workers} --worker={workers} {where} --ssh-flag=')
    assert found['delete'] == f'{qr} delete lmtrain {where} --force --quiet'
    assert '--node-count=2 --node-prefix=lmtrain' in shlex.join(steps('--node_count=2')['create'])


@pytest.fixture
def worker(tmp_path, bin, monkeypatch):
    """worker(step, ...): a shell that reads what gcloud hands a worker."""
    monkeypatch.setenv('WORKER', '0')
    monkeypatch.setenv('WORKERS', '1')
    home = tmp_path / 'home'
    (home / 'lmtrain-tree' / 'launch').mkdir(parents=True)

    def tell(step, *argv, attempt=0, workdir=NASTY):
        (text,) = [word for word in steps(*argv, attempt=attempt, workdir=workdir)[step] if '--command=' in word]
        # gcloud splits the text at spaces, and ssh joins it.
        text = ' '.join(text.removeprefix('--command=').split(' '))
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        return subprocess.Popen(['sh', '-c', text], cwd=home, start_new_session=True, **pipes)

    return tell


def said(process):
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error  # else gcloud leaves out the workers after the first 64
    return out


def test_worker_installs_once_and_rejects_a_local_workdir(worker, tmp_path, bin):
    home, workdir = tmp_path / 'home', tmp_path / NASTY[1:]
    assert said(worker('install')) == ''  # the archive has not come
    tree = tmp_path / 'tree' / 'launch'
    tree.mkdir(parents=True)
    (tree / 'run.sh').write_text('echo "$*" >>ran')
    (tree / 'venv.sh').write_text('install() { echo "install $*" >>ran; }')
    subprocess.run(['tar', '-czf', home / 'lmtrain.tar.gz', '-C', tree.parent, 'launch'], check=True)
    # On the disk of the machine: nothing is mounted.
    executable(bin / 'stat', '#!/bin/sh\necho 7\n')
    out, error = worker('install', workdir=workdir).communicate()
    assert out == 'lmtrain tpu: w-0 of 1: failed\n'
    assert f'--workdir={workdir} is on the disk of the TPU' in error
    executable(bin / 'stat', '#!/bin/sh\nfor path; do :; done; [ "$path" = / ] && echo 7 || echo 8\n')
    for _ in range(2):
        assert said(worker('install', workdir=workdir)) == 'lmtrain tpu: w-0 of 1: installed\n'
    assert (home / 'ran').read_text().splitlines() == ['configs', 'install parquet'] * 2
    assert (home / 'mounted').exists() and workdir.is_dir()
    (home / 'lmtrain-installed').unlink()
    assert said(worker('install', '--setup=false')) == 'lmtrain tpu: w-0 of 1: failed\n'
    assert not (home / 'pwned').exists()


def test_run_survives_its_connection_and_is_followed_by_another(worker, tmp_path):
    """Both shells, ours and the worker's, take the words of the user as they are."""
    tree = tmp_path / 'home' / 'lmtrain-tree'
    os.mkfifo(tmp_path / 'go')
    (tree / 'launch' / 'run.sh').write_text(f"""
(cat <{tmp_path}/over) </dev/null >/dev/null 2>&1 &  # what a run leaves behind is not the run
printf "%s\\n" "$@"; read line <{tmp_path}/go; printf end; exit 42""")
    os.mkfifo(tmp_path / 'over')
    assert said(worker('follow')) == ''  # nothing has begun, so nothing has ended
    for _ in range(2):  # as where gcloud runs it again
        start = worker('start')
        assert said(start) == 'lmtrain tpu: w-0 of 1: started\n'
        with contextlib.suppress(ProcessLookupError):
            os.killpg(start.pid, signal.SIGHUP)
    words = ['1:train', '2:--config=tiny', f'3:--workdir={NASTY}', '4:--distributed']
    broken = worker('follow')
    assert [broken.stdout.readline().rstrip('\n') for _ in words] == words
    broken.kill()
    shown = worker('follow')
    (tmp_path / 'go').write_text('go\n')
    broken.communicate()
    assert said(shown).splitlines() == [*words, '5:end', 'lmtrain tpu: w-0 of 1: 42: end']
    assert said(worker('follow')).splitlines()[-2:] == ['5:end', 'lmtrain tpu: w-0 of 1: 42: end']
    assert said(worker('codes')) == 'lmtrain tpu: w-0 of 1: 42: end\n'
    assert said(worker('start')) == 'lmtrain tpu: w-0 of 1: started\n'
    assert (tree / 'run-0' / 'log').read_text().splitlines().count('train') == 1
    assert not list(tree.parent.glob('**/pwned'))
    (tmp_path / 'over').write_text('')


def test_next_run_waits_for_the_previous_one(worker, tmp_path):
    (tmp_path / 'home' / 'lmtrain-tree' / 'launch' / 'run.sh').write_text(
        f'exec >>{tmp_path}/events; echo begin; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo end'
    )
    said(worker('start'))
    asked, second = worker('codes'), worker('start', attempt=1)
    time.sleep(0.3)  # time to do what they should not
    (tmp_path / 'go').touch()
    assert said(asked).startswith('lmtrain tpu: w-0 of 1: 0:')
    assert said(second) == 'lmtrain tpu: w-0 of 1: started\n'
    assert said(worker('codes', attempt=1)).startswith('lmtrain tpu: w-0 of 1: 0:')
    assert (tmp_path / 'events').read_text().split() == ['begin', 'end'] * 2


def test_a_run_without_an_exit_code_is_gone(worker, tmp_path, monkeypatch):
    run = tmp_path / 'home' / 'lmtrain-tree' / 'launch' / 'run.sh'
    run.write_text('kill -9 $PPID')  # as after a reboot: the lock is free, and there is no code
    said(worker('start'))
    assert said(worker('follow')).endswith('lmtrain tpu: w-0 of 1: 255: \n')
    monkeypatch.setattr(tpu, 'ENDING', 0.1)
    run.write_text(f'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done')
    said(worker('start', attempt=1))
    assert said(worker('codes', attempt=1)) == 'lmtrain tpu: w-0 of 1: 255: \n'  # it lives on
    (tmp_path / 'go').touch()
    assert said(worker('follow', attempt=1)) == 'lmtrain tpu: w-0 of 1: 0: \n'


@pytest.mark.parametrize(
    ('codes', 'who'),
    [
        ([0, 0, 0], 0),
        ([134, 0, 75], 2),  # the others lost their peer
        ([42, 75, 3], 2),  # no start mends 3
        ([70, 134, 42], 2),
        ([74, 134, 70], 2),
        ([134, 255, 137], 1),  # a machine that is lost
        ([70, 255, 134], 0),
        ([0, 255, 0], 0),  # lost after the end
        ([134, 74, 0], 0),
    ],
)
def test_worker_that_failed_by_itself_decides_the_code(codes, who):
    assert tpu.verdict({i: f'{code}: words' for i, code in enumerate(codes)}) == (who, f'{codes[who]}: words')


def test_restarts_on_the_same_tpu(launch):
    """Every worker's code counts, not only that of the first to fail."""
    code, verbs, shown = launch(ends=('134 0', '75 0'))
    assert (code, verbs) == (0, [*FIRST, 'start', 'follow', 'codes', 'delete'])
    assert 'w-1: exit code 75: lmtrain tpu: w-9' in shown.err
    assert [line for line in shown.out.splitlines() if line.startswith('begins')] == ['begins 0', 'begins 1']


@pytest.mark.parametrize(
    ('argv', 'ends', 'silent', 'code', 'verbs'),
    [
        ([], ('3', '134'), 3, lifecycle.NON_FINITE, [*FIRST, 'codes', 'codes', 'delete']),
        ([], ('74', '70'), 0, 70, [*FIRST, 'delete']),
        (['--retries=1', '--keep'], ('42 42', '42 42'), 0, 42, [*FIRST, *FIRST[3:]]),
    ],
)
def test_ends_with_the_code_of_the_run(argv, ends, silent, code, verbs, launch):
    found, asked, shown = launch(*argv, ends=ends, codes=['all but one'] * silent)
    assert (found, asked) == (code, verbs)
    assert shown.err.count('; again') == verbs.count('start') - 1
    assert f'w-{int(code == 70)} ended with exit code {code}: lmtrain tpu: w-9' in shown.err.splitlines()[-1]


def test_lost_connection_is_followed_again(launch):
    """Broken off, answered by nobody, and the network down for both ssh and the queue: shown on, once each line."""
    code, verbs, shown = launch(follow=['breaks', 'dropped', 'fails'], describe=['', 'fails', 'fails'])
    assert (code, verbs) == (0, [*FIRST[:4], *['follow'] * 4, 'codes', 'delete'])
    assert shown.out == 'begins 0\nlmtrain tpu: w-9 of 9: 0: not a word of the launcher\n'
    assert 'the network is down' in shown.err


@pytest.mark.parametrize(
    'verb',
    ['install', pytest.param('start', marks=pytest.mark.slow), pytest.param('follow', marks=pytest.mark.slow), 'codes'],
)
def test_exit_code_0_of_gcloud_is_not_success(verb, launch):
    """The TPU is taken away before the verb, of which gcloud says nothing; the run is that of the next one."""
    states = ['ACTIVE', *['SUSPENDED'] * (2 if verb == 'install' else 1)]
    begun = '42 ' * (verb in ('follow', 'codes'))
    code, verbs, _ = launch(states=states, ends=(f'{begun}0', f'{begun}0'), **{verb: ['dropped']})
    assert (code, verbs) == (0, [*FIRST[: FIRST.index(verb) + 1], 'delete', *FIRST, 'delete'])


def test_commands_are_repeated_for_skipped_workers(launch):
    hurt = {'install': ['all but one'], 'start': ['dropped'], 'codes': ['all but one']}
    code, verbs, _ = launch('--node_count=3', ends=('0', '0', '0'), **hurt)
    assert code == 0
    assert verbs == ['create', *['scp', 'install'] * 2, 'start', 'start', 'follow', 'codes', 'codes', 'delete']


def test_tpu_with_a_silent_worker_is_replaced(launch):
    code, verbs, shown = launch(ends=('134 0', '42 0'), codes=['all but one'] * 3)
    assert (code, verbs) == (0, [*FIRST, *['codes'] * 2, 'delete', *FIRST, 'delete'])
    assert 'a worker: exit code 255: does not answer; again on a new TPU, 1 of 20' in shown.err


def test_no_reachable_worker_is_an_error(launch):
    code, verbs, shown = launch(install=['dropped'] * 3)
    assert (code, verbs) == (2, ['create', *['scp', 'install'] * 3, 'delete'])
    assert 'ssh-add' in shown.err


def test_failed_installation_is_an_error(launch):
    code, verbs, shown = launch(scp=['garbles'])
    assert (code, verbs) == (2, ['create', 'scp', 'install', 'delete'])
    assert 'failed on w-0, w-1;' in shown.err.splitlines()[-1]


def test_the_queue(launch):
    states = ['WAITING_FOR_RESOURCES', 'SUSPENDED', 'PROVISIONING', 'ACTIVE']
    code, verbs, shown = launch(states=states)
    assert (code, verbs) == (0, ['create', 'delete', *FIRST, 'delete'])
    assert 'lmtrain tpu: PROVISIONING' in shown.err


def test_failed_queued_resource_is_deleted(launch):
    assert launch(states=['FAILED'])[:2] == (2, ['create', 'delete'])


def test_tpu_is_kept_if_the_queue_does_not_answer(launch):
    code, verbs, shown = launch(describe=['', *['fails'] * 3], follow=['breaks'])
    assert (code, verbs) == (2, FIRST[:5])
    assert 'the TPU is left as it is' in shown.err and 'delete lmtrain --zone=us-west4-a' in shown.err.splitlines()[-1]


def test_only_a_created_tpu_is_deleted(launch):
    assert launch(create=['fails'])[:2] == (2, ['create'])


@pytest.mark.parametrize('verb', ['create', 'follow', 'delete'])
def test_a_signal_deletes_the_tpu(verb, launch, tmp_path):
    """SIGHUP, SIGTERM and SIGINT at once; what makes and deletes the TPU goes on to its end."""
    before = [signal.getsignal(number) for number in tpu.STOPS]
    code, verbs, _ = launch(**{verb: ['stopped']})
    assert (code, verbs[-1], verbs.count('delete')) == (130, 'delete', 1)
    assert (tmp_path / 'last').read_text() == 'delete'
    assert [signal.getsignal(number) for number in tpu.STOPS] == before


def test_failed_delete_is_printed_and_hides_no_error(launch):
    code, verbs, shown = launch(ends=('70', '134'), delete=['fails'])
    assert (code, verbs) == (70, [*FIRST, 'delete'])
    assert 'may be there still, and cost: exit code 1 of: gcloud compute tpus' in shown.err
    assert 'w-0 ended with exit code 70' in shown.err.splitlines()[-1]


def test_later_signals_are_ignored():
    before = signal.signal(signal.SIGTERM, tpu._stop)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (TRAIN, ['--zone is missing', 'us-west4-a']),
        ([*SLICE, *TRAIN], ['--setup is missing', 'outlives the TPU']),
        ([*SLICE, SETUP, '--name=A b', *TRAIN], ["--name='A b'", 'small letters']),
        ([*SLICE, SETUP, '--', 'train', '--workdir=runs/x'], ["--workdir='runs/x'", '--setup']),
        (SLICE, ['nothing after --', 'lmtrain tpu']),
        ([*SLICE, SETUP, *TRAIN], ['gcloud is not on PATH', 'https://']),
    ],
)
def test_invalid_flags_are_one_line(argv, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert cli.main(['tpu', *argv]) == 2
    out, said = capsys.readouterr()
    assert out == ''
    assert said.count('\n') == 1
    assert all(part in said for part in parts)


def test_print_only_prints_a_script(capsys):
    assert cli.main(['tpu', *SLICE, SETUP, '--print_only', *TRAIN]) == 0
    said = capsys.readouterr().out
    assert subprocess.run(['bash', '-n'], input=said, text=True).returncode == 0
    assert [shlex.split(line) for line in said.splitlines()][1:] == list(steps().values())[1:]
