"""Do the launchers work with real processes on this machine, and with a real SLURM of two nodes on it?

    apt-get install slurmctld slurmd slurm-client munge      # as root, on Debian
    python -m experiments.launchers [--only=local|slurm]

SLURM's daemons are started with a configuration in a folder of their own and ended afterwards.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from experiments import cli, record

STEPS = 200
ENDED = ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY')  # states of a job
LIMIT = 400  # seconds that a job may take
CONFIGURATION = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
TreeWidth=65533
MpiDefault=none
KillWait=20
# A second is what a test can wait for.
OverTimeLimit=0
SchedulerParameters=sched_interval=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={n0} CPUs={cores} State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def settings(folder: pathlib.Path, steps: int = 0) -> list[str]:
    values = cli.small_text(folder) | {'budget.steps': steps or STEPS}
    values |= {'evaluate.every_steps': 100, 'checkpoint.every_steps': 100}
    return ['train', '--config=configs/tiny.py', *(f'--config.{name}={value}' for name, value in values.items())]


def metrics(workdir: pathlib.Path) -> list[dict]:
    return cli.json_lines(workdir / 'metrics.jsonl')


def whole(workdir: pathlib.Path, steps: int = 0) -> bool:
    """Whether every training step stands once in metrics.jsonl, in order."""
    return [row['step'] for row in metrics(workdir) if 'loss' in row] == list(range(1, (steps or STEPS) + 1))


def reached(workdir: pathlib.Path, step: int, limit: float = LIMIT) -> int:
    """Waits until a run has logged this step; the step that it has logged. Raises TimeoutError."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        last = max((row['step'] for row in metrics(workdir)), default=0)
        if last >= step:
            return last
        time.sleep(0.1)
    raise TimeoutError(f'{workdir} has not reached step {step} after {limit:g} s')


# --- processes of this machine ----------------------------------------------------------------------------------------


def local(folder: pathlib.Path) -> list[dict]:
    """Two processes of four devices: to the end; one killed; one signalled and started again."""

    def start(name: str, *more: str):
        words = ['local', '--processes=2', '--devices=4', *more, '--', *settings(folder)]
        return cli.start(*words, f'--workdir={folder / name}', output=folder / f'{name}.txt')

    def ranks(launcher: subprocess.Popen) -> list[int]:
        path = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children')
        return [int(pid) for pid in path.read_text(encoding='utf-8').split()]

    trials = []
    began = time.monotonic()
    launcher = start('whole')
    code = launcher.wait(LIMIT)
    trials.append(
        {'what': 'whole', 'code': code, 'seconds': time.monotonic() - began, 'metrics': whole(folder / 'whole')}
    )
    for killed in (0, 1):
        launcher = start(f'killed{killed}')
        reached(folder / f'killed{killed}', 5)
        os.kill(ranks(launcher)[killed], signal.SIGKILL)
        began = time.monotonic()
        code = launcher.wait(LIMIT)
        trials.append({'what': 'killed', 'rank': killed, 'code': code, 'seconds': time.monotonic() - began})
    launcher = start('signalled', '--retries=1')
    reached(folder / 'signalled', 5)
    os.kill(ranks(launcher)[1], signal.SIGTERM)
    code = launcher.wait(LIMIT)
    same = (folder / 'signalled' / 'metrics.jsonl').read_bytes() == (folder / 'whole' / 'metrics.jsonl').read_bytes()
    again = (folder / 'signalled.txt').read_text(encoding='utf-8').count('exit code 42; again')
    trials.append({'what': 'signalled', 'code': code, 'again': again, 'same': same})
    return [{'launcher': 'local'} | trial for trial in trials]


