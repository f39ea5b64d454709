"""Sequence regression: one number for each row, from a checkpoint's own head or from an added one."""

import decimal
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmtrain.data.examples import LABEL, labelled_texts
from lmtrain.data.preview import Batch, render_row
from lmtrain.data.rows import Row, value_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.tasks.classify import legend
from lmtrain.tasks.pooling import pool_outputs
from lmtrain.tasks.task import Encoded, RowFormat, Task

FAR = 100  # from 0, where the predictions of a new head begin


def loss(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """Squared error of `batch['labels']` float32 [B], weighted by `batch['label_weights']` float32 [B].

    `outputs[head]`, `pool` and the columns are those of `classify.loss`, with C = 1.

    Returns:
      ({'loss', 'absolute_error'}, weights), each [B].
    """
    error = pool_outputs(forward(batch)[head], batch, pool)[:, 0] - batch['labels']
    return {'loss': error**2, 'absolute_error': jnp.abs(error)}, batch['label_weights']


def predict(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """float32 [B]: the number of each row."""
    return pool_outputs(forward(batch)[head], batch, pool)[:, 0]


def number_of(value: Any, place: str) -> float:
    """The label of a row as a number. Raises InputError if it is not a finite number."""
    try:
        number = float(value) if type(value) in (int, float, str, decimal.Decimal) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        form = 'it with a decimal point' if isinstance(value, str) and ',' in value else 'a number'
        raise InputError(
            f'{place}: the label of a regression is a finite number, here it is {value!r}: write {form}, or leave out '
            'the row'
        )
    return number


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Columns: `labels` float32 and `label_weights` float32 of each row."""

    def number(row: Row) -> np.float32:
        return np.float32(number_of(value_of(row, form.label, LABEL), row.place) if form.label else 0)

    examples = labelled_texts(rows, form.text, form.tokenizer, form.length, number)
    return Encoded(examples, _label_notes([each.values['labels'] for each in examples]) if form.label else ())


def _label_notes(labels: Sequence[np.float32]) -> list[str]:
    """Lines for the user: the distribution of the labels, and whether a head is far from it when it is new."""
    if not labels:
        return []
    low, high, mean, deviation = (float(each(labels)) for each in (np.min, np.max, np.mean, np.std))
    lines = [f'labels from {low:g} to {high:g}, mean {mean:.4g}, standard deviation {deviation:.4g}']
    if max(-low, high) > FAR:
        lines.append(f'WARNING: labels beyond {FAR}: a new head predicts 0 and learns slowly: divide them in the file')
    return lines


def render(tokenizer: Tokenizer, batch: Batch, row: int, labels: tuple[str, ...] = ()) -> str:
    """One row of a batch, its number at the end."""
    return render_row(tokenizer, batch, row, end=f' => {batch["labels"][row]:g}')


def describe(data, split: str, inferred: Sequence) -> dict[int, dict[str, Any]]:
    """{row: {'prediction': its number}}."""
    sources = data.examples[split].source.tolist()
    return {source: {'prediction': float(number)} for source, number in zip(sources, inferred, strict=True)}


def answers(data, split: str, predicted: Sequence) -> list[tuple[float, float]]:
    """[(label, predicted number)] of the examples."""
    labels = data.examples[split].values['labels']
    return [(float(label), float(number)) for label, number in zip(labels, predicted, strict=True)]


def rate(answers: Sequence[tuple[float, float]]) -> dict[str, float]:
    """{'absolute_error', 'squared_error', 'pearson'}: means, and the correlation, which is 0 if either is constant."""
    labels, predictions = np.array(answers, np.float64).T
    error = predictions - labels
    spread = labels.std() * predictions.std()
    covariance = np.mean((labels - labels.mean()) * (predictions - predictions.mean()))
    return {
        'absolute_error': float(np.mean(np.abs(error))),
        'squared_error': float(np.mean(error**2)),
        'pearson': float(covariance / spread) if spread else 0.0,
    }


def score(data, split: str, predicted: Sequence) -> dict[str, float]:
    """{'pearson'} of a split (`rate`)."""
    return {'pearson': rate(answers(data, split, predicted))['pearson']}


TASK = Task(
    name='regress',
    head='classify',
    columns=('labels', 'label_weights', 'token_types'),
    losses={'squared_error': loss},
    peft_type='SEQ_CLS',
    legend=legend,
    render=render,
    encode=encode,
    num_outputs=1,
    predict=predict,
    score=score,
    answers=answers,
    rate=rate,
    infer=predict,
    describe=describe,
)
