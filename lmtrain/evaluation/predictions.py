"""Predictions of a model on a split of a task."""

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
