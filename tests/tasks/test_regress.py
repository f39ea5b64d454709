from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.data.tokenizers.base import Bytes
from lmtrain.tasks import regress


def test_loss_by_hand():
    batch = {'labels': jnp.array([1.0, -2.0]), 'label_weights': jnp.array([1.0, 0.0])}
    values, weights = regress.loss(lambda batch: {'score': jnp.array([[3.0], [0.5]])}, batch, head='score')
    assert values['loss'].tolist() == [4.0, 6.25] and values['absolute_error'].tolist() == [2.0, 2.5]
    assert weights.tolist() == [1, 0]


@pytest.mark.parametrize('value', ['high', float('nan'), Decimal('NaN'), None, True, '', 1e400])
def test_label_must_be_a_finite_number(value):
    with pytest.raises(ValueError, match='x:3: the label of a regression is a finite number'):
        regress.number_of(value, 'x:3')
    assert regress.number_of('2.5', '') == regress.number_of(Decimal('2.50'), '') == 2.5
    with pytest.raises(ValueError, match=r"here it is '2,5': write it with a decimal point"):
        regress.number_of('2,5', '')


def test_correlation(task_data):
    one = task_data([], [0], [], values={'labels': np.array([1.0, 2.0, 3.0])})
    assert regress.score(one, 'test', [10.0, 20.0, 30.0])['pearson'] == pytest.approx(1)
    assert regress.score(one, 'test', [5.0, 5.0, 5.0])['pearson'] == 0


def test_preview_has_the_number_at_the_end(cat):
    batch = cat | {'labels': np.array([2.5], np.float32), 'label_weights': np.ones(1, np.float32)}
    assert regress.render(Bytes(), batch, 0) == '<|endoftext|>cat<|endoftext|>~~~ => 2.5'
