"""Objectives on pairs: closed forms, TRL's losses (experiments/parity/preferences.py), packing."""

import functools
import math

import jax
import numpy as np
import pytest

from experiments.parity import preference_cases
from lmtrain.tasks import preference

LN2 = math.log(2)


def sides(chosen, rejected):
    """float32 [1, 2P]: both alternate."""
    return np.ravel(np.column_stack([chosen, rejected])).astype(np.float32)[None]


def batch_of(own, reference, counts=None):
    """(forward, batch) of one row whose segments have these sums of log-probabilities, all at their first token."""
    size = own.shape[1]
    counts = np.ones(size, int) if counts is None else counts
    segments = np.repeat(np.arange(1, size + 1), counts)[None]
    first = np.cumsum(counts) - counts
    logprob = {name: np.zeros(segments.shape, np.float32) for name in ('own', 'reference')}
    logprob['own'][0, first], logprob['reference'][0, first] = own[0], reference[0]
    batch = {'segment_ids': segments, 'loss_mask': np.ones(segments.shape, np.float32)}
    batch |= {'scored': np.arange(1, size + 1)[None], 'ref_logprob': logprob['reference']}
    return lambda batch, reference_model=False: {'logprob': logprob['reference' if reference_model else 'own']}, batch


def fixed(name=''):
    """The cases of TRL's goldens."""
    sums = preference_cases.log_probs()
    own, reference = (sides(sums[f'{prefix}chosen'], sums[f'{prefix}rejected']) for prefix in ('', 'reference '))
    counts = np.ravel(np.column_stack([sums['chosen tokens'], sums['rejected tokens']]))
    return batch_of(own, reference, counts)


def test_dpo_of_published_numbers():
    own = sides([-0.5, -10, -1], [-0.1, -30, -21])
    forward, batch = batch_of(own, sides([-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1]))
    values, weights = preference.dpo(forward, batch, beta=0.1)
    np.testing.assert_allclose(values['loss'], [[0.6931, 0.3133, 0.1269]], atol=1e-4)
    np.testing.assert_allclose(values['rewards/margins'], [[0, 1, 2]], atol=1e-5)
    np.testing.assert_allclose(values['rewards/accuracies'], [[0, 1, 1]])
    np.testing.assert_allclose(values['logps/rejected'], own[:, 1::2])
    np.testing.assert_array_equal(weights, np.ones((1, 3)))


@pytest.mark.parametrize('beta', [0.1, 5.0])
def test_losses_of_a_policy_that_equals_its_reference(beta):
    own = sides([-3, -40], [-7, -2])
    forward, batch = batch_of(own, own, [2, 3, 1, 4])
    expected = {'dpo': LN2, 'dpo_norm': LN2, 'hinge': 1.0, 'ipo': (1 / (2 * beta)) ** 2}
    for name, loss in expected.items():
        for reference in ('cached', 'live'):
            values, _ = preference.TASK.loss(name)(forward, batch, beta=beta, reference=reference)
            np.testing.assert_allclose(values['loss'], np.full((1, 2), loss), rtol=1e-6)


def test_smoothing_is_the_expected_loss_of_labels_that_may_be_wrong():
    forward, batch = fixed()
    loss = functools.partial(preference.dpo, forward, batch, beta=0.1)
    swapped, _ = loss(label_smoothing=1.0)
    right, _ = loss()
    smoothed, _ = loss(label_smoothing=0.2)
    np.testing.assert_allclose(smoothed['loss'], 0.8 * right['loss'] + 0.2 * swapped['loss'], rtol=1e-6)
    assert np.abs(smoothed['loss'] - right['loss']).min() > 1e-3


@pytest.mark.parametrize('name', [*preference_cases.PREFERENCES, 'dpo, label smoothing 0.2', 'simpo', 'orpo'])
def test_fixed_log_probabilities_have_the_losses_of_trl(trl, name):
    goldens, _ = trl
    forward, batch = fixed()
    if name in preference_cases.PREFERENCES:
        objective, settings, _ = preference_cases.PREFERENCES[name]
    elif name in preference_cases.REFERENCE_FREE:
        objective, settings = name, preference_cases.REFERENCE_FREE[name]
    else:
        objective, settings = 'dpo', {'beta': 0.1, 'label_smoothing': 0.2}
    values, _ = preference.TASK.loss(objective)(forward, batch, **settings)
    loss = values['loss']
    if name == 'orpo':  # TRL's function has no fine-tuning term
        loss = loss + values['rewards/chosen'] / settings['beta']
    np.testing.assert_allclose(loss[0], goldens['preference'][name]['fixed'], rtol=1e-5, atol=1e-5)


def test_orpo_of_certain_completions_is_finite():
    forward, batch = batch_of(sides([0.0], [-1e-9]), sides([0.0], [0.0]))

    def loss(scale):
        own = {'logprob': scale * forward(None)['logprob']}
        return preference.orpo(lambda _: own, batch)[0]['loss'].sum()

    assert np.isfinite(jax.value_and_grad(loss)(1.0)).all()


def stream(stream_of, **options):
    texts = [
        text for prompt, *both, _ in preference_cases.pairs() for text in ((prompt, completion) for completion in both)
    ]
    return stream_of(preference.TASK, texts, [{'scored': np.int32(1 + n % 2)} for n in range(len(texts))], **options)


@pytest.fixture
def batches(trl, stream_of):
    """(model, params, batches of four pairs with the reference column of the parameters themselves)."""
    model, params = trl[1]('causal')
    whole = stream(stream_of)
    apply = jax.jit(model.apply)
    columns = [whole.batch(n) for n in range(3)]
    return (
        model,
        params,
        [batch | {'ref_logprob': np.asarray(apply({'params': params}, batch)['logprob'])} for batch in columns],
    )


@pytest.mark.parametrize('name', preference_cases.PREFERENCES)
def test_six_steps_equal_those_of_trl(trl, batches, losses_of, name):
    objective, settings, _ = preference_cases.PREFERENCES[name]
    loss = functools.partial(preference.TASK.loss(objective), **settings)
    np.testing.assert_allclose(losses_of(loss, *batches), trl[0]['preference'][name]['steps'], rtol=1e-5, atol=1e-5)


def test_packing_and_padding_change_no_loss(trl, stream_of):
    model, params = trl[1]('causal')

    def mean(batch):
        apply = jax.jit(lambda batch: preference.simpo(lambda own: model.apply({'params': params}, own), batch))
        values, weights = apply(batch)
        return {name: float(np.sum(value * weights) / np.sum(weights)) for name, value in values.items()}

    alone = mean(stream(stream_of, rows=12).batch(0))
    packed = stream(stream_of, rows=8, size=96, pack=True).batch(0)
    assert packed['scored'].shape[1] > 2 and (packed['scored'] > 0).sum() == 24
    longer = stream(stream_of, rows=16, size=80).batch(0)
    left = stream(stream_of, rows=12).batch(0)
    for row, size in enumerate((left['segment_ids'] > 0).sum(axis=1)):
        for name in ('tokens', 'targets', 'segment_ids', 'positions', 'loss_mask'):
            left[name][row] = np.roll(left[name][row], 64 - size)
    for batch in (packed, longer, left):
        for name, value in mean(batch).items():
            np.testing.assert_allclose(value, alone[name], rtol=1e-6, atol=1e-6, err_msg=name)
