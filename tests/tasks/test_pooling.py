import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.tasks.pooling import pool_outputs

OUTPUTS = jnp.arange(2 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 2) ** 1.3
REAL = {'segment_ids': jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]])}


@pytest.mark.parametrize(
    ('pool', 'expected'),
    [
        ('first', OUTPUTS[:, 0]),
        ('last', jnp.stack([OUTPUTS[0, 2], OUTPUTS[1, 0]])),
        ('mean', jnp.stack([OUTPUTS[0, :3].mean(0), OUTPUTS[1, 0]])),
    ],
)
def test_pooling_reads_real_tokens_only(pool, expected):
    np.testing.assert_allclose(pool_outputs(OUTPUTS, REAL, pool), expected, rtol=1e-6)


def test_padding_may_come_first():
    left = {'segment_ids': jnp.array([[0, 1, 1, 1], [0, 0, 0, 1]])}
    np.testing.assert_array_equal(pool_outputs(OUTPUTS, left, 'first'), jnp.stack([OUTPUTS[0, 1], OUTPUTS[1, 3]]))
    np.testing.assert_array_equal(pool_outputs(OUTPUTS, left, 'last'), OUTPUTS[:, 3])


def test_pooled_outputs_are_unchanged():
    np.testing.assert_array_equal(pool_outputs(OUTPUTS[:, 0], {}, 'mean'), OUTPUTS[:, 0])


def test_unknown_pool_is_named():
    with pytest.raises(ValueError, match="pool = 'max' is none of first, last, mean"):
        pool_outputs(OUTPUTS, REAL, 'max')
