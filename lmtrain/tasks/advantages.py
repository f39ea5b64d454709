"""Advantages of sampled tokens: relative to a group, leave-one-out, and by generalised advantage estimation.

N = prompts * samples completions, those of a prompt together; T positions, aligned with `targets`. All are numpy
arrays, computed in float64 on the host.
"""

from typing import NamedTuple

import numpy as np

KL_ESTIMATORS = ('k1', 'k2', 'k3')
SCALES = ('group', 'batch', 'none')
EPSILON = 1e-4  # added to a standard deviation, as in TRL


class Sampled(NamedTuple):
    """Completions with their rewards.

    Attributes:
      rewards: [N] one number for each completion.
      mask: [N, T] 1 at the tokens of the completion.
      samples: completions of each prompt.
      old_logprob: [N, T] log-probability of each token under the policy that sampled it.
      ref_logprob: [N, T] the same under the reference model; None without one.
      values: [N, T] the value head's estimate before each token; None without a value head.
    """

    rewards: np.ndarray
    mask: np.ndarray
    samples: int
    old_logprob: np.ndarray
    ref_logprob: np.ndarray | None = None
    values: np.ndarray | None = None


class Credit(NamedTuple):
    """What an estimator gives each token.

    Attributes:
      columns: {name: [N, T]} 'advantages', and with a value head 'returns'.
      used: [N] bool, whether the advantages have a gradient; False in a group whose advantages are all 0.
    """

    columns: dict[str, np.ndarray]
    used: np.ndarray


def group_relative(sampled: Sampled, *, scale: str = 'group') -> Credit:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-4) over the completions of a prompt, for all tokens of completion i.

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2). std is unbiased, as in TRL. Rewards that are equal within
    a group give no gradient of the surrogate: its completions are not used.

    Args:
      scale: 'group' is the formula above; 'batch' divides by the standard deviation of all N rewards (Lite PPO,
        arXiv 2508.08221); 'none' does not divide (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, equation 3).
    """
    groups = sampled.rewards.astype(np.float64).reshape(-1, sampled.samples)
    centred = groups - groups.mean(axis=1, keepdims=True)
    if scale == 'group':
        centred /= groups.std(axis=1, ddof=1, keepdims=True) + EPSILON
    elif scale == 'batch':
        centred /= groups.std(ddof=1) + EPSILON
    return Credit({'advantages': centred.reshape(-1, 1) * sampled.mask}, with_variance(groups))


def leave_one_out(sampled: Sampled, *, kl_weight: float = 0.0, kl_estimator: str = 'k1') -> Credit:
    """A_i = R_i - mean of R_j over the other completions j of the prompt: REINFORCE leave-one-out.

    Ahmadian et al. 2024, arXiv 2402.14740, section 2.3. R_i is the reward minus `kl_weight` times the KL divergence
    from the reference, summed over the tokens.
    """
    kl = np.sum(penalty(sampled, kl_weight, kl_estimator), axis=1)
    groups = (sampled.rewards - kl).reshape(-1, sampled.samples)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (sampled.samples - 1)
    return Credit({'advantages': (groups - others).reshape(-1, 1) * sampled.mask}, with_variance(groups))


def gae(
    sampled: Sampled,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    kl_weight: float = 0.0,
    kl_estimator: str = 'k1',
) -> Credit:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16), whitened over tokens.

    delta_t = r_t + gamma V_(t+1) - V_t and A_t = delta_t + gamma lambda A_(t+1), from the last token back. The reward
    of a completion is that of its last token, every token pays `kl_weight` times its KL divergence from the reference
    (Ziegler et al. 2019, arXiv 1909.08593, equation 2), and the value after the last token is 0. 'returns' are A + V.
    """
    mask = sampled.mask > 0
    N, T = mask.shape
    rewards = -penalty(sampled, kl_weight, kl_estimator)
    last = T - 1 - np.argmax(mask[:, ::-1], axis=1)
    rewards[np.arange(N), last] += sampled.rewards
    assert sampled.values is not None, 'a task with this estimator has a value head'
    values = np.where(mask, sampled.values, 0.0).astype(np.float64)
    advantages, after, next_value = np.zeros((N, T)), np.zeros(N), np.zeros(N)
    for t in reversed(range(T)):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = np.where(mask[:, t], delta + gamma * gae_lambda * after, 0.0)
        advantages[:, t], next_value = after, values[:, t]
    returns = np.where(mask, advantages + values, 0.0)
    return Credit({'advantages': whiten(advantages, mask), 'returns': returns}, np.ones(N, bool))


def whiten(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`x` with mean 0 and variance 1 over the entries of `mask`, 0 elsewhere."""
    chosen = x[mask]
    return np.where(mask, (x - chosen.mean()) / np.sqrt(chosen.var() + 1e-8), 0.0)


def penalty(sampled: Sampled, kl_weight: float, kl_estimator: str) -> np.ndarray:
    """[N, T] `kl_weight` times the estimated KL divergence of each token, 0 outside the mask or without reference."""
    if not kl_weight or sampled.ref_logprob is None:
        return np.zeros(sampled.mask.shape)
    log_ratio = sampled.old_logprob.astype(np.float64) - sampled.ref_logprob
    return np.where(sampled.mask > 0, kl_weight * estimate_kl(log_ratio, kl_estimator, np), 0.0)


def estimate_kl(log_ratio, estimator: str, xp):
    """An estimate of KL(policy, reference) for each token that the policy sampled.

    Schulman 2020, http://joschu.net/blog/kl-approx.html: with log r = log p_reference - log p_policy, k1 = -log r, k2 =
    (log r)^2 / 2, and k3 = r - 1 - log r, which is unbiased and not negative.

    Args:
      log_ratio: log p_policy - log p_reference.
      xp: numpy or jax.numpy.
    """
    if estimator == 'k1':
        return log_ratio
    return 0.5 * log_ratio**2 if estimator == 'k2' else xp.expm1(-log_ratio) + log_ratio


def with_variance(groups: np.ndarray) -> np.ndarray:
    """bool [N], whether the rewards of each completion's group differ; `groups` [prompts, samples]."""
    differs = np.ptp(groups, axis=1) > 1e-12
    return np.repeat(differs, groups.shape[1])
