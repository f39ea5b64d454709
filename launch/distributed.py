"""Several processes as one run: who is there, then jax.distributed; and an end that leaves no peer waiting."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from absl import flags

from lmtrain.errors import InputError
from lmtrain.runtime import lifecycle

HEARTBEAT = 10  # seconds after which a process that says nothing is taken for lost
CALL = 2  # seconds that a caller of the roll call has to say who it is
LAST = 1  # seconds by which process 0 leaves after the others where all may have the same to say
SHUTDOWN = 20  # seconds that the last processes wait for each other at the end


def define(values: flags.FlagValues) -> None:
    """The flags of a run over several processes."""
    told = {
        'coordinator': 'HOST:PORT of process 0, on the network that the processes share; with it the next two',
        'num_processes': 'how many processes the run has',
        'process_id': 'which of them this one is, from 0',
    }
    flags.DEFINE_string('coordinator', None, told['coordinator'], flag_values=values)
    flags.DEFINE_integer('num_processes', None, told['num_processes'], lower_bound=1, flag_values=values)
    flags.DEFINE_integer('process_id', None, told['process_id'], lower_bound=0, flag_values=values)
    flags.DEFINE_bool(
        'distributed', False, 'finds the three by itself on SLURM, Open MPI, TPU pods and GKE', flag_values=values
    )
    flags.DEFINE_integer(
        'join_timeout', 300, 'seconds to wait for the other processes', lower_bound=1, flag_values=values
    )


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[None]:
    """Within it this process is one of the run's; where none of the flags is given, nothing is done.

    An exception ends the process at once with its word and code: Python's own way out would wait for peers that wait
    for this process.

    Raises ValueError naming a flag, before anything of jax has started, and ConnectionError naming who is missing.
    """
    if not start(values):
        yield
        return
    import jax

    from launch import cli

    who = f'lmtrain train, process {jax.process_index()} of {jax.process_count()}'
    try:
        yield
    except BaseException as error:
        if isinstance(error, lifecycle.RunEnded):
            code = cli.report_error(who, cli.message(error), error.code)
            if error.code in (lifecycle.REQUEUE, lifecycle.NON_FINITE):
                # All have agreed on it: who leaves first would have jax abort the others.
                jax.distributed.shutdown()
        elif isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error):
            said = str(error).partition('\n')[0]
            code = cli.report_error(
                who, f'an exchange with the others failed, as where one has ended: {said}', lifecycle.LOST
            )
        elif isinstance(error, KeyboardInterrupt):
            code = cli.report_error(who, 'interrupted', 130)
        elif isinstance(error, Exception) and cli.is_user_error(error):
            code = cli.report_error(who, cli.message(error))
            if jax.process_index() == 0:
                time.sleep(LAST)  # with it the others lose the coordinator, and their own words
        else:
            traceback.print_exc()
            code = lifecycle.EXCEPTION
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(values: flags.FlagValues) -> bool:
    """Joins the processes of the run; False where the flags name none."""
    names = ('coordinator', 'num_processes', 'process_id')
    given = {name: values[name].value for name in names if values[name].value is not None}
    if values.distributed and given:
        raise InputError(f'--distributed finds by itself what --{", --".join(given)} would say: give one or the other')
    if not values.distributed and not given:
        return False
    if given and len(given) < len(names):
        missing = ', '.join(f'--{name}' for name in names if name not in given)
        raise InputError(
            f'{missing} is missing: a process of several needs --coordinator, --num_processes, --process_id'
        )
    if given:
        if given['process_id'] >= given['num_processes']:
            raise InputError(
                f'--process_id={given["process_id"]} with --num_processes={given["num_processes"]}: they count from 0'
            )
        coordinator, count, number, devices = *(given[name] for name in names), None
        host, _, port = coordinator.rpartition(':')
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(f'--coordinator={coordinator!r}: expected HOST:PORT, such as 10.0.0.1:8476')
    else:
        coordinator, count, number, devices = detected(values.join_timeout)
        host, _, port = coordinator.rpartition(':')
    roll_call(host, int(port), count, number, values.join_timeout)
    import jax

    # Its handler of SIGTERM would take the place of this house's, which agrees by itself on the step to stop at.
    jax.config.update('jax_enable_preemption_service', False)
    with left_on_sigterm():
        jax.distributed.initialize(
            coordinator,
            count,
            number,
            local_device_ids=devices,
            # Else JAX would still find SLURM or Open MPI around it, and leave one GPU to the process.
            cluster_detection_method='deactivate',
            # Only on the network that was named, not on all that the machine has.
            coordinator_bind_address=coordinator,
            initialization_timeout=values.join_timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    return True


@contextlib.contextmanager
def left_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM ends the process as `survive.leave` does, also where it waits and no handler of Python runs."""
    over = threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait():
        while not over.is_set():
            if signal.sigtimedwait({signal.SIGTERM}, 0.1):
                lifecycle.exit_requeue(signal.SIGTERM, None)

    waiting = threading.Thread(target=wait, name='SIGTERM', daemon=True)
    waiting.start()
    try:
        yield
    finally:
        over.set()
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def detected(timeout: int) -> tuple[str, int, int, list[int] | None]:
    """(HOST:PORT of process 0, how many processes, which one this is, its GPUs) as JAX finds them; None: all GPUs.

    Raises ValueError where it finds no cluster.
    """
    # What jax.distributed.initialize asks too, which would go on alone, and listen on every network.
    from jax._src import clusters

    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*[None] * 5, timeout)
    except RuntimeError as error:
        raise ConnectionError(f'--distributed: {error}') from error
    if None in found[:3]:
        raise InputError(
            '--distributed: neither SLURM, Open MPI, a TPU pod nor GKE is around this process; name the others by '
            '--coordinator, --num_processes and --process_id'
        )
    return *found[:3], found[3] if found[3] and shares_its_gpus(os.environ) else None


