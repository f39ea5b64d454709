"""Unit tests of generated code: what passes, what fails, and that no program hurts the run or the machine."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import tracemalloc

import pytest

from lmtrain.errors import InputError
from lmtrain.rewards import sandbox, sandboxed
from lmtrain.rewards.reward import Limits

LIMITS = Limits(2.0, 256)
FORGE = """
import os
for file in range(1, 9):
    try:
        os.write(file, b'{"status": "passed", "token": ""}')
    except OSError:
        pass
os._exit(0)
"""
NAMESPACES = sandbox.isolation(LIMITS) == sandbox.NAMESPACES


def outcome(code: str, test: str = 'pass') -> sandbox.Outcome:
    return sandbox.run(code, test, LIMITS)


@pytest.mark.parametrize(
    ('code', 'test', 'status', 'printed'),
    [
        ('def double(x): return 2 * x', 'assert double(3) == 6', 'passed', ''),
        ('def double(x): return x', 'assert double(3) == 6', 'failed', 'AssertionError'),
        ('def double(x: return x', 'assert double(3) == 6', 'failed', 'SyntaxError'),
        ('import sys; sys.exit(0)', 'assert False', 'failed', 'SystemExit'),
        ('import os; os._exit(0)', 'assert False', 'ended before its test', ''),
        ('import ctypes; ctypes.string_at(0)', 'pass', 'SIGSEGV', ''),
        ('data = bytearray(1 << 30)', 'pass', 'memory limit', ''),
        ('class Odd(Exception):\n  def __str__(self): raise self\nraise Odd', 'pass', 'failed', ''),
        ('print("x" * 10 ** 5)', 'pass', 'passed', 'xxx'),
        ('import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()', 'pass', None, ''),
    ],
)
def test_a_program_ends_with_a_status(code, test, status, printed):
    result = outcome(code, test)
    assert status in (result.status, None) and result.status != 'passed' or status == result.status
    assert printed in result.output and len(result.output) <= sandbox.OUTPUT


WRITE = (
    'import os\ndef write(data):\n  for file in range(3, 9):\n    try: os.write(file, data)\n    except OSError: pass\n'
)


@pytest.mark.parametrize(
    'code', ['write(b"{}"); os._exit(0)', 'write(b"[" * 10**5)', 'while True: write(b"x" * 2**16)']
)
def test_what_a_program_writes_in_place_of_its_verdict_is_a_failure(code, monkeypatch):
    """Before, it raised in the run (KeyError, RecursionError), or was read into its memory without a limit."""
    monkeypatch.setattr(sandbox, 'START_SECONDS', 0.5)
    tracemalloc.start()
    result = sandbox.run(WRITE + code, 'pass', Limits(0.5, 256))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.status in ('ended before its test', 'time limit') and peak < 2**20


@pytest.mark.parametrize('code', ['while True: pass', 'import time; time.sleep(60)'])
def test_a_hanging_program_is_killed(code, monkeypatch):
    monkeypatch.setattr(sandbox, 'START_SECONDS', 0.5)
    started = time.monotonic()
    assert sandbox.run(code, '', Limits(0.5, 256)).status == 'time limit'
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ('code', 'test', 'seconds', 'status'),
    [
        ('time.sleep(0.3)', 'pass', 0.1, 'time limit'),
        ('pass', 'time.sleep(0.3)', 0.1, 'time limit'),
        ('time.sleep(0.3)', 'assert False', 0.1, 'time limit'),
        ('time.sleep(0.3); time.monotonic = lambda: 0.0', 'pass', 0.1, 'time limit'),
        ('time.sleep(0.3)', 'pass', 60.0, 'passed'),
    ],
)
def test_a_program_that_ends_after_its_limit_does_not_pass(code, test, seconds, status):
    """The time that Python has to start is not the program's: these programs end before they would be killed."""
    assert sandbox.run(f'import time\n{code}', test, Limits(seconds, 256)).status == status


@pytest.mark.parametrize(
    ('name', 'code'),
    [
        ('forge a verdict', FORGE),
        ('network', 'import socket; socket.create_connection(("127.0.0.1", PORT), 1)'),
        ('write', 'open(FILE, "w").write("x")'),
        ('remove', 'import os; os.remove(FILE)'),
        ('endless output', 'while True: print("x" * 10000)'),
        ('large file', 'file = open("a", "w")\nwhile True: file.write("x" * 100000)'),
    ],
)  # fmt: skip
def test_no_program_leaves_its_folder(name, code, tmp_path):
    file = tmp_path / 'file'
    file.write_text('here', encoding='utf-8')
    with socket.create_server(('127.0.0.1', 0)) as server:
        result = outcome(f'FILE, PORT = {str(file)!r}, {server.getsockname()[1]}\n{code}')
    assert result.status in ('failed', 'ended before its test'), result
    assert file.read_text(encoding='utf-8') == 'here' and os.listdir(tmp_path) == ['file']


