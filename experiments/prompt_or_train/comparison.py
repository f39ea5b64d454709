"""Runs `lmtrain compare` and records its results as figures; shared by the experiments prompt_or_train*."""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence

from experiments import cli, record


def run(workdir: pathlib.Path, config: Mapping[str, object]) -> dict:
    """results.json of a comparison; a second call runs what is missing in the folder."""
    cli.run('compare', f'--workdir={workdir}', config=config)
    return json.loads(portable((workdir / 'results.json').read_text(encoding='utf-8'), workdir, config))


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
        figure += f'; to create {create}, {seconds}; for a query {query}'
        rows.append(record.row(f'{task}, {arm}, {entry["size"]} rows: accuracy (95 % interval)', figure))
    missing = [(name, arm) for name, arm in results['arms'].items() if arm['status'] != 'done']
    return rows + [record.row(f'{task}, {name}', f'{arm["status"]}: {arm["reason"]}') for name, arm in missing]


def write(
    name: str, command: str, comparisons: Mapping[str, dict], not_shown: Sequence[str], more: Sequence[dict] = ()
) -> None:
    """Writes experiments/NAME/results.json.

    Args:
      comparisons: {task: results.json of its comparison}.
      more: rows of figures after those of the comparisons.
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
    )


def copy_report(workdir: pathlib.Path, config: Mapping[str, object], name: str, file: str = 'report.html') -> None:
    """Puts the page of a comparison into the folder of an experiment."""
    page = portable((workdir / 'report.html').read_text(encoding='utf-8'), workdir, config)
    (record.ROOT / 'experiments' / name / file).write_text(page, encoding='utf-8')


def on_tasks(name: str, description: str, tasks: Mapping[str, dict], shared: dict, not_shown: Sequence[str]) -> None:
    """The command of an experiment on a base directory: a comparison for each task, resumed if it was stopped.

    Args:
      tasks: {name: overrides of configs/compare.py}.
      shared: overrides of all tasks.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--base', required=True, type=pathlib.Path, help='directory of the model, with its tokenizer')
    parser.add_argument('--root', required=True, type=pathlib.Path, help='folder of banking77/ and sentence_polarity/')
    parser.add_argument('--workdir', default=f'runs/{name}', type=pathlib.Path)
    parser.add_argument('--tasks', default=','.join(tasks), help='names, with commas')
    parser.add_argument('--test', default=0, type=int, help='test rows; 0 is all')
    options = parser.parse_args()
    shared = shared | {'init.base': options.base.absolute(), 'data.root': options.root.absolute()}
    shared |= {'data.tokenizer': 'base', 'data.seq_len': 128, 'task.too_long': 'cut', 'compare.test': options.test}
    chosen = options.tasks.split(',')
    folder = options.workdir.absolute()
    configs = {task: shared | tasks[task] for task in chosen}
    comparisons = {task: run(folder / task, configs[task]) for task in chosen}
    missing = [f'{task}: not part of this call' for task in tasks if task not in comparisons]
    missing += [f'test rows beyond {options.test}: scoring more takes too long on two cores'] if options.test else []
    write(name, f'python -m experiments.{name} --base=DIR --root=DIR', comparisons, [*missing, *not_shown])
    for task in chosen:
        copy_report(folder / task, configs[task], name, f'{task}.html')
