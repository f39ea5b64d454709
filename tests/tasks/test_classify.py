import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.tasks import classify

OUTPUTS = jnp.arange(2 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 2) ** 1.3
REAL = {'segment_ids': jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]])}


def test_loss_and_accuracy_by_hand():
    logits = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    batch = {'labels': jnp.array([0, 2]), 'label_weights': jnp.array([1.0, 1.0])}
    values, weights = classify.loss(lambda batch: {'logits': logits}, batch)
    wanted = [np.log(np.exp(2) + 1 + np.e) - 2, np.log(3)]
    np.testing.assert_allclose(values['loss'], wanted, rtol=1e-6)
    assert values['accuracy'].tolist() == [1, 0] and weights.tolist() == [1, 1]


def test_regression_by_hand():
    batch = {'labels': jnp.array([1.0, -2.0]), 'label_weights': jnp.array([1.0, 0.0])}
    values, weights = classify.regression(lambda batch: {'score': jnp.array([[3.0], [0.5]])}, batch, head='score')
    assert values['loss'].tolist() == [4.0, 6.25] and values['absolute_error'].tolist() == [2.0, 2.5]
    assert weights.tolist() == [1, 0]


@pytest.mark.parametrize(
    ('pool', 'wanted'),
    [
        ('first', OUTPUTS[:, 0]),
        ('last', jnp.stack([OUTPUTS[0, 2], OUTPUTS[1, 0]])),
        ('mean', jnp.stack([OUTPUTS[0, :3].mean(0), OUTPUTS[1, 0]])),
    ],
)
def test_pooling_reads_real_tokens_alone(pool, wanted):
    np.testing.assert_allclose(classify.pooled(OUTPUTS, REAL, pool), wanted, rtol=1e-6)


def test_real_tokens_may_stand_at_the_end():
    left = {'segment_ids': jnp.array([[0, 1, 1, 1], [0, 0, 0, 1]])}
    np.testing.assert_array_equal(classify.pooled(OUTPUTS, left, 'first'), jnp.stack([OUTPUTS[0, 1], OUTPUTS[1, 3]]))
    np.testing.assert_array_equal(classify.pooled(OUTPUTS, left, 'last'), OUTPUTS[:, 3])


def test_what_a_checkpoint_has_pooled_stays():
    assert classify.pooled(OUTPUTS[:, 0], {}, 'first') is not None
    np.testing.assert_array_equal(classify.pooled(OUTPUTS[:, 0], {}, 'mean'), OUTPUTS[:, 0])


def test_an_unknown_pool_is_named():
    with pytest.raises(ValueError, match="pool='max' is none of first, last, mean"):
        classify.pooled(OUTPUTS, REAL, 'max')
