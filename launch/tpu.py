"""trains on one or more TPU slices of Google Cloud: creates them, copies the last commit, runs, and deletes them.

The log of worker 0 is printed. The run does not depend on the connection; if it is lost, the log resumes after it is
reopened. A run that exits with a code for a restart is restarted on the same TPU; if a worker or a spot TPU is lost, on
a new one. The run folder must outlive the TPU: --setup mounts a file system on every worker. Ctrl-C also deletes the
TPU. gcloud reaches several workers only if its key is in an ssh-agent: ssh-add ~/.ssh/google_compute_engine

lmtrain tpu --zone=us-west4-a --accelerator_type=v5litepod-256 --runtime_version=v2-alpha-tpuv5-lite --spot \\
            --setup='sudo mkdir /runs; sudo mount -t nfs 10.0.0.2:/runs /runs' \\
            -- train --config=configs/pretrain_gpt2.py --workdir=/runs/gpt2
"""

import contextlib
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from absl import flags

from launch import gke, launcher
from lmtrain.errors import InputError
from lmtrain.runtime import lifecycle

FLAGS = flags.FlagValues()
launcher.define(FLAGS, retries=20)
for name, default, help in (
    ('name', 'lmtrain', 'name of the queued resource and its nodes'),
    ('zone', '', 'zone, such as us-west4-a'),
    ('project', '', "project; by default gcloud's own setting"),
    ('accelerator_type', '', 'type and size of a slice, such as v5litepod-256'),
    ('runtime_version', '', 'software of the workers, such as v2-alpha-tpuv5-lite or tpu-ubuntu2204-base'),
    ('setup', '', 'a shell command that mounts, on every worker, a file system that outlives the TPU'),
):
    flags.DEFINE_string(name, default, help, flag_values=FLAGS)
flags.DEFINE_integer('node_count', 1, 'number of slices', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool('spot', False, 'cheaper, but may be taken away at any time', flag_values=FLAGS)
flags.DEFINE_bool('keep', False, 'keeps the TPU, and its cost, after the run ends', flag_values=FLAGS)

POLL = 30.0  # seconds between two gcloud queries
TRIES = 10  # consecutive polls without an answer from the workers while the TPU is ACTIVE
PATIENCE = 120  # consecutive polls without an answer from gcloud: an hour
ENDING = 120  # seconds for the other workers to end after worker 0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal is closed
GONE = 255  # exit code of a worker, or run, that ended without one

# The exit code of `gcloud compute tpus queued-resources ssh|scp` means nothing. gcloud 528 (tpus/tpu_vm/ssh.py) skips a
# node that it cannot prepare, such as one that was taken away, and exits with 0; connects to 64 workers at once, and to
# the next only after all of those have ended, or never if one failed; and reruns a command if its connection breaks.
# Commands for all workers therefore terminate with exit code 0 and are idempotent, and count as done when a worker
# prints so: its name, the number of workers of its slice (as jax counts them), and a word.
NETWORK = 'http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints'
SAY = (
    f'say() {{ n=$(curl -sSf -H "Metadata-Flavor: Google" {NETWORK} | tr , "\\n" | grep -c .); '
    'echo "lmtrain tpu: $(hostname) of $n: $*"; }'
)
SAID = re.compile(r'lmtrain tpu: (\S+) of (\d+): (.*)')


class Unanswered(InputError):
    """gcloud does not answer: the TPU may exist, and the run may continue."""


def run(values: flags.FlagValues) -> None:
    """Raises InputError if the TPU or the run cannot be started, RunEnded with the exit code of the run."""
    words = launcher.train(values, 'tpu')
    archive = pathlib.Path(tempfile.gettempdir()) / f'{values.name}.tar.gz'
    steps = commands(values, words, archive)
    if values.print_only:
        print('\n'.join(launcher.line(step) for step in steps.values()))
        return
    launcher.need('gcloud', 'https://cloud.google.com/sdk/docs/install')
    handled = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, _stop) for number in handled}
    try:
        _do(steps['archive'])
        print(f'lmtrain tpu: to delete the TPU by hand: {launcher.line(steps["delete"])}', file=sys.stderr)
        who, word = _attempts(values, words, archive)
    finally:
        archive.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    if _code(word):
        raise lifecycle.RunEnded(_code(word), f'{who} ended with exit code {word}')


