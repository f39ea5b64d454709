"""Prompt or train? The default comparison: all arms on a small base and a task made from Python's own documentation.

python -m experiments.prompt_or_train [--workdir=runs/compare]
"""

import argparse
import pathlib
import time

from experiments import record
from experiments.prompt_or_train import comparison

NAME = 'prompt_or_train'
MINUTES = 20  # aimed at, on two cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/compare', type=pathlib.Path, help='continued if it exists')
    folder = parser.parse_args().workdir.absolute()
    from_nothing, began = not folder.exists(), time.perf_counter()
    results = comparison.run(folder, comparison.PRICES)
    minutes = (time.perf_counter() - began) / 60
    # A comparison that goes on where another call stopped does not tell how long the whole takes.
    timed = [record.row('the whole command', f'{minutes:.1f} min', f'<= {MINUTES} min', minutes <= MINUTES)]
    comparison.write(
        NAME,
        'python -m experiments.prompt_or_train',
        {'docstrings': results},
        [
            'a larger base: prompting needs one that follows demonstrations, and this one has a million parameters',
            *([] if from_nothing else ['the time of the whole command: it went on where an earlier call stopped']),
        ],
        timed if from_nothing else [],
    )
    page = record.ROOT / 'experiments' / NAME / 'report.html'
    page.write_text(comparison.page(folder, comparison.PRICES), encoding='utf-8')


if __name__ == '__main__':
    main()
