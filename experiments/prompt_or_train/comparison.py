"""Runs `lmtrain compare` and records its results as figures; shared by the experiments prompt_or_train*."""

import argparse
import json
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence

from experiments import cli, record

# Examples for a machine of two cores, not measurements: EUR for an hour of it and for a kilowatt-hour, and its power.
PRICES = {'compare.device_hour': 0.10, 'compare.kwh': 0.30, 'compare.watts': 65.0}


def run(workdir: pathlib.Path, config: Mapping[str, object]) -> dict:
    """results.json of a comparison; a second call runs what is missing in the folder."""
    cli.run('compare', f'--workdir={workdir}', config=config)
    return json.loads(portable((workdir / 'results.json').read_text(encoding='utf-8'), workdir, config))


def run_in_parts(workdir: pathlib.Path, config: Mapping[str, object], parts: int) -> dict:
    """The same as `run`, after `parts` processes at a time have run a share of the arms each.

    For a GPU with many cores, which is idle while one process compiles. Each part is a comparison of its own, with the
    same rows; its trials are moved to `workdir`, where a last call finds them finished and writes the report.
    """
    if workdir.exists():
        return run(workdir, config)
    arms = config['compare.only']
    shares = {workdir.parent / f'{workdir.name}-part{index}': arms[index::parts] for index in range(parts)}
    processes = [
        cli.start('compare', f'--workdir={folder}', config=config | {'compare.only': share})
        for folder, share in shares.items()
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f'{workdir}-part*: a part failed; the same command continues the others')
    first, *others = shares
    for other in others:
        for arm in (other / 'trials').iterdir():
            shutil.move(arm, first / 'trials' / arm.name)
        shutil.rmtree(other)
    first.rename(workdir)
    return run(workdir, config)


def portable(text: str, workdir: pathlib.Path, config: Mapping[str, object]) -> str:
    """A text with names in place of the folders of this machine.

    >>> portable('/runs/a/base and /models/b', pathlib.Path('/runs/a'), {'init.base': '/models/b'})
    'WORKDIR/base and BASE'
    """
    folders = {
        str(workdir): 'WORKDIR',
        str(config.get('init.base', '')): 'BASE',
        str(config.get('data.root', '')): 'ROOT',
    }
    for folder in sorted(filter(None, folders), key=len, reverse=True):
        text = text.replace(folder, folders[folder])
    return text


def figures(task: str, results: dict) -> list[dict]:
    """A row for each arm at the largest size, and one for the task."""
    from lmtrain.compare.pages import values  # late: other experiments render tables without it

    facts, size = results['task'], values.sizes(results)[-1]
    majority = values.percent(facts.get('majority'))
    about = f'{facts["rows"]["test"]:,} test rows, {len(facts["classes"])} classes, most frequent class {majority}'
    rows = [record.row(f'{task}: {values.percent(facts["chance"])} is chance', about)]
    for arm in values.scored(results, size):
        entry = values.summary(results, arm, size)
        seconds = values.seconds(values.cost(results, arm, size, 'device_seconds'))
        create, query = (
            values.quantity(values.cost(results, arm, size, field), 'FLOP') for field in ('create_flops', 'query_flops')
        )
        figure = f'{values.percent(entry["accuracy"])} ({values.interval(entry.get("interval"))})'
        money = [
            values.amount(results, amount, unit)
            for field, unit in (('price', 'money'), ('joules', 'J'))
            if (amount := values.cost(results, arm, size, field)) is not None
        ]
        figure += f'; to create {", ".join([create, seconds, *money])}; for a query {query}'
        rows.append(record.row(f'{task}, {arm}, {entry["size"]} rows: accuracy (95 % interval)', figure))
    missing = [(name, arm) for name, arm in results['arms'].items() if arm['status'] != 'done']
    return rows + [record.row(f'{task}, {name}', f'{arm["status"]}: {arm["reason"]}') for name, arm in missing]


def write(
    name: str,
    command: str,
    comparisons: Mapping[str, dict],
    not_shown: Sequence[str],
    more: Sequence[dict] = (),
    **fields,
) -> None:
    """Writes experiments/NAME/results.json.

    Args:
      comparisons: {task: results.json of its comparison}.
      more: rows of figures after those of the comparisons.
      fields: further entries of results.json, see `record.write`.
    """
    trials = [{'task': task} | trial for task, results in comparisons.items() for trial in results['trials']]
    record.write(
        name,
        command=command,
        figures=[row for task, results in comparisons.items() for row in figures(task, results)] + list(more),
        trials=trials,
        not_shown=not_shown,
        comparisons={
            task: {field: value for field, value in results.items() if field != 'trials'}
            for task, results in comparisons.items()
        },
        **fields,
    )


def page(workdir: pathlib.Path, config: Mapping[str, object]) -> str:
    """The page of a comparison, with names in place of the folders of this machine."""
    return portable((workdir / 'report.html').read_text(encoding='utf-8'), workdir, config)


