"""The train step on a model that can be checked by hand: one table that predicts the next token."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmtrain.parallel import sharding
from lmtrain.tasks import token_loss
from lmtrain.training import state, step

VOCAB, BATCH, LENGTH = 7, 8, 5


class Table:
    """logits = embed[token]: the smallest language model there is."""

    def init(self, key):
        return {'embed': {'embedding': 0.1 * jax.random.normal(key, (VOCAB, VOCAB))}, 'scale': jnp.ones((VOCAB,))}

    def apply(self, variables, batch, train, rngs):
        params = variables['params']
        logits = params['embed']['embedding'][batch['tokens']] * params['scale'][None, None]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, batch['targets'][..., None], axis=-1)[..., 0]
        return {'logprob': picked - log_z, 'log_z': log_z}


def make_batch(seed=0, mask=None):
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    mask = rng.integers(0, 2, (BATCH, LENGTH)) if mask is None else np.broadcast_to(mask, (BATCH, LENGTH))
    return {'tokens': drawn[:, :-1], 'targets': drawn[:, 1:], 'loss_mask': mask.astype(np.float32)}


def setup(trainable='.*', tx=None, **options):
    tx = optax.scale_by_adam() if tx is None else tx
    first = state.create(jax.random.key(1), Table().init(jax.random.key(0)), trainable, tx)
    gradient_options = {name: options.pop(name) for name in ('accumulate', 'adapter_dropout') if name in options}
    gradient = step.make_gradient(Table(), token_loss.loss, **gradient_options)
    options = {'learning_rate': 0.1, 'clip': 1.0} | options
    function = step.make_train_step(gradient, tx, lambda progress: 1.0 - progress, trainable=first.trainable, **options)
    return first, jax.jit(function)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('accumulate', [2, 4, 8])
def test_accumulation_with_uneven_masks_equals_the_whole_batch(accumulate):
    batch = make_batch()
    batch['loss_mask'][:3] = 0.0  # some micro-batches hold far fewer targets than others
    batch['loss_mask'][7] = 1.0
    first, whole = setup()
    _, parts = setup(accumulate=accumulate)
    expected, metrics = whole(first, batch, 0.5)
    got, part_metrics = parts(first, batch, 0.5)
    for name in metrics:
        np.testing.assert_allclose(part_metrics[name], metrics[name], rtol=1e-6)
    for a, b in zip(leaves(got.trainable), leaves(expected.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_gradient_is_that_of_the_mean_over_targets():
    batch, rate = make_batch(), 0.1
    first, run = setup(tx=optax.identity(), clip=0.0, learning_rate=rate)

    def mean(params):
        outputs = Table().apply({'params': params}, batch, False, None)
        return jnp.sum(-outputs['logprob'] * batch['loss_mask']) / jnp.sum(batch['loss_mask'])

    after, metrics = run(first, batch, 0.0)
    loss, grads = jax.value_and_grad(mean)(first.params)
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], optax.tree.norm(grads), rtol=1e-5)
    for new, old, grad in zip(leaves(after.trainable), leaves(first.trainable), leaves(grads), strict=True):
        np.testing.assert_allclose(new, old - rate * grad, rtol=1e-5, atol=1e-7)


def test_clipping_limits_the_norm_and_reports_it_unclipped():
    batch = make_batch()
    first, free = setup(tx=optax.identity(), clip=0.0, learning_rate=1.0)
    _, clipped = setup(tx=optax.identity(), clip=0.01, learning_rate=1.0)
    _, metrics = free(first, batch, 0.0)
    _, limited = clipped(first, batch, 0.0)
    assert metrics['grad_norm'] > 0.01
    np.testing.assert_allclose(limited['grad_norm'], metrics['grad_norm'], rtol=1e-6)
    np.testing.assert_allclose(limited['update_norm'], 0.01, rtol=1e-5)


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_non_finite_step_changes_nothing_and_is_counted(poison):
    first, run = setup()
    batch = make_batch()
    state_1, _ = run(first, batch, 0.0)
    bad = batch | {'loss_mask': np.full_like(batch['loss_mask'], poison)}
    state_2, metrics = run(state_1, bad, 0.0)
    for after, before in zip(
        leaves((state_2.trainable, state_2.opt_state)), leaves((state_1.trainable, state_1.opt_state)), strict=True
    ):
        np.testing.assert_array_equal(after, before)
    assert (int(state_2.step), int(metrics['skipped']), int(metrics['skipped_in_a_row'])) == (2, 1, 1)
    state_3, metrics = run(state_2, bad, 0.0)
    assert (int(metrics['skipped']), int(metrics['skipped_in_a_row'])) == (2, 2)
    _, metrics = run(state_3, batch, 0.0)
    assert (int(metrics['skipped']), int(metrics['skipped_in_a_row'])) == (2, 0)


def test_batch_without_targets_has_zero_gradient():
    first, run = setup(tx=optax.identity())
    after, metrics = run(first, make_batch(mask=0.0), 0.0)
    assert float(metrics['loss']) == 0.0
    assert int(metrics['skipped']) == 0
    for new, old in zip(leaves(after.trainable), leaves(first.trainable), strict=True):
        np.testing.assert_array_equal(new, old)


def test_frozen_leaves_have_no_moments_and_do_not_move():
    first, run = setup(trainable='scale')
    assert first.opt_state.mu.keys() == {'scale'}
    after = first
    for seed in range(5):
        after, _ = run(after, make_batch(seed), 0.0)
    np.testing.assert_array_equal(after.frozen['embed']['embedding'], first.frozen['embed']['embedding'])
    assert np.any(np.asarray(after.trainable['scale']) != np.asarray(first.trainable['scale']))


def test_learning_rates_by_path():
    first, run = setup(tx=optax.identity(), learning_rates=[('embed/.*', 0.0)])
    after, _ = run(first, make_batch(), 0.0)
    np.testing.assert_array_equal(after.trainable['embed']['embedding'], first.trainable['embed']['embedding'])
    assert np.any(np.asarray(after.trainable['scale']) != 1.0)
    with pytest.raises(ValueError, match="'head/.*' matches no parameter"):
        setup(learning_rates=[('head/.*', 0.1)])


def test_sharded_rows_give_the_same_step():
    batch = make_batch()
    first, run = setup()
    expected, metrics = run(first, batch, 0.0)
    mesh = sharding.mesh(8, 1, 1, 1)
    on = sharding.shardings(first, mesh)
    got, sharded = run(jax.device_put(first, on), sharding.place(mesh)(batch), 0.0)
    jax.block_until_ready(got)
    np.testing.assert_allclose(sharded['loss'], metrics['loss'], rtol=1e-6)
    for a, b in zip(leaves(got.trainable), leaves(expected.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_evaluation_sums_add_over_any_partition_of_the_rows():
    batch = make_batch()
    params = Table().init(jax.random.key(0))
    batch['bytes'] = batch['targets'] % 5
    run = jax.jit(step.make_eval_step(Table(), token_loss.loss))
    whole = run(params, batch)
    halves = [run(params, {k: v[rows] for k, v in batch.items()}) for rows in (slice(0, 3), slice(3, 8))]
    for name in whole:
        np.testing.assert_allclose(sum(float(half[name]) for half in halves), whole[name], rtol=1e-6)
    assert float(whole['bytes']) == float((batch['bytes'] * batch['loss_mask']).sum())


@pytest.mark.parametrize('accumulate', [1, 4])
def test_weights_may_be_any_numbers(accumulate):
    """The loss and its gradient are those of the weighted mean, by optax's cross-entropy."""
    batch = make_batch()
    batch['loss_mask'] = np.random.default_rng(3).choice([0.0, 0.25, 1.0, 2.5], (BATCH, LENGTH)).astype(np.float32)
    first, run = setup(tx=optax.identity(), clip=0.0, learning_rate=0.5, accumulate=accumulate)

    def mean(params):
        logits = params['embed']['embedding'][batch['tokens']] * params['scale'][None, None]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        return jnp.sum(nats * batch['loss_mask']) / jnp.sum(batch['loss_mask'])

    loss, grads = jax.value_and_grad(mean)(first.params)
    after, metrics = run(first, batch, 0.0)
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-6)
    assert float(metrics['targets']) == batch['loss_mask'].sum()
    for new, old, grad in zip(leaves(after.trainable), leaves(first.trainable), leaves(grads), strict=True):
        np.testing.assert_allclose(new, old - 0.5 * grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('limit', [0.5, 2.0], ids=['below the norm', 'above the norm'])
def test_clipping_equals_optax(limit):
    """`limit` times the norm of the gradient; above it nothing changes."""
    batch = make_batch()
    first, free = setup(tx=optax.identity(), clip=0.0, learning_rate=1.0)
    after, metrics = free(first, batch, 0.0)
    grads = jax.tree.map(lambda old, new: old - new, first.trainable, after.trainable)
    clip = limit * float(metrics['grad_norm'])
    expected, _ = optax.clip_by_global_norm(clip).update(grads, optax.EmptyState())
    _, run = setup(tx=optax.identity(), clip=clip, learning_rate=1.0)
    clipped, metrics = run(first, batch, 0.0)
    for new, old, grad in zip(leaves(clipped.trainable), leaves(first.trainable), leaves(expected), strict=True):
        np.testing.assert_allclose(old - new, grad, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(metrics['update_norm'] / metrics['grad_norm'], min(limit, 1.0), rtol=1e-5)


@pytest.mark.parametrize('weight', [0.01, 1.0])
def test_weights_with_a_sum_below_one_give_a_mean(weight):
    first, run = setup(tx=optax.identity(), clip=0.0)
    _, metrics = run(first, make_batch(mask=weight), 0.0)
    _, whole = run(first, make_batch(mask=1.0), 0.0)
    for name in ('loss', 'nats', 'grad_norm', 'update_norm'):
        np.testing.assert_allclose(metrics[name], whole[name], rtol=1e-5)


def test_batch_without_a_target_changes_nothing():
    """Not even by the momentum of the steps before, and it is no step that was skipped."""
    first, run = setup()
    state, _ = run(first, make_batch(), 0.0)
    before = jax.device_get((state.trainable, state.opt_state))
    after, metrics = run(state, make_batch(mask=0.0), 0.0)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves((after.trainable, after.opt_state)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(after.step) == 2 and metrics['targets'] == 0 and metrics['skipped'] == 0


def test_norms_are_of_the_new_parameters_and_their_change():
    first, run = setup()
    after, metrics = run(first, make_batch(), 0.25)
    np.testing.assert_allclose(metrics['param_norm'], optax.tree.norm(after.trainable), rtol=1e-6)
    change = jax.tree.map(lambda new, old: new - old, after.trainable, first.trainable)
    np.testing.assert_allclose(metrics['update_norm'], optax.tree.norm(change), rtol=1e-4)
    np.testing.assert_allclose(metrics['learning_rate'], 0.1 * 0.75, rtol=1e-6)


class Noisy(Table):
    """Whose loss shows the key that dropout would have."""

    def apply(self, variables, batch, train, rngs):
        outputs = super().apply(variables, batch, train, rngs)
        return outputs | {'logprob': outputs['logprob'] - jax.random.uniform(rngs['dropout'], (1, 1))}


def test_dropout_key_differs_for_every_step_and_seed():
    def losses(seed):
        tx = optax.identity()
        now = state.create(jax.random.key(seed), Table().init(jax.random.key(0)), '.*', tx)
        options = {'learning_rate': 0.0, 'trainable': now.trainable}
        run = jax.jit(
            step.make_train_step(step.make_gradient(Noisy(), token_loss.loss), tx, lambda progress: 1.0, **options)
        )
        results = []
        for _ in range(3):
            now, metrics = run(now, make_batch(mask=1.0), 0.0)
            results.append(float(metrics['loss']))
        return results

    assert len(set(losses(1) + losses(2))) == 6
    assert losses(1) == losses(1)
