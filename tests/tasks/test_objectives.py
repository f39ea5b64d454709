"""What every objective keeps, over a list of them: adding one adds a line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmtrain.parallel import sharding
from lmtrain.tasks import classify, policy, ppo, preference, regress, reward, span, tag, token_loss, unpaired
from lmtrain.training import step

V, C, B, T = 11, 3, 6, 8
TABLE = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
SIZES = [8, 5, 3, 7, 1, 4]

OBJECTIVES = {
    'causal': token_loss.loss,
    'z_loss': functools.partial(token_loss.loss, z_loss=0.1),
    'classify first': functools.partial(classify.loss, head='classes', pool='first'),
    'classify last': functools.partial(classify.loss, head='classes', pool='last'),
    'classify mean': functools.partial(classify.loss, head='classes', pool='mean'),
    'classify own head': functools.partial(classify.loss, head='row'),
    'regress': functools.partial(regress.loss, head='number', pool='last'),
    'tag': functools.partial(tag.loss, head='classes'),
    'span': functools.partial(span.loss, head='ends'),
    'reward': functools.partial(reward.loss, head='number', pool='last', centring=0.01),
    'kto': unpaired.kto,
    'dr_grpo': functools.partial(policy.grpo, aggregation='dr_grpo', max_tokens=T, kl_weight=0.1),
    'sequence ratio': functools.partial(policy.grpo, aggregation='grpo', ratio='sequence', kl_weight=0.1),
} | {name: loss for each in (preference, policy, ppo) for name, loss in each.TASK.losses.items()}
POLICIES = {'dr_grpo', 'sequence ratio', *policy.TASK.losses, *ppo.TASK.losses}
PAIRS = {'reward', 'kto', *preference.TASK.losses}  # two segments of a row belong together


class Model:
    """Outputs that depend on a token and, for the row's own head, on all real tokens before it."""

    dtype = 'float32'

    def apply(self, variables, batch, train=False, rngs=None, hooks=None):
        hidden = jnp.asarray(variables['params']['table'])[batch['tokens']]
        log_p = jax.nn.log_softmax(hidden, axis=-1)
        real = (batch['segment_ids'] > 0)[..., None]
        outputs = {
            'classes': hidden[..., :C],
            'number': hidden[..., :1],
            'ends': hidden[..., :2],
            ppo.VALUE: hidden[..., :1],
            'log_z': hidden[..., 0],
        }
        outputs['row'] = jnp.sum(jnp.where(real, hidden, 0.0), axis=1)[:, :C]
        if 'targets' in batch:
            outputs['logprob'] = jnp.take_along_axis(log_p, batch['targets'][..., None], axis=-1)[..., 0]
        return outputs


