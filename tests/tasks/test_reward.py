"""Reward models: closed forms, TRL's losses, calibration, the last token for any padding."""

import functools

import jax
import numpy as np
import pytest

from experiments.parity import preference_cases
from lmtrain.tasks import reward


def outputs(scores):
    return lambda batch: {'logits': np.asarray(scores, np.float32)[..., None]}


def test_bradley_terry_with_margin_and_centring():
    batch = {
        'scored': np.array([[1, 2, 3, 4], [1, 2, 0, 0]]),
        'margin': np.array([[0, 9, 0.5, 9], [0, 0, 0, 0]], np.float32),
    }
    values, weights = reward.loss(outputs([[2, 1, 0, 1], [3, 3, 7, 7]]), batch, centring=0.1)
    np.testing.assert_array_equal(weights, [[1, 1], [1, 0]])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = [[-np.log(sigmoid(1)) + 0.9, -np.log(sigmoid(-1.5)) + 0.1], [np.log(2) + 3.6, np.log(2) + 19.6]]
    np.testing.assert_allclose(values['loss'], expected, rtol=1e-6)
    np.testing.assert_array_equal(values['accuracy'], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(values['margin'], [[1, -1], [0, 0]])
    np.testing.assert_array_equal(values['reward'], [[1.5, 0.5], [3, 7]])


def test_calibrated_scores_have_a_small_error():
    """Labels drawn with the predicted probabilities; with scores three times as large it grows."""
    random = np.random.default_rng(0)
    differences = random.normal(0, 1.5, 20_000)
    right = random.random(20_000) < 1 / (1 + np.exp(-np.abs(differences)))
    differences = np.where(right, 1, -1) * np.abs(differences)
    bins = reward.calibration(differences)
    assert sum(each['pairs'] for each in bins) == 20_000 and len(bins) == reward.BINS
    assert reward.calibration_error(bins) < 0.02 < 0.1 < reward.calibration_error(reward.calibration(3 * differences))


def test_calibration_error_weighs_bins_by_their_pairs():
    bins = [{'pairs': 1, 'confidence': 0.9, 'accuracy': 1.0}, {'pairs': 3, 'confidence': 0.7, 'accuracy': 0.5}]
    assert reward.calibration_error(bins) == pytest.approx((1 * 0.1 + 3 * 0.2) / 4)


def test_score_of_a_split():
    scores = reward.score(None, 'test', np.float32([2, 1, 0, 3, 1, 1]))
    assert scores['accuracy'] == pytest.approx(1 / 3) and scores['margin'] == pytest.approx(-2 / 3)
    assert scores['calibration_error'] == reward.calibration_error(reward.calibration([1, -3, 0]))


def stream(stream_of, margins=True, **options):
    texts, values = [], []
    for prompt, chosen, rejected, margin in preference_cases.pairs():
        texts += [(prompt, chosen), (prompt, rejected)]
        values += [{'scored': np.int32(n), 'margin': np.float32(margin * margins)} for n in (1, 2)]
    return stream_of(reward.TASK, texts, values, **options)


@pytest.mark.parametrize('name', preference_cases.REWARDS)
def test_six_steps_equal_those_of_trl(trl, stream_of, losses_of, name):
    goldens, load = trl
    settings = preference_cases.REWARDS[name]
    whole = stream(stream_of, settings['margin'])
    loss = functools.partial(reward.loss, centring=settings['centring'])
    losses = losses_of(loss, *load('reward'), [whole.batch(n) for n in range(3)])
    np.testing.assert_allclose(losses, goldens['reward'][name]['steps'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('head', [pytest.param('logits', marks=pytest.mark.slow), 'reward'])
def test_score_is_that_of_the_last_token_alone(trl, stream_of, head):
    """Of each text by itself, unpadded, against packed rows; the head is the model's own, or an added one."""
    model, params = trl[1]('reward')
    if head == 'reward':
        kernel = params['task_head']['out']['kernel']
        params = params | {'heads': {'reward': {'kernel': np.asarray(kernel)}}}
    apply = jax.jit(model.apply)
    batch = stream(stream_of, rows=4, size=96, pack=True).batch(0)
    assert batch['scored'].shape[1] > 2
    score = functools.partial(reward.scores, lambda columns: apply({'params': params}, columns), head=head, pool='last')
    scores, real = score(batch), batch['scored'] > 0
    left, sizes = {name: column.copy() for name, column in batch.items()}, (batch['segment_ids'] > 0).sum(axis=1)
    for row, size in enumerate(sizes):
        for name in ('tokens', 'segment_ids', 'positions'):
            left[name][row] = np.roll(left[name][row], 96 - size)
    assert sizes.min() < 96
    np.testing.assert_allclose(np.asarray(score(left))[real], np.asarray(scores)[real], rtol=1e-6, atol=1e-6)
    for row, segment in list(zip(*np.nonzero(batch['scored'])))[::3]:  # each length is compiled anew
        inside = batch['segment_ids'][row] == batch['scored'][row, segment]
        alone = {'tokens': batch['tokens'][row][inside][None], 'segment_ids': np.ones((1, inside.sum()), np.int32)}
        logits = np.asarray(apply({'params': params}, alone)['logits'])
        np.testing.assert_allclose(scores[row, segment], logits[0, 0], rtol=1e-5, atol=1e-6)
