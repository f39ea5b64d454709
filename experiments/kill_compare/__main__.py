"""Does a comparison that is killed and continued give the report of one that was not, and run no trial twice?

    python -m experiments.kill_compare [--kills=5]

Every comparison is `lmtrain compare` in a process of its own, in the same folder; the command after the kill is the
same.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import tempfile
import time

from experiments import cli, record
from lmtrain.compare import report

KILLS = 5
LIMIT = 300  # seconds that a process may take
# Fields of results.json, at any depth, that are not compared. They are measured on a clock or of a process, follow from
# such a number, or say that a trial was interrupted.
LEFT_OUT = (
    'device_seconds',
    'query_seconds',
    'query_seconds_cached',
    'update_seconds',
    'peak_bytes',
    'joules',
    'price',
    'interrupted',
)
CLASSES = ('cats', 'dogs', 'mice')
SETTINGS = {
    'task.text': 'note',
    'task.label': 'animal',
    'data.seq_len': 32,
    'budget.steps': 20,
    'evaluate.every_steps': 10,
    'compare.sizes': (16,),
    'compare.seeds': 2,
    'compare.selection': 16,
    'compare.test': 32,
    'compare.only': ('few_shot', 'head', 'lora'),
    'log.every_steps': 1,
}


def prepare(folder: pathlib.Path) -> dict:
    """Trains a base of two layers of width 32 and writes the rows of a task; the overrides of the comparison."""
    record.write_text(folder)
    text = cli.small_text(folder) | {'data.seq_len': 256}  # demonstrations need context
    cli.train('tiny', folder / 'base', text, output=folder / 'base.txt')
    rows = [{'note': f'{i * i} {CLASSES[i % 3]} sat', 'animal': CLASSES[i % 3]} for i in range(160)]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / 'rows.jsonl').write_text(lines, encoding='utf-8')
    own = {'init.base': folder / 'base', 'task.train': folder / 'rows.jsonl', 'data.cache': folder / 'cache'}
    return SETTINGS | own


def start(folder: pathlib.Path, settings: dict):
    """The comparison in a process of its own, in folder/run."""
    words = ['compare', '--config=configs/compare.py', f'--workdir={folder / "run"}']
    return cli.start(*words, config=settings, output=folder / 'run.txt')


def begun(folder: pathlib.Path) -> dict[str, int]:
    """{trial: when it was started the last time, in nanoseconds}, from the file that each start of a trial writes."""
    paths = (folder / 'run' / 'trials').glob('*/*/digest.txt')
    return {str(path.parent.relative_to(folder / 'run')): path.stat().st_mtime_ns for path in paths}


def finished(folder: pathlib.Path) -> dict[str, bytes]:
    """{trial: its trial.json} of those that are finished."""
    paths = (folder / 'run' / 'trials').glob('*/*/trial.json')
    return {str(path.parent.relative_to(folder / 'run')): path.read_bytes() for path in paths}


def wait_for_first_trial(process, folder: pathlib.Path) -> float:
    """The time (time.monotonic) at which the first trial was started."""
    while process.poll() is None and not begun(folder):
        time.sleep(0.005)
    return time.monotonic()


def with_values_of(value, other):
    """A JSON value whose LEFT_OUT fields are those of `other`, as far as that has the same places."""
    if isinstance(value, dict) and isinstance(other, dict):
        return {
            name: other[name] if name in LEFT_OUT and name in other else with_values_of(each, other.get(name))
            for name, each in value.items()
        }
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        return [with_values_of(*pair) for pair in zip(value, other)]
    return value


def outcome(folder: pathlib.Path, whole: dict | None = None) -> dict:
    """{'results': content of results.json, 'page': bytes of report.html} of the comparison in folder/run.

    Args:
      whole: the outcome of the uninterrupted comparison. Both files then have its LEFT_OUT fields: report.html is a
        function of results.json, and is written again from it. An empty page: report.html was not that function.
    """
    run = folder / 'run'
    results, page = json.loads((run / 'results.json').read_bytes()), (run / 'report.html').read_bytes()
    if whole is None:
        return {'results': results, 'page': page}
    if report.write(run).read_bytes() != page:
        return {'results': results, 'page': b''}
    results = with_values_of(results, whole['results'])
    (run / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    return {'results': results, 'page': report.write(run).read_bytes()}


def compared(folder: pathlib.Path, whole: dict) -> dict:
    """{'equal_results', 'equal_report', 'trials'} of the comparison in folder/run, which has ended."""
    own = outcome(folder, whole)
    return {
        'equal_results': own['results'] == whole['results'],
        'equal_report': own['page'] == whole['page'],
        'trials': len(own['results']['trials']),
    }


def killed(folder: pathlib.Path, settings: dict, whole: dict, name: str, delay: float) -> dict:
    """One trial: a comparison that is killed `delay` seconds after its first trial began, and the same command."""
    process = start(folder, settings)
    wait_for_first_trial(process, folder)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    code = process.wait(LIMIT)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit((folder / 'run.txt').read_text(encoding='utf-8'))
    first, done = begun(folder), finished(folder)
    resumed = start(folder, settings).wait(LIMIT)
    last, ended = begun(folder), finished(folder)
    starts = {trial: (trial in first) + (first.get(trial) != when) for trial, when in last.items()}
    again = [trial for trial in done if starts[trial] > 1 or ended[trial] != done[trial]]
    about = {'what': name, 'disturbed': f'{delay:.2f} s after its first trial began', 'exit': code}
    about |= {'resumed_exit': resumed, 'finished': len(done), 'starts': starts, 'finished_and_run_again': again}
    about |= compared(folder, whole) if resumed == 0 else {'equal_results': False, 'equal_report': False}
    shutil.rmtree(folder / 'run')
    return about


def judged(trial: dict) -> dict:
    """The trial with 'equal' and, of a kill, 'once': no finished trial was run again, and one other started twice."""
    trial = trial | {'equal': trial['equal_results'] and trial['equal_report']}
    if 'starts' not in trial:
        return trial
    twice = sum(count > 1 for count in trial['starts'].values())
    return trial | {'once': not trial['finished_and_run_again'] and twice <= 1}


def figures(trials: list[dict]) -> list[dict]:
    kills, others = ([trial for trial in trials if ('starts' in trial) == is_kill] for is_kill in (True, False))
    same = 'results.json and report.html as without the kill, times aside'
    rows = (
        (f'kill -9 at a random moment of a comparison, then the same command: {same}', 'equal', kills),
        ('the same: no finished trial is run again, and only the one that was running is started twice', 'once', kills),
        ('a second comparison that is not killed: the same files, times aside', 'equal', others),
    )
    return [cli.counted(what, [trial | {'as_wanted': trial[field]} for trial in own]) for what, field, own in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--kills', type=int, default=KILLS)
    parser.add_argument('--out', default='', help='the file to write instead of results.json')
    arguments = parser.parse_args()
    draw, clock = random.Random(0), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        settings, whole, trials = prepare(folder), None, []
        for name in ('the first', 'the second'):  # the second one compiles nothing, as those that are killed
            process = start(folder, settings)
            first = wait_for_first_trial(process, folder)
            if process.wait(LIMIT):
                raise SystemExit((folder / 'run.txt').read_text(encoding='utf-8'))
            seconds = time.monotonic() - first
            if whole is None:
                whole = outcome(folder)
            else:
                trials.append(judged({'what': f'{name}, not killed', 'seconds': seconds} | compared(folder, whole)))
                print(json.dumps(trials[-1]), flush=True)
            shutil.rmtree(folder / 'run')
        for index in range(arguments.kills):  # one in each of as many equal parts of the time
            delay, trial = seconds * (index + draw.random()) / arguments.kills, {'exit': 0}
            while trial['exit'] == 0:  # it had ended before
                trial = killed(folder, settings, whole, f'kill {index}', delay)
                delay *= 0.8
            trials.append(judged(trial))
            print(json.dumps(trials[-1]), flush=True)
    record.write(
        'kill_compare',
        command='python -m experiments.kill_compare',
        figures=figures(trials),
        trials=trials,
        not_shown=[
            f'fields of results.json that are not compared: {", ".join(LEFT_OUT)}. The compared report.html is written '
            'from results.json with the values that these fields have without the kill',
            'kills before the first trial, of which a comparison keeps only its rows',
        ],
        seconds=round(time.monotonic() - clock),
        out=arguments.out,
    )


if __name__ == '__main__':
    main()
