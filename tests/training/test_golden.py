"""Three train steps of a tiny model with fixed weights and a fixed batch, against stored values.

The other tests compare the step with itself or with a reference for one property. This one notices any change of what a
step computes: the model, the loss, the gradient, clipping, the schedule, the optimizer.
"""

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import optimizer, tree
from lmtrain.models import Transformer
from lmtrain.tasks import token_loss
from lmtrain.training import state, step

STEPS, ROWS, LENGTH = 3, 4, 16
TOLERANCE = 1e-4  # relative; other machines, compilers and versions of JAX differ by less than 1e-5

GOLDEN = {
    'step 1: loss': 6.25745,
    'step 1: grad_norm': 5.579425,
    'step 1: learning_rate': 0.009397115,
    'step 2: loss': 3.971791,
    'step 2: grad_norm': 4.273687,
    'step 2: learning_rate': 0.006281417,
    'step 3: loss': 2.935577,
    'step 3: grad_norm': 2.468009,
    'step 3: learning_rate': 0.002607455,
    'embed/embedding: norm': 17.54967,
    'embed/embedding: first element': 0.3346789,
    'layers/attention/query/kernel: norm': 8.806489,
    'layers/attention/query/kernel: first element': 0.00225594,
    'layers/mlp/down/kernel: norm': 17.96422,
    'layers/mlp/down/kernel: first element': 0.3206811,
    'final_norm/scale: norm': 5.637848,
    'final_norm/scale: first element': 1.311416,
}

CHANGED = """
The train step computes other values than those stored in tests/training/test_golden.py.

If you did not intend to change the numbers of training, this is a regression: runs that resume would continue with
another computation. Find the commit with `git bisect run .venv/bin/python -m pytest -q tests/training/test_golden.py`.

If the change is intended, explain it in the commit message, and replace GOLDEN by these values:

GOLDEN = {
%s
}
"""


def fixed(shapes: tree.Params) -> tree.Params:
    """Weights that depend on their path and shape alone: RandomState's numbers never change."""
    leaves = {}
    for number, (path, leaf) in enumerate(sorted(tree.flatten(shapes).items())):
        drawn = np.random.RandomState(number).standard_normal(leaf.shape).astype(np.float32)
        leaves[path] = np.float32(path.endswith('scale')) + np.float32(0.2) * drawn
    return tree.unflatten(leaves)


def golden_step() -> dict[str, float]:
    """{name: value} of the three steps and of the parameters after them."""
    config = tiny.get_config()
    model = Transformer(**config.model)
    drawn = np.random.RandomState(0)
    tokens = drawn.randint(0, config.model.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    batch = {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:]}
    batch['loss_mask'] = drawn.randint(0, 2, (ROWS, LENGTH)).astype(np.float32)
    params = fixed(jax.eval_shape(model.init, jax.random.key(0), batch)['params'])
    tx = optimizer.optimizer(
        **{name: config.optimizer[name] for name in ('name', 'weight_decay', 'decayed', 'b1', 'b2', 'eps')}
    )
    now = state.create(jax.random.key(0), params, '.*', tx)
    train_step = jax.jit(
        step.make_train_step(
            step.make_gradient(model, token_loss.loss, accumulate=2),
            tx,
            optimizer.schedule('cosine', warmup=0.1, start=0.0, final=0.1, decay=0.0),
            learning_rate=0.01,
            clip=1.0,
            trainable=now.trainable,
        )
    )
    values = {}
    for i in range(STEPS):
        now, metrics = train_step(now, batch, np.float32((i + 1) / 4))
        values |= {f'step {i + 1}: {name}': metrics[name].item() for name in ('loss', 'grad_norm', 'learning_rate')}
    leaves = tree.flatten(now.params)
    for path in ('embed/embedding', 'layers/attention/query/kernel', 'layers/mlp/down/kernel', 'final_norm/scale'):
        values[f'{path}: norm'] = np.linalg.norm(leaves[path]).item()
        values[f'{path}: first element'] = leaves[path].ravel()[0].item()
    return values


def check(values: dict[str, float]):
    message = CHANGED % '\n'.join(f'    {name!r}: {value:.7g},' for name, value in values.items())
    assert values.keys() == GOLDEN.keys(), message
    actual, stored = list(values.values()), list(GOLDEN.values())
    np.testing.assert_allclose(actual, stored, rtol=TOLERANCE, atol=1e-5, err_msg=message)


def test_train_step_computes_the_stored_values():
    check(golden_step())


def test_changed_value_is_reported_with_what_to_do():
    with pytest.raises(AssertionError, match='If the change is intended') as error:
        check(GOLDEN | {'step 2: grad_norm': 4.276})
    assert "'step 2: grad_norm': 4.276," in str(error.value)
