import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.tasks import span

SCORES = jnp.array([[[1.0, 0.0], [2.0, 5.0], [0.0, 1.0], [9.0, 9.0]]])
INSIDE = jnp.array([[1.0, 1.0, 1.0, 0.0]])


def forward(batch):
    return {'logits': SCORES}


def test_loss_by_hand_over_the_context_alone():
    batch = {'spans': jnp.array([[1, 2]]), 'label_weights': INSIDE}  # of which the first token is a part
    values, weights = span.loss(forward, batch)
    start = np.log(np.exp([1, 2, 0]).sum()) - 2
    end = np.log(np.exp([0, 5, 1]).sum()) - 1
    np.testing.assert_allclose(values['loss'], [(start + end) / 2], rtol=1e-6)
    assert values['accuracy'].tolist() == [0] and weights.tolist() == [1]
    values, _ = span.loss(forward, batch | {'spans': jnp.array([[1, 1]])})
    assert values['accuracy'].tolist() == [1]


def test_a_window_without_the_answer_is_trained_on_the_first_token():
    """As BERT's authors do for SQuAD 2: the first token competes with the context, in the loss alone."""
    batch = {'spans': jnp.array([[0, 0]]), 'label_weights': jnp.array([[0.0, 1.0, 1.0, 0.0]])}
    values, weights = span.loss(forward, batch)
    start, end = np.log(np.exp([1, 2, 0]).sum()) - 1, np.log(np.exp([0, 5, 1]).sum()) - 0
    np.testing.assert_allclose(values['loss'], [(start + end) / 2], rtol=1e-6)
    assert weights.tolist() == [1]
    spans, score, null = jax.jit(functools.partial(span.predict, forward))(batch)
    assert spans.tolist() == [[1, 1]] and score.tolist() == [7] and null.tolist() == [1]


def test_a_row_of_padding_weighs_nothing():
    values, weights = span.loss(forward, {'spans': jnp.array([[-1, -1]]), 'label_weights': INSIDE})
    assert weights.tolist() == [0] and np.isfinite(values['loss']).all()


def test_what_is_predicted_starts_before_it_ends():
    scores = jnp.array([[[0.0, 9.0], [9.0, 0.0], [0.0, 1.0]]])
    batch = {'label_weights': jnp.ones((1, 3))}
    predict = jax.jit(functools.partial(span.predict, lambda batch: {'logits': scores}), static_argnames='longest')
    spans, best, null = predict(batch)
    assert spans.tolist() == [[1, 2]] and best.tolist() == [10.0] and null.tolist() == [9.0]
    spans, *_ = predict(batch, longest=1)
    assert spans.tolist() in ([[0, 0]], [[1, 1]])
    spans, *_ = jax.jit(functools.partial(span.predict, forward))({'label_weights': INSIDE})
    assert spans.tolist() == [[1, 1]]  # not the token outside of the context, which scores highest
