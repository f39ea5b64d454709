"""trains on a TPU slice of Google Cloud, or on several: creates it, copies the last commit, runs, and deletes it.

Where the run asks to be started again, or a spot TPU is taken away, it goes on, on a new one if need be. Its folder
must outlive the TPU: --setup mounts a file system on every worker. Worker 0 is shown; Ctrl-C deletes the TPU too.

lmtrain tpu --zone=us-west4-a --accelerator_type=v5litepod-256 --runtime_version=v2-alpha-tpuv5-lite --spot \\
            --setup='sudo mkdir -p /mnt/runs && sudo mount -t nfs 10.0.0.2:/runs /mnt/runs' \\
            -- train --config=configs/pretrain_gpt2.py --workdir=/mnt/runs/gpt2
"""

import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

from absl import flags

from launch import command
from lmtrain import survive

FLAGS = flags.FlagValues()
command.define(FLAGS, retries=20)
for name, default, help in (
    ('name', 'lmtrain', 'of the queued resource and its nodes'),
    ('zone', '', 'where, such as us-west4-a'),
    ('project', '', "whose; by default gcloud's own setting"),
    ('accelerator_type', '', 'type and size of a slice, such as v5litepod-256'),
    ('runtime_version', '', 'software of the workers, such as v2-alpha-tpuv5-lite or tpu-ubuntu2204-base'),
    ('setup', '', 'a shell command for every worker before the run, such as a mount'),
):
    flags.DEFINE_string(name, default, help, flag_values=FLAGS)
flags.DEFINE_integer('node_count', 1, 'how many slices', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool('spot', False, 'cheaper, and taken away at any time', flag_values=FLAGS)
flags.DEFINE_bool('keep', False, 'leaves the TPU, and its cost, when the run ends', flag_values=FLAGS)

POLL = 30.0  # seconds between two looks at what the queue says
# The run writes on every worker; shown is worker 0 of each slice, as the metadata server numbers them.
NUMBER = 'http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number'
LOST = 255  # ssh's exit code where the connection broke


def run(values: flags.FlagValues) -> None:
    """Raises ValueError for what cannot be started or created, survive.Ended with the exit code of the run."""
    words = command.train(values, 'tpu')
    archive = pathlib.Path(tempfile.gettempdir()) / f'{values.name}.tar.gz'
    steps = commands(values, words, archive)
    if values.print_only:
        print('\n'.join(command.line(step) for step in steps.values()))
        return
    command.need('gcloud', 'https://cloud.google.com/sdk/docs/install')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends this deletes the TPU as well
    _do(steps['archive'])
    print(f'lmtrain tpu: deletes it by hand: {command.line(steps["delete"])}', file=sys.stderr)
    _do(steps['create'])  # what another run has made by this name fails here, and is not deleted
    try:
        code = _attempts(steps, values.retries)
    finally:
        archive.unlink(missing_ok=True)
        if not values.keep:
            subprocess.run(steps['delete'])
    if code:
        raise survive.Ended(code, f'the run ended with exit code {code}')


def commands(values: flags.FlagValues, words: list[str], archive: pathlib.Path) -> dict[str, list[str]]:
    """{step: argv}, in the order in which they are run. Raises ValueError naming a flag."""
    for name in ('zone', 'accelerator_type', 'runtime_version'):
        if not values[name].value:
            raise ValueError(f'--{name} is missing: {values[name].help}')
    if not re.fullmatch('[a-z]([-a-z0-9]{0,48}[a-z0-9])?', values.name):
        raise ValueError(f'--name={values.name!r}: small letters, digits and -, a letter first')
    if not (command.value(words, 'workdir') or '').startswith('/'):
        raise ValueError(
            f'--workdir={command.value(words, "workdir") or ""!r} after --: an absolute path on a file system that '
            'outlives the TPU, such as --workdir=/mnt/runs/gpt2 with --setup mounting /mnt/runs'
        )
    where = [f'--zone={values.zone}', *([f'--project={values.project}'] if values.project else [])]
    many = values.node_count > 1
    nodes = (
        [f'--node-count={values.node_count}', f'--node-prefix={values.name}'] if many else [f'--node-id={values.name}']
    )
    gcloud = ['gcloud', 'compute', 'tpus', 'queued-resources']
    everywhere = ['--node=all', '--worker=all', *where]
    tree = 'lmtrain-tree'
    install = [
        '(command -v python3.11 || (sudo apt-get -q update && sudo apt-get -qy install python3.11-venv)) >/dev/null',
        f'mkdir -p {tree}',
        f'tar -xzf {archive.name} -C {tree}',
        f'bash {tree}/launch/run.sh configs >/dev/null',
        *([f'({values.setup})'] if values.setup else []),
    ]
    started = [
        f'cd {tree}',
        f'if [ "$(curl -sS -H "Metadata-Flavor: Google" {NUMBER})" != 0 ]; then exec >>run.log 2>&1; fi',
        # Where the connection broke, what it had started may still run: it ends before the next one begins.
        f'flock .running bash launch/run.sh {shlex.join([*words, "--distributed"])}',
    ]
    return {
        'archive': ['git', '-C', str(command.ROOT), 'archive', '--format=tar.gz', f'--output={archive}', 'HEAD'],
        'create': [
            *(*gcloud, 'create', values.name, *nodes, f'--accelerator-type={values.accelerator_type}'),
            *(f'--runtime-version={values.runtime_version}', *where, *(['--spot'] if values.spot else [])),
        ],
        'state': [*gcloud, 'describe', values.name, *where, '--format=value(state.state)'],
        'copy': [*gcloud, 'scp', str(archive), f'{values.name}:', *everywhere],
        'install': [*gcloud, 'ssh', values.name, *everywhere, f'--command={" && ".join(install)}'],
        'run': [*gcloud, 'ssh', values.name, *everywhere, f'--command={"; ".join(started)}'],
        'delete': [*gcloud, 'delete', values.name, *where, '--force', '--quiet'],
    }


def _attempts(steps: dict[str, list[str]], retries: int) -> int:
    """Runs on what is created, and on what replaces it, until the run ends for good; its exit code."""
    ready = False
    for attempt in range(retries + 1):
        if not ready:
            _wait(steps['state'])
            _do(steps['copy'])
            _do(steps['install'])
        code = subprocess.run(steps['run']).returncode
        ready = _state(steps['state']) == 'ACTIVE'
        again = code in (*command.AGAIN, LOST) or not ready
        if not code or not again or attempt == retries:
            return code
        lost = '' if ready else ', and the TPU is gone'
        print(f'lmtrain tpu: exit code {code}{lost}; again, {attempt + 1} of {retries}', file=sys.stderr)
        if not ready:
            _do(steps['delete'])
            _do(steps['create'])
    raise AssertionError('the last attempt returns')


def _wait(asked: list[str]) -> None:
    """Waits for the TPU. Raises ValueError where it will not come."""
    said = None
    while (state := _state(asked)) != 'ACTIVE':
        if state in ('FAILED', 'SUSPENDING', 'SUSPENDED', 'DELETING'):
            raise ValueError(f'the queued resource is {state}; why: {command.line(asked[:-1])}')
        if state != said:
            print(f'lmtrain tpu: {state}', file=sys.stderr)
            said = state
        time.sleep(POLL)


def _state(asked: list[str]) -> str:
    """What the queue says; '' where it says nothing."""
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def _do(argv: list[str]) -> None:
    """Raises ValueError where the command fails; it has said why."""
    code = subprocess.run(argv).returncode
    if code:
        raise ValueError(f'exit code {code} of: {command.line(argv)}')