def shares_its_gpus(environment) -> bool:
    """Whether this process sees GPUs of other processes of its node, and takes the one of its number, as JAX has it."""
    alone = re.fullmatch(r'1(\(x\d+\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
    alone = alone or environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'
    return not alone and not {'SLURM_GPUS_PER_TASK', 'SLURM_TRES_PER_TASK'} & environment.keys()


def roll_call(host: str, port: int, count: int, number: int, timeout: float) -> None:
    """Returns in every process once all `count` are there; jax itself would abort, and not say who is missing.

    Process 0 listens at host:port, the others tell it their numbers. Raises ConnectionError in process 0 naming those
    that did not come, and in another the address that did not answer or what process 0 said; ValueError where two
    processes have one number, or another count.
    """
    deadline = time.monotonic() + timeout
    if number == 0:
        _listen(host, port, count, deadline, timeout)
        return
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as line:
                line.settimeout(max(deadline - time.monotonic(), 1) + 10)
                line.sendall(json.dumps([number, count]).encode() + b'\n')
                answer = line.makefile().readline().strip()
            if answer:
                break
        except OSError:
            pass  # not there yet
        if time.monotonic() > deadline:
            raise ConnectionError(
                f'process {number} of {count}: process 0 did not answer at {host}:{port} within {timeout:g} s. Is it '
                'running, and is that its address on a network that both share?'
            )
        time.sleep(0.2)
    if answer != 'go':
        raise ConnectionError(f'process {number} of {count}: at {host}:{port} there answers: {answer[:200]}')


def _listen(host: str, port: int, count: int, deadline: float, timeout: float) -> None:
    lines: dict[int, socket.socket] = {}

    def end(word: str) -> None:
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.sendall(word.encode() + b'\n')
            line.close()

    try:
        server = socket.create_server((host, port), backlog=count)
    except OSError as error:
        raise ConnectionError(
            f'process 0 cannot listen at {host}:{port}: {error.strerror}; name a free port'
        ) from error
    with server:
        while len(lines) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                line, _ = server.accept()
            except TimeoutError:
                absent = sorted(set(range(1, count)) - lines.keys())
                word = f'missing after {timeout:g} s: process {", ".join(map(str, absent))} of {count}'
                end(word)
                where = ':'.join(map(str, server.getsockname()[:2]))
                raise ConnectionError(
                    f'{word}, which did not come to {where}; see what their own words say, then start all again'
                ) from None
            caller = _caller(line)
            if caller is None:
                line.close()  # somebody else knocked
                continue
            other, its_count = caller
            if its_count != count or not 0 < other < count or other in lines:
                what = f'process {other} of {its_count} came' + (' twice' if other in lines else '')
                word = (
                    f'{what}, where processes 1 to {count - 1} of {count} are wanted: see --process_id, --num_processes'
                )
                lines[-1] = line
                end(word)
                raise InputError(word)
            lines[other] = line
    end('go')


def _caller(line: socket.socket) -> tuple[int, int] | None:
    """(number, count) that a process says of itself; None where it says nothing soon, or anything else."""
    line.settimeout(CALL)
    try:
        said = json.loads(line.makefile().readline(64))
    except (OSError, ValueError):
        return None
    well = isinstance(said, list) and [type(x) for x in said] == [int, int]
    return tuple(said) if well else None
