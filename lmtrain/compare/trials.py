"""Trials: one arm on one subset of rows with one seed, chosen on the selection rows; never run twice."""

import contextlib
import hashlib
import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.compare import arms, predictors, rows, selection
from lmtrain.compare.arms import Arm
from lmtrain.compare.rows import TaskRows
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.files import read_json_object, write_json
from lmtrain.runtime import lifecycle
from lmtrain.tasks import TASKS
from lmtrain.training import load as loading
from lmtrain.training import train as training
from lmtrain.training.init_from import Base
from lmtrain.training.load import LoadedModel


class Trial(NamedTuple):
    """One arm, the number of its rows, and its seed.

    Attributes:
      next_size: the next larger size: the rows in between are scored, for the description length; 0 if there is none.
    """

    arm: Arm
    size: int
    seed: int
    next_size: int

    @property
    def folder(self) -> str:
        """Its folder, from that of the comparison."""
        return f'trials/{self.arm.name}/{rows.name(self.size, self.seed)}'


class Comparison(NamedTuple):
    """What all trials share.

    Attributes:
      config: of the comparison.
      model: the base, loaded once.
      sizes: of the subsets, ascending.
    """

    config: Any
    folder: Path
    task: TaskRows
    base: Base
    model: LoadedModel
    sizes: list[int]


def listed(comparison: Comparison, selected: list[Arm]) -> list[Trial]:
    """All trials, small sizes first. An arm that reads no rows has one trial, of size 0."""
    config, sizes = comparison.config, comparison.sizes
    trials = [Trial(arm, 0, 1, sizes[0]) for arm in selected if not arm.uses_rows]
    for size, larger in zip(sizes, [*sizes[1:], 0], strict=True):
        for seed in range(1, config.compare.seeds + 1):
            trials += [Trial(arm, size, seed, larger) for arm in selected if arm.uses_rows]
    return trials


def run(comparison: Comparison, trial: Trial) -> dict[str, Any]:
    """The content of the trial's trial.json, which is written if the trial is not finished.

    A trial that failed is run again, unless its failure was an InputError, which no repetition cures.

    Raises what ends a whole comparison: a signal, a full disk.
    """
    folder = comparison.folder / trial.folder
    path, digest = folder / 'trial.json', _digest(comparison, trial)
    if path.exists():
        record = read_json_object(path)
        if record['digest'] != digest:
            raise InputError(
                f'{folder} is a trial of other settings of this arm, rows or base: delete the folder, or use another '
                '--workdir'
            )
        if record['status'] == 'done' or record['permanent']:
            return record
    folder.mkdir(parents=True, exist_ok=True)
    about = {'arm': trial.arm.name, 'kind': trial.arm.kind, 'size': trial.size, 'seed': trial.seed, 'digest': digest}
    try:
        with open(folder / 'log.txt', 'a', encoding='utf-8') as log, contextlib.redirect_stdout(log):
            result = (_train if trial.arm.kind == 'train' else _prompt)(comparison, trial, folder)
        record = about | {'status': 'done', 'reason': ''} | result
    except Exception as error:
        if isinstance(error, lifecycle.RunEnded) and error.code != lifecycle.NON_FINITE or isinstance(error, OSError):
            raise
        (folder / 'error.txt').write_text(traceback.format_exc(), encoding='utf-8')
        reason, permanent = f'{type(error).__name__}: {error}', isinstance(error, InputError | lifecycle.RunEnded)
        reason = str(error) if permanent else reason
        record = about | {'status': 'failed', 'reason': reason, 'permanent': permanent}
    write_json(path, record, indent=1)
    return record


def predictor(comparison: Comparison, trial: Trial, chosen: dict[str, Any]) -> predictors.Predict:
    """The predictor of a finished trial, from what it chose."""
    task = comparison.task
    if trial.arm.kind == 'prompt':
        return predictors.by_likelihood(comparison.model, task, _subset(task, trial, trial.size), **_shots(trial))
    loaded = loading.load_run(comparison.folder / trial.folder, chosen['step'], chosen['member'])
    if TASKS[loaded.config.task.name].predicts_tokens:
        return predictors.by_likelihood(loaded, task, ())
    return predictors.by_head(loaded, task)


