"""Compiled steps that the arithmetic is compared with."""

import jax
import numpy as np
import pytest

from lmtrain import models, tree
from lmtrain.tasks import token_loss
from lmtrain.training import step

ROWS, LENGTH = 2, 256


@pytest.fixture
def compiled(no_compilation_cache):
    """The function that compiles a step; its HLO is read, so it does not come from the cache."""
    return compile_step


def compile_step(settings, trainable, predicted=None):
    """(compiled value_and_grad, trainable and frozen shapes, model) of one micro-batch of ROWS x LENGTH tokens."""
    model = models.Transformer(**settings)
    batch = {'tokens': np.zeros((ROWS, LENGTH), np.int32)}
    shape = (ROWS, predicted or LENGTH)
    batch |= {'targets': np.zeros(shape, np.int32), 'loss_mask': np.ones(shape, np.float32)}
    if predicted:
        batch['select'] = np.zeros(shape, np.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)['params'])
    shapes, frozen = tree.split(params, trainable)

    def run(trainable, frozen, batch):
        def loss(trainable):
            return step.sums(token_loss.loss, model, tree.join(frozen, trainable), batch)[0]['loss']

        return jax.value_and_grad(loss)(trainable)

    # The optimisations of LLVM change no FLOPs; the test takes half the time without them.
    program = jax.jit(run).lower(shapes, frozen, batch).compile({'xla_backend_optimization_level': 0})
    return program, shapes, frozen, model
