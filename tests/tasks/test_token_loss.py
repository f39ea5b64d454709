"""The loss of tokens by its formula, with values that are not neutral."""

import numpy as np

from lmtrain.tasks import token_loss

OUTPUTS = {
    'logprob': np.array([[-0.5, -2.0, -3.25]], np.float32),
    'log_z': np.array([[3.0, -2.0, 0.5]], np.float32),
}
WEIGHTS = np.array([[0.25, 2.0, 1.5]], np.float32)


def test_loss_is_negative_log_likelihood_plus_the_square_of_log_z():
    values, weights = token_loss.loss(lambda batch: OUTPUTS, {'loss_mask': WEIGHTS}, z_loss=0.1)
    np.testing.assert_allclose(values['nats'], [[0.5, 2.0, 3.25]])
    np.testing.assert_allclose(values['loss'], [[0.5 + 0.9, 2.0 + 0.4, 3.25 + 0.025]], rtol=1e-6)
    np.testing.assert_array_equal(weights, WEIGHTS)


def test_loss_without_z_loss_is_the_negative_log_likelihood():
    values, _ = token_loss.loss(lambda batch: OUTPUTS, {'loss_mask': WEIGHTS})
    np.testing.assert_array_equal(values['loss'], values['nats'])
    np.testing.assert_array_equal(values['loss'], -OUTPUTS['logprob'])
