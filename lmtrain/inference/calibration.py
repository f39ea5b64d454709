"""Content-free calibration of choices (Zhao et al. 2021, Calibrate Before Use, arXiv 2102.09690).

A model prefers some answers whatever the input is, because they are common or stand in the last demonstration. The
probabilities of the answers after inputs without content, such as 'N/A', measure this preference, and the answers of a
row are divided by them.
"""

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
