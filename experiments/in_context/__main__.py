"""Does a transformer predict in context as the Bayes-optimal predictor of its training distribution?

python -m experiments.in_context [--tasks=4,4096] [--regression_steps=N] [--ginc_steps=N] [--only=regression|ginc]
"""

import argparse
import math
import pathlib
import tempfile
import time

import jax

from experiments import record
from experiments.in_context import ginc, plots, regression

FOLDER = pathlib.Path(__file__).parent


def flags(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', default='4,4096', help='tasks of the prior; 0 draws a new task in each prompt')
    parser.add_argument('--dimensions', type=int, default=4)
    parser.add_argument('--points', type=int, default=8)
    parser.add_argument('--noise', type=float, default=0.5, help='standard deviation')
    parser.add_argument('--layers', type=int, default=4)
    parser.add_argument('--width', type=int, default=64)
    parser.add_argument('--batch_size', type=int, default=64, help='prompts of a step')
    parser.add_argument('--regression_steps', type=int, default=3500)
    parser.add_argument('--learning_rate', type=float, default=2e-3, help='of the regression')
    parser.add_argument('--prompts', type=int, default=8192, help='test prompts of the regression')
    parser.add_argument('--documents', type=int, default=32_000, help='of GINC')
    parser.add_argument('--length', type=int, default=63, help='symbols of a document')
    parser.add_argument('--ginc_steps', type=int, default=2000)
    parser.add_argument('--test', type=int, default=500, help='test documents, and test prompts for each k, of GINC')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default='', choices=('', 'regression', 'ginc'), help='keeps the other part')
    return parser.parse_args(words)


def regression_trial(options, tasks: int) -> dict:
    """One trained transformer, and its errors beside those of the estimators."""
    prior = regression.Prior(tasks, options.dimensions, options.points, options.noise, options.seed)
    model = regression.model_of(prior, options.layers, options.width, 2)
    train_key, choice_key, test_key = (jax.random.fold_in(jax.random.key(options.seed), i) for i in range(3))
    begun = time.monotonic()
    settings = {'steps': options.regression_steps, 'batch_size': options.batch_size}
    params, curve = regression.train(prior, model, learning_rate=options.learning_rate, key=train_key, **settings)
    seconds = time.monotonic() - begun
    rates = regression.choose_rates(prior, (1, options.layers), choice_key, 4096)
    results = regression.measure(prior, model, params, rates, key=test_key, prompts=options.prompts)
    sizes = {name: getattr(options, name) for name in ('dimensions', 'points', 'noise', 'layers', 'width', 'seed')}
    return (
        {'part': 'regression', 'tasks': tasks}
        | sizes
        | settings
        | {
            'prompts': options.prompts,
            'seconds': seconds,
            'gradient_descent_rates': {str(steps): each for steps, each in rates.items()},
            'curve': curve,
            'results': results,
        }
    )


def regression_figures(trials: list[dict]) -> list[dict]:
    """Errors of all estimators; the target is the claim: few tasks are looked up, many are learned as ridge does."""
    rows = []
    few = min(trial['tasks'] or math.inf for trial in trials) if trials else 0
    for trial in trials:
        tasks = f'{trial["tasks"]:,} tasks' if trial['tasks'] else 'a new task in each prompt'
        descent = f'GD {trial["layers"]}'
        for kind, results in trial['results'].items():
            mean = {name: sum(error) / len(error) / trial['dimensions'] for name, error in results['error'].items()}
            best, where = ('dMMSE', 'tasks of the pool') if kind == 'pool' else ('ridge', 'new tasks')
            figure = ', '.join(f'{name} {value:.3f}' for name, value in sorted(mean.items(), key=lambda item: item[1]))
            claimed = kind == 'pool' or trial['tasks'] != few
            target = (f'model < {descent}', mean['model'] < mean[descent]) if claimed else ('', None)
            what = f'regression, {tasks}: error on {where} (Bayes-optimal: {best})'
            rows.append(record.row(what, figure, *target))
        if trial['tasks']:
            distance = trial['results']['new']['distance']
            figure = f'{distance["dMMSE"]:.3f} from dMMSE, {distance["ridge"]:.3f} from ridge'
            nearest = 'dMMSE' if trial['tasks'] == few else 'ridge'
            target = f'nearest: {nearest}', distance[nearest] == min(distance['dMMSE'], distance['ridge'])
            rows.append(record.row(f'regression, {tasks}: distance of the model on new tasks', figure, *target))
    return rows


def ginc_figures(trial: dict) -> list[dict]:
    positions = trial['positions']
    model, exact, kl = (sum(positions[name]) / trial['length'] for name in ('model', 'exact', 'kl'))
    rows = [
        record.row('GINC: cross-entropy of new documents, nats a token', f'model {model:.4f}, exact {exact:.4f}'),
        record.row('GINC: KL(exact || model), nats a token', f'{kl:.4f}'),
    ]
    for prompts in trial['prompts']:
        figure = f'model {100 * prompts["model"]:.1f} %, exact {100 * prompts["exact"]:.1f} %, the same answer in '
        figure += f'{100 * prompts["agreement"]:.1f} %'
        rows.append(record.row(f'GINC, k = {prompts["examples"]}: accuracy on {prompts["prompts"]} prompts', figure))
    return rows


def figures(trials: list[dict]) -> list[dict]:
    hidden = [trial for trial in trials if trial['part'] == 'ginc']
    rows = regression_figures([trial for trial in trials if trial['part'] == 'regression'])
    return rows + [each for trial in hidden for each in ginc_figures(trial)]


def write(trials: list[dict]) -> None:
    """Figures, plots and READMEs."""
    regressions = [trial for trial in trials if trial['part'] == 'regression']
    hidden = [trial for trial in trials if trial['part'] == 'ginc']
    if regressions:
        plots.regression(regressions, FOLDER / 'regression.png')
    for trial in hidden:
        plots.ginc(trial, FOLDER / 'ginc.png')
    record.write(
        'in_context',
        command='python -m experiments.in_context',
        figures=figures(trials),
        trials=trials,
        not_shown=[
            *[f'{part}: not run yet.' for part in ('regression', 'ginc') if part not in {t['part'] for t in trials}],
            'several seeds: one model for each row.',
            "the papers' sizes (8 layers x 128, D 8, 16 points, 500,000 steps of 256 prompts; GINC: 10,240 tokens a "
            'document, 4 to 16 layers x 768); the flags set them.',
        ],
    )


def main() -> None:
    options = flags()
    previous = (record.load('in_context') or {'trials': []})['trials'] if options.only else []
    trials = [trial for trial in previous if trial['part'] != options.only]
    if options.only != 'ginc':
        trials += [regression_trial(options, int(tasks)) for tasks in options.tasks.split(',')]
    if options.only != 'regression':
        with tempfile.TemporaryDirectory() as folder:
            sizes = {'documents': options.documents, 'length': options.length, 'test': options.test}
            sizes |= {'num_layers': options.layers, 'width': options.width, 'batch_size': 16}
            trials.append(ginc.trial(pathlib.Path(folder), **sizes, steps=options.ginc_steps, seed=options.seed))
    write(sorted(trials, key=lambda trial: trial['part'], reverse=True))


if __name__ == '__main__':
    main()
