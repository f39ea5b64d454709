"""Several processes as one run: missing, different, stopped and dead processes."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from launch import cli, distributed, train
from lmtrain.parallel import sharding
from lmtrain.runtime import lifecycle, multihost

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def parsed(flags):
    return cli.parse(train, flags)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--coordinator=127.0.0.1:1'], '--num_processes, --process_id is missing'),
        (['--num_processes=2', '--process_id=0'], '--coordinator is missing'),
        (['--coordinator=127.0.0.1:1', '--num_processes=2', '--process_id=2'], 'they count from 0'),
        (['--coordinator=127.0.0.1', '--num_processes=2', '--process_id=1'], 'expected HOST:PORT'),
        (['--distributed', '--process_id=1'], '--distributed detects the value of --process_id'),
    ],
)
def test_invalid_flags_are_rejected_before_jax_starts(flags, message):
    with pytest.raises(ValueError, match=message):
        distributed.start(parsed(flags))


def roll_call(count, numbers, timeout=2.0, counts=None):
    """{position: what its roll call raised, or None} of processes that call at once."""
    port, found = free_port(), {}

    def call(position, number):
        try:
            distributed.roll_call('127.0.0.1', port, (counts or {}).get(number, count), number, timeout)
            found[position] = None
        except (ConnectionError, ValueError) as error:
            found[position] = str(error)

    threads = [threading.Thread(target=call, args=pair) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_roll_call_of_all_processes():
    assert roll_call(3, [2, 0, 1]) == {0: None, 1: None, 2: None}


def test_missing_processes_are_named_to_all_others():
    found = roll_call(4, [0, 2], timeout=0.5)
    assert all('missing after 0.5 s: process 1, 3 of 4' in word for word in found.values())


def test_process_0_is_missing():
    assert 'process 0 did not answer at 127.0.0.1:' in roll_call(2, [1], timeout=0.3)[0]


def test_duplicate_number_and_different_count_are_errors():
    assert 'process 1 of 3 connected twice' in roll_call(3, [0, 1, 1])[0]
    assert 'process 1 of 3 connected; expected are processes 1 to 1 of 2' in roll_call(2, [0, 1], counts={1: 3})[0]


@pytest.mark.parametrize('said', [b'', b'5\n', b'["a", "b"]\n', b'{}\n', b'GET / HTTP/1.1\n', b'x' * 999])
def test_other_connections_are_ignored(said, monkeypatch):
    monkeypatch.setattr(distributed, 'CALL', 0.2)
    port, found = free_port(), []

    def call(number):
        with contextlib.suppress(ConnectionError):
            found.append(distributed.roll_call('127.0.0.1', port, 2, number, 20.0))

    first = threading.Thread(target=call, args=[0])
    first.start()
    stranger = None
    while stranger is None:
        with contextlib.suppress(ConnectionRefusedError):
            stranger = socket.create_connection(('127.0.0.1', port))
    stranger.sendall(said)
    call(1)
    first.join()
    stranger.close()
    assert found == [None, None]


# What JAX reads of SLURM: step 7 of two nodes with as many processes each as the first number says.
SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '5'}
SLURM |= {'SLURM_LOCALID': '1', 'SLURM_STEP_TASKS_PER_NODE': '4(x2)'}
TOLD = ['--coordinator=127.0.0.1:9', '--num_processes=8', '--process_id=5']


@pytest.mark.parametrize(
    ('flags', 'environment', 'address', 'gpus'),
    [
        (TOLD, SLURM, '127.0.0.1:9', None),
        (['--distributed'], SLURM, 'n1:61447', [1]),
        (['--distributed'], SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x8)'}, 'n1:61447', None),
        (['--distributed'], SLURM | {'SLURM_GPUS_PER_TASK': '2'}, 'n1:61447', None),
    ],
    ids=['told', 'one GPU of its node', 'alone on its node', 'GPUs of its own'],
)
def test_jax_starts_after_the_roll_call_with_its_own_gpus(flags, environment, address, gpus, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    called, given = [], {}
    monkeypatch.setattr(distributed, 'roll_call', lambda *call: called.append(call))
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *told, **more: given.update(more, told=told))
    assert distributed.start(parsed(flags))
    host, _, port = address.rpartition(':')
    assert called == [(host, int(port), 8, 5, 300)]
    assert given['told'] == (address, 8, 5)
    assert given['coordinator_bind_address'] == address
    assert given['cluster_detection_method'] == 'deactivate'
    assert given['local_device_ids'] == gpus


def test_no_cluster_is_an_error():
    with pytest.raises(ValueError, match='--distributed: this process does not run under SLURM, .* set --coordinator'):
        distributed.start(parsed(['--distributed']))


def test_one_process_agrees_without_a_device():
    assert multihost.all_gather_object({'a': 1}) == [{'a': 1}]
    multihost.assert_same({'a': 1})


class Chip:
    """A device of a process, as far as rows are concerned."""

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ('owners', 'shape', 'rows'),
    [
        ([0, 0, 1, 1], (4, 1, 1, 1), [0, 1, 2, 3]),
        ([1, 1, 0, 0], (4, 1, 1, 1), [4, 5, 6, 7]),
        ([0, 1, 0, 1], (4, 1, 1, 1), [0, 1, 4, 5]),  # as on a torus, whose hosts are squares of chips
        ([0, 1, 0, 1], (2, 1, 2, 1), list(range(8))),  # tensor goes across: both read all rows
        ([0, 0, 1, 1], (1, 2, 1, 2), [0, 1, 2, 3]),
    ],
)
def test_the_rows_of_a_process_are_those_of_its_devices(owners, shape, rows):
    mesh = jax.sharding.Mesh(np.array([Chip(owner) for owner in owners]).reshape(shape), sharding.AXES)
    np.testing.assert_array_equal(sharding.rows(mesh, 8), rows)


def start(workdir, text, fault=None, differing=None, elsewhere=None, **more):
    """Two processes of two devices; `fault`, `differing`, a workdir `elsewhere` are process 1's own."""
    port, started = free_port(), []
    for number in (0, 1):
        where = number and elsewhere or workdir
        command = [sys.executable, '-m', 'launch.cli', 'train', '--config=configs/tiny.py', f'--workdir={where}']
        command += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={number}']
        changed = {'data.source': text, 'data.cache': text.parent / 'cache', 'data.validation': 0.2}
        changed |= {
            'model.num_layers': 1,
            'budget.steps': 24,
            'log.every_steps': 1,
            'log.tensorboard': False,
            'checkpoint.every_steps': 6,
        }
        changed |= {'mesh.fsdp': 2, 'optimizer.learning_rate': differing} if number and differing else {'mesh.fsdp': 2}
        command += [f'--config.{name}={value}' for name, value in (changed | more).items()]
        environment = os.environ | {'JAX_NUM_CPU_DEVICES': '2'}
        environment |= {'LMTRAIN_FAULT': fault} if number and fault else {}
        with open(f'{workdir}.{number}.log', 'ab') as log:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def ended(started):
    """Exit codes; a process that hangs fails the test."""
    try:
        return [process.wait(120) for process in started]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_stop_together_and_resume_bitwise(text):
    whole, cut = text.parent / 'whole', text.parent / 'cut'
    assert ended(start(whole, text)) == [0, 0]
    started = start(cut, text)
    lines = cut / 'metrics.jsonl'
    while all(process.poll() is None for process in started) and not (
        lines.exists() and lines.read_bytes().count(b'\n') > 2
    ):
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    assert ended(started) == [lifecycle.REQUEUE, lifecycle.REQUEUE]
    assert ended(start(cut, text)) == [0, 0]
    assert lines.read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    assert len(json.loads((cut / 'results.json').read_text())) == len(json.loads((whole / 'results.json').read_text()))
    on_it = {'init.base': whole, 'data.tokenizer': 'base', 'mesh.fsdp': 4, 'budget.steps': 6}
    assert ended(start(text.parent / 'on it', text, **on_it)) == [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tensor_axis_across_processes(text):
    across = {'mesh.fsdp': 1, 'mesh.tensor': 2, 'mesh.sequence': 2, 'evaluate.every_steps': 2}
    assert ended(start(text.parent / 'across', text, **across)) == [0, 0]


@pytest.mark.slow
def test_different_run_folders_are_an_error_before_compilation(text):
    one, other = text.parent / 'one', text.parent / 'other'
    assert ended(start(one, text, elsewhere=other)) == [2, 2]
    for number in (0, 1):
        said = (text.parent / f'one.{number}.log').read_text()
        assert f'process 1 does not see in {other} what process 0 writes in {one}' in said


def test_sigterm_ends_a_process_that_waits_in_native_code():
    code = (
        'import ctypes; from launch import distributed\n'
        'with distributed.exit_on_sigterm():\n'
        '    print("waits", flush=True); ctypes.CDLL(None).sleep(60)'
    )
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout.readline() == 'waits\n'
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(30) == lifecycle.REQUEUE


def test_signal_before_the_first_step_requeues(text):
    port, workdir = free_port(), text.parent / 'early'
    command = [sys.executable, '-m', 'launch.cli', 'train', '--config=configs/tiny.py', f'--workdir={workdir}']
    command += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', '--process_id=0']
    waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while waiting.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(('127.0.0.1', port)):
            break
    waiting.send_signal(signal.SIGTERM)
    assert (waiting.wait(60), waiting.communicate()[1].split()[0]) == (lifecycle.REQUEUE, 'SIGTERM:')


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_exception_or_disagreement_ends_both_processes(text):
    assert set(ended(start(text.parent / 'raised', text, fault='raise@3'))) <= {lifecycle.EXCEPTION, lifecycle.LOST}
    assert ended(start(text.parent / 'differing', text, differing=0.5)) == [2, 2]
    word = (text.parent / 'differing.0.log').read_text()
    assert 'config/optimizer/learning_rate: process 0 has 0.001, process 1 0.5' in word
