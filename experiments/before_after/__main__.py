"""Is one commit as fast as another: start-up, the quickstart's tokens per second, the train step of experiments/bench?

    python -m experiments.before_after [BEFORE [AFTER]]

BEFORE is the last commit before the modules were divided into packages, AFTER is HEAD. Both run in turn, from archives
of their commits, each with a cache of its own.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from experiments import cli, record

BEFORE = 'ab9fdae'
SIDES = ('before', 'after')
STARTS, QUICKSTARTS, BLOCKS, STEPS = 9, 5, 14, 40
SHAPE = {'num_layers': 4, 'num_heads': 4, 'width': 128, 'seq_len': 64, 'batch_size': 12, 'vocab_size': 65}
TINY = '--config=configs/tiny.py --config.sample.max_tokens=1 --config.budget.steps=4'.split()
QUICKSTART = (
    '--config=configs/quickstart.py --config.budget.steps=40 --config.budget.hours=None --config.log.every_steps=5 '
    '--config.evaluate.max_batches=1 --config.sample.prompts=()'
).split()


class Side:
    """An archive of one commit in a folder of its own, with its own home and caches."""

    def __init__(self, name: str, commit: str, folder: pathlib.Path):
        self.tree, self.folder, self.home = folder / name, folder / f'run-{name}', folder / f'home-{name}'
        self.tree.mkdir()
        self.home.mkdir()
        git = ['git', '-C', str(record.ROOT)]
        archive = subprocess.run([*git, 'archive', commit], check=True, capture_output=True)
        subprocess.run(['tar', '-x', '-C', self.tree], input=archive.stdout, check=True)
        variables = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_', 'XDG_'))}
        own = {'HOME': str(self.home), 'PYTHONPATH': str(self.tree), 'JAX_PLATFORMS': 'cpu'}
        self.environment = variables | own

    def train(self, words: list[str]) -> float:
        """Seconds from the command to its first line of metrics.jsonl; waits for its end."""
        shutil.rmtree(self.folder, ignore_errors=True)
        metrics, start = self.folder / 'metrics.jsonl', time.monotonic()
        command = cli.command('train', *words, f'--workdir={self.folder}')
        options = {'cwd': self.tree, 'env': self.environment, 'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE}
        with subprocess.Popen(command, **options) as process:
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(0.003)
            seconds, error = time.monotonic() - start, process.communicate()[1]
        if process.returncode:
            sys.exit(f'{self.tree.name}: exit code {process.returncode}\n{error.decode()[-3000:]}')
        return seconds

    def quickstart(self) -> float:
        """Tokens per second of the quickstart, the median of all lines but the first."""
        self.train(QUICKSTART)
        lines = (self.folder / 'timings.jsonl').read_text(encoding='utf-8').splitlines()
        return statistics.median(json.loads(line)['tokens_per_second'] for line in lines[1:])

    @contextlib.contextmanager
    def worker(self):
        """The function (request, **arguments) -> answer of a worker of experiments/bench that has built its step."""
        package = (self.tree / 'experiments' / 'bench' / '__main__.py').exists()
        program = ['-m', 'experiments.bench'] if package else ['experiments/bench/bench.py']
        environment = self.environment | {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
        with subprocess.Popen(
            [sys.executable, *program, '--worker', 'lmtrain', 'cpu'],
            cwd=self.tree,
            env=environment,
            encoding='utf-8',
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:

            def ask(request: str, **arguments):
                process.stdin.write(json.dumps({'do': request} | arguments) + '\n')
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            ask('build', shape=SHAPE, dtype='float32', folder=str(self._text()))
            ask('steps', count=20)
            yield ask
            process.stdin.close()

    def _text(self) -> pathlib.Path:
        """A folder with text.txt: symbols of which each is one of four that may follow the one before."""
        folder = self.home / 'text'
        folder.mkdir()
        rng, x, symbols = random.Random(0), 0, []
        for _ in range(8 * SHAPE['batch_size'] * SHAPE['seq_len']):
            x = (3 * x + rng.randrange(4)) % (SHAPE['vocab_size'] - 1)
            symbols.append(chr(0x20000 + x))
        (folder / 'text.txt').write_text(''.join(symbols), encoding='utf-8')
        return folder


def interleaved(measure: dict, count: int) -> dict[str, list[float]]:
    """`count` values of each side, measured in turn; the order alternates."""
    values: dict[str, list[float]] = {side: [] for side in SIDES}
    for pair in range(count):
        for side in SIDES[:: 1 if pair % 2 == 0 else -1]:
            values[side].append(measure[side]())
    return values


def figure(what: str, unit: str, values: dict[str, list[float]], higher_is_better: bool) -> tuple[dict, dict]:
    """(row, trial): the median of the ratios of pairs, with a sign test of whether AFTER is worse."""
    from scipy.stats import binomtest

    ratios = [after / before for before, after in zip(*(values[side] for side in SIDES), strict=True)]
    worse = sum(ratio < 1 if higher_is_better else ratio > 1 for ratio in ratios)
    p = float(binomtest(worse, len(ratios), alternative='greater').pvalue)
    before, after = (statistics.median(values[side]) for side in SIDES)
    spread = f'{min(ratios):.3f} to {max(ratios):.3f}; medians {after:,.4g} and {before:,.4g} {unit}'
    text = f'{statistics.median(ratios):.3f} ({spread}; p of worse {p:.2f})'
    target = f'{"at least" if higher_is_better else "at most"} 1 within noise (p > 0.05)'
    trial = {'what': what, 'unit': unit, 'values': values, 'ratios': ratios, 'p_worse': p}
    return record.row(f'{what}, after over before', text, target, p > 0.05), trial


def main(before: str = BEFORE, after: str = 'HEAD') -> None:
    load, start = os.getloadavg(), time.monotonic()
    commits = {side: record.git('rev-parse', commit) for side, commit in zip(SIDES, (before, after), strict=True)}
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides = {side: Side(side, commit, pathlib.Path(folder)) for side, commit in commits.items()}
        for side in sides.values():  # tokens and compiled programs are in the caches afterwards
            side.train(TINY)
            side.quickstart()
        starts = {name: lambda side=side: side.train(TINY) for name, side in sides.items()}
        rows.append(
            figure('seconds to the first metrics of configs/tiny.py, warm', 's', interleaved(starts, STARTS), False)
        )
        quick = {name: side.quickstart for name, side in sides.items()}
        rows.append(figure('tokens/s of the quickstart', 'tokens/s', interleaved(quick, QUICKSTARTS), True))
        asks = {name: stack.enter_context(side.worker()) for name, side in sides.items()}
        tokens = STEPS * SHAPE['batch_size'] * SHAPE['seq_len']
        steps = {name: lambda ask=ask: tokens / ask('steps', count=STEPS)['seconds'] for name, ask in asks.items()}
        what = 'tokens/s of the train step of experiments/bench, 4 x 128, float32'
        rows.append(figure(what, 'tokens/s', interleaved(steps, BLOCKS), True))
    figures, trials = zip(*rows, strict=True)
    for row in figures:
        print(f'{row["what"]}: {row["figure"]}')
    record.write(
        'before_after',
        command=' '.join(['python -m experiments.before_after', *sys.argv[1:]]),
        figures=list(figures),
        trials=list(trials),
        commits=commits,
        minutes=round((time.monotonic() - start) / 60, 1),
        load_before=load,
    )


if __name__ == '__main__':
    main(*sys.argv[1:])