# --- SLURM ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(folder: pathlib.Path):
    """A SLURM of two nodes in the environment of this process; every daemon ends with it."""
    folder.mkdir()
    ports = []
    for _ in range(3):
        with socket.socket() as tried:
            tried.bind(('127.0.0.1', 0))
            ports.append(tried.getsockname()[1])
    (folder / 'state').mkdir()
    host = socket.gethostname().partition('.')[0]
    values = dict(zip(('port', 'n0', 'n1'), ports, strict=True)) | {'host': host, 'cores': os.cpu_count()}
    (folder / 'slurm.conf').write_text(CONFIGURATION.format(folder=folder, **values), encoding='utf-8')
    environment = os.environ | {'SLURM_CONF': str(folder / 'slurm.conf')}
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    os.makedirs('/run/munge', mode=0o755, exist_ok=True)
    daemons = [
        ['munged', '--foreground', '--force', f'--key-file={key}', f'--pid-file={folder}/munged.pid']
        + [f'--log-file={folder}/munged.log', f'--seed-file={folder}/munged.seed'],
        ['slurmctld', '-D'],
        ['slurmd', '-D', '-N', 'n0'],
        ['slurmd', '-D', '-N', 'n1'],
    ]
    running = []
    try:
        for argv in daemons:
            with open(folder / f'{len(running)}-{argv[0]}.txt', 'w', encoding='utf-8') as output:
                running.append(subprocess.Popen(argv, env=environment, stdout=output, stderr=subprocess.STDOUT))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while slurm(environment, 'sinfo', '-h', '-o', '%D %t') != '2 idle':
            if time.monotonic() > deadline:
                raise TimeoutError(f'no two idle nodes after 60 s: {folder}')
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def slurm(environment: dict, *argv: str) -> str:
    done = subprocess.run(argv, env=environment, capture_output=True, encoding='utf-8')
    return (done.stdout or done.stderr).strip()


def field(environment: dict, job: str, name: str) -> str:
    shown = slurm(environment, 'scontrol', 'show', 'job', job, '--oneliner')
    return dict(pair.partition('=')[::2] for pair in shown.split()).get(name, '')


def slurm_jobs(folder: pathlib.Path, signalled: tuple[int, ...] = (5, 120), hurt: bool = True) -> list[dict]:
    """Two nodes of one process: to the end; signalled at some steps; where `hurt`, over the limit, and one killed."""
    trials = []
    with cluster(folder / 'cluster') as environment:

        def submit(name: str, *more: str, limit: str = '1:00:00', steps: int = 0) -> str:
            words = ['slurm', '--nodes=2', '--devices=2', f'--time={limit}', f'--name={name}', *more]
            command = cli.command(*words, '--', *settings(folder, steps), f'--workdir={folder / name}')
            # The job runs where it is submitted; its output is written there.
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment | {'PYTHONPATH': str(record.ROOT)},
                capture_output=True,
                encoding='utf-8',
            )
            if done.returncode:
                raise SystemExit(f'{shlex.join(command)}\n{done.stderr}')
            return done.stdout.split()[1]

        def ended(job: str) -> dict:
            """Waits for the job, shortening what SLURM waits before it starts a job again."""
            deadline = time.monotonic() + LIMIT
            while (state := field(environment, job, 'JobState')) not in ENDED:
                if state == 'PENDING':
                    time.sleep(5)  # at once, the nodes still refuse what they have just ended
                    slurm(environment, 'scontrol', 'update', f'JobId={job}', 'StartTime=now')
                if time.monotonic() > deadline:
                    raise TimeoutError(f'job {job} is {state}; {folder}/slurm-{job}.out')
                time.sleep(0.5)
            output = (folder / f'slurm-{job}.out').read_text(encoding='utf-8')
            return {
                'state': state,
                'code': field(environment, job, 'ExitCode'),
                'starts': output.count('lmtrain slurm: job '),
                'requeued': output.count('lmtrain slurm: back into the queue'),
            }

        def same(name: str) -> bool:
            return (folder / name / 'metrics.jsonl').read_bytes() == (folder / 'whole' / 'metrics.jsonl').read_bytes()

        began = time.monotonic()
        outcome = ended(submit('whole'))
        trials.append(
            {'what': 'whole', **outcome, 'seconds': time.monotonic() - began, 'metrics': whole(folder / 'whole')}
        )
        for step in signalled:
            job = submit(f'asked{step}')
            reached(folder / f'asked{step}', step)
            slurm(environment, 'scancel', '--signal=TERM', job)
            outcome = ended(job)
            trials.append({'what': 'signal', 'step': step, **outcome, 'same': same(f'asked{step}')})
        if hurt:
            # SLURM looks once a minute: the signal comes 60 to 120 s before the limit of two minutes, and the steps
            # take longer than that.
            steps = 12 * STEPS
            for name in ('limited', 'limited-again'):
                outcome = ended(submit(name, '--save_seconds=60', limit='2', steps=steps))
                once = whole(folder / name, steps)
                trials.append({'what': 'limit', **outcome, 'steps': steps, 'metrics': once})
            job = submit('killed')
            reached(folder / 'killed', 5)
            _kill_one(folder / 'killed')
            began = time.monotonic()
            outcome = ended(job)
            trials.append({'what': 'killed', **outcome, 'seconds': time.monotonic() - began})
    return [{'launcher': 'slurm'} | trial for trial in trials]