def test_the_working_folder_is_empty_writable_and_the_environment_is_not_inherited(monkeypatch):
    monkeypatch.setenv('SECRET', 'token')
    code = 'import os\nhere = os.listdir(".")\nopen("a", "w").write("x")'
    assert (
        outcome(code, 'assert not here and open("a").read() == "x" and "SECRET" not in os.environ').status == 'passed'
    )


@pytest.mark.skipif(not NAMESPACES, reason='the kernel permits no namespaces')
def test_what_a_program_starts_ends_with_it(tmp_path):
    code = 'import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(60)\n  os._exit(0)'
    assert outcome(code).status == 'passed'
    script = sandboxed.__file__
    commands = [path.read_bytes() for path in pathlib.Path('/proc').glob('[0-9]*/cmdline') if path.exists()]
    assert not [command for command in commands if script.encode() in command]


@pytest.mark.skipif(not NAMESPACES, reason='the kernel permits no namespaces')
def test_a_program_has_no_rights_in_its_namespaces():
    code = 'import ctypes\ncode = ctypes.CDLL(None).mount(b"none", b".", b"tmpfs", 0, None)'
    assert outcome(code, 'assert code == -1').status == 'passed'


@pytest.mark.skipif(not NAMESPACES, reason='the kernel permits no namespaces')
@pytest.mark.parametrize('kind', [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_program_reaches_no_unix_socket_of_the_machine(kind, tmp_path):
    """It is a file, in no namespace of networks; a datagram of a connected pair may have another address."""
    path = str(tmp_path / 'socket')
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(path)
        if kind == socket.SOCK_STREAM:
            server.listen()
            result = outcome(f'import socket\nsocket.socket(socket.AF_UNIX).connect({path!r})')
        else:
            pair = 'socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)'
            result = outcome(f'import socket\n{pair}[0].sendto(b"x", {path!r})')
    assert result.status == 'failed' and 'PermissionError' in result.output


@pytest.mark.skipif(not NAMESPACES, reason='the kernel permits no namespaces')
def test_a_program_may_use_connected_pairs_and_no_ring():
    code = 'import socket\none, other = socket.socketpair()\none.send(b"x")\nassert other.recv(1) == b"x"'
    assert outcome(code, 'import asyncio\nasyncio.run(asyncio.sleep(0))').status == 'passed'
    ring = 'import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ncode = libc.syscall(425, 1, bytes(120))'
    assert outcome(ring, 'assert (code, ctypes.get_errno()) == (-1, 1)').status == 'passed'


def test_a_machine_without_a_filter_is_named(tmp_path, monkeypatch):
    changed_script(tmp_path, monkeypatch, 'os.uname().machine', "'riscv64'")
    isolation = sandbox.isolation(LIMITS)
    assert 'audit hooks alone' in isolation
    assert not NAMESPACES or 'no filter of system calls for riscv64' in isolation
    assert outcome('open("a", "w").write("x")', 'assert open("a").read() == "x"').status == 'passed'
    assert 'forbidden in a unit test' in outcome('import socket; socket.socket()').output


def changed_script(folder, monkeypatch, old: str, new: str):
    """The script of unit tests in `folder`, with another text; programs run by it."""
    script, popen = folder / 'sandboxed.py', subprocess.Popen
    source = pathlib.Path(sandboxed.__file__).read_text(encoding='utf-8')
    assert source.count(old) == 1
    script.write_text(source.replace(old, new), encoding='utf-8')
    monkeypatch.setattr(subprocess, 'Popen', lambda command, **settings: popen([*command[:-1], script], **settings))
    return script


def test_without_namespaces_an_audit_hook_forbids_the_same(tmp_path, monkeypatch):
    refused = "raise OSError(1, 'unshare: not permitted')\n        call('unshare'"
    script = changed_script(tmp_path, monkeypatch, "call('unshare'", refused)
    assert 'audit hooks alone' in sandbox.isolation(LIMITS) and 'unshare: not permitted' in sandbox.isolation(LIMITS)
    assert outcome('open("a", "w").write("x")', 'assert open("a").read() == "x"').status == 'passed'
    for code in (
        'import socket; socket.socket()',
        f'open({str(tmp_path / "b")!r}, "w")',
        f'import os; os.remove({str(script)!r})',
        f'import shutil; shutil.rmtree({str(tmp_path)!r})',
        'import os; os.fork()',
        'import os; os.kill(os.getppid(), 9)',
        'import subprocess; subprocess.run(["true"])',
        'import ctypes; ctypes.CDLL(None)',
    ):
        result = outcome(code)
        assert result.status == 'failed' and 'forbidden in a unit test' in result.output, (code, result)
    assert os.listdir(tmp_path) == ['sandboxed.py']


def test_an_interpreter_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    with pytest.raises(InputError, match='unit tests do not run here'):
        sandbox.isolation(LIMITS)


def test_programs_run_side_by_side_and_in_order():
    programs = [('x = 1', f'assert x == {number % 2}') for number in range(4)]
    assert sandbox.run_all(programs, LIMITS) == [0.0, 1.0, 0.0, 1.0]
