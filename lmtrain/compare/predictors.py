"""Predictors: the probability of each class for rows, from a trained head or from the likelihood of answers."""

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmtrain.compare.rows import TaskRows
from lmtrain.data.examples import Example, LengthPolicy
from lmtrain.data.rows import Row
from lmtrain.errors import InputError, NonFiniteOutput
from lmtrain.inference import prompting, sample
from lmtrain.tasks import TASKS
from lmtrain.tasks.pooling import pool_outputs
from lmtrain.tasks.task import RowFormat
from lmtrain.training.load import LoadedModel

BATCH_SIZE = 32  # rows scored together; it changes no score beyond rounding
SHORTEST = 16  # tokens; rows are padded to powers of two from here on

Predict = Callable[[Sequence[Row]], np.ndarray]  # rows -> log p float64 [rows, C], normalised over the classes


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


def by_head(loaded: LoadedModel, task: TaskRows) -> Predict:
    """The predictor of a run of the task, which has a head with one output for each class."""
    record, config = TASKS[loaded.config.task.name], loaded.config
    output = 'logits' if loaded.model.head == record.head else record.name

    def predict(rows: Sequence[Row]) -> np.ndarray:
        groups = collections.defaultdict(list)
        for example in encode(rows, loaded, task):
            groups[sample.bucket(len(example.tokens), SHORTEST, config.data.seq_len)].append(example)
        log_p = np.zeros((len(rows), len(task.classes)))
        for T, members in sorted(groups.items()):
            size = sample.bucket(len(members), 1, BATCH_SIZE)
            for first in range(0, len(members), size):
                some = members[first : first + size]
                values = _log_p(loaded.model, output, config.objective.pool, loaded.params, _padded(some, size, T))
                log_p[[example.source for example in some]] = np.asarray(values, np.float64)[: len(some)]
        return log_p

    return predict


def encode(rows: Sequence[Row], loaded: LoadedModel, task: TaskRows) -> list[Example]:
    """The rows as a head reads them. If training leaves out long rows, they are cut here: every row has an answer."""
    config = loaded.config
    length = LengthPolicy('error' if config.task.too_long == 'error' else 'cut', config.data.seq_len)
    form = RowFormat(task.text_fields, 'label', task.classes, loaded.tokenizer, None, length, training=False)
    return TASKS[config.task.name].encode(rows, form).examples


def _padded(examples: Sequence[Example], size: int, T: int) -> dict[str, np.ndarray]:
    """A batch of `size` rows of T tokens; rows beyond the examples are copies of the first."""
    names = ['tokens', 'segment_ids', *examples[0].flat]
    batch = {name: np.zeros((size, T), np.int32) for name in names}
    for row in range(size):
        example = examples[row if row < len(examples) else 0]
        for name, values in {'tokens': example.tokens, 'segment_ids': 1, **example.flat}.items():
            batch[name][row, : len(example.tokens)] = values
    return batch


@functools.partial(jax.jit, static_argnames=('model', 'output', 'pool'))
def _log_p(model, output: str, pool: str, params, batch) -> jax.Array:
    """float32 [B, C]."""
    logits = pool_outputs(model.apply({'params': params}, batch)[output], batch, pool)
    return jax.nn.log_softmax(logits.astype(np.float32), axis=-1)


# Scores of a choice that are compared: nats of its text; per byte of it; after calibration by content-free inputs.
CHOICE_SCORES = ('sum', 'per_byte', 'calibrated')


def check_promptable(model) -> None:
    """Raises InputError if a model cannot be prompted."""
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot be prompted')
    if model.head != 'lm':
        raise InputError(f'the model has the head {model.head!r} and no vocabulary: it cannot be prompted')


def settings(task: TaskRows, **options: Any) -> prompting.PromptSettings:
    """How the rows of a comparison become prompts."""
    return prompting.PromptSettings(
        '{prompt}{completion}', 'completion', task.completions, batch_size=BATCH_SIZE, **options
    )


def choice_scores(
    loaded: LoadedModel, pool: Sequence[Row], form: prompting.PromptSettings, rows: Sequence[Row]
) -> dict[str, np.ndarray]:
    """{score of a choice: log p [rows, C]}, those of CHOICE_SCORES that the settings give."""
    form = form._replace(batch_size=min(form.batch_size, len(rows)))
    scored = prompting.score(loaded.model, loaded.params, loaded.tokenizer, rows, form, demonstrations=pool).rows
    nats = np.array([row['nats'] for row in scored])
    sizes = np.array([len(choice.encode()) for choice in form.choices])
    result = {'sum': log_softmax(nats), 'per_byte': log_softmax(nats / sizes)}
    return result | ({'calibrated': np.array([row['calibrated_nats'] for row in scored])} if form.calibrated else {})


def by_likelihood(
    loaded: LoadedModel,
    pool: Sequence[Row],
    form: prompting.PromptSettings,
    *,
    score: str = 'sum',
    temperature: float = 1.0,
) -> Predict:
    """The predictor of a causal model: the likelihood of the classes' texts after the prompt.

    Args:
      pool: rows from which demonstrations are taken.
      score: one of CHOICE_SCORES.
      temperature: divides the scores, see `fit_temperature`.
    """
    check_promptable(loaded.model)
    return lambda rows: log_softmax(choice_scores(loaded, pool, form, rows)[score] / temperature)


def fit_temperature(log_p: np.ndarray, rows: Sequence[Row], classes: Sequence[str]) -> float:
    """The temperature in [0.05, 100] at which scores [rows, C] have the lowest loss on rows.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2). The likelihood of a text is no calibrated
    probability of a class; one number, fitted on the selection rows, makes the losses of different scores comparable.
    It changes no prediction.
    """
    from scipy import optimize  # late

    def loss(log_temperature: float) -> float:
        return score(log_softmax(log_p / math.exp(log_temperature)), rows, classes).loss

    return math.exp(optimize.minimize_scalar(loss, bounds=(math.log(0.05), math.log(100)), method='bounded').x)


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, from scores that differ from them by a constant."""
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