def batch_of(name, width=T):
    """A batch of rows of SIZES, padded to `width` with tokens that would change every loss if they were read."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, V, (B, T))
    real = np.arange(width)[None] < np.array(SIZES)[:, None]

    def padded(values, filling):
        wide = np.full((B, width), filling, values.dtype)
        wide[:, :T] = values
        return np.where(real, wide, filling)

    batch = {'tokens': padded(ids.astype(np.int32), V - 1), 'segment_ids': real.astype(np.int32)}
    if name in ('causal', 'z_loss'):
        batch |= {'targets': padded(rng.integers(0, V, (B, T)).astype(np.int32), 3)}
        batch |= {'loss_mask': padded((rng.random((B, T)) < 0.6).astype(np.float32), 0)}
    elif name in POLICIES:
        batch |= completions_of(padded, rng)
    elif name in PAIRS:
        batch |= pairs_of(name, padded, rng)
    elif name == 'tag':
        batch |= {'labels': padded(rng.integers(0, C, (B, T)).astype(np.int32), 0)}
        batch |= {'label_weights': padded((rng.random((B, T)) < 0.6).astype(np.float32), 0)}
    elif name == 'span':
        spans = [[0, 2], [1, 1], [-1, -1], [3, 6], [0, 0], [2, 3]]
        batch |= {'spans': np.array(spans, np.int32), 'label_weights': real.astype(np.float32)}
    else:
        labels = rng.integers(0, C, B) if name != 'regress' else rng.normal(size=B)
        batch |= {'labels': labels.astype(np.float32 if name == 'regress' else np.int32)}
        batch |= {'label_weights': np.ones(B, np.float32)}
    return batch


def completions_of(padded, rng):
    """The columns of sampled completions: all targets after the first token of a row."""
    mask = np.broadcast_to(np.arange(T) > 0, (B, T))
    columns = {'targets': padded(rng.integers(0, V, (B, T)).astype(np.int32), 3)}
    columns |= {'loss_mask': padded(mask.astype(np.float32), 0)}
    for key, mean in (('old_logprob', -2), ('ref_logprob', -2), ('advantages', 0), ('returns', 0), ('old_values', 0)):
        columns[key] = padded(rng.normal(mean, 1, (B, T)).astype(np.float32), 0)
    return columns | {'first': (np.arange(B) % 2).astype(np.float32)}


def pairs_of(name, padded, rng):
    """The columns of pairs: the first token of a row is one segment, the others are the second; none in a short row."""
    pair = np.array(SIZES) > 1
    second = np.broadcast_to(np.arange(T) > 0, (B, T))
    columns = {'segment_ids': padded(1 + second.astype(np.int32), 0)}
    columns |= {'scored': np.array([1, 2], np.int32) * pair[:, None].astype(np.int32)}
    columns |= {'targets': padded(rng.integers(0, V, (B, T)).astype(np.int32), 3)}
    columns |= {'loss_mask': padded(np.ones((B, T), np.float32), 0)}
    columns |= {'ref_logprob': padded(rng.normal(-2, 1, (B, T)).astype(np.float32), 0)}
    each = {'margin': rng.random((B, 2)), 'labels': rng.integers(0, 2, (B, 2)), 'label_weights': pair[:, None] * [1, 0]}
    return columns | {key: x.astype(np.float32) for key, x in each.items()}


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(name, batch):
    """(sums, gradient of the summed loss)."""

    def loss(table):
        values, weight = step.sums(OBJECTIVES[name], Model(), {'table': table}, batch)
        return values['loss'], {**values, 'weight': weight}

    gradient, sums = jax.grad(loss, has_aux=True)(TABLE)
    return sums, gradient


def sums(name, batch):
    return gradient_of(name, batch)[0]


@pytest.mark.parametrize('name', OBJECTIVES)
def test_padding_changes_no_sum(name):
    narrow, wide = sums(name, batch_of(name)), sums(name, batch_of(name, T + 5))
    for key in narrow:
        np.testing.assert_allclose(narrow[key], wide[key], rtol=1e-6, atol=1e-6)
    assert narrow['loss'] != 0


@pytest.mark.parametrize('name', OBJECTIVES)
def test_splitting_a_batch_changes_no_sum(name):
    """A part is filled up with empty rows: the program is that of the whole batch."""
    batch = batch_of(name)
    whole = sums(name, batch)
    for parts in (2, 3):
        cut = [{key: x[part::parts] for key, x in batch.items()} for part in range(parts)]
        each = [sums(name, with_empty_rows(name, B - B // parts, part)) for part in cut]
        for key in whole:
            np.testing.assert_allclose(sum(part[key] for part in each), whole[key], rtol=1e-6, atol=1e-6)


def with_empty_rows(name, count, batch=None):
    """A batch, by default the whole one, with `count` more rows, which hold nothing."""
    batch = batch_of(name) if batch is None else batch
    empty = {key: np.zeros((count, *x.shape[1:]), x.dtype) for key, x in batch.items()}
    if name == 'span':
        empty['spans'] -= 1
    return {key: np.concatenate([x, empty[key]]) for key, x in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [(8, 1, 1, 1), (2, 2, 1, 2), (1, 1, 1, 8)])
def test_mesh_changes_no_sum(mesh):
    """Of outputs that are the same on all devices; one program for all objectives. See also test_rollouts.py."""
    devices = sharding.mesh(*mesh)
    names = [
        name for name in OBJECTIVES if mesh[3] == 1 or name in {'causal', 'z_loss'} | POLICIES | PAIRS - {'reward'}
    ]
    options = {'mesh': devices, 'specs': {'table': PartitionSpec()}}
    gradients = {
        name: step.make_gradient(Model(), OBJECTIVES[name], whole_rows=name in POLICIES | PAIRS, **options)
        for name in names
    }
    batches = {name: with_empty_rows(name, 2) for name in names}
    whole = {name: gradient_of(name, batch) for name, batch in batches.items()}

    @jax.jit
    def divided(batches):
        return {name: gradients[name](({'table': TABLE}, {}), batch, None) for name, batch in batches.items()}

    for name, (gradient, (values, weight)) in divided(batches).items():
        for key, value in {**values, 'weight': weight}.items():
            np.testing.assert_allclose(value, whole[name][0][key], rtol=1e-6, atol=1e-6, err_msg=f'{name} {key}')
        np.testing.assert_allclose(gradient['table'], whole[name][1], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_empty_rows_have_weight_zero_and_a_finite_gradient(name):
    (one, gradient), (more, same) = (gradient_of(name, batch) for batch in (batch_of(name), with_empty_rows(name, B)))
    np.testing.assert_allclose(same, gradient, rtol=1e-5, atol=1e-6)
    assert more['weight'] == one['weight']


@pytest.mark.parametrize('name', OBJECTIVES)
def test_values_have_the_shape_of_the_weights(name):
    def forward(batch):
        return Model().apply({'params': {'table': TABLE}}, batch)

    values, weights = jax.eval_shape(lambda batch: OBJECTIVES[name](forward, batch), batch_of(name))
    assert all(value.shape == weights.shape and value.dtype == jnp.float32 for value in values.values())
