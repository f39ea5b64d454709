"""A model's predictions on a split of a task, and what they are worth."""

from typing import Any

import jax
import numpy as np

from lmtrain import data
from lmtrain.evaluation.scores import score
from lmtrain.tasks import classify, span, tag

PREDICT = {'classify': classify.predict, 'regress': classify.predict_number, 'tag': tag.predict, 'span': span.predict}


def predictions(model, predict, params, stream: data.PaddedStream, place=jax.device_put, **options) -> list[Any]:
    """What `predict(forward, batch, **options)` gives for each example of the stream's split, in their order.

    One pass; of one process. `place` puts a host batch on the devices.
    """

    @jax.jit
    def run(params, batch):
        return predict(lambda columns: model.apply({'params': params}, columns), batch, **options)

    found: list[Any] = [None] * len(stream.examples_of.source)
    for step in range(stream.steps_per_epoch):
        leaves, tree = jax.tree.flatten(jax.device_get(run(params, place(stream.batch(step)))))
        for row, example in enumerate(stream.examples(step).tolist()):
            if example >= 0:
                found[example] = jax.tree.unflatten(tree, [np.asarray(leaf[row]) for leaf in leaves])
    return found


def score_split(model, params, stream: data.PaddedStream, place=jax.device_put, **options) -> dict[str, float]:
    """The scores (`lmtrain.evaluation.scores`) of a model on the stream's split; `options`: of the task's objective."""
    task = stream.task
    found = predictions(model, PREDICT[task.name], params, stream, place, **options)
    return score(task, stream.split, found)
