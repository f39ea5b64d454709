"""Joins several processes into one run: start-up barrier, jax.distributed, and an exit that leaves no peer waiting."""

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

HEARTBEAT = 10  # seconds without a heartbeat after which a process is considered lost
CALL = 2  # seconds that a caller of the roll call has to send its number
LAST = 1  # seconds that process 0 waits for the others to print the same error
SHUTDOWN = 20  # seconds of the shutdown barrier


def define(values: flags.FlagValues) -> None:
    """The flags of a run over several processes."""
    help = {
        'coordinator': 'HOST:PORT of process 0 on the network of all processes; requires the next two flags',
        'num_processes': 'number of processes of the run',
        'process_id': 'number of this process, from 0',
    }
    flags.DEFINE_string('coordinator', None, help['coordinator'], flag_values=values)
    flags.DEFINE_integer('num_processes', None, help['num_processes'], lower_bound=1, flag_values=values)
    flags.DEFINE_integer('process_id', None, help['process_id'], lower_bound=0, flag_values=values)
    flags.DEFINE_bool(
        'distributed', False, 'detects the three flags on SLURM, Open MPI, TPU pods and GKE', flag_values=values
    )
    flags.DEFINE_integer(
        'join_timeout', 300, 'seconds to wait for the other processes', lower_bound=1, flag_values=values
    )


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[None]:
    """Inside the context this process is part of the run; without the flags it does nothing.

    An exception ends the process at once with its message and exit code: a normal exit of Python would wait for peers
    that wait for this process.

    Raises InputError naming a flag, before jax has started, and ConnectionError naming the missing processes.
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
                # All processes raise it in the same step: without the barrier jax would abort the slower ones.
                jax.distributed.shutdown()
        elif isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error):
            reason = str(error).partition('\n')[0]
            text = f'communication with the other processes failed; one may have ended: {reason}'
            code = cli.report_error(who, text, lifecycle.LOST)
        elif isinstance(error, KeyboardInterrupt):
            code = cli.report_error(who, 'interrupted', 130)
        elif isinstance(error, Exception) and cli.is_user_error(error):
            code = cli.report_error(who, cli.message(error))
            if jax.process_index() == 0:
                time.sleep(LAST)  # its end takes the coordinator, and the messages of the others, away
        else:
            traceback.print_exc()
            code = lifecycle.EXCEPTION
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(values: flags.FlagValues) -> bool:
    """Joins the processes of the run; False if no flag is set."""
    names = ('coordinator', 'num_processes', 'process_id')
    chosen = {name: values[name].value for name in names if values[name].value is not None}
    if values.distributed and chosen:
        raise InputError(f'--distributed detects the value of --{", --".join(chosen)}: set one or the other')
    if not values.distributed and not chosen:
        return False
    if chosen and len(chosen) < len(names):
        missing = ', '.join(f'--{name}' for name in names if name not in chosen)
        raise InputError(
            f'{missing} is missing: a run of several processes needs --coordinator, --num_processes, --process_id'
        )
    if chosen:
        if chosen['process_id'] >= chosen['num_processes']:
            raise InputError(
                f'--process_id={chosen["process_id"]} with --num_processes={chosen["num_processes"]}: they count from 0'
            )
        coordinator, count, number, devices = *(chosen[name] for name in names), None
        host, _, port = coordinator.rpartition(':')
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(f'--coordinator={coordinator!r}: expected HOST:PORT, such as 10.0.0.1:8476')
    else:
        coordinator, count, number, devices = detected(values.join_timeout)
        host, _, port = coordinator.rpartition(':')
    roll_call(host, int(port), count, number, values.join_timeout)
    import jax

    # JAX's handler of SIGTERM would replace lmtrain's, which agrees among processes on the step to stop at.
    jax.config.update('jax_enable_preemption_service', False)
    with exit_on_sigterm():
        jax.distributed.initialize(
            coordinator,
            count,
            number,
            local_device_ids=devices,
            # Otherwise JAX detects SLURM or Open MPI, and leaves one GPU to the process.
            cluster_detection_method='deactivate',
            # Only on the named network, not on all of the machine's.
            coordinator_bind_address=coordinator,
            initialization_timeout=values.join_timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    return True


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM calls `lifecycle.exit_requeue`, even while C++ code waits and no handler of Python runs."""
    done = threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait():
        while not done.is_set():
            if signal.sigtimedwait({signal.SIGTERM}, 0.1):
                lifecycle.exit_requeue(signal.SIGTERM, None)

    waiting = threading.Thread(target=wait, name='SIGTERM', daemon=True)
    waiting.start()
    try:
        yield
    finally:
        done.set()
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def detected(timeout: int) -> tuple[str, int, int, list[int] | None]:
    """(HOST:PORT of process 0, number of processes, number of this one, its GPUs) by JAX's detection; None: all GPUs.

    Raises InputError if there is no cluster.
    """
    # jax.distributed.initialize calls it too, but continues without a cluster, and listens on every network.
    from jax._src import clusters

    try:
        cluster = clusters.ClusterEnv.auto_detect_unset_distributed_params(*[None] * 5, timeout)
    except RuntimeError as error:
        raise ConnectionError(f'--distributed: {error}') from error
    if None in cluster[:3]:
        raise InputError(
            '--distributed: this process does not run under SLURM, Open MPI, a TPU pod or GKE; set '
            '--coordinator, --num_processes and --process_id'
        )
    return *cluster[:3], cluster[3] if cluster[3] and shares_its_gpus(os.environ) else None


def shares_its_gpus(environment) -> bool:
    """Whether this process sees the GPUs of others on its node, so that JAX assigns one by its local number."""
    alone = re.fullmatch(r'1(\(x\d+\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
    alone = alone or environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'
    return not alone and not {'SLURM_GPUS_PER_TASK', 'SLURM_TRES_PER_TASK'} & environment.keys()


def roll_call(host: str, port: int, count: int, number: int, timeout: float) -> None:
    """Returns in every process when all `count` are connected; jax would abort without naming the missing ones.

    Process 0 listens at host:port, the others send it their numbers. Raises ConnectionError, in process 0 naming those
    that are missing, in the others the address that did not answer or the answer of process 0; InputError if two
    processes have the same number or different counts.
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
            pass  # process 0 does not listen yet
        if time.monotonic() > deadline:
            raise ConnectionError(
                f'process {number} of {count}: process 0 did not answer at {host}:{port} within {timeout:g} s. Is it '
                'running, and is that its address on a network that both share?'
            )
        time.sleep(0.2)
    if answer != 'go':
        raise ConnectionError(f'process {number} of {count}: the answer at {host}:{port} is: {answer[:200]}')


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
                    f'{word}, which did not connect to {where}; see their own messages, then restart all processes'
                ) from None
            caller = _caller(line)
            if caller is None:
                line.close()  # not a process of the run
                continue
            other, its_count = caller
            if its_count != count or not 0 < other < count or other in lines:
                what = f'process {other} of {its_count} connected' + (' twice' if other in lines else '')
                word = f'{what}; expected are processes 1 to {count - 1} of {count}: see --process_id, --num_processes'
                lines[-1] = line
                end(word)
                raise InputError(word)
            lines[other] = line
    end('go')


def _caller(line: socket.socket) -> tuple[int, int] | None:
    """(number, count) sent by a process; None if it sends nothing in time, or anything else."""
    line.settimeout(CALL)
    try:
        message = json.loads(line.makefile().readline(64))
    except (OSError, ValueError):
        return None
    valid = isinstance(message, list) and [type(x) for x in message] == [int, int]
    return tuple(message) if valid else None
