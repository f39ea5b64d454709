import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.data.tokenizers.base import Bytes
from lmtrain.tasks import classify


def test_loss_and_accuracy_by_hand():
    logits = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    batch = {'labels': jnp.array([0, 2]), 'label_weights': jnp.array([1.0, 1.0])}
    values, weights = classify.loss(lambda batch: {'logits': logits}, batch)
    expected = [np.log(np.exp(2) + 1 + np.e) - 2, np.log(3)]
    np.testing.assert_allclose(values['loss'], expected, rtol=1e-6)
    assert values['accuracy'].tolist() == [1, 0] and weights.tolist() == [1, 1]


def test_classes_have_equal_weight_in_macro_f1(task_data):
    one = task_data([], [0], [], values={'labels': np.array([0, 0, 0, 1])}, labels='abc')
    assert classify.score(one, 'test', [0, 0, 0, 0])['macro_f1'] == pytest.approx((6 / 7 + 0) / 2)
    assert classify.score(one, 'test', [0, 0, 0, 1])['macro_f1'] == 1
    # A class that is predicted alone has an F1 of 0, as scikit-learn counts it.
    assert classify.score(one, 'test', [0, 0, 2, 1])['macro_f1'] == pytest.approx((4 / 5 + 1 + 0) / 3)


def test_preview_has_the_class_at_the_end(cat):
    batch = cat | {'labels': np.array([1]), 'label_weights': np.ones(1, np.float32)}
    assert classify.render(Bytes(), batch, 0, ('bad', 'good')) == '<|endoftext|>cat<|endoftext|>~~~ => good'
    assert '=>' in classify.legend(batch)
    two = {name: np.concatenate([column, column]) for name, column in batch.items()} | {'labels': np.array([1, 0])}
    assert classify.render(Bytes(), two, 1, ('bad', 'good')).endswith(' => bad')
