"""trains on a TPU slice of Google Cloud, or on several: creates it, copies the last commit, runs, and deletes it.

The run needs no connection: what worker 0 of the first slice writes is shown, and shown on after a connection was lost.
Where the run asks for it, it is started again there; where a worker or a spot TPU is taken away, on a new TPU. Its
folder must outlive the TPU: --setup mounts a file system on every worker. Ctrl-C deletes the TPU too. gcloud reaches
several workers only with its key in an ssh-agent: ssh-add ~/.ssh/google_compute_engine

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
    ('name', 'lmtrain', 'of the queued resource and its nodes'),
    ('zone', '', 'where, such as us-west4-a'),
    ('project', '', "whose; by default gcloud's own setting"),
    ('accelerator_type', '', 'type and size of a slice, such as v5litepod-256'),
    ('runtime_version', '', 'software of the workers, such as v2-alpha-tpuv5-lite or tpu-ubuntu2204-base'),
    ('setup', '', 'a shell command for every worker before the run, which mounts what outlives the TPU'),
):
    flags.DEFINE_string(name, default, help, flag_values=FLAGS)
flags.DEFINE_integer('node_count', 1, 'how many slices', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool('spot', False, 'cheaper, and taken away at any time', flag_values=FLAGS)
flags.DEFINE_bool('keep', False, 'leaves the TPU, and its cost, when the run ends', flag_values=FLAGS)

POLL = 30.0  # seconds between two questions to gcloud
TRIES = 10  # how often in a row workers may be silent while the queue says that the TPU is there
PATIENCE = 120  # the same for the queue itself: an hour
ENDING = 120  # seconds that the other workers have to end once worker 0 has
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last where the terminal is closed
GONE = 255  # stands for the exit code where a worker, or its run, ended without one

# The exit code of `gcloud compute tpus queued-resources ssh|scp` says nothing. gcloud 528 (tpus/tpu_vm/ssh.py) leaves
# out a node that it cannot prepare, such as one that was taken away, and ends with 0; reaches 64 workers at once, and
# the next when all of those have ended, or never where one failed; and runs a command again where its connection
# breaks. So what all workers are told ends by itself and with 0, does no harm when it is told twice, and counts as done
# where a worker says so: its name, how many workers its slice has (as jax counts them), and a word.
NETWORK = 'http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints'
SAY = (
    f'say() {{ n=$(curl -sSf -H "Metadata-Flavor: Google" {NETWORK} | tr , "\\n" | grep -c .); '
    'echo "lmtrain tpu: $(hostname) of $n: $*"; }'
)
SAID = re.compile(r'lmtrain tpu: (\S+) of (\d+): (.*)')


class Unanswered(InputError):
    """The queue does not answer: the TPU may be there, and the run may go on."""


def run(values: flags.FlagValues) -> None:
    """Raises ValueError for what cannot be started or created, survive.Ended with the exit code of the run."""
    words = launcher.train(values, 'tpu')
    archive = pathlib.Path(tempfile.gettempdir()) / f'{values.name}.tar.gz'
    steps = commands(values, words, archive)
    if values.print_only:
        print('\n'.join(launcher.line(step) for step in steps.values()))
        return
    launcher.need('gcloud', 'https://cloud.google.com/sdk/docs/install')
    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
    before = {number: signal.signal(number, _stop) for number in heard}
    try:
        _do(steps['archive'])
        print(f'lmtrain tpu: deletes it by hand: {launcher.line(steps["delete"])}', file=sys.stderr)
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
    """{step: argv}, in the order in which they are run. Raises ValueError naming a flag."""
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
    where = [f'--zone={values.zone}', *([f'--project={values.project}'] if values.project else [])]
    many = values.node_count > 1
    nodes = (
        [f'--node-count={values.node_count}', f'--node-prefix={values.name}'] if many else [f'--node-id={values.name}']
    )
    gcloud = ['gcloud', 'compute', 'tpus', 'queued-resources']
    everywhere = ['--node=all', '--worker=all', *where]
    # Else ssh would wait for ever for a worker that was taken away.
    alive = ['--ssh-flag=-oConnectTimeout=30', '--ssh-flag=-oServerAliveInterval=30']

    def ssh(lines: list[str], workers: list[str]) -> list[str]:
        return [*gcloud, 'ssh', values.name, *workers, *alive, f'--command={"; ".join([SAY, *lines])}']

    folder = f'run-{attempt}'  # in the tree: `log`, and `code` once the run has ended there
    apt = 'sudo apt-get -o DPkg::Lock::Timeout=300 -q'
    mine = shlex.quote(workdir)
    lost = shlex.quote(f'--workdir={workdir} is on the disk of the TPU and would be lost with it: --setup mounts none')
    install = [
        # That timeout is not for the lock of `update`, which a machine that has just started may hold.
        f'(command -v python3.11 || (for i in 1 2 3 4 5 6; do {apt} update && break; sleep 30; done; '
        f'{apt} -y install python3.11-venv)) >/dev/null',
        'mkdir -p lmtrain-tree',
        f'tar -xzf {archive.name} -C lmtrain-tree',
        'bash lmtrain-tree/launch/run.sh configs >/dev/null',
        "bash -c 'source lmtrain-tree/launch/venv.sh && install parquet'",  # the format of most texts
        f'({values.setup}) 8>&-',  # what stays behind, such as gcsfuse, would keep the lock
        f'mkdir -p {mine}',
        f'([ "$(stat -c %d {mine})" != "$(stat -c %d /)" ] || (echo {lost} >&2; false))',
        'touch lmtrain-installed',
    ]
    installed = [
        'exec 8>lmtrain-installing; flock 8',
        f'[ -e {archive.name} ] || exit 0',  # scp has left this worker out
        f'if [ -e lmtrain-installed ] || ({" && ".join(install)}); then say installed; else say failed; fi',
    ]
    # The lock is held as long as the run lives; what is left of an earlier attempt ends before this one begins.
    started = [
        'cd lmtrain-tree || exit 0; exec 8>.running',
        f'if [ ! -e {folder} ] && flock -w 60 8 && mkdir {folder}; then : >{folder}/log; '
        """setsid sh -c 'bash launch/run.sh "$@" 8>&-; echo $? >$0/code.new && mv $0/code.new $0/code' """
        f'{folder} {shlex.join([*words, "--distributed"])} </dev/null >{folder}/log 2>&1 & fi',
        f'[ ! -e {folder} ] || say started',
    ]
    code = f'say "$(cat {folder}/code || echo {GONE}): $(tail -n 1 {folder}/log | cut -c -300)"'
    followed = [
        f'cd lmtrain-tree && [ -e {folder}/log ] || exit 0',
        # flock ends with the run, and tail with flock; the lines are numbered, so that none is shown twice.
        f"flock -s .running true & tail -n +1 -f --pid=$! {folder}/log | grep --line-buffered -an ''",
        code,
    ]
    ended = ['cd lmtrain-tree || exit 0', f'flock -s -w {ENDING} .running true', code]
    return {
        'archive': ['git', '-C', str(launcher.ROOT), 'archive', '--format=tar.gz', f'--output={archive}', 'HEAD'],
        'create': [
            *(*gcloud, 'create', values.name, *nodes, f'--accelerator-type={values.accelerator_type}'),
            *(f'--runtime-version={values.runtime_version}', *where, *(['--spot'] if values.spot else [])),
        ],
        'state': [*gcloud, 'describe', values.name, *where, '--format=value(state.state)'],
        'copy': [*gcloud, 'scp', str(archive), f'{values.name}:', *everywhere],
        'install': ssh(installed, everywhere),
        'start': ssh(started, everywhere),
        'follow': ssh(followed, ['--node=0', '--worker=0', *where]),
        'codes': ssh(ended, everywhere),
        'delete': [*gcloud, 'delete', values.name, *where, '--force', '--quiet'],
    }


def verdict(words: dict[str, str]) -> tuple[str, str]:
    """(worker, its word) that stands for the run, of {worker: its exit code and last line}.

    Who ended by itself stands before those that only lost a peer.
    """

    def weight(who: str) -> tuple[bool, ...]:
        code = _code(words[who])
        by_itself = 0 < code < 128 and code != lifecycle.LOST
        return code in gke.HOPELESS, code in launcher.AGAIN, by_itself, code == GONE, code != 0

    # Who ends with 0 has met all the others at JAX's own end: that a worker is lost afterwards is no matter.
    if {_code(word) for word in words.values()} == {0, GONE}:
        words = {who: word for who, word in words.items() if not _code(word)}
    who = max(words, key=weight)
    return who, words[who]


def _code(word: str) -> int:
    return int(word.partition(':')[0])


def _attempts(values: flags.FlagValues, words: list[str], archive: pathlib.Path) -> tuple[str, str]:
    """Runs on what is created, and on what replaces it, until the run ends for good; its `verdict`."""
    made = ready = False
    try:
        for attempt in range(values.retries + 1):
            steps = commands(values, words, archive, attempt)
            if not made:
                with _undisturbed():
                    _do(steps['create'])  # where it fails, what has this name is somebody else's, and not deleted
                    made = True
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
                with _undisturbed():
                    made = False
                    _delete(steps['delete'])
        return who, word
    except Unanswered:
        made = False
        raise
    finally:
        if made and not values.keep:
            with _undisturbed():
                _delete(steps['delete'])


def _prepare(steps: dict[str, list[str]], slices: int) -> bool:
    """Waits for the TPU and installs; False where it is taken away. Raises ValueError where waiting is of no use."""
    said = None
    while (state := _state(steps)) != 'ACTIVE':
        if state in ('SUSPENDING', 'SUSPENDED'):
            return False
        if state in ('FAILED', 'DELETING'):
            raise InputError(f'the queued resource is {state}; why: {launcher.line(steps["state"][:-1])}')
        if state != said:
            print(f'lmtrain tpu: {state}', file=sys.stderr)
            said = state
        time.sleep(POLL)
    words, all_said = _ask(steps, ('copy', 'install'), slices)
    failed = ', '.join(sorted(who for who, word in words.items() if word == 'failed'))
    if failed:
        raise InputError(f'the installation or --setup failed on {failed}; the lines above say why')
    if not all_said and _state(steps) == 'ACTIVE':
        raise InputError(
            f'{len(words)} workers answered, and others not; the lines above say why. Several are reached only with '
            "gcloud's key in an ssh-agent: ssh-add ~/.ssh/google_compute_engine"
        )
    return all_said


def _ends(steps: dict[str, list[str]], slices: int) -> dict[str, str]:
    """Starts the run and shows it to its end; {worker: its exit code and last line}."""
    if not _ask(steps, ('start',), slices)[1]:
        return {'a worker': f'{GONE}: could not be started'}
    words = _follow(steps)
    if not words:
        return {'worker 0': f'{GONE}: does not answer'}
    others, all_said = _ask(steps, ('codes',), slices)
    return words | others | ({} if all_said else {'a worker': f'{GONE}: does not answer'})


def _ask(steps: dict[str, list[str]], names: tuple[str, ...], slices: int) -> tuple[dict[str, str], bool]:
    """({worker: its word}, whether all have said one), asked again while some are silent and the TPU is there."""
    words, count = {}, 0
    for _ in range(TRIES):
        for name in names:
            for line in _lines(steps[name]):
                if said := SAID.fullmatch(line):
                    who, of, words[said[1]] = said.groups()
                    count = slices * int(of)
                else:
                    print(line, file=sys.stderr)
        if 0 < count == len(words):
            return words, True
        if 'failed' in words.values() or _state(steps) != 'ACTIVE':
            break
        time.sleep(POLL)
    return words, False


def _follow(steps: dict[str, list[str]]) -> dict[str, str]:
    """Shows what worker 0 writes until its run ends; {worker 0: its exit code and last line}, {} where it is lost."""
    words, shown, silent = {}, 0, 0
    while silent < TRIES:
        silent += 1
        for line in _lines(steps['follow']):
            silent = 0
            number, _, text = line.partition(':')
            if said := SAID.fullmatch(line):
                words[said[1]] = said[3]
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
    """What the queue says. Raises Unanswered where it says nothing for long: no answer is not that the TPU is gone."""
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
    """What a command writes, line by line; what it says on stderr is shown."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            for line in process.stdout:
                yield line.decode(errors='replace').rstrip('\n')
        except BaseException:
            process.kill()
            raise


