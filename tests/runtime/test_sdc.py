"""A step that is run twice equals one step; one flipped bit, in a result or in a replica, ends the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lmtrain.parallel import sharding
from lmtrain.runtime import lifecycle, sdc
from lmtrain.training import state as states


@pytest.fixture
def state():
    params = {'a': {'kernel': jnp.ones((4, 2), jnp.bfloat16)}, 'b': jnp.float32(2.0)}
    counters = {'skipped': jnp.int32(0), 'skipped_in_a_row': jnp.int32(0)}
    state = states.TrainState(jnp.int32(0), params, {}, (), jax.random.key_data(jax.random.key(0)), counters)
    return jax.tree.map(jnp.copy, state)


def train_step():
    def step(state, batch, progress):
        trainable = jax.tree.map(lambda x: x * batch.astype(x.dtype), state.trainable)
        return state.replace(trainable=trainable, step=state.step + 1), {'loss': progress * jnp.nan}

    return jax.jit(step, donate_argnums=0)


def test_step_run_twice_equals_the_step(state):
    copy = jax.tree.map(jnp.copy, state)
    once, _ = train_step()(copy, np.float32(3.0), np.float32(0.5))
    twice, measured = sdc.run_twice(train_step(), 1)(state, np.float32(3.0), np.float32(0.5))
    assert np.isnan(measured['loss'])  # bitwise equal; by value NaN is not
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and jnp.array_equal(a, b), once, twice))


def test_flipped_bit_of_a_result_ends_the_run(state, monkeypatch):
    monkeypatch.setenv('LMTRAIN_FAULT', 'corrupt@7')
    sdc.run_twice(train_step(), 6)(jax.tree.map(jnp.copy, state), np.float32(3.0), np.float32(0.5))
    with pytest.raises(lifecycle.RunEnded, match='step 7, run twice .* differs in trainable/a/kernel: a dev') as ended:
        sdc.run_twice(train_step(), 7)(state, np.float32(3.0), np.float32(0.5))
    assert ended.value.code == lifecycle.DIFFERS


@pytest.mark.parametrize('spec', [P(), P('fsdp')], ids=str)
def test_flipped_bit_of_a_replica_ends_the_run(state, spec):
    """Both results are computed from the wrong replica and are equal."""
    on = NamedSharding(sharding.mesh(2, 4, 1, 1), spec)
    state = jax.device_put(state, NamedSharding(on.mesh, P()))
    whole = jax.device_put(state.trainable['a']['kernel'], on)
    assert jax.tree.all(sdc.replicas_equal((state, whole)))
    pieces = [np.asarray(shard.data).copy() for shard in whole.addressable_shards]
    pieces[5].view(np.uint16)[0, 1] ^= 1 << 6
    placed = [jax.device_put(x, shard.device) for x, shard in zip(pieces, whole.addressable_shards, strict=True)]
    wrong = jax.make_array_from_single_device_arrays(whole.shape, on, placed)
    state = state.replace(trainable=state.trainable | {'a': {'kernel': wrong}})
    step = jax.jit(lambda state, batch, progress: (state.replace(step=state.step + 1), {}), donate_argnums=0)
    with pytest.raises(
        lifecycle.RunEnded, match='step 7, has unequal replicas on several .* of trainable/a/kernel: a dev'
    ) as ended:
        sdc.run_twice(step, 7)(state, 0.0, 0.0)
    assert ended.value.code == lifecycle.DIFFERS
