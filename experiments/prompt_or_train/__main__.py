"""Prompt or train? The default comparison: all arms on a small base and a task made from Python's own documentation.

python -m experiments.prompt_or_train [--workdir=runs/compare]
"""

import argparse
import pathlib

from experiments.prompt_or_train import comparison

NAME = 'prompt_or_train'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/compare', type=pathlib.Path, help='continued if it exists')
    folder = parser.parse_args().workdir.absolute()
    results = comparison.run(folder, {})
    comparison.write(
        NAME,
        'python -m experiments.prompt_or_train',
        {'docstrings': results},
        [
            'a larger base: prompting needs one that follows demonstrations, and this one has a million parameters',
            'the time of the whole command on an otherwise idle machine',
        ],
    )
    comparison.copy_report(folder, {}, NAME)


if __name__ == '__main__':
    main()
