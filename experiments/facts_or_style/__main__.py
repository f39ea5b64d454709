"""What do context and each trained method teach: new facts, a new output format, or both?

python -m experiments.facts_or_style [--base=DIR]      # without it, a base is pretrained on the text of Python first

A GPU is idle while a training starts and compiles: --parallel=4 runs four at a time there. --out=FILE is for a machine
without the history of the repository; `python -m experiments.record COMMIT:FILE` records it.
"""

import argparse
import pathlib
import tempfile

from experiments import record
from experiments.facts_or_style import arms, questions
from lmtrain.evaluation import statistics


def flags(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--base', default='', help='a run or Hugging Face directory of a decoder')
    parser.add_argument('--base_steps', type=int, default=600, help='of the pretraining without --base')
    parser.add_argument('--facts', type=int, default=48)
    parser.add_argument('--format_rows', type=int, default=48)
    parser.add_argument('--test', type=int, default=64, help='test prompts of the format')
    parser.add_argument('--steps', type=int, default=150, help='of each training')
    parser.add_argument('--rate_factor', type=float, default=1.0, help='of all learning rates; 0.1 for 100M parameters')
    parser.add_argument('--context', type=int, default=8, help='facts, or demonstrations, in a prompt')
    parser.add_argument('--methods', default=','.join(arms.METHODS))
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--parallel', type=int, default=1, help='trainings that run at a time')
    parser.add_argument('--out', default='', help='the file to write instead of results.json')
    return parser.parse_args(words)


def interval(share: float, count: int) -> str:
    """A share of `count` answers in per cent with its 95 % interval."""
    right = round(share * count)
    estimate = statistics.proportion([1] * right + [0] * (count - right))
    return f'{100 * share:.0f} % ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})'


def figures(trials: list[dict], options) -> list[dict]:
    rows = []
    for trial in trials:
        parts = []
        if trial['facts'] is not None:
            parts.append(f'facts {interval(trial["facts"], options.facts)}')
        if trial['format'] is not None:
            parts.append(f'format {interval(trial["format"], options.test)}')
            parts.append(f'format and content {interval(trial["content"], options.test)}')
        what = trial['arm'] if trial['taught'] == 'context' else f'{trial["arm"]}, trained on {trial["taught"]}'
        if 'trainable' in trial:
            what += f' ({trial["trainable"]:,} parameters, rate {trial["learning_rate"]:g})'
        rows.append(record.row(what, ', '.join(parts)))
    return rows


def main() -> None:
    options = flags()
    options.base = str(pathlib.Path(options.base).resolve()) if options.base else ''
    with tempfile.TemporaryDirectory() as folder:
        trials, base = arms.experiment(options, pathlib.Path(folder))
    given = ' --base=DIR' if options.base else ''
    given += f' --rate_factor={options.rate_factor:g}' if options.rate_factor != 1 else ''
    record.write(
        'facts_or_style',
        command=f'python -m experiments.facts_or_style{given}',
        figures=figures(trials, options),
        trials=trials,
        base=base,
        out=options.out,
        not_shown=[
            'several seeds' + ('.' if options.base else ', and a base of more than a few million parameters.'),
            f'facts by chance: {100 / len(questions.PETS):.1f} % ({len(questions.PETS)} pets).',
        ],
    )


if __name__ == '__main__':
    main()
