"""How long do `lmtrain --help`, the list of recipes, and the first step of a second start take?

python -m experiments.startup
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from experiments import cli, record

TRIALS = 7


def command(*words: str) -> float:
    """Seconds of one whole process."""
    begun = time.monotonic()
    cli.run(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


def first_step(workdir: pathlib.Path, home: str) -> float:
    """Seconds from the start of the process to the first line of metrics.jsonl, which is of step 1."""
    words = ['train', '--config=configs/tiny.py', f'--workdir={workdir}', '--config.sample.max_tokens=1']
    begun = time.monotonic()
    with cli.start(*words, env=os.environ | {'HOME': home}, stdout=subprocess.PIPE) as process:
        seconds = cli.wait_for_first_step(process, workdir, begun)
        process.communicate()
    if process.returncode:
        sys.exit(process.returncode)
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        starts = [first_step(pathlib.Path(home) / f'run{i}', home) for i in range(TRIALS + 1)]
    trials = [{'cold_first_step': starts[0]}] + [
        {'help': command('--help'), 'configs': command('configs'), 'warm_first_step': warm} for warm in starts[1:]
    ]
    targets = {
        'help': ('`lmtrain --help`', 0.5),
        'configs': ('`lmtrain configs`', 1.0),
        'warm_first_step': ('second start, tiny recipe, process start to first step', 2.5),
    }
    figures = []
    for name, (what, limit) in targets.items():
        seconds = [each[name] for each in trials[1:]]
        middle = statistics.median(seconds)
        figures.append(
            {
                'what': f'{what}, median of {TRIALS} (least, most)',
                'figure': f'{middle:.2f} s ({min(seconds):.2f}, {max(seconds):.2f})',
                'target': f'<= {limit} s',
                'reached': middle <= limit,
            }
        )
    figures.append(
        {
            'what': 'first start, same recipe, text prepared and programs compiled',
            'figure': f'{starts[0]:.1f} s',
            'target': '',
            'reached': None,
        }
    )
    record.write('startup', command='python -m experiments.startup', figures=figures, trials=trials)


if __name__ == '__main__':
    main()
