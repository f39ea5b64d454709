"""Predictions of a model's head for rows, and their scores: classes, numbers, tags of words, answers in a context."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmtrain.data import PaddedStream, Tokenizer
from lmtrain.data.rows import Row, value_of
from lmtrain.errors import InputError
from lmtrain.evaluation.predictions import predictions
from lmtrain.evaluation.statistics import standard_error
from lmtrain.models.virtual_tokens import room
from lmtrain.report import terminal
from lmtrain.tasks.prepare import encode_rows
from lmtrain.tasks.task import Task
from lmtrain.tree import Params

RESAMPLES = 300  # of rows, for the standard error of a score that is no mean over rows


class Head(NamedTuple):
    """The head of a loaded model.

    Attributes:
      labels: the names of its classes in the order of their ids; () if they are not known.
      pool: of an added head on a task with one label for each row: 'first', 'last' or 'mean'.
    """

    labels: tuple[str, ...] = ()
    pool: str = 'first'


def score_rows(
    model,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    rows: Sequence[Row],
    head: Head,
    *,
    text: Sequence[str],
    label: str,
    too_long: str = 'error',
    batch_size: int = 32,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the scores of `task.rate` with '<name>_stderr', {'answer', 'predicted', 'right'} of each row; numbers are not
    right or wrong).

    Args:
      text, label: fields of the rows, as in config.task.
      too_long: 'error', or 'cut' for rows that are longer than the context (a context of 'span' in windows);
        `results['too_long']` counts them.

    Raises InputError before anything compiles if the model has no such head, or a row lacks a field or a class.
    """
    output = output_of(model, params, task)
    labels = _labels(model, params, task, output, head)
    context = room(model, params)
    data, count = encode_rows(rows, task, tokenizer, context, text=text, label=label, labels=labels, too_long=too_long)
    stream = PaddedStream(data, 'test', batch_size, 0, False)
    predict, answers = task.predict, task.answers
    assert predict and answers, f'{task.name} has no evaluation file'
    pairs = answers(data, 'test', predictions(model, predict, params, stream, head=output, pool=head.pool))
    results, lines = scores(task, pairs)
    return results | {'too_long': count}, lines


def score_split(model, params: Params, stream: PaddedStream, place=jax.device_put, **settings) -> dict[str, Any]:
    """The score of a model on the stream's split, as its task defines it, with '<name>_stderr' of tasks with `answers`.

    Args:
      settings: of `Task.predict`.
    """
    task, of = stream.data.task, (stream.data, stream.split)
    assert task.predict and task.score, f'{task.name} has no score'
    guesses = predictions(model, task.predict, params, stream, place, **settings)
    results = task.score(*of, guesses)
    rated = _rated(task, task.answers(*of, guesses)) if task.answers else {}
    return results | {error: rated[error] for name in results if (error := f'{name}_stderr') in rated}