def commands(
    values: flags.FlagValues, words: list[str], archive: pathlib.Path, attempt: int = 0
) -> dict[str, list[str]]:
    """{step: argv} in execution order. Raises InputError naming a flag."""
    workdir = checked_workdir(values, words)
    location = [f'--zone={values.zone}', *([f'--project={values.project}'] if values.project else [])]
    nodes = [f'--node-id={values.name}']
    if values.node_count > 1:
        nodes = [f'--node-count={values.node_count}', f'--node-prefix={values.name}']
    gcloud = ['gcloud', 'compute', 'tpus', 'queued-resources']
    all_workers = ['--node=all', '--worker=all', *location]
    # Without them, ssh waits forever for a worker that was taken away.
    keepalive = ['--ssh-flag=-oConnectTimeout=30', '--ssh-flag=-oServerAliveInterval=30']

    def ssh(lines: list[str], workers: list[str]) -> list[str]:
        return [*gcloud, 'ssh', values.name, *workers, *keepalive, f'--command={"; ".join([SAY, *lines])}']

    folder = f'run-{attempt}'  # in the tree: contains `log`, and `code` after the run has ended on this worker
    report = f'say "$(cat {folder}/code || echo {GONE}): $(tail -n 1 {folder}/log | cut -c -300)"'
    wait = ['cd lmtrain-tree || exit 0', f'flock -s -w {ENDING} .running true', report]
    return {
        'archive': ['git', '-C', str(launcher.ROOT), 'archive', '--format=tar.gz', f'--output={archive}', 'HEAD'],
        'create': [
            *(*gcloud, 'create', values.name, *nodes, f'--accelerator-type={values.accelerator_type}'),
            *(f'--runtime-version={values.runtime_version}', *location, *(['--spot'] if values.spot else [])),
        ],
        'state': [*gcloud, 'describe', values.name, *location, '--format=value(state.state)'],
        'copy': [*gcloud, 'scp', str(archive), f'{values.name}:', *all_workers],
        'install': ssh(install_lines(values.setup, workdir, archive.name), all_workers),
        'start': ssh(start_lines(folder, words), all_workers),
        'follow': ssh(follow_lines(folder, report), ['--node=0', '--worker=0', *location]),
        'codes': ssh(wait, all_workers),
        'delete': [*gcloud, 'delete', values.name, *location, '--force', '--quiet'],
    }


def checked_workdir(values: flags.FlagValues, words: list[str]) -> str:
    """The --workdir of the run. Raises InputError naming a flag that is missing or malformed."""
    for name in ('zone', 'accelerator_type', 'runtime_version', 'setup'):
        if not values[name].value:
            raise InputError(f'--{name} is missing: {values[name].help}')
    if not re.fullmatch('[a-z]([-a-z0-9]{0,48}[a-z0-9])?', values.name):
        raise InputError(f'--name={values.name!r}: small letters, digits and -, a letter first')
    workdir = launcher.value(words, 'workdir') or ''
    if not workdir.startswith('/'):
        raise InputError(
            f'--workdir={workdir!r} after --: an absolute path on a file system that '
            'outlives the TPU, such as --workdir=/mnt/runs/gpt2 with --setup mounting /mnt/runs'
        )
    return workdir


def install_lines(setup: str, workdir: str, archive: str) -> list[str]:
    """Shell lines that install lmtrain on a worker once, run `setup`, and check that `workdir` outlives the TPU."""
    apt = 'sudo apt-get -o DPkg::Lock::Timeout=300 -q'
    folder = shlex.quote(workdir)
    lost = shlex.quote(f'--workdir={workdir} is on the disk of the TPU and would be lost with it: --setup mounts none')
    install = [
        # The timeout does not cover the lock of `update`, which a machine that has just booted may hold.
        f'(command -v python3.11 || (for i in 1 2 3 4 5 6; do {apt} update && break; sleep 30; done; '
        f'{apt} -y install python3.11-venv)) >/dev/null',
        'mkdir -p lmtrain-tree',
        f'tar -xzf {archive} -C lmtrain-tree',
        'bash lmtrain-tree/launch/run.sh configs >/dev/null',
        "bash -c 'source lmtrain-tree/launch/venv.sh && install parquet'",  # most corpora are parquet files
        f'({setup}) 8>&-',  # a process that stays, such as gcsfuse, would keep the lock
        f'mkdir -p {folder}',
        f'([ "$(stat -c %d {folder})" != "$(stat -c %d /)" ] || (echo {lost} >&2; false))',
        'touch lmtrain-installed',
    ]
    return [
        'exec 8>lmtrain-installing; flock 8',
        f'[ -e {archive} ] || exit 0',  # scp skipped this worker
        f'if [ -e lmtrain-installed ] || ({" && ".join(install)}); then say installed; else say failed; fi',
    ]