def _kill_one(workdir: pathlib.Path) -> None:
    """kill -9 of process 1 of a run on this machine, identified by its command line."""
    for entry in pathlib.Path('/proc').iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (entry / 'cmdline').read_bytes().decode().split('\0')
                if f'--workdir={workdir}' in words and '--process_id=1' in words and 'python' in words[0]:
                    os.kill(int(entry.name), signal.SIGKILL)


# --- what is shown ----------------------------------------------------------------------------------------------------


def figures(trials: list[dict]) -> list[dict]:
    def counted(good):
        return lambda group: f'{sum(map(good, group))} of {len(group)}'

    def to_the_end(trial):
        return trial['code'] in (0, '0:0') and trial['metrics']

    def resumed(trial):
        return trial['code'] in (0, '0:0') and trial.get('requeued', trial.get('again')) == 1 and trial['same']

    def limited(trial):
        return trial['code'] == '0:0' and trial['requeued'] >= 1 and trial['metrics']

    def slowest(group):
        return f'{max(trial["seconds"] for trial in group):.1f} s, exit codes {[trial["code"] for trial in group]}'

    def requeued(group):
        return f'{counted(limited)(group)}, requeued {" and ".join(str(trial["requeued"]) for trial in group)} times'

    words = f'{STEPS} steps of the tiny recipe, every step in metrics.jsonl once'
    unbroken = 'metrics.jsonl that of the unbroken run'
    rows = []

    def show(launcher, name, what, good, figure=None, target='all'):
        group = [trial for trial in trials if (trial['launcher'], trial['what']) == (launcher, name)]
        if group:
            shown = (figure or counted(good))(group)
            rows.append({'what': what, 'figure': shown, 'target': target, 'reached': all(map(good, group))})

    show('local', 'whole', f'local, 2 processes of 4 devices: {words}', to_the_end)
    what = 'local: from the kill -9 of a process (0, then 1) to the end of all'
    show('local', 'killed', what, lambda trial: trial['seconds'] < 15, slowest, '< 15 s')
    show('local', 'signalled', f'local: SIGTERM to process 1, exit 42, started again by --retries; {unbroken}', resumed)
    show('slurm', 'whole', f'SLURM, 2 nodes of 1 process of 2 devices: {words}', to_the_end)
    show('slurm', 'signal', f'SLURM: `scancel --signal=TERM`, exit 42, requeued once, resumed; {unbroken}', resumed)
    what = 'SLURM: a limit of two minutes, SIGTERM a minute before it, requeued until the last step; every step once'
    show('slurm', 'limit', what, limited, requeued)
    what = 'SLURM: from the kill -9 of process 1 to the end of the job, which is not requeued'
    show('slurm', 'killed', what, lambda t: t['seconds'] < 30 and not t['requeued'], slowest, '< 30 s')
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--only', choices=('local', 'slurm'))
    only = parser.parse_args().only
    folder = pathlib.Path(tempfile.mkdtemp(prefix='launchers-'))
    path = record.ROOT / 'experiments' / 'launchers' / 'results.json'
    commit = {'commit': record.git('rev-parse', '--short=10', 'HEAD')}
    # What is not measured again keeps its trials, and each says of which commit it is.
    previous = json.loads(path.read_text(encoding='utf-8'))['trials'] if only else []
    trials = [trial for trial in previous if trial['launcher'] != only]
    not_shown = ['several machines: both nodes of the cluster are this one, and its devices are simulated']
    for name, measure in (('local', local), ('slurm', slurm_jobs)):
        if only in (None, name):
            (folder / name).mkdir()
            record.write_text(folder / name)
            trials += [trial | commit for trial in measure(folder / name)]
    for trial in trials:
        print(trial)
    not_shown += [
        'GPUs: local divides them by CUDA_VISIBLE_DEVICES, SLURM by --gpus-per-node and --gpus-per-task',
        'tpu and gke: gcloud and kubectl are stand-ins in the tests; flags and fields are from their references',
    ]
    shown = figures(trials)
    record.write(
        'launchers',
        command='python -m experiments.launchers',
        figures=shown,
        trials=trials,
        not_shown=not_shown,
        slurm=subprocess.run(['slurmctld', '-V'], capture_output=True, encoding='utf-8').stdout.strip(),
    )
    if all(row['reached'] for row in shown):
        shutil.rmtree(folder)
    else:
        print(f'what was not reached has its words in {folder}')


if __name__ == '__main__':
    main()
