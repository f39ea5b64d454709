import jax.numpy as jnp
import numpy as np

from lmtrain.tasks import tag


def test_loss_by_hand_at_the_labelled_tokens():
    logits = jnp.array([[[1.0, 0.0], [0.0, 3.0], [5.0, 0.0]]])
    batch = {'labels': jnp.array([[0, 0, 1]]), 'label_weights': jnp.array([[1.0, 1.0, 0.0]])}
    values, weights = tag.loss(lambda batch: {'tags': logits}, batch, head='tags')
    np.testing.assert_allclose(values['loss'][0, :2], [np.log1p(np.exp(-1)), np.log1p(np.exp(3))], rtol=1e-6)
    assert values['accuracy'].tolist() == [[1, 0, 0]] and weights.tolist() == [[1, 1, 0]]
    assert tag.predict(lambda batch: {'tags': logits}, batch, head='tags').tolist() == [[0, 1, 0]]