def start_lines(folder: str, words: list[str]) -> list[str]:
    """Shell lines that start the run on a worker. It holds a lock while it lives, so an earlier attempt ends first."""
    return [
        'cd lmtrain-tree || exit 0; exec 8>.running',
        f'if [ ! -e {folder} ] && flock -w 60 8 && mkdir {folder}; then : >{folder}/log; '
        """setsid sh -c 'bash launch/run.sh "$@" 8>&-; echo $? >$0/code.new && mv $0/code.new $0/code' """
        f'{folder} {shlex.join([*words, "--distributed"])} </dev/null >{folder}/log 2>&1 & fi',
        f'[ ! -e {folder} ] || say started',
    ]


def follow_lines(folder: str, report: str) -> list[str]:
    """Shell lines that print the log of a worker until its run ends, then run `report`."""
    return [
        f'cd lmtrain-tree && [ -e {folder}/log ] || exit 0',
        # flock ends with the run, and tail with flock. Lines are numbered so that none is printed twice.
        f"flock -s .running true & tail -n +1 -f --pid=$! {folder}/log | grep --line-buffered -an ''",
        report,
    ]


def verdict(words: dict[str, str]) -> tuple[str, str]:
    """(worker, its word) that decides the exit code of the run, from {worker: its exit code and last line}.

    A worker that failed by itself precedes those that only lost a peer.
    """

    def weight(who: str) -> tuple[bool, ...]:
        code = _code(words[who])
        by_itself = 0 < code < 128 and code != lifecycle.LOST
        return code in gke.HOPELESS, code in launcher.AGAIN, by_itself, code == GONE, code != 0

    # A worker exits with 0 only after JAX's shutdown barrier: a worker that is lost afterwards does not matter.
    if {_code(word) for word in words.values()} == {0, GONE}:
        words = {who: word for who, word in words.items() if not _code(word)}
    who = max(words, key=weight)
    return who, words[who]


def _code(word: str) -> int:
    return int(word.partition(':')[0])


def _attempts(values: flags.FlagValues, words: list[str], archive: pathlib.Path) -> tuple[str, str]:
    """Runs on the TPU, and on its replacements, until the run ends for good. Returns its `verdict`."""
    created = ready = False
    try:
        for attempt in range(values.retries + 1):
            steps = commands(values, words, archive, attempt)
            if not created:
                with _defer_signals():
                    _do(steps['create'])  # if it fails, the TPU of this name is someone else's and is not deleted
                    created = True
            ready = ready or _prepare(steps, values.node_count)
            ends = _ends(steps, values.node_count) if ready else {'the TPU': f'{GONE}: taken away'}
            who, word = verdict(ends)
            code = _code(word)
            if code in (0, *gke.HOPELESS) or attempt == values.retries:
                break
            ready = GONE not in map(_code, ends.values()) and _state(steps) == 'ACTIVE'
            if ready and code not in launcher.AGAIN:
                break
            again = 'again' if ready else 'again on a new TPU'
            print(f'lmtrain tpu: {who}: exit code {word}; {again}, {attempt + 1} of {values.retries}', file=sys.stderr)
            if not ready:
                with _defer_signals():
                    created = False
                    _delete(steps['delete'])
        return who, word
    except Unanswered:
        created = False
        raise
    finally:
        if created and not values.keep:
            with _defer_signals():
                _delete(steps['delete'])


def _prepare(steps: dict[str, list[str]], slices: int) -> bool:
    """Waits for the TPU and installs; False if it is taken away. Raises InputError if waiting is useless."""
    printed = None
    while (state := _state(steps)) != 'ACTIVE':
        if state in ('SUSPENDING', 'SUSPENDED'):
            return False
        if state in ('FAILED', 'DELETING'):
            raise InputError(f'the queued resource is {state}; why: {launcher.line(steps["state"][:-1])}')
        if state != printed:
            print(f'lmtrain tpu: {state}', file=sys.stderr)
            printed = state
        time.sleep(POLL)
    words, complete = _ask(steps, ('copy', 'install'), slices)
    failed = ', '.join(sorted(who for who, word in words.items() if word == 'failed'))
    if failed:
        raise InputError(f'the installation or --setup failed on {failed}; the lines above say why')
    if not complete and _state(steps) == 'ACTIVE':
        raise InputError(
            f'{len(words)} workers answered and others did not; the lines above say why. Several are reached only with '
            "gcloud's key in an ssh-agent: ssh-add ~/.ssh/google_compute_engine"
        )
    return complete


