"""How well does each method adapt a real pretrained encoder to classification, tagging and question answering?

The learning rate of each part is the best of RATES on rows held out of the training file; the test rows are read once,
by the runs that are reported.

python -m experiments.finetune --base=DIR --root=DIR [--only=PART,...]

A GPU is idle while a part starts and compiles: --parallel=6 runs six parts at a time there. --out=FILE is for a machine
without the history of the repository; `python -m experiments.record COMMIT:FILE` records it.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import sys
import tempfile
import time

from experiments import cli, record
from lmtrain.training import load

RESULTS = record.ROOT / 'experiments' / 'finetune' / 'results.json'
SEEDS = (0, 1, 2)
LINEAR = '.*/(attention/(query|key|value|output)|mlp/(up|down))/kernel'
HELD_OUT = 0.2  # share of the training file on which rates are compared
RATES = (0.25, 0.5, 1.0, 2.0)  # times the learning rates below
# Learning rates: of what the method adds or moves, and over it that of the new head.
METHODS = {
    'head': {'optimizer.learning_rate': 1e-2},
    'bitfit': {'optimizer.learning_rate': 2e-3, 'optimizer.learning_rates': (('heads/.*', 5.0),)},
    'lora': {
        'optimizer.learning_rate': 1e-3,
        'optimizer.learning_rates': (('heads/.*', 10.0),),
        'adapt.lora.rank': ((LINEAR, 8),),
    },
    'prefix': {
        'optimizer.learning_rate': 1e-2,
        'adapt.prefix.length': 10,
    },
    'full': {'optimizer.learning_rate': 2e-4, 'optimizer.learning_rates': (('heads/.*', 50.0),)},
}
TASKS = {
    'banking77': {
        'task.train': ('banking77/train.csv',),
        'task.validation': ('banking77/test.csv',),
        'task.test': ('banking77/test.csv',),
        'task.text': ('text',),
        'task.label': 'category',
        'objective.pool': 'mean',
        'task.shots': 10,
        'budget.steps': 125,
    },
    'polarity': {
        'task.train': ('polarity/train.jsonl',),
        'task.validation': ('polarity/test.jsonl',),
        'task.test': ('polarity/test.jsonl',),
        'task.text': ('text',),
        'task.label': 'label',
        'objective.pool': 'mean',
        'budget.steps': 94,
    },
}
TARGETS = {('banking77', 'full'): 83, ('banking77', 'lora'): 80, ('polarity', 'full'): 78}  # per cent
MEASURES = {'wnut17': 'entity_f1', 'xquad': 'exact_match'}  # of the others: accuracy
SHOWN = {'wnut17': ('WNUT17, full: F1 of entities', 'entity_f1'), 'xquad': ('XQuAD, full: exact match', 'exact_match')}
ONE = {
    'wnut17': {
        'recipe': 'tag',
        'task.train': ('wnut17/train.conll',),
        'task.validation': ('wnut17/test.conll',),
        'task.test': ('wnut17/test.conll',),
        'data.seq_len': 128,
        'budget.steps': 320,
        'optimizer.learning_rate': 3e-4,
        'optimizer.learning_rates': (('task_head/.*', 10.0),),
    },
    'xquad': {
        'recipe': 'span',
        'task.train': ('xquad/train.json',),
        'task.validation': ('xquad/test.json',),
        'task.test': ('xquad/test.json',),
        'task.too_long': 'cut',
        'data.seq_len': 256,
        'data.batch_size': 16,
        'budget.steps': 240,
        'optimizer.learning_rate': 3e-4,
        'optimizer.learning_rates': (('task_head/.*', 3.0),),
    },
}


def write_tasks(source: pathlib.Path, folder: pathlib.Path) -> None:
    """The tasks as files of rows: polarity's rows drawn by their place, XQuAD's divided by article."""
    (folder / 'banking77').symlink_to(source / 'banking77', target_is_directory=True)
    (folder / 'wnut17').mkdir()
    for split, file in (('train', 'wnut17train.conll'), ('test', 'emerging.test.annotated')):
        (folder / 'wnut17' / f'{split}.conll').symlink_to(source / 'wnut17' / file)
    (folder / 'polarity').mkdir()
    sides = {}
    for label, file in (('negative', 'rt-polarity.neg'), ('positive', 'rt-polarity.pos')):
        lines = (source / 'sentence_polarity' / file).read_text(encoding='utf-8').splitlines()
        sides[label] = [json.dumps({'text': line.strip(), 'label': label}) for line in lines]
    for split, places in (('train', slice(0, 5000, 5)), ('test', slice(1, 5001, 5))):
        rows = [row for side in sides.values() for row in side[places]]
        assert len(rows) == 2000
        (folder / 'polarity' / f'{split}.jsonl').write_text('\n'.join(rows) + '\n', encoding='utf-8')
    (folder / 'xquad').mkdir()
    articles = json.loads((source / 'xquad' / 'xquad.en.json').read_text(encoding='utf-8'))['data']
    for split, part in (('train', articles[: 3 * len(articles) // 4]), ('test', articles[3 * len(articles) // 4 :])):
        (folder / 'xquad' / f'{split}.json').write_text(json.dumps({'data': part}), encoding='utf-8')


def train(recipe: str, base: pathlib.Path, root: pathlib.Path, workdir: pathlib.Path, settings: dict) -> dict:
    """results.json of `lmtrain train`, with the seconds that the command took."""
    flags = {'init.base': str(base), 'data.root': str(root), 'evaluate.every_steps': 10**6, 'log.tensorboard': False}
    begun = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
    results = cli.train(recipe, workdir, flags | settings, env=environment)
    return results | {'seconds_of_command': time.monotonic() - begun}


def chosen(recipe: str, task: str, base, root, workdir, settings: dict) -> dict:
    """{'learning_rate': the best, 'rates': {rate: its score}} on rows that are held out of the training file.

    The rates train together as one program, with one seed; the test file is not read.
    """
    rates = tuple(factor * settings['optimizer.learning_rate'] for factor in RATES)
    without_test = {'task.validation': (), 'task.test': (), 'data.validation': HELD_OUT, 'data.test': 0.0}
    settings = settings | without_test | {'sweep.learning_rates': rates}
    members = train(recipe, base, root, workdir / 'rates', settings)['sweep']['members']
    measure, scores = MEASURES.get(task), {}
    for number, (rate, member) in enumerate(zip(rates, members, strict=True)):
        # F1 and exact match are measured of one member at a time.
        measures = load.evaluate_split(workdir / 'rates', 'validation', 'last', number) if measure else member
        scores[rate] = measures[measure or 'accuracy']
    return {'learning_rate': max(scores, key=scores.get), 'rates': {str(rate): score for rate, score in scores.items()}}


def classified(task: str, method: str, base, root, workdir) -> dict:
    """One trial: three seeds as one program."""
    settings = TASKS[task] | METHODS[method] | {'adapt.method': method, 'data.seq_len': 64, 'task.buckets': 3}
    choice = chosen('classify', task, base, root, workdir, settings)
    settings |= {'sweep.seeds': SEEDS, 'optimizer.learning_rate': choice['learning_rate']}
    results = train('classify', base, root, workdir / 'run', settings)
    scores = {'accuracy': results['sweep']['intervals'][0]['accuracy'], 'members': results['sweep']['members']}
    return (
        {'task': task, 'method': method, 'seconds': results['seconds_of_command']} | choice | scores | results['cost']
    )


def measured(task: str, base, root, workdir) -> dict:
    """One trial of tagging or questions: one seed, in the measure of the field."""
    settings = dict(ONE[task])
    recipe = settings.pop('recipe')
    choice = chosen(recipe, task, base, root, workdir, settings)
    settings |= {'optimizer.learning_rate': choice['learning_rate']}
    results = train(recipe, base, root, workdir / 'run', settings)
    scores = load.evaluate_split(workdir / 'run', 'test', 'last')
    return {'task': task, 'seconds': results['seconds_of_command'], 'scores': scores} | choice | results['cost']


def run_part(part: str, base, root) -> dict:
    """The trial of a part, 'TASK/METHOD' or 'TASK'."""
    task, _, method = part.partition('/')
    workdir = root / part.replace('/', '-')
    trial = classified(task, method, base, root, workdir) if method else measured(task, base, root, workdir)
    return trial | {'part': part}


def figures(trials: list[dict]) -> list[dict]:
    rows = []
    for trial in trials:
        if 'method' in trial:
            mean, low, high = (100 * x for x in trial['accuracy'])
            target = TARGETS.get((trial['task'], trial['method']))
            what = f'{trial["task"]}, {trial["method"]}: accuracy of {len(SEEDS)} seeds (95 % interval)'
            figure = f'{mean:.1f} % ({low:.1f} to {high:.1f}), {trial["trainable"] // len(SEEDS):,} parameters learn'
            row = {'what': what, 'figure': figure, 'target': f'>= {target} %' if target else ''}
            rows.append(row | {'reached': mean >= target if target and 'rates' in trial else None})
        else:
            what, name = SHOWN[trial['task']]
            row = {'what': f'{what}, one seed', 'figure': f'{100 * trial["scores"][name]:.1f} %'}
            rows.append(row | {'target': '', 'reached': None})
    return rows


def notes(trials: list[dict], missing: list[str]) -> list[str]:
    """What has not been run, and whose learning rates were not chosen as `chosen` does."""
    older = [trial['part'] for trial in trials if 'rates' not in trial]
    lines = [f'not run yet: {", ".join(missing)}.'] if missing else []
    if older:
        parts = 'all parts' if len(older) == len(trials) else ', '.join(older)
        lines.append(
            f'an unbiased estimate ({parts}): learning rates were tried on one seed against the reported test rows, so '
            'these figures may be too high, and none counts as reached. The rates of the other parts were chosen on '
            'rows held out of the training file.'
        )
    return lines


def write(trial: dict, out: str) -> None:
    """results.json and the README, or the file `out`, with this trial and what was there already."""
    file = pathlib.Path(out) if out else RESULTS
    previous = json.loads(file.read_text(encoding='utf-8'))['trials'] if file.exists() else []
    by_part = {each['part']: each for each in previous}
    by_part[trial['part']] = trial
    order = [f'{task}/{method}' for task in TASKS for method in METHODS] + list(ONE)
    trials = [by_part[part] for part in order if part in by_part]
    missing = [part for part in order if part not in by_part]
    record.write(
        'finetune',
        command='python -m experiments.finetune --base=DIR --root=DIR',
        figures=figures(trials),
        trials=trials,
        not_shown=notes(trials, missing),
        seconds=sum(trial['seconds'] for trial in trials),
        out=out,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--base', type=pathlib.Path, required=True, help='directory of the encoder')
    parser.add_argument('--root', type=pathlib.Path, required=True, help='folder that holds banking77, wnut17, ...')
    parser.add_argument('--only', default='', help='parts such as banking77/lora, the others as results.json has them')
    parser.add_argument('--parallel', default=1, type=int, help='parts that run at a time')
    parser.add_argument('--out', default='', help='the file to write instead of results.json')
    arguments = parser.parse_args()
    parts = [f'{task}/{method}' for task in TASKS for method in METHODS] + list(ONE)
    if arguments.only:
        parts = arguments.only.split(',')
    elif RESULTS.exists() and not arguments.out:
        RESULTS.unlink()
    failed = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(arguments.parallel) as pool:
        root = pathlib.Path(folder)
        write_tasks(arguments.root.absolute(), root)
        futures = {pool.submit(run_part, part, arguments.base.absolute(), root): part for part in parts}
        for future in concurrent.futures.as_completed(futures):
            if future.exception():
                failed.append(f'{futures[future]}: {future.exception()!r}')
            else:
                write(future.result(), arguments.out)
    if failed:
        sys.exit('\n'.join(failed))


if __name__ == '__main__':
    main()
