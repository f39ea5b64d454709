"""Several processes on one machine: their environments, the exit code, and that all end."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import cli, launcher, local
from lmtrain.runtime import lifecycle

NASTY = "runs/a b $(touch pwned) 'c'"


def flags(*argv):
    return cli.parse(local, list(argv))


def starts(*codes):
    """Processes that run each of these texts of Python."""
    return [([sys.executable, '-c', code], {'NUMBER': str(i)}) for i, code in enumerate(codes)]


def test_each_process_has_coordinator_and_devices(capsys):
    argv = ['local', '--processes=2', '--devices=4', '--print_only', '--', 'train', '--config=tiny']
    assert cli.main([*argv, f'--workdir={NASTY}']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    ports = set()
    for i, line in enumerate(lines):
        words = shlex.split(line)  # what a shell would make of it
        assert {'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=4'} <= set(words)
        assert words[words.index('train') :][1:3] == ['--config=tiny', f'--workdir={NASTY}']
        assert words[-2:] == ['--num_processes=2', f'--process_id={i}']
        ports.add(words[-3])
    assert len(ports) == 1
    assert ports.pop().startswith('--coordinator=127.0.0.1:')


def test_gpus_are_divided(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1,3,5,7')
    assert local.devices(2, 0) == [{'CUDA_VISIBLE_DEVICES': '1,3'}, {'CUDA_VISIBLE_DEVICES': '5,7'}]
    with pytest.raises(ValueError, match='4 GPUs do not divide over --processes=3'):
        local.devices(3, 0)


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (['--devices=4'], ['nothing after --', 'lmtrain local']),
        (['--devices=4', '--', 'show'], ["'show' after --", 'train']),
        (['--devices=4', 'train'], ["'train' is not a flag", '-- train']),
        (['--devices=4', '--', 'train', '--process_id=1'], ['--process_id is set by the launcher']),
        (['--processes=0', '--', 'train'], ['--processes']),
        (['--devices=4', '--', 'train', '--workdir=gs://b/run'], ["--workdir='gs://b/run' is a URL"]),
        (['--procesess=2', '--', 'train'], ['unknown flag --procesess', '--processes']),
    ],
)
def test_invalid_flags_are_one_line(argv, parts, capsys):
    assert cli.main(['local', *argv]) == 2
    out, said = capsys.readouterr()
    assert out == ''
    assert said.count('\n') == 1
    assert all(part in said for part in parts)


def test_debug_and_help_after_the_dashes_belong_to_the_command(capsys):
    assert flags('--', 'train', '--help').command == ['train', '--help']
    assert cli.main(['local', '--devices=1', '--print_only', '--', 'train', '--debug']) == 0
    assert '--debug' in capsys.readouterr().out


def test_output_of_others_is_prefixed_and_environments_differ(capfd):
    say = 'import os; print("I am", os.environ["NUMBER"])'
    assert local.watch(starts(say, say, say)) == (0, 0, False)
    assert sorted(capfd.readouterr().out.splitlines()) == ['I am 0', '[1] I am 1', '[2] I am 2']


def test_first_failure_ends_the_others_and_decides_the_code():
    wait = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'
    began = time.monotonic()
    outcome = local.watch(starts(wait, 'import sys; sys.exit(70)', wait), grace=0.2)
    assert outcome == (70, 1, False)
    assert time.monotonic() - began < 30
    assert local.watch(starts('import os; os.kill(os.getpid(), 9)', wait), grace=0.1) == (137, 0, False)


@pytest.mark.parametrize(
    ('ends', 'blamed'),
    [
        (('os.abort()', 'os._exit(75)'), 1),
        (('os._exit(74)', 'os.kill(os.getpid(), 9)'), 1),
        (('os._exit(0)', 'os._exit(74)'), 1),
        (('os._exit(0)', 'os._exit(0)'), None),
    ],
)
def test_process_that_lost_a_peer_does_not_decide_the_code(ends, blamed):
    children = [subprocess.Popen([sys.executable, '-c', f'import os; {end}']) for end in ends]
    for child in children:
        child.wait()
    assert local._failed(children) == blamed


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_forwarded_once_to_all(tmp_path, number):
    say = (
        'import os, signal, sys, time\n'
        'def stop(*_):\n'
        f'    open({str(tmp_path)!r} + "/" + os.environ["NUMBER"], "a").write("x")\n'
        '    sys.exit(42)\n'
        'signal.signal(signal.SIGTERM, stop)\n'
        f'open({str(tmp_path)!r} + "/ready" + os.environ["NUMBER"], "w")\n'
        'time.sleep(60)'
    )

    def send():
        while len(list(tmp_path.glob('ready*'))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    outside = signal.signal(number, signal.default_int_handler)  # nohup has SIGHUP ignored, and then it stays so
    threading.Thread(target=send).start()
    outcome = local.watch(starts(say, say))
    assert (outcome.code, outcome.signalled) == (42, True)
    assert [(tmp_path / name).read_text() for name in '01'] == ['x', 'x']
    assert signal.signal(number, outside) is signal.default_int_handler


@pytest.mark.parametrize(
    ('codes', 'asked', 'retries', 'ended'),
    [([42, 75, 0], False, 2, None), ([42, 42], False, 1, 42), ([70], False, 5, 70), ([42], True, 5, 42)],
)
def test_restarts_on_42_and_75(codes, asked, retries, ended, monkeypatch):
    ports = []

    def watch(begun):
        ports.append(begun[0][0][-3])
        return local.Outcome(codes[len(ports) - 1], 0, asked)

    monkeypatch.setattr(local, 'watch', watch)
    values = flags('--devices=1', f'--retries={retries}', '--', 'train')
    if ended is None:
        local.run(values)
    else:
        with pytest.raises(lifecycle.RunEnded) as raised:
            local.run(values)
        assert raised.value.code == ended
    assert len(ports) == len(codes)


def test_value_of_a_flag_in_a_command():
    assert launcher.value(['train', '--workdir', 'a', '--workdir=b'], 'workdir') == 'b'
    assert launcher.value(['train', '--workdir', 'a'], 'workdir') == 'a'
    assert launcher.value(['train'], 'workdir') is None
