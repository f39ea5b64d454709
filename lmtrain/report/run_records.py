"""What the folders of runs and of a comparison's trials say about them, as one flat record per run; needs no jax."""

import math
import os
import pathlib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmtrain.errors import InputError
from lmtrain.files import flatten_fields, json_type, read_json_lines, read_json_object
from lmtrain.report.run_config import upgrade
from lmtrain.report.writers import numbers

Record = dict[str, Any]
COUNTS = {'loss', 'perplexity', 'bits_per_token', 'targets', 'bytes'}  # of an evaluation, beside its scores


def find(folders: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The folders of runs and of trials in `folders` and below, sorted; a run is not searched for further runs.

    Raises FileNotFoundError or NotADirectoryError naming a folder that does not exist.
    """
    result = set()
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            reason = NotADirectoryError if folder.exists() else FileNotFoundError
            raise reason(f'{folder} is not a directory: name a folder of runs')
        result.update(_find(folder))
    return sorted(result)


def _find(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.')]
        is_comparison = 'trials' in folders and 'config.json' in files
        run = {'metrics.jsonl', 'lineage.jsonl', 'fingerprints.json'} & {*files} or {'config.json', 'results.json'} <= {
            *files
        }
        if not is_comparison and (run or 'trial.json' in files):
            yield pathlib.Path(directory)
            folders.clear()


def read(folder: pathlib.Path) -> Record:
    """The record of a run: {field: number, text or list}; what a folder does not have is missing.

    Fields are those of its config under their present names ('adapt.method', see `run_config.upgrade`), and
      name, folder, state ('finished', 'running', 'stopped', 'failed', 'broken'), reason (of the last two), step,
      loss (validation, of a trial on its selection rows), the scores beside it (bits_per_byte, or accuracy, ...),
      flops, seconds (training, with evaluation and saving; of a trial with its whole grid, search and selection),
      validation.*, test.*, cost.* of results.json, and trial.*, selection.*, ledger.* of trial.json.
    """
    record: Record = {'name': folder.name, 'folder': str(folder)}
    problems: list[str] = []

    def part(name: str, complete=lambda value, path: value) -> dict[str, Any]:
        path = folder / name
        try:
            return complete(read_json_object(path), path) if path.exists() else {}
        except (InputError, OSError) as error:
            problems.append(str(error).removeprefix(f'{folder}{os.sep}'))
            return {}

    config, results, trial = part('config.json', upgrade), numbers(part('results.json')), part('trial.json')
    if not config and not trial and not problems:
        problems.append('there is no config.json')
    record |= flatten_fields(config)
    for name in ('validation', 'test', 'cost'):
        record |= _numbers(name, results.get(name))
    record |= _numbers('test', part('test.json'))
    record |= {f'trial.{name}': trial[name] for name in ('arm', 'kind', 'size', 'seed') if name in trial}
    record |= _numbers('selection', trial.get('selection')) | _numbers('ledger', trial.get('ledger'))
    if not results and not trial:
        try:
            record |= _progress(folder)
        except (InputError, OSError) as error:
            problems.append(str(error).removeprefix(f'{folder}{os.sep}'))
    record |= _summary(record) | {'step': record.get('step', record.get('cost.steps'))}
    if problems:
        record |= {'state': 'broken', 'reason': '; '.join(problems)}
    elif trial.get('status') == 'failed':
        record |= {'state': 'failed', 'reason': str(trial.get('reason', ''))}
    elif is_locked(folder / '.lock'):
        record['state'] = 'running'
    else:
        record['state'] = 'finished' if results or trial else 'stopped'
    return {name: value for name, value in record.items() if value is not None}


def _numbers(prefix: str, values: Any) -> Record:
    """{'prefix.name': number} of the numbers in an object of JSON."""
    values = values if isinstance(values, Mapping) else {}
    numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
    return {f'{prefix}.{name}': value for name, value in numbers.items()}


def _summary(record: Record) -> Record:
    """The fields that runs and trials have in common, under one name."""
    split = 'selection' if 'selection.loss' in record else 'validation'
    measures = {name.partition('.')[2]: value for name, value in record.items() if name.startswith(f'{split}.')}
    scores = {'bits_per_byte': measures['bits_per_byte']} if 'bits_per_byte' in measures else measures
    result = {name: value for name, value in scores.items() if name not in COUNTS | {'rows'}}
    result['loss'] = None if 'reward_error' in measures else measures.get('loss')  # a policy's is minus its reward
    spent = [record[name] for name in ('ledger.train_flops', 'ledger.selection_flops') if name in record]
    result['flops'] = sum(spent) if spent else record.get('cost.flops')
    result['seconds'] = record.get('ledger.device_seconds', record.get('cost.seconds'))
    return result


def _progress(folder: pathlib.Path) -> Record:
    """Step, cost and last evaluation of a run without results, from metrics.jsonl, timings.jsonl and checkpoints."""
    steps = [line['step'] for line in _lines(folder / 'metrics.jsonl', 'step')]
    steps += [int(path.name) for path in (folder / 'checkpoints').glob('*') if path.name.isdecimal()]
    evaluated = _lines(folder / 'metrics.jsonl', 'step', 'validation_loss')
    record: Record = {'step': max(steps, default=0)}
    if evaluated:
        names = (name for name in evaluated[-1] if name.startswith('validation_'))
        record |= _numbers('validation', {name.removeprefix('validation_'): evaluated[-1][name] for name in names})
    if speed := speeds(folder):
        record |= {'cost.seconds': speed[-1][1], 'cost.flops': speed[-1][2]}
    return record


def speeds(folder: pathlib.Path) -> list[tuple[int, float, float]]:
    """[(step, seconds, FLOPs of the model until then)] from timings.jsonl, without evaluation and saving."""
    timings = _lines(folder / 'timings.jsonl', 'step', 'seconds_per_step', 'flops_per_second')
    per_step = [line['seconds_per_step'] * line['flops_per_second'] for line in timings]
    flops = statistics.median(per_step) if per_step else math.nan
    seconds, before, result = 0.0, 0, []
    for line in timings:
        seconds += line['seconds_per_step'] * (line['step'] - before)
        before = line['step']
        result.append((before, seconds, flops * before))
    return result


def curve(folder: pathlib.Path, unit: str) -> list[tuple[int, float]]:
    """[(step, validation 'loss', 'bits_per_byte' or 'reward' of a policy)] from metrics.jsonl, of the finite ones."""
    name = f'validation_{unit}'
    needed = ('step', name, f'{name}_error') if unit == 'reward' else ('step', name)  # reward models have no error
    points = [(line['step'], line[name]) for line in _lines(folder / 'metrics.jsonl', *needed)]
    return [(step, value) for step, value in points if math.isfinite(value)]


def _lines(path: pathlib.Path, *names: str) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines that have all of `names`. Raises InputError if one of these is no number."""
    lines = [numbers(line) for line in read_json_lines(path) if {*names} <= line.keys()]
    for line in lines:
        for name in names:
            if type(line[name]) not in (int, float):
                raise InputError(f'{path}: {name} is {json_type(line[name])}: {str(line)[:60]}')
    return lines


def is_locked(path: pathlib.Path) -> bool:
    """Whether a process of this machine holds the lock of a run.

    The kernel's list is read. To try the lock would end a run that starts at the same moment.
    """
    try:
        inode, locks = path.stat().st_ino, pathlib.Path('/proc/locks').read_text(encoding='utf-8')
    except FileNotFoundError:  # no run, or no Linux
        return False
    return bool(re.search(rf'FLOCK .*:{inode} ', locks))
