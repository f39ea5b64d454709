"""The first step on conversations: packing and accumulation do not change the loss."""

import json

import jax
import numpy as np
import optax
import pytest

from configs.base import get_config
from lmtrain.data import PaddedStream
from lmtrain.models import Transformer
from lmtrain.tasks import token_loss
from lmtrain.tasks.prepare import prepare_task
from lmtrain.training import state, step

ROWS = [
    {'prompt': 'ask ' * (1 + number % 5), 'completion': f'{number} and so ' * (1 + number % 3)} for number in range(16)
]


@pytest.fixture(scope='module')
def batches(tmp_path_factory):
    """{packed: all rows as one batch of 16}."""
    root = tmp_path_factory.mktemp('chat')
    (root / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    data = {'root': str(root), 'cache': str(root), 'tokenizer': 'bytes', 'vocab_size': 0, 'seq_len': 96}
    data |= {'validation': 0.0, 'test': 0.0}
    config = get_config().task.to_dict() | {'name': 'chat', 'train': ('rows.jsonl',), 'buckets': 1}
    tasks = {packed: prepare_task(data, **(config | {'pack': packed})) for packed in (False, True)}
    return {packed: PaddedStream(task, 'train', 16, 0, True).batch(0) for packed, task in tasks.items()}


@pytest.fixture(scope='module')
def model():
    config = get_config()
    config.model.update(vocab_size=257, max_len=96, num_layers=1, width=32, num_heads=2)
    return Transformer(**config.model)


@pytest.fixture(scope='module')
def params(model, batches):
    return jax.jit(model.init)(jax.random.key(0), batches[False])['params']


def test_packed_conversations_have_the_loss_and_gradient_of_single_ones(model, params, batches):
    @jax.jit
    def loss_and_gradient(params, batch):
        def mean(params):
            values, weight = step.sums(token_loss.loss, model, params, batch)
            return values['loss'] / weight, weight

        return jax.value_and_grad(mean, has_aux=True)(params)

    (alone, weight), alone_gradient = loss_and_gradient(params, batches[False])
    (packed, packed_weight), packed_gradient = loss_and_gradient(params, batches[True])
    assert weight == packed_weight == sum(len(row['completion']) + 1 for row in ROWS)
    assert batches[True]['segment_ids'].max() > 1
    np.testing.assert_allclose(packed, alone, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(alone_gradient), jax.tree.leaves(packed_gradient), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_loss_does_not_depend_on_accumulation(model, params, batches):
    losses = []
    for accumulate in (1, 2, 4):
        tx = optax.scale_by_adam()
        first = state.create(jax.random.key(1), params, '.*', tx)
        function = step.make_train_step(
            step.make_gradient(model, token_loss.loss, accumulate=accumulate),
            tx,
            lambda progress: 1.0,
            learning_rate=0.1,
            trainable=first.trainable,
        )
        losses.append(float(jax.jit(function)(first, batches[False], 0.5)[1]['loss']))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
