"""Every method with every task that has labels, on a decoder and an encoder in turn: one line adds either."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import adapt, optimizer, tree
from lmtrain.models import Transformer
from lmtrain.tasks import classify, span, tag
from lmtrain.training import state, step

V, B, T, D, C = 23, 4, 8, 16, 3
QUICK = {'xla_backend_optimization_level': 0}  # compile time is most of what these tests cost
METHODS = {
    'full': {},
    'layers': {'last': 1},
    'bitfit': {},
    'norms': {},
    'lora': {'rank': [('.*/(query|up)/kernel', 2)], 'alpha': [('.*', 4.0)]},
    'ia3': {},
    'prompt': {'length': 2},
    'prefix': {'length': 2},
    'head': {},
}
TASKS = {  # objective, outputs of its head
    'classify': (functools.partial(classify.loss, head='classify', pool='mean'), C),
    'tag': (functools.partial(tag.loss, head='tag'), C),
    'span': (functools.partial(span.loss, head='span'), 2),
}


def build(**settings) -> Transformer:
    config = base.get_config()
    small = {'vocab_size': V, 'max_len': 16, 'num_layers': 2, 'width': D, 'num_heads': 2, 'unroll': 1, 'bias': True}
    config.model.update(small | settings)
    return Transformer(**config.model)


MODELS = {
    'decoder': build(),
    'encoder': build(causal=False, positions='learned', norm='layernorm', norm_place='post', activation='gelu'),
}


@functools.cache
def base_of(kind):
    return jax.jit(MODELS[kind].init, compiler_options=QUICK)(jax.random.key(0), {'tokens': jnp.zeros((1, T), int)})


def batch_of(task):
    random = np.random.default_rng(0)
    real = (np.arange(T)[None] < np.array([T, 5, 3, 7])[:, None]).astype(np.int32)
    batch = {'tokens': random.integers(0, V, (B, T), np.int32), 'segment_ids': real}
    every_token = real.astype(np.float32)
    return (
        batch
        | {
            'classify': {'labels': np.arange(B, dtype=np.int32) % C, 'label_weights': np.ones(B, np.float32)},
            'tag': {'labels': batch['tokens'] % C, 'label_weights': every_token},
            'span': {'spans': np.array([[1, 2], [0, 4], [2, 2], [3, 5]], np.int32), 'label_weights': every_token},
        }[task]
    )


# Each pair of a method and a task on one of the models, so that each method and each task is trained on both. One task
# of each method, in turn, is not slow.
CASES = [
    pytest.param(name, task, ('decoder', 'encoder')[(i + j) % 2], marks=[pytest.mark.slow] * (j != i % len(TASKS)))
    for i, name in enumerate(METHODS)
    for j, task in enumerate(TASKS)
]


@pytest.mark.parametrize(('name', 'task', 'kind'), CASES)
def test_method_trains_a_task_and_changes_trainable_leaves_only(name, task, kind):
    model, params, batch = MODELS[kind], base_of(kind)['params'], batch_of(task)
    objective, classes = TASKS[task]
    method = adapt.method(name, model, params, head={'name': task, 'classes': classes}, **METHODS[name])
    tx = optimizer.optimizer('adamw', weight_decay=0.1, decayed='.*', b1=0.9, b2=0.99, eps=1e-8)
    first = state.create(jax.random.key(1), method.start(jax.random.key(2), params), method.trainable, tx)
    options = {'learning_rate': 1e-2, 'clip': 1.0, 'trainable': first.trainable}
    one = step.make_train_step(step.make_gradient(model, objective), tx, lambda progress: 1.0 + 0 * progress, **options)

    def run(now):
        def steps(now, _):
            now, measured = one(now, batch, 0.0)
            return now, measured['loss']

        return jax.lax.scan(steps, now, length=12)

    last, losses = jax.jit(run).lower(first).compile(compiler_options=QUICK)(first)
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0] - 1e-3
    for path, leaf in tree.flatten(first.frozen).items():
        np.testing.assert_array_equal(tree.flatten(last.frozen)[path], leaf, err_msg=path)
    assert tree.flatten(last.opt_state[0].mu).keys() == tree.flatten(last.trainable).keys()
    before, after = tree.flatten(first.trainable), tree.flatten(last.trainable)
    moved = {path for path in before if np.any(before[path] != after[path])}
    assert any(path.startswith(f'heads/{task}') for path in moved) and (name == 'head' or len(moved) > 2)
