"""Sequence classification: one class for each row, from a checkpoint's own head or from an added one."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data.examples import LABEL, labelled_texts
from lmtrain.data.labels import class_id
from lmtrain.data.preview import Batch, render_row
from lmtrain.data.rows import Row, value_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.tasks.pooling import pool_outputs
from lmtrain.tasks.task import Encoded, RowFormat, Task


def loss(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """Cross-entropy of `batch['labels']` int32 [B] in nats, weighted by `batch['label_weights']` float32 [B].

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]`: float32 [B, C], or [B, T, C], which is pooled.
      batch: columns `labels`, `label_weights`, and for pooling `segment_ids` (0 is padding).
      head: name of the output.
      pool: 'first' | 'last' | 'mean' of the row's real tokens.

    Returns:
      ({'loss', 'accuracy'}, weights), each [B].
    """
    logits = pool_outputs(forward(batch)[head], batch, pool)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    labels = batch['labels']
    nats = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {'loss': nats, 'accuracy': correct}, batch['label_weights']


def predict(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """int32 [B]: the most likely class of each row."""
    return jnp.argmax(pool_outputs(forward(batch)[head], batch, pool), axis=-1).astype(jnp.int32)


def infer(forward, batch, *, head: str = 'logits', pool: str = 'first'):
    """float32 [B, C]: the probability of each class of each row."""
    logits = pool_outputs(forward(batch)[head], batch, pool)
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def row_labels(row: Row, text: tuple[str, ...], label: str) -> Iterator[tuple[str, Any]]:
    """The label of a row."""
    yield row.place, value_of(row, label, LABEL)


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Columns: `labels` int32, the id of the class, and `label_weights` float32 of each row."""

    def id_of(row: Row) -> np.int32:
        return np.int32(class_id(value_of(row, form.label, LABEL), form.labels, row.place) if form.label else 0)

    return Encoded(labelled_texts(rows, form.text, form.tokenizer, form.length, id_of))


def legend(batch: Batch) -> str:
    """Explanation of the annotations in the preview of a batch."""
    return 'the label follows =>, ~ is padding'


def render(tokenizer: Tokenizer, batch: Batch, row: int, labels: tuple[str, ...]) -> str:
    """One row of a batch, its class at the end."""
    return render_row(tokenizer, batch, row, end=f' => {labels[batch["labels"][row]]}')


def answers(data, split: str, predicted: Sequence) -> list[tuple[str, str]]:
    """[(label, predicted class)] of the examples."""
    labels = data.examples[split].values['labels']
    return [(data.labels[label], data.labels[guess]) for label, guess in zip(labels, predicted, strict=True)]


def describe(data, split: str, inferred: Sequence) -> dict[int, dict[str, Any]]:
    """{row: {'prediction': its class, 'probability' of this class, 'probabilities': {class: its probability}}}."""
    sources = data.examples[split].source.tolist()
    return {source: columns(shares, data.labels) for source, shares in zip(sources, inferred, strict=True)}


def columns(shares: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """What `describe` gives for a row whose classes have the probabilities `shares` [C]."""
    return {
        'prediction': labels[int(np.argmax(shares))],
        'probability': float(np.max(shares)),
        'probabilities': dict(zip(labels, map(float, shares), strict=True)),
    }


def rate(answers: Sequence[tuple[str, str]]) -> dict[str, float]:
    """{'accuracy', 'macro_f1'}.

    macro_f1: the mean of the F1 scores of all classes that are a label or a prediction, as in scikit-learn.
    """
    labels, guesses = (np.array(column) for column in zip(*answers, strict=True))
    scores = []
    for label in np.unique(np.concatenate([labels, guesses])):
        correct = np.sum((labels == label) & (guesses == label))
        scores.append(2 * correct / (np.sum(labels == label) + np.sum(guesses == label)))
    return {'accuracy': float(np.mean(labels == guesses)), 'macro_f1': float(np.mean(scores))}


def score(data, split: str, predicted: Sequence) -> dict[str, float]:
    """{'macro_f1'} of a split (`rate`)."""
    return {'macro_f1': rate(answers(data, split, predicted))['macro_f1']}


TASK = Task(
    name='classify',
    head='classify',
    columns=('labels', 'label_weights', 'token_types'),
    losses={'cross_entropy': loss},
    peft_type='SEQ_CLS',
    legend=legend,
    render=render,
    encode=encode,
    row_labels=row_labels,
    predict=predict,
    score=score,
    answers=answers,
    rate=rate,
    infer=infer,
    describe=describe,
)