def on_tasks(name: str, description: str, tasks: Mapping[str, dict], shared: dict, not_shown: Sequence[str]) -> None:
    """The command of an experiment on a base directory: a comparison for each task, resumed if it was stopped.

    Args:
      tasks: {name: overrides of configs/compare.py}.
      shared: overrides of all tasks.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--base', type=pathlib.Path, help='directory of the model, with its tokenizer')
    parser.add_argument('--root', type=pathlib.Path, help='folder of banking77/ and sentence_polarity/')
    parser.add_argument('--workdir', default=f'runs/{name}', type=pathlib.Path)
    parser.add_argument('--tasks', default=','.join(tasks), help='names, with commas')
    parser.add_argument('--test', default=0, type=int, help='test rows; 0 is all')
    parser.add_argument('--parts', default=1, type=int, help='processes of a task, among which its arms are divided')
    parser.add_argument(
        '--out', type=pathlib.Path, help='measures into this folder; for a machine without a repository'
    )
    parser.add_argument('--record', metavar='COMMIT:DIR', help='records what --out has measured at that commit')
    options = parser.parse_args()
    if options.record:
        commit, folder = options.record.split(':', 1)
        _record(name, tasks, pathlib.Path(folder), not_shown, commit)
        return
    if not options.base or not options.root:
        parser.error('--base and --root are required to measure')
    out = options.out or options.workdir / 'measured'
    _measure(options, tasks, shared, out.absolute())
    if not options.out:
        _record(name, tasks, out, not_shown)


def _measure(options: argparse.Namespace, tasks: Mapping[str, dict], shared: dict, out: pathlib.Path) -> None:
    """Runs the comparisons; writes TASK.json (results, machine, versions, minutes) and TASK.html into `out`."""
    shared = PRICES | shared | {'init.base': options.base.absolute(), 'data.root': options.root.absolute()}
    shared |= {'data.tokenizer': 'base', 'data.seq_len': 128, 'task.too_long': 'cut', 'compare.test': options.test}
    out.mkdir(parents=True, exist_ok=True)
    for task in options.tasks.split(','):
        workdir, config = options.workdir.absolute() / task, shared | tasks[task]
        from_nothing, start = not workdir.exists(), time.monotonic()
        results = run_in_parts(workdir, config, options.parts) if options.parts > 1 else run(workdir, config)
        measured = {'results': results, 'test': options.test}
        # A comparison that goes on where another call stopped does not tell how long the whole takes.
        measured['minutes'] = (time.monotonic() - start) / 60 if from_nothing else None
        measured |= {'machine': record.machine(), 'versions': record.versions()}
        (out / f'{task}.json').write_text(json.dumps(measured), encoding='utf-8')
        (out / f'{task}.html').write_text(page(workdir, config), encoding='utf-8')


def _record(
    name: str, tasks: Mapping[str, dict], out: pathlib.Path, not_shown: Sequence[str], commit: str = ''
) -> None:
    """Writes results and pages of a folder of `_measure` into experiments/NAME; of other tasks, what is recorded stays.

    Every task keeps the commit, machine and versions with which it was measured. `commit` '' is the present one.
    """
    files = {task: out / f'{task}.json' for task in tasks if (out / f'{task}.json').exists()}
    at = {'commit': record.git('rev-parse', commit) if commit else record.commit()}
    new = {task: json.loads(file.read_text(encoding='utf-8')) | at for task, file in files.items()}
    both = _recorded(name) | new
    measured = {task: both[task] for task in tasks if task in both}
    missing = [f'{task}: not measured' for task in tasks if task not in measured]
    missing += [f'{task}: test rows beyond {each["test"]}' for task, each in measured.items() if each['test']]
    missing += [
        f'{task}, two cores: it ran on {_device(each)}' for task, each in measured.items() if 'cpu' not in _device(each)
    ]
    last = next(iter(new.values()))
    write(
        name,
        f'python -m experiments.{name} --base=DIR --root=DIR',
        {task: each['results'] for task, each in measured.items()},
        [*missing, *not_shown],
        [_whole(task, each) for task, each in measured.items()],
        commit=last['commit'],
        machine=last['machine'],
        versions=last['versions'],
        measured={
            task: {field: value for field, value in each.items() if field != 'results'}
            for task, each in measured.items()
        },
    )
    for task in new:
        shutil.copyfile(out / f'{task}.html', record.ROOT / 'experiments' / name / f'{task}.html')


def _recorded(name: str) -> dict[str, dict]:
    """{task: what `_measure` wrote, and its commit} of experiments/NAME/results.json; {} without the file."""
    previous = record.load(name) or {}
    result = {}
    for task, fields in previous.get('measured', {}).items():
        trials = [
            {field: value for field, value in trial.items() if field != 'task'}
            for trial in previous['trials']
            if trial['task'] == task
        ]
        result[task] = fields | {'results': previous['comparisons'][task] | {'trials': trials}}
    return result


def _device(measured: dict) -> str:
    return measured['results']['provenance']['machine']['devices']


def _whole(task: str, measured: dict) -> dict:
    """The row of a comparison as a whole: its minutes, unless it was resumed, its commit and machine."""
    machine = measured['machine']
    minutes = f'{measured["minutes"]:.1f} min' if measured['minutes'] else 'resumed'
    where = f'commit {measured["commit"][:10]}, {machine["processor"]}, {machine["cores"]} cores'
    return record.row(f'{task}: the whole comparison, on {_device(measured)}', f'{minutes}; {where}')
