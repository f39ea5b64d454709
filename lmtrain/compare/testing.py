"""The test stage: the only code that opens rows/test.jsonl, once every trial has chosen.

A later call with other arms, seeds or sizes has a stage of its own, whose trials may have been added because of the
results of the earlier ones. stage.txt in the folder of a trial has its stage: an interrupted stage is continued.
"""

import json
from typing import Any

import jax
import numpy as np

from lmtrain.compare import choice_scores, predictors, prompted, rows, trained, trials
from lmtrain.compare.trials import Comparison, Finished, Trial
from lmtrain.data.rows import Row
from lmtrain.evaluation import statistics
from lmtrain.files import read_json_object, write_atomic, write_json
from lmtrain.tasks import TASKS
from lmtrain.training.load import LoadedModel


def run(comparison: Comparison, finished: Finished) -> Finished:
    """Writes test.json and predictions.jsonl of each trial that is done and has none.

    Returns the trials; one that cannot answer the test rows is a failed one.
    """
    open_rows: list[Row] = []
    stages = _stages(comparison, finished)
    tested: list[tuple[Trial, dict[str, Any]]] = []
    for trial, record in finished:
        folder = comparison.folder / trial.folder
        if record['status'] != 'done' or (folder / 'test.json').exists():
            tested.append((trial, record))
            continue
        open_rows = open_rows or rows.read(comparison.task.folder / 'test.jsonl')
        try:
            loaded = _model(comparison, trial, record['chosen'])
            log_p, cut = _answers(comparison, trial, loaded, record['chosen'], open_rows)
            scores = choice_scores.score(log_p, open_rows, comparison.task.classes)
        except Exception as error:
            failure = trials.failure(error, folder)
            tested.append((trial, record | failure | {'reason': f'on the test rows: {failure["reason"]}'}))
            continue
        lines = (json.dumps(line, ensure_ascii=False) + '\n' for line in _lines(scores, comparison.task.classes))
        write_atomic(folder / 'predictions.jsonl', ''.join(lines).encode())
        summary = _summary(loaded, scores) | {'cut': cut, 'stage': stages[trial.folder]}
        write_json(folder / 'test.json', summary, indent=1)  # last: the trial is tested
        tested.append((trial, record))
    return tested


def _stages(comparison: Comparison, finished: Finished) -> dict[str, int]:
    """{folder of each trial that is to be tested: its stage}, from 1, which is written to its stage.txt.

    A trial keeps the stage of the first call that found it finished: no result of that stage was known when it chose.
    """
    paths = (comparison.folder / 'trials').glob('*/*/test.json')
    number = 1 + max((read_json_object(path).get('stage', 1) for path in paths), default=0)
    stages = {}
    for trial, record in finished:
        folder = comparison.folder / trial.folder
        if record['status'] != 'done' or (folder / 'test.json').exists():
            continue
        if not (folder / trials.STAGE).exists():
            write_atomic(folder / trials.STAGE, str(number).encode())
        stages[trial.folder] = int((folder / trials.STAGE).read_text(encoding='utf-8'))
    return stages


def _model(comparison: Comparison, trial: Trial, chosen: dict[str, Any]) -> LoadedModel:
    """The model that is scored: the base of a prompt, or what the trial has trained."""
    return trained.load(comparison, trial, chosen) if trial.arm.kind == 'train' else comparison.model


def _answers(
    comparison: Comparison, trial: Trial, loaded: LoadedModel, chosen: dict[str, Any], open_rows: list[Row]
) -> tuple[np.ndarray, int]:
    """(log p float64 [rows, C] of a trial, how many of the rows it cuts).

    A head reads the beginning of a row that is too long, and a prompt without demonstrations its end.
    """
    if trial.arm.kind != 'train':
        pool, form = prompted.prompt(comparison, trial, chosen)
    else:
        if TASKS[loaded.config.task.name].has_classes:
            length = trained.seq_len(comparison, trial, loaded)
            _, cut = predictors.encode(open_rows, loaded, comparison.task, length)
            return trained.predictor(comparison, trial, loaded, chosen)(open_rows), cut
        pool, form = trained.prompt(comparison, trial)
    return predictors.answer(loaded, pool, form, chosen, open_rows)


def read(comparison: Comparison, trial: Trial) -> dict[str, Any] | None:
    """The content of a trial's test.json; None if it has none."""
    path = comparison.folder / trial.folder / 'test.json'
    return read_json_object(path) if path.exists() else None


def _lines(scores: choice_scores.ChoiceScores, classes) -> list[dict[str, Any]]:
    return [
        {
            'row': row,
            'answer': classes[label],
            'predicted': classes[predicted],
            'right': bool(label == predicted),
            'nats': float(nats),
        }
        for row, (label, predicted, nats) in enumerate(zip(scores.labels, scores.predicted, scores.nats, strict=True))
    ]


def _summary(loaded: LoadedModel, scores: choice_scores.ChoiceScores) -> dict[str, Any]:
    estimate = statistics.proportion(scores.labels == scores.predicted)
    return {
        'rows': len(scores.labels),
        'accuracy': estimate.mean,
        'stderr': estimate.stderr,
        'interval': [estimate.low, estimate.high],
        'loss': scores.loss,
        'engine': 'lmtrain',
        'device': jax.devices()[0].device_kind,
        'dtype': loaded.model.dtype,
        'attention': 'xla',
        'batch_size': predictors.BATCH_SIZE,
        'stopped': None,
    }
