"""Calibration of choices: by inputs without content (Zhao et al. 2021, arXiv 2102.09690), and by a temperature.

A model prefers some answers whatever the input is, because they are common or stand in the last demonstration. The
probabilities of the answers after inputs without content, such as 'N/A', measure this preference, and the answers of a
row are divided by them. A model that is too sure, or not sure enough, is corrected by a temperature, which changes no
prediction (Guo et al. 2017, arXiv 1706.04599).
"""

import math
from collections.abc import Sequence

import numpy as np

from lmtrain.inference.questions import Question, parse_template

CONTENT_FREE = ('N/A', '[MASK]', '')  # the inputs of the paper, section 5


def content_free(asked: Question, template: str, text: str) -> Question:
    """The question with `text` in place of all fields of its row; of a conversation, in place of its last message.

    >>> question = Question('here', 'Text: good. Label: ', ('a', 'b'), 'a')
    >>> content_free(question, 'Text: {text}. Label: {label}', 'N/A').context
    'Text: N/A. Label: '
    """
    if asked.messages:
        *before, last = asked.messages
        return asked._replace(messages=(*before, {**last, 'content': text}))
    *pieces, (literal, _) = parse_template(template or '{text}{answer}')
    return asked._replace(context=''.join([*(own + text for own, _ in pieces), literal]))


def calibrate(nats: np.ndarray, free: Sequence[np.ndarray]) -> np.ndarray:
    """log q float64 [C] of q = W p, divided by its sum, with W = diag(p_cf)^-1 (section 5, equation 1, with b = 0).

    Args:
      nats: [C] log-likelihoods of the choices of a row.
      free: of the same choices after each of the content-free inputs. p and p_cf are divided by their sums over the
        choices, and p_cf is the mean over the inputs.

    >>> calibrate(np.log([0.6, 0.2]), [np.log([0.09, 0.01])]).round(3).tolist()  # p .75, .25; p_cf .9, .1
    [-1.386, -0.288]
    """
    prior = [each - np.logaddexp.reduce(each) for each in np.asarray(free, np.float64)]
    scores = np.asarray(nats, np.float64) - np.logaddexp.reduce(prior, axis=0)  # the 1 / len(free) of the mean cancels
    return scores - np.logaddexp.reduce(scores)


def fit_temperature(scores: np.ndarray, right: Sequence[int]) -> float:
    """The temperature in [0.05, 100] at which the right choices have the highest likelihood.

    Temperature scaling (Guo et al. 2017, section 4.2), so that losses of different scores can be compared.

    Args:
      scores: [N, C], which differ from log probabilities by a constant for each row; -inf is no choice.
      right: index of the right choice of each row.

    >>> scores = np.log([[0.9, 0.1]] * 4)  # right in three of four rows: odds of 9 become odds of 3
    >>> round(fit_temperature(scores, [0, 0, 0, 1]), 3)
    2.0
    """
    from scipy import optimize  # late

    rows = np.arange(len(scores))

    def loss(log_temperature: float) -> float:
        return -float(np.mean(log_softmax(scores / math.exp(log_temperature))[rows, right]))

    return math.exp(optimize.minimize_scalar(loss, bounds=(math.log(0.05), math.log(100)), method='bounded').x)


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, from scores that differ from them by a constant."""
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