def _do(argv: list[str]) -> None:
    """Runs a command, then shows what it said. Raises ValueError where it fails."""
    # Away from the terminal: Ctrl-C and its end do not reach the command, and writing to one that is closed not either.
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True, encoding='utf-8', errors='replace'
    )
    with contextlib.suppress(OSError):
        print(done.stderr, end='', file=sys.stderr, flush=True)
    if done.returncode:
        raise InputError(f'exit code {done.returncode} of: {launcher.line(argv)}')


def _delete(argv: list[str]) -> None:
    """Deletes the TPU; where it fails it only says so, since an exception may be under way already."""
    with contextlib.suppress(OSError):
        print('lmtrain tpu: deletes the TPU ...', file=sys.stderr, flush=True)
    try:
        _do(argv)
    except ValueError as error:
        with contextlib.suppress(OSError):
            print(f'lmtrain tpu: the TPU may be there still, and cost: {error}', file=sys.stderr)


def _stop(number: int, frame) -> None:
    """A handler of signals: ends the launcher by way of deleting the TPU, in which no further signal disturbs it."""
    for other in _heard():  # a terminal that is closed may say so twice
        signal.signal(other, lambda *_: None)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait until the end: after half a `create` nobody would know whether there is a TPU, and whose."""
    waiting, heard = [], _heard()
    for number in heard:
        signal.signal(number, lambda *_: waiting.append(True))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, _stop)
    if waiting:
        _stop(0, None)


def _heard() -> list[int]:
    return [number for number in STOPS if signal.getsignal(number) == _stop]
