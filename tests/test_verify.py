"""A step that is taken twice is the step, and one bit between its two results ends the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain import state as states
from lmtrain import survive, verify


@pytest.fixture
def state():
    params = {'a': {'kernel': jnp.ones((4, 2), jnp.bfloat16)}, 'b': jnp.float32(2.0)}
    counters = {'skipped': jnp.int32(0), 'skipped_in_a_row': jnp.int32(0)}
    made = states.TrainState(jnp.int32(0), params, {}, (), jax.random.key_data(jax.random.key(0)), counters)
    return jax.tree.map(jnp.copy, made)


def train_step():
    def step(state, batch, progress):
        trainable = jax.tree.map(lambda x: x * batch.astype(x.dtype), state.trainable)
        return state.replace(trainable=trainable, step=state.step + 1), {'loss': progress * jnp.nan}

    return jax.jit(step, donate_argnums=0)


def test_twice_is_once(state):
    kept = jax.tree.map(jnp.copy, state)
    once, _ = train_step()(kept, np.float32(3.0), np.float32(0.5))
    twice, measured = verify.twice(train_step(), 1)(state, np.float32(3.0), np.float32(0.5))
    assert np.isnan(measured['loss'])  # equal to the bit, which NaN is not by value
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and jnp.array_equal(a, b), once, twice))


def test_one_bit_ends_the_run(state, monkeypatch):
    monkeypatch.setenv('LMTRAIN_FAULT', 'corrupt@7')
    verify.twice(train_step(), 6)(jax.tree.map(jnp.copy, state), np.float32(3.0), np.float32(0.5))
    with pytest.raises(survive.Ended, match='step 7, taken twice .* differs in trainable/a/kernel: a device') as ended:
        verify.twice(train_step(), 7)(state, np.float32(3.0), np.float32(0.5))
    assert ended.value.code == survive.DIFFERS
