"""Starts `lmtrain` in processes of its own, and reads what a run wrote."""

import collections
import importlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from experiments.record import ROOT


def command(*words, config: Mapping[str, object] | None = None) -> list[str]:
    """The command line of a verb and its flags; `config` is written as --config.NAME=VALUE."""
    overrides = [f'--config.{name}={value}' for name, value in (config or {}).items()]
    return [sys.executable, '-m', 'launch.cli', *map(str, words), *overrides]


def start(
    *words,
    config: Mapping[str, object] | None = None,
    output: pathlib.Path | None = None,
    prefix: Sequence[str] = (),
    **options,
) -> subprocess.Popen:
    """Starts a verb of lmtrain.

    Args:
      config: overrides, {'section.field': value}.
      output: a file to which stdout and stderr are appended; None inherits both.
      prefix: words before the command line, such as a shell that sets limits.
      options: of subprocess.Popen, such as `env`.
    """
    argv = [*prefix, *command(*words, config=config)]
    options = {'cwd': ROOT} | options
    if output is None:
        return subprocess.Popen(argv, **options)
    with open(output, 'a', encoding='utf-8') as file:
        return subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, **options)


def run(*words, config: Mapping[str, object] | None = None, **options) -> None:
    """Runs a verb of lmtrain to its end. Raises SystemExit with its exit code if it fails."""
    if code := start(*words, config=config, **options).wait():
        raise SystemExit(code)


def train(recipe: str, workdir, config: Mapping[str, object], **options) -> dict:
    """results.json of `lmtrain train --config=configs/RECIPE.py` with overrides."""
    run('train', f'--config=configs/{recipe}.py', f'--workdir={workdir}', config=config, **options)
    return json.loads((pathlib.Path(workdir) / 'results.json').read_text(encoding='utf-8'))


def train_here(recipe: str, workdir, config: Mapping[str, object]) -> dict:
    """The same as `train` in this process: without the seconds of a start, for many small runs."""
    import lmtrain  # late: the commands above do not need it

    recipe = importlib.import_module(f'configs.{recipe}').get_config()
    recipe.update_from_flattened_dict(config)
    return lmtrain.train(recipe, workdir)


def json_lines(path: pathlib.Path) -> list[dict]:
    """The rows of a .jsonl file; [] if it does not exist. A line that is still being written is skipped."""
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]


def validation_curve(workdir) -> dict[int, float]:
    """{step: validation loss} of a run."""
    rows = json_lines(pathlib.Path(workdir) / 'metrics.jsonl')
    return {row['step']: row['validation_loss'] for row in rows if 'validation_loss' in row}


def wait_for_first_step(process: subprocess.Popen, workdir: pathlib.Path, begun: float) -> float:
    """Seconds from `begun` (time.monotonic) to the first line of metrics.jsonl, which is of step 1."""
    metrics = workdir / 'metrics.jsonl'
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.005)
    return time.monotonic() - begun


def small_text(folder: pathlib.Path) -> dict[str, object]:
    """Overrides of a run on the text of `record.write_text`, whose every step is logged."""
    return {
        'data.source': folder / 'text',
        'data.cache': folder / 'cache',
        'data.validation': 0.2,
        'log.every_steps': 1,
        'log.tensorboard': False,
        'sample.max_tokens': 4,
    }


def counted(what: str, trials: list[dict]) -> dict:
    """A row of figures: how many trials are `as_wanted`, and the exit codes of their processes."""
    good = sum(trial['as_wanted'] for trial in trials)
    codes = collections.Counter(trial['exit'] for trial in trials if 'exit' in trial)
    exits = ', '.join(f'{count} x {code}' for code, count in sorted(codes.items()))
    figure = f'{good} of {len(trials)}' + (f' (exit codes: {exits})' if exits else '')
    return {'what': what, 'figure': figure, 'target': 'all', 'reached': good == len(trials)}
