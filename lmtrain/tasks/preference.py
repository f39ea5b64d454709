"""Preference optimisation on pairs of a chosen and a rejected completion: DPO and its relatives, SimPO, ORPO.

In all formulas y_w is the chosen and y_l the rejected completion of a prompt x, and delta is the difference of their
log-ratios, log(pi(y_w|x) / ref(y_w|x)) - log(pi(y_l|x) / ref(y_l|x)), summed over tokens.
"""

import functools

import jax
import jax.numpy as jnp

from lmtrain.tasks import pairs, segments, token_preview
from lmtrain.tasks.segments import sides
from lmtrain.tasks.task import Task


def dpo(forward, batch, *, beta: float = 0.1, label_smoothing: float = 0.0, reference: str = 'cached'):
    """-(1 - label_smoothing) log sigmoid(beta delta) - label_smoothing log sigmoid(-beta delta).

    DPO (Rafailov et al., arXiv 2305.18290, equation 7); with label smoothing the conservative DPO of Mitchell, 'A note
    on DPO with noisy preferences' (2023), equation 3, for labels that are wrong with that probability.

    Args:
      forward: Batch -> {'logprob': float32 [B, T]}; `forward(batch, reference_model=True)` if reference = 'live'.
      batch: columns `segment_ids`, `scored`, `loss_mask`, `targets`, and `ref_logprob` if reference = 'cached'.
      beta: strength of the penalty for leaving the reference model.
      reference: see `segments.reference_logprob`.

    Returns:
      (values, weights), each [B, P]. Values: 'loss'; the implicit rewards beta log(pi/ref) 'rewards/chosen' and
      'rewards/rejected' (averaged over tokens if the loss is), their difference 'rewards/margins' and how often it is
      positive, 'rewards/accuracies'; the log-probabilities 'logps/chosen' and 'logps/rejected'.
    """
    own, ratios = _log_ratios(forward, batch, reference)
    return _values(_smoothed(beta * _difference(ratios), label_smoothing), beta * ratios, own, batch)


def hinge(forward, batch, *, beta: float = 0.1, reference: str = 'cached'):
    """max(0, 1 - beta delta), the hinge loss of SLiC (arXiv 2305.10425) on log-ratios (RSO, arXiv 2309.06657, section
    3.2). Arguments and results: see `dpo`.
    """
    own, ratios = _log_ratios(forward, batch, reference)
    return _values(jax.nn.relu(1 - beta * _difference(ratios)), beta * ratios, own, batch)


def ipo(forward, batch, *, beta: float = 0.1, reference: str = 'cached'):
    """(delta_mean - 1 / (2 beta))^2, with log-ratios averaged over the tokens of each completion.

    IPO (Azar et al., arXiv 2310.12036, equation 17); beta is the paper's tau. The average, which its authors recommend,
    keeps the loss independent of the lengths. Arguments and results: see `dpo`.
    """
    own, ratios = _log_ratios(forward, batch, reference)
    means = ratios / own.tokens
    return _values((_difference(means) - 1 / (2 * beta)) ** 2, beta * means, own, batch)


def dpo_norm(forward, batch, *, beta: float = 0.1, label_smoothing: float = 0.0, reference: str = 'cached'):
    """DPO with log-ratios averaged over the tokens of each completion: -log sigmoid(beta delta_mean).

    Length-normalised DPO (Tulu 3, arXiv 2411.15124, section 5, with beta = 5). Arguments and results: see `dpo`.
    """
    own, ratios = _log_ratios(forward, batch, reference)
    means = ratios / own.tokens
    return _values(_smoothed(beta * _difference(means), label_smoothing), beta * means, own, batch)


def simpo(forward, batch, *, beta: float = 0.1, target_margin: float = 0.5):
    """-log sigmoid(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - target_margin).

    SimPO (Meng et al., arXiv 2405.14734, equation 6; its beta is 2 to 10, its gamma, here target_margin, 0.3 to 1.6).
    It has no reference model. Arguments and results: see `dpo`; the rewards are beta log pi / |y|.
    """
    own = segments.policy(forward, batch)
    rewards = beta * own.logprob / own.tokens
    return _values(-jax.nn.log_sigmoid(_difference(rewards) - target_margin), rewards, own, batch)


def orpo(forward, batch, *, beta: float = 0.1):
    """-log p_w - beta log sigmoid(log odds(p_w) - log odds(p_l)), where log p is the mean log-probability of a token.

    ORPO (Hong et al., arXiv 2403.07691, equations 6 and 7; beta is the paper's lambda; odds(p) = p / (1 - p)). It has
    no reference model: the first term is that of fine-tuning on the chosen completions. Arguments and results: see
    `dpo`; the rewards are beta log p.
    """
    own = segments.policy(forward, batch)
    mean = own.logprob / own.tokens
    ratio = jax.nn.log_sigmoid(_difference(mean - _log1mexp(mean)))
    return _values(-sides(mean)[0] - beta * ratio, beta * mean, own, batch)


def _log_ratios(forward, batch, reference: str):
    """(`Segments` of the model that is trained, log(pi/ref) [B, 2P])."""
    own = segments.policy(forward, batch)
    return own, own.logprob - segments.reference_logprob(forward, batch, reference)


def _difference(values_BS):
    """Chosen - rejected, [B, P]."""
    chosen, rejected = sides(values_BS)
    return chosen - rejected


def _smoothed(logits, smoothing: float):
    """The cross-entropy of `logits` [B, P] for a label that is 1 with probability 1 - smoothing."""
    return -(1 - smoothing) * jax.nn.log_sigmoid(logits) - smoothing * jax.nn.log_sigmoid(-logits)


def _log1mexp(x):
    """log(1 - exp(x)) for x <= 0, without cancellation (Maechler, 'Accurately computing log(1 - exp(-|a|))', 2012).

    x is at most -2^-24, half of float32's spacing below 1: a completion that is certain has finite odds.
    """
    x = jnp.minimum(x, -(2.0**-24))
    near = x > -jnp.log(2.0)
    small = jnp.where(near, x, -1.0)  # neither branch may have an infinite gradient where it is not taken
    large = jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))


def _values(loss, rewards_BS, own: segments.Segments, batch):
    """(values, weights) of an objective from its loss [B, P] and the rewards [B, 2P] of the sides."""
    chosen, rejected = sides(rewards_BS)
    logps = sides(own.logprob)
    values = {
        'loss': loss,
        'rewards/chosen': chosen,
        'rewards/rejected': rejected,
        'rewards/accuracies': (chosen > rejected).astype(jnp.float32),
        'rewards/margins': chosen - rejected,
        'logps/chosen': logps[0],
        'logps/rejected': logps[1],
    }
    return values, segments.pair_weights(batch)


TASK = Task(
    name='preference',
    head='lm',
    columns=('targets', 'loss_mask', 'scored', 'ref_logprob'),
    losses={'dpo': dpo, 'hinge': hinge, 'ipo': ipo, 'dpo_norm': dpo_norm, 'simpo': simpo, 'orpo': orpo},
    peft_type='CAUSAL_LM',
    legend=token_preview.legend,
    render=token_preview.render,
    encode=functools.partial(pairs.encode, unread=1, margins=False),
    conversations=True,
    dialogue=pairs.dialogue,
    unit='pair',
    version=3,
)
