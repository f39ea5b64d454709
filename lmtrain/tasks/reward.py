"""Reward model: a score for each text, trained on pairs of a chosen and a rejected completion (Bradley-Terry)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lmtrain.models import task_head
from lmtrain.tasks import pairs, segments
from lmtrain.tasks.task import Task

BINS = 10  # of the calibration


def scores(forward, batch, *, head: str = 'logits', pool: str = 'last'):
    """float32 [B, S]: the score of each scored segment: of its last token, the one that ends it, for any padding.

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]`: float32 [B, S, 1] of the model's own head, 'logits', or
        [B, T, 1] of an added one, which is pooled.
      batch: columns `segment_ids` int32 [B, T] and `scored` int32 [B, S].
      pool: of an added head: 'first' | 'last' | 'mean' of the tokens of a segment.
    """
    outputs = forward(batch)[head]
    if head != 'logits':
        outputs = task_head.pool(outputs, batch['segment_ids'], pool, batch['scored'])
    return outputs[..., 0]


def loss(forward, batch, *, head: str = 'logits', pool: str = 'last', centring: float = 0.0):
    """-log sigmoid(r_chosen - r_rejected - margin) + centring (r_chosen + r_rejected)^2 of each pair.

    Bradley-Terry: InstructGPT (arXiv 2203.02155), equation 1. The margin, by how much a row prefers its chosen side, is
    that of Llama 2 (arXiv 2307.09288), equation 2. Only differences of scores matter to both; `centring` keeps their
    mean at 0 (Eisenstein et al., arXiv 2312.09244, section 3, whose coefficient is 0.01).

    Args:
      forward, batch, head, pool: see `scores`; batch also has `margin` float32 [B, 2P], read at the chosen sides.

    Returns:
      ({'loss', 'accuracy', 'margin', 'reward'}, weights), each [B, P]: the share of pairs whose chosen side has the
      higher score, the difference of the scores, and their mean.
    """
    chosen, rejected = segments.sides(scores(forward, batch, head=head, pool=pool))
    difference = chosen - rejected
    values = {
        'loss': -jax.nn.log_sigmoid(difference - segments.sides(batch['margin'])[0])
        + centring * (chosen + rejected) ** 2,
        'accuracy': (difference > 0).astype(jnp.float32),
        'margin': difference,
        'reward': (chosen + rejected) / 2,
    }
    return values, segments.pair_weights(batch)


def calibration(differences: ArrayLike) -> list[dict[str, float]]:
    """How often the side with the higher score is the chosen one, for pairs of similar predicted probability.

    The probability that a model gives to its choice is sigmoid(|r_chosen - r_rejected|), in [0.5, 1], here in `BINS`
    bins of equal width.

    Returns:
      For each bin with pairs {'pairs', 'confidence', 'accuracy'}: their number, mean probability, and share of right
      choices. A pair of equal scores counts as half right.

    >>> calibration([2.0, 2.0, -2.0, 0.0])  # doctest: +NORMALIZE_WHITESPACE
    [{'pairs': 1, 'confidence': 0.5, 'accuracy': 0.5},
     {'pairs': 3, 'confidence': 0.8807970779778823, 'accuracy': 0.6666666666666666}]
    """
    values = np.asarray(differences, np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(values)))
    right = 0.5 * (1 + np.sign(values))
    bins = np.minimum((2 * (confidence - 0.5) * BINS).astype(int), BINS - 1)
    return [
        {
            'pairs': int(np.sum(bins == index)),
            'confidence': float(confidence[bins == index].mean()),
            'accuracy': float(right[bins == index].mean()),
        }
        for index in np.unique(bins)
    ]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error of `calibration` (Guo et al., arXiv 1706.04599, equation 3), between 0 and 1.

    >>> round(calibration_error([{'pairs': 1, 'confidence': 0.9, 'accuracy': 1.0},
    ...                          {'pairs': 3, 'confidence': 0.7, 'accuracy': 0.5}]), 12)
    0.175
    """
    total = sum(each['pairs'] for each in bins)
    return sum(each['pairs'] * abs(each['confidence'] - each['accuracy']) for each in bins) / total


def differences(predicted: Sequence[float]) -> np.ndarray:
    """float64 [pairs]: r_chosen - r_rejected, from the scores of the examples of a split."""
    values = np.array(predicted, np.float64)
    return values[0::2] - values[1::2]


def details(data, split: str, predicted: Sequence) -> dict:
    """{'calibration': {'error': `calibration_error`, 'bins': `calibration`}} of a split."""
    bins = calibration(differences(predicted))
    return {'calibration': {'error': calibration_error(bins), 'bins': bins}}


def score(data, split: str, predicted: Sequence) -> dict[str, float]:
    """{'accuracy', 'margin', 'calibration_error'} of a split."""
    each = differences(predicted)
    return {
        'accuracy': float(np.mean(each > 0)),
        'margin': float(np.mean(each)),
        'calibration_error': calibration_error(calibration(each)),
    }


TASK = Task(
    name='reward',
    head='classify',
    columns=('scored', 'margin'),
    losses={'bradley_terry': loss},
    peft_type='SEQ_CLS',
    legend=pairs.legend,
    render=pairs.render,
    encode=functools.partial(pairs.encode, unread=0, margins=True),
    num_outputs=1,
    predict=scores,
    score=score,
    details=details,
    conversations=True,
    output_name='reward',
    unit='pair',
    version=3,
)
