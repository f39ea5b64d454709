"""Advantages: GAE against a loop, group-relative and leave-one-out ones against their definitions."""

import numpy as np
import pytest

from lmtrain.tasks.advantages import Sampled, estimate_kl, gae, group_relative, leave_one_out, whiten


@pytest.fixture
def sampled():
    """Three prompts with four completions each, of 1 to 7 tokens that begin at different positions."""
    rng = np.random.default_rng(0)
    N, T = 12, 9
    mask = np.zeros((N, T), np.float32)
    for row in range(N):
        mask[row, row % 3 : row % 3 + 1 + row % 7] = 1
    old, ref = (np.where(mask > 0, rng.normal(-2, 1, (N, T)), 0).astype(np.float32) for _ in range(2))
    values = rng.normal(size=(N, T)).astype(np.float32)
    return Sampled(rng.normal(size=N), mask, 4, old, ref, values)


def test_gae_equals_the_loop_of_its_definition(sampled):
    gamma, lam, weight = 0.9, 0.8, 0.3
    credit = gae(sampled, gamma=gamma, gae_lambda=lam, kl_weight=weight, kl_estimator='k1')
    expected = np.zeros(sampled.mask.shape)
    for row, mask in enumerate(sampled.mask):
        at = np.flatnonzero(mask)
        kl = weight * (sampled.old_logprob[row, at].astype(np.float64) - sampled.ref_logprob[row, at])
        rewards = -kl
        rewards[-1] += sampled.rewards[row]
        values = np.append(sampled.values[row, at].astype(np.float64), 0.0)
        deltas = rewards + gamma * values[1:] - values[:-1]
        for i, t in enumerate(at):  # the sum over all later deltas, not the recursion
            expected[row, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:]))
    real = sampled.mask > 0
    np.testing.assert_allclose(credit.columns['returns'][real], (expected + sampled.values)[real], rtol=1e-9)
    np.testing.assert_allclose(credit.columns['advantages'], whiten(expected, real), rtol=1e-9, atol=1e-12)
    assert not credit.columns['returns'][~real].any() and credit.used.all()


def test_whitened_values_have_mean_zero_and_variance_one(sampled):
    real = sampled.mask > 0
    white = whiten(3.0 + 5.0 * sampled.values.astype(np.float64), real)
    np.testing.assert_allclose([white[real].mean(), white[real].var()], [0, 1], atol=1e-7)


def test_reward_of_a_completion_counts_at_its_last_token(sampled):
    alone = sampled._replace(values=np.zeros_like(sampled.values), ref_logprob=None)
    returns = gae(alone, gamma=0.5, gae_lambda=1.0).columns['returns']
    for row, mask in enumerate(sampled.mask):
        at = np.flatnonzero(mask)
        np.testing.assert_allclose(returns[row, at], sampled.rewards[row] * 0.5 ** np.arange(len(at))[::-1])


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
def test_group_relative_advantages(sampled, scale):
    credit = group_relative(sampled, scale=scale)
    for row in range(12):
        group = sampled.rewards[row // 4 * 4 : row // 4 * 4 + 4]
        deviation = {'group': group.std(ddof=1) + 1e-4, 'batch': sampled.rewards.std(ddof=1) + 1e-4, 'none': 1.0}
        expected = (sampled.rewards[row] - group.mean()) / deviation[scale] * sampled.mask[row]
        np.testing.assert_allclose(credit.columns['advantages'][row], expected, rtol=1e-9)


def test_group_without_variance_is_not_used(sampled):
    rewards = sampled.rewards.copy()
    rewards[4:8] = 0.25
    for credit in (group_relative(sampled._replace(rewards=rewards)), leave_one_out(sampled._replace(rewards=rewards))):
        assert credit.used.tolist() == [True] * 4 + [False] * 4 + [True] * 4
        assert not credit.columns['advantages'][4:8].any()


def test_leave_one_out_compares_with_the_other_completions(sampled):
    credit = leave_one_out(sampled, kl_weight=0.2, kl_estimator='k3')
    kl = np.where(sampled.mask > 0, estimate_kl(sampled.old_logprob - sampled.ref_logprob, 'k3', np), 0.0)
    total = sampled.rewards - 0.2 * kl.sum(axis=1)
    for row in range(12):
        others = [total[other] for other in range(row // 4 * 4, row // 4 * 4 + 4) if other != row]
        expected = (total[row] - np.mean(others)) * sampled.mask[row]
        np.testing.assert_allclose(credit.columns['advantages'][row], expected, rtol=1e-5)


@pytest.mark.parametrize('estimator, tolerance', [('k1', 0.01), ('k2', 0.05), ('k3', 0.01)])
def test_kl_estimators_agree_with_the_divergence_of_two_normals(estimator, tolerance):
    """KL(N(0, 1), N(m, 1)) = m^2 / 2; k2 is biased, k3 is never negative."""
    m, x = 0.3, np.random.default_rng(0).normal(size=400_000)
    log_ratio = -0.5 * x**2 + 0.5 * (x - m) ** 2
    estimates = estimate_kl(log_ratio, estimator, np)
    assert abs(estimates.mean() / (m**2 / 2) - 1) < tolerance
    assert (estimates.min() < 0) == (estimator == 'k1')
