"""Scores of predictions, and how likelihoods of answers become probabilities of classes.

A likelihood is no calibrated probability: a model prefers some answers whatever the row is. What is subtracted and
divided here is fitted on the selection rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.rows import Row
from lmtrain.errors import NonFiniteOutput
from lmtrain.inference import calibration, prompting
from lmtrain.training.load import LoadedModel

# How answers are compared, by name.
SCORES = (
    'sum',  # nats of the text
    'per_byte',  # nats per byte of it
    'batch',  # less their mean over the selection rows, without labels (Zhou et al. 2023, arXiv 2309.17249)
    'contrast',  # less those after the row alone: what the demonstrations add (Shi et al. 2023, arXiv 2305.14739)
    'content_free',  # calibrated by inputs without content (Zhao et al. 2021, arXiv 2102.09690)
)


class Scores(NamedTuple):
    """How a predictor does on rows with labels.

    Attributes:
      labels, predicted: class ids [rows].
      nats: -log p of each row's class [rows].
    """

    labels: np.ndarray
    predicted: np.ndarray
    nats: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of rows whose most likely class is theirs."""
        return float(np.mean(self.labels == self.predicted))

    @property
    def loss(self) -> float:
        """Mean nats of the right class."""
        return float(np.mean(self.nats))


def score(log_p: np.ndarray, rows: Sequence[Row], classes: Sequence[str]) -> Scores:
    """The scores of predictions [rows, C]. Raises NonFiniteOutput if a probability is nan."""
    labels = np.array([classes.index(row.fields['label']) for row in rows])
    if np.isnan(log_p).any():
        raise NonFiniteOutput('the model gives probabilities that are nan: its parameters are broken')
    return Scores(labels, np.argmax(log_p, axis=1), -log_p[np.arange(len(rows)), labels])


def of_rows(
    loaded: LoadedModel, pool: Sequence[Row], form: prompting.PromptSettings, rows: Sequence[Row], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """{score: log p float64 [rows, C]} for each of `names`, without a bias and a temperature."""
    calibrated = calibration.CONTENT_FREE if 'content_free' in names else ()
    form = form._replace(batch_size=min(form.batch_size, len(rows)), calibrated=calibrated)

    def scored(form: prompting.PromptSettings) -> list[dict[str, Any]]:
        return prompting.score(loaded.model, loaded.params, loaded.tokenizer, rows, form, demonstrations=pool).rows

    answers = scored(form)
    nats, sizes = np.array([row['nats'] for row in answers]), [len(choice.encode()) for choice in form.choices]
    result = {'sum': nats, 'per_byte': nats / np.array(sizes), 'batch': nats}
    if 'contrast' in names:
        alone = scored(form._replace(shots=0, calibrated=())) if form.shots else answers
        result['contrast'] = nats - np.array([row['nats'] for row in alone])
    if calibrated:
        result['content_free'] = np.array([row['calibrated_nats'] for row in answers])
    return {name: log_softmax(result[name]) for name in names}


def candidates(scored: Mapping[str, np.ndarray], rows: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """{'score', 'bias', 'temperature', 'accuracy', 'loss'} of each score on the selection rows."""
    listed = []
    for name in scored:
        bias = scored[name].mean(axis=0).tolist() if name == 'batch' else []
        about = {'score': name, 'bias': bias, 'temperature': 1.0}
        about['temperature'] = fit_temperature(scaled(scored, about), rows, classes)
        scores = score(scaled(scored, about), rows, classes)
        listed.append(about | {'accuracy': scores.accuracy, 'loss': scores.loss})
    return listed


def scaled(scored: Mapping[str, np.ndarray], chosen: Mapping[str, Any]) -> np.ndarray:
    """log p float64 [rows, C] of a candidate."""
    bias = np.array(chosen['bias'] or 0.0)
    return log_softmax((scored[chosen['score']] - bias) / chosen['temperature'])


def fit_temperature(log_p: np.ndarray, rows: Sequence[Row], classes: Sequence[str]) -> float:
    """The temperature in [0.05, 100] at which scores [rows, C] have the lowest loss on rows; it changes no prediction.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2), so that losses of scores can be compared.
    """
    from scipy import optimize  # late

    def loss(log_temperature: float) -> float:
        return score(log_softmax(log_p / math.exp(log_temperature)), rows, classes).loss

    return math.exp(optimize.minimize_scalar(loss, bounds=(math.log(0.05), math.log(100)), method='bounded').x)


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, from scores that differ from them by a constant."""
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
