"""Predictions of a model on a split of a task, and their score."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lmtrain import data
from lmtrain.runtime import progress
from lmtrain.tasks.task import with_settings


def predictions(
    model, predict: Callable, params, stream: data.PaddedStream, place=jax.device_put, **settings
) -> list[Any]:
    """The results of `predict(forward, batch, **settings)` for each example of the stream's split, in their order.

    One pass, in one process. `place` puts a host batch on the devices. Settings that `predict` does not have are
    ignored.
    """
    predict = with_settings(predict, settings)

    @jax.jit
    def run(params, batch):
        return predict(lambda columns: model.apply({'params': params}, columns), batch)

    results: list[Any] = [None] * len(stream.examples_of.source)
    for step in progress.each(range(stream.steps_per_epoch), 'predicting, batches', brief=True):
        leaves, tree = jax.tree.flatten(jax.device_get(run(params, place(stream.batch(step)))))
        for at, example in np.ndenumerate(stream.examples(step)):  # (row,), or (row, segment)
            if example >= 0:
                results[example] = jax.tree.unflatten(tree, [np.asarray(leaf[at]) for leaf in leaves])
    return results


def score_split(model, params, stream: data.PaddedStream, place=jax.device_put, **settings) -> dict[str, float]:
    """The score of a model on the stream's split, as its task defines it; `settings`: of `Task.predict`."""
    task = stream.data.task
    return task.score(stream.data, stream.split, predictions(model, task.predict, params, stream, place, **settings))