def recipe(comparison: Comparison, trial: Trial) -> Any:
    """The config of a trained trial: an ordinary recipe, which names no test rows."""
    own, arm, task = arms.recipe(comparison.config, trial.arm), trial.arm, comparison.task
    own.seed = trial.seed
    own.task.train = (str(_path(task, trial, trial.size).absolute()),)
    own.task.validation = (str((task.folder / 'selection.jsonl').absolute()),)
    own.task.test, own.task.shots, own.data.root = (), 0, ''
    own.data.validation = own.data.test = 0.0
    own.task.buckets = 1  # trials of all sizes and seeds run one program
    if arms.as_text(own):
        own.task.text, own.task.label, own.task.labels, own.task.template = ('prompt',), 'completion', (), 'none'
    else:
        own.task.text, own.task.label, own.task.labels = task.text_fields, 'label', task.classes
    rates = tuple(arm.settings['learning_rates'])
    own.optimizer.learning_rate, own.sweep.learning_rates = rates[0], rates if len(rates) > 1 else ()
    own.evaluate.max_batches = 0
    own.checkpoint.every_steps = own.evaluate.every_steps  # every evaluated step can be chosen
    steps = own.budget.steps or own.evaluate.every_steps * MAX_EVALUATIONS
    own.checkpoint.keep_last, own.checkpoint.keep_best = -(-steps // own.evaluate.every_steps), 0
    own.sample.prompts, own.log.tensorboard = (), False
    return own.lock()


MAX_EVALUATIONS = 10  # of a budget that is not in steps


def _train(comparison: Comparison, trial: Trial, folder: Path) -> dict[str, Any]:
    """Trains the grid, and chooses rate and step on the selection rows."""
    config = recipe(comparison, trial)
    results = training.train(config, folder)
    rates = list(trial.arm.settings['learning_rates'])
    tried = selection.candidates(folder, rates)
    best = selection.choose(folder, tried)
    chosen = {name: best[name] for name in ('learning_rate', 'member', 'step')}
    predict = predictor(comparison, trial, chosen)
    scores = predictors.score(predict, comparison.task.selection, comparison.task.classes)
    cost, members = results['cost'], len(rates)
    ledger = {
        'trainable_parameters': cost['trainable'] // members,
        'train_flops': cost['flops'] / members,
        'selection_flops': cost['flops'] * (members - 1) / members,
        'tokens': cost['tokens'],
        'device_seconds': cost['seconds'],
        'peak_bytes': cost['peak_memory'],
    }
    _keep_checkpoint(folder, best['step'])
    return _result(comparison, trial, predict, chosen, scores, tried) | {'ledger': ledger}


def _keep_checkpoint(folder: Path, step: int) -> None:
    """Removes the checkpoints of other steps: those of one arm would fill a disk."""
    for path in (folder / 'checkpoints').iterdir():
        if path.name.isdecimal() and int(path.name) != step:
            shutil.rmtree(path)


def _prompt(comparison: Comparison, trial: Trial, folder: Path) -> dict[str, Any]:
    """Scores the selection rows with the prompt of the arm."""
    chosen = {'demonstrations': _shots(trial)['shots'], 'select': trial.arm.settings['select']}
    predict = predictor(comparison, trial, chosen)
    scores = predictors.score(predict, comparison.task.selection, comparison.task.classes)
    tried = [chosen | {'accuracy': scores.accuracy, 'loss': scores.loss}]
    return _result(comparison, trial, predict, chosen, scores, tried) | {'ledger': {'trainable_parameters': 0}}


def _result(comparison: Comparison, trial: Trial, predict, chosen, scores, tried) -> dict[str, Any]:
    """The part of trial.json that all kinds share."""
    record = {'rows': len(comparison.task.selection), 'accuracy': scores.accuracy, 'loss': scores.loss}
    block = None
    if trial.next_size:
        later = _subset(comparison.task, trial, trial.next_size)[trial.size :]
        nats = predictors.score(predict, later, comparison.task.classes).nats
        block = {'rows': len(later), 'nats': float(nats.sum())}
    return {'chosen': chosen, 'selection': record | {'candidates': tried}, 'next_block': block}


def _shots(trial: Trial) -> dict[str, Any]:
    settings = trial.arm.settings
    return {'shots': min(settings['shots'], trial.size), 'select': settings['select'], 'seed': trial.seed}


def _path(task: TaskRows, trial: Trial, size: int) -> Path:
    return task.folder / f'{rows.name(size, trial.seed)}.jsonl'


def _subset(task: TaskRows, trial: Trial, size: int) -> list[Row]:
    return rows.read(_path(task, trial, size)) if size else []


def _digest(comparison: Comparison, trial: Trial) -> str:
    """Identifies everything that a trial's result depends on."""
    shared = comparison.config.copy_and_resolve_references().unlock()
    del shared.compare
    for section in ('log', 'watchdog', 'plan', 'sample', 'mesh'):
        del shared[section]
    facts = [comparison.task.facts['digest'], comparison.base.hash, shared.to_dict(), trial.arm.settings]
    facts += [trial.arm.kind, trial.size, trial.seed, trial.next_size]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def run_all(comparison: Comparison, trials: list[Trial], report: Callable[[Trial, dict], None]) -> Iterator[dict]:
    """Runs the trials in their order; `report` is called after each."""
    for trial in trials:
        record = run(comparison, trial)
        report(trial, record)
        yield record
