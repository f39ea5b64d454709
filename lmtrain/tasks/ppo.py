"""Proximal policy optimisation: the clipped surrogate, with advantages from a value head on the same backbone."""

import dataclasses

import jax.numpy as jnp

from lmtrain.tasks import policy
from lmtrain.tasks.advantages import gae

VALUE = 'value'  # name of the added head


def loss(
    forward,
    batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_clip: float = 0.2,
    value_weight: float = 0.1,
    kl_estimator: str = 'k1',
):
    """PPO (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9): clipped surrogate + value_weight value loss.

    The value loss is max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2) / 2, as in the code of
    that paper (Huang et al. 2022, "The 37 implementation details of PPO", detail 9). A penalty for the KL divergence
    from the reference is a part of the rewards (`advantages.gae`). All tokens of a batch weigh the same.

    Args:
      forward: Batch -> {head: Array}; reads `logprob` [B, T] and `value` [B, T, 1].
      batch: columns of `policy.grpo`, and `returns` and `old_values`, float32 [B, T].

    Returns:
      ({'policy_loss', 'value_loss'} and the values of `policy.grpo`, weights), each [B, T].
    """
    outputs, mask = forward(batch), batch['loss_mask']
    logprob, value = outputs['logprob'], outputs[VALUE][..., 0]
    log_ratio, gap = policy.log_ratios(logprob, batch)
    policy_loss, values = policy.clipped(log_ratio, batch['advantages'], clip_low, clip_high)
    limited = batch['old_values'] + jnp.clip(value - batch['old_values'], -value_clip, value_clip)
    error = jnp.maximum((value - batch['returns']) ** 2, (limited - batch['returns']) ** 2)
    values |= {'policy_loss': policy_loss, 'value_loss': 0.5 * error, 'entropy': -logprob}
    values |= {'scorer_gap': gap}
    if 'ref_logprob' in batch:
        values['kl'] = policy.reference_kl(logprob, batch, kl_estimator)
    return {'loss': policy_loss + value_weight * values['value_loss']} | values, mask


TASK = dataclasses.replace(
    policy.TASK,
    name='ppo',
    columns=(*policy.TASK.columns, 'returns', 'old_values'),
    losses={'ppo': loss},
    estimators={'ppo': gae},
    added_head=VALUE,
)