def _rated(task: Task, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """`Task.rate` of (label, prediction) of rows, with the standard error of each score."""
    rate = task.rate
    assert rate, f'{task.name} has no scores of rows'
    return means([rate([pair]) for pair in pairs]) if task.rates_rows else rates(rate, pairs)


def scores(task: Task, pairs: Sequence[tuple[Any, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `score_rows` returns, without 'too_long', from (label, prediction) of each row."""
    rate = task.rate
    assert rate, f'{task.name} has no evaluation file'
    each = [rate([pair]) for pair in pairs] if task.rates_rows else []
    results = means(each) if task.rates_rows else rates(rate, pairs)
    main = next(iter(results))
    lines = [{'answer': answer, 'predicted': guess} for answer, guess in pairs]
    if task.has_classes or task.num_outputs != 1:
        for number, (answer, guess) in enumerate(pairs):
            own = each[number] if each else {main: 1.0} if answer == guess else rate([(answer, guess)])
            lines[number]['right'] = own[main]
    return results, lines


def predict_rows(
    model,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    rows: Sequence[Row],
    head: Head,
    *,
    text: Sequence[str],
    batch_size: int = 32,
) -> tuple[list[dict[str, Any]], int]:
    """(the columns that `Task.describe` gives for each row, the number of rows longer than the context).

    Rows need no label. Those that are too long are cut (a context of 'span' is read in windows). A row without any text
    has the prediction None.

    Args:
      text: fields of the rows, as in config.task.

    Raises InputError before anything compiles if the model has no such head, or a row lacks a field.
    """
    infer, describe = task.infer, task.describe
    if not infer or not describe:
        raise InputError(f'the task {task.name!r} has no predictions for rows')
    output = output_of(model, params, task)
    labels = _labels(model, params, task, output, head)
    filled = [index for index, row in enumerate(rows) if not is_blank(row, text, task)]
    described: list[dict[str, Any]] = [{'prediction': None} for _ in rows]
    if not filled:
        return described, 0
    context = room(model, params)
    some = [rows[index] for index in filled]
    data, count = encode_rows(some, task, tokenizer, context, text=text, label='', labels=labels, too_long='cut')
    stream = PaddedStream(data, 'test', batch_size, 0, False)
    inferred = predictions(model, infer, params, stream, head=output, pool=head.pool)
    for source, columns in describe(data, 'test', inferred).items():
        described[filled[source]] = columns
    return described, count


def is_blank(row: Row, text: Sequence[str], task: Task) -> bool:
    """Whether a row has nothing to predict from: no text in any of its fields, or none in one that the task needs.

    Raises InputError if it lacks a field.
    """
    values = [row.fields[name] if name in row.fields else value_of(row, name, 'text (--text)') for name in text]
    filled = [bool(value.strip() if isinstance(value, str) else value) for value in values]
    return not (any(filled) if task.pools_rows else all(filled))


def _labels(model, params: Params, task: Task, output: str, head: Head) -> tuple[str, ...]:
    """The names of the classes. Raises InputError if they are not as many as the outputs."""
    if not task.has_classes:
        return ()
    labels, size = head.labels, _num_outputs(model, params, output)
    if len(labels) != size:
        known = f'{len(labels)} are named: {", ".join(labels[:10])}' if labels else 'their names are not known'
        raise InputError(f'the head has {size} classes, and {known}: set labels to all of them, in their order')
    return labels


def means(each: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The means of the scores of single rows, with their standard errors; None for one row."""
    results = {}
    for name in each[0]:
        values = [own[name] for own in each]
        results |= {name: float(np.mean(values)), f'{name}_stderr': standard_error(values)}
    return results


def rates(rate: Callable[..., dict[str, float]], pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """`Task.rate` with the standard error of each score, by the bootstrap over rows; None for one row."""
    scores = rate(pairs)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(pairs), size=(RESAMPLES, len(pairs))) if len(pairs) > 1 else ()
    resampled = [rate([pairs[index] for index in each]) for each in drawn]
    results = {}
    for name, value in scores.items():
        error = float(np.std([each[name] for each in resampled], ddof=1)) if resampled else None
        results |= {name: value, f'{name}_stderr': error}
    return results


def line(results: Mapping[str, Any]) -> str:
    """All scores of `score_rows` as a line of text.

    >>> line({'rows': 500, 'accuracy': 0.846, 'accuracy_stderr': 0.0161, 'too_long': 2})
    'accuracy 0.8460 +- 0.0161  (500 rows, 2 longer than the context)'
    """
    scores = []
    for name in [name for name in results if f'{name}_stderr' in results]:
        error = results[f'{name}_stderr']
        margin = '' if error is None else f' +- {error:.4f}'
        scores.append(f'{name.replace("_", " ")} {results[name]:.4f}{margin}')
    counts = terminal.counted(results['rows'], 'row')
    counts += f', {results["too_long"]:,} longer than the context' if results['too_long'] else ''
    return f'{", ".join(scores)}  ({counts})'


def output_of(model, params: Params, task: Task) -> str:
    """The name of the output that the head of a task gives. Raises InputError if the model has no such head."""
    if task.name in params.get('heads', {}):
        return task.name
    if model.head == task.head:
        return 'logits'
    added = ', '.join(params.get('heads', {})) or 'none'
    raise InputError(
        f'{task.name!r} needs a head for it; the model has model.head={model.head!r}, and added heads: {added}'
    )


def _num_outputs(model, params: Params, output: str) -> int:
    return model.num_labels if output == 'logits' else params['heads'][output]['kernel'].shape[-1]
