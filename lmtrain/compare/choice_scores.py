"""Scores of predictions, and how likelihoods of answers become probabilities of classes.

A likelihood is no calibrated probability: a model prefers some answers whatever the row is. What is subtracted and
divided here is fitted on the selection rows.
"""

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
PROMPTS = ('shots_mean', 'prompt_tokens', 'dropped', 'cut')  # what is counted of prompts (`prompting.ChoiceScores`)


class ChoiceScores(NamedTuple):
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


def labels(rows: Sequence[Row], classes: Sequence[str]) -> np.ndarray:
    """The class ids of rows."""
    return np.array([classes.index(row.fields['label']) for row in rows])


def score(log_p: np.ndarray, rows: Sequence[Row], classes: Sequence[str]) -> ChoiceScores:
    """The scores of predictions [rows, C]. Raises NonFiniteOutput if a probability is nan."""
    right = labels(rows, classes)
    if np.isnan(log_p).any():
        raise NonFiniteOutput('the model gives probabilities that are nan: its parameters are broken')
    return ChoiceScores(right, np.argmax(log_p, axis=1), -log_p[np.arange(len(rows)), right])


class ChoiceLikelihoods(NamedTuple):
    """What `of_rows` returns.

    Attributes:
      log_p: {score: float64 [rows, C]}, without a bias and a temperature.
      shots_mean: mean number of demonstrations of a prompt.
      prompt_tokens: mean number of its tokens, without the answer.
      dropped: number of demonstrations, of all prompts together, that did not fit into the context.
      cut: number of prompts without their beginning (PromptSettings.cut).
    """

    log_p: dict[str, np.ndarray]
    shots_mean: float
    prompt_tokens: float
    dropped: int
    cut: int


def of_prompt(names: Sequence[str], form: prompting.PromptSettings) -> list[str]:
    """The scores `names` that can tell the answers to a prompt apart, at least 'sum'.

    Without demonstrations 'contrast' is 0 for every answer, and its loss may still be the lowest of all.
    """
    return [name for name in names if form.shots or name != 'contrast'] or ['sum']


def of_rows(
    loaded: LoadedModel,
    pool: Sequence[Row],
    form: prompting.PromptSettings,
    rows: Sequence[Row],
    names: Sequence[str],
    vectors: Mapping[str, np.ndarray] = {},
) -> ChoiceLikelihoods:
    """The scores `names` of rows.

    Args:
      form: `calibrated` holds the prompts of inputs without content; they are read if 'content_free' is among `names`.
      vectors: the embeddings of the pool (`demonstrations.embedded`), if they are computed already.
    """
    calibrated = form.calibrated if 'content_free' in names else ()
    form = form._replace(batch_size=min(form.batch_size, len(rows)), calibrated=calibrated)

    def scored(form: prompting.PromptSettings) -> prompting.Scores:
        model = loaded.model, loaded.params, loaded.tokenizer
        shown = pool if form.shots else ()  # it is prepared for every query
        return prompting.score(*model, rows, form, demonstrations=shown, vectors=vectors)

    results, answers = scored(form)
    nats, sizes = np.array([row['nats'] for row in answers]), [len(choice.encode()) for choice in form.choices]
    result = {'sum': nats, 'per_byte': nats / np.array(sizes), 'batch': nats}
    if 'contrast' in names:
        alone = scored(form._replace(shots=0, calibrated=())).rows if form.shots else answers
        result['contrast'] = nats - np.array([row['nats'] for row in alone])
    if calibrated:
        result['content_free'] = np.array([row['calibrated_nats'] for row in answers])
    log_p = {name: calibration.log_softmax(result[name]) for name in names}
    return ChoiceLikelihoods(log_p, **{name: results[name] for name in PROMPTS})


def candidates(likelihoods: ChoiceLikelihoods, rows: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """{'score', 'bias', 'temperature', 'accuracy', 'loss'} of each score on selection rows.

    Each also has `PROMPTS` of the likelihoods.
    """
    listed, scored = [], likelihoods.log_p
    for name in scored:
        bias = scored[name].mean(axis=0).tolist() if name == 'batch' else []
        about = {'score': name, 'bias': bias, 'temperature': 1.0}
        about |= {name: getattr(likelihoods, name) for name in PROMPTS}
        about['temperature'] = fit_temperature(scaled(scored, about), rows, classes)
        scores = score(scaled(scored, about), rows, classes)
        listed.append(about | {'accuracy': scores.accuracy, 'loss': scores.loss})
    return listed


def scaled(scored: Mapping[str, np.ndarray], chosen: Mapping[str, Any]) -> np.ndarray:
    """log p float64 [rows, C] of a candidate."""
    bias = np.array(chosen['bias'] or 0.0)
    return calibration.log_softmax((scored[chosen['score']] - bias) / chosen['temperature'])


def fit_temperature(log_p: np.ndarray, rows: Sequence[Row], classes: Sequence[str]) -> float:
    """The temperature at which scores [rows, C] have the lowest loss on rows (`calibration.fit_temperature`)."""
    return calibration.fit_temperature(log_p, labels(rows, classes))