def _ends(steps: dict[str, list[str]], slices: int) -> dict[str, str]:
    """Starts the run and prints its log to the end. Returns {worker: its exit code and last line}."""
    if not _ask(steps, ('start',), slices)[1]:
        return {'a worker': f'{GONE}: could not be started'}
    words = _follow(steps)
    if not words:
        return {'worker 0': f'{GONE}: does not answer'}
    others, complete = _ask(steps, ('codes',), slices)
    return words | others | ({} if complete else {'a worker': f'{GONE}: does not answer'})


def _ask(steps: dict[str, list[str]], names: tuple[str, ...], slices: int) -> tuple[dict[str, str], bool]:
    """({worker: its word}, whether all have answered). Repeats while some do not answer and the TPU is ACTIVE."""
    words, count = {}, 0
    for _ in range(TRIES):
        for name in names:
            for line in _lines(steps[name]):
                if match := SAID.fullmatch(line):
                    worker, workers, word = match.groups()
                    words[worker], count = word, slices * int(workers)
                else:
                    print(line, file=sys.stderr)
        if 0 < count == len(words):
            return words, True
        if 'failed' in words.values() or _state(steps) != 'ACTIVE':
            break
        time.sleep(POLL)
    return words, False


def _follow(steps: dict[str, list[str]]) -> dict[str, str]:
    """Prints the log of worker 0 until its run ends; {worker 0: its exit code and last line}, {} if it is lost."""
    words, shown, silent = {}, 0, 0
    while silent < TRIES:
        silent += 1
        for line in _lines(steps['follow']):
            silent = 0
            number, _, text = line.partition(':')
            if match := SAID.fullmatch(line):
                words[match[1]] = match[3]
            elif not number.isdecimal():
                print(line, file=sys.stderr)
            elif int(number) > shown:
                print(text, flush=True)
                shown = int(number)
        if words or _state(steps) != 'ACTIVE':
            break
        time.sleep(POLL)
    return words


def _state(steps: dict[str, list[str]]) -> str:
    """The state of the queued resource. Raises Unanswered after an hour without one: the TPU may still exist."""
    for _ in range(PATIENCE):
        done = subprocess.run(
            steps['state'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding='utf-8', errors='replace'
        )
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
        time.sleep(POLL)
    raise Unanswered(
        f'no answer to: {launcher.line(steps["state"])}; the TPU is left as it is, and costs: '
        f'{launcher.line(steps["delete"])}'
    )


def _lines(argv: list[str]) -> Iterator[str]:
    """Lines of the stdout of a command; stderr is inherited."""
    process = None
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for line in process.stdout:
            yield line.decode(errors='replace').rstrip('\n')
        process.wait()
    finally:
        # A signal may come as soon as the process runs: the `with` statement of Popen would then wait for its end.
        if process:
            process.kill()
            process.stdout.close()
            process.wait()


def _do(argv: list[str]) -> None:
    """Runs a command, then prints its stderr. Raises InputError if it fails."""
    # In a session of its own: neither Ctrl-C nor the end of the terminal interrupts it.
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True, encoding='utf-8', errors='replace'
    )
    with contextlib.suppress(OSError):
        print(done.stderr, end='', file=sys.stderr, flush=True)
    if done.returncode:
        raise InputError(f'exit code {done.returncode} of: {launcher.line(argv)}')


def _delete(argv: list[str]) -> None:
    """Deletes the TPU. A failure is only printed: an exception may be propagating already."""
    with contextlib.suppress(OSError):
        print('lmtrain tpu: deletes the TPU ...', file=sys.stderr, flush=True)
    try:
        _do(argv)
    except ValueError as error:
        with contextlib.suppress(OSError):
            print(f'lmtrain tpu: the TPU may be there still, and cost: {error}', file=sys.stderr)


def _stop(number: int, frame) -> None:
    """Signal handler: ends the launcher, which deletes the TPU; later signals are ignored."""
    for other in _handled():  # a closed terminal may signal twice
        signal.signal(other, lambda *_: None)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Defers signals to the end of the block: an interrupted `create` leaves unknown whether a TPU exists."""
    waiting, handled = [], _handled()
    for number in handled:
        signal.signal(number, lambda *_: waiting.append(True))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, _stop)
    if waiting:
        _stop(0, None)


def _handled() -> list[int]:
    return [number for number in STOPS if signal.getsignal(number) == _stop]
