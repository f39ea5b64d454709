import jax
import jax.numpy as jnp
import optax

from lmtrain import tree
from lmtrain.training import state


def test_new_state_has_step_0_and_moments_of_trainable_leaves_only():
    params = {'a': {'kernel': jnp.full((2, 3), 5.0), 'bias': jnp.full(3, 7.0)}, 'b': {'kernel': jnp.full(4, 9.0)}}
    initial = state.create(jax.random.key(3), params, '.*kernel', optax.scale_by_adam())
    assert initial.step == 0 and initial.counters == {'skipped': 0, 'skipped_in_a_row': 0}
    assert tree.flatten(initial.trainable).keys() == {'a/kernel', 'b/kernel'}
    assert tree.flatten(initial.frozen).keys() == {'a/bias'}
    assert tree.flatten(initial.opt_state.mu).keys() == {'a/kernel', 'b/kernel'}
    assert jax.tree.structure(initial.params) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, initial.params, params))
    assert jnp.array_equal(initial.rng, jax.random.key_data(jax.random.key(3)))


def test_params_join_trainable_and_frozen():
    initial = state.create(jax.random.key(0), {'a': jnp.ones(2), 'b': jnp.ones(3)}, 'a', optax.sgd(0.1))
    assert initial.replace(trainable={'a': jnp.zeros(2)}).params['a'].sum() == 0
