"""The keys of the tensors of BERT; tests of encoders compare outputs."""

from types import SimpleNamespace

import pytest

from lmtrain.models.families import bert


def keys(**model):
    return {entry.paths[0]: (entry.key, *entry.also) for entry in bert.entries(SimpleNamespace(**model))}


def test_names_of_tensorflow_in_the_oldest_files():
    """LayerNorm multiplies by gamma and adds beta."""
    actual, norm = keys(head='lm', tied=True), 'bert.encoder.layer.{layer}.output.LayerNorm'
    assert actual['layers/mlp_norm/scale'] == (f'{norm}.weight', f'{norm}.gamma')
    assert actual['layers/mlp_norm/bias'] == (f'{norm}.bias', f'{norm}.beta')
    assert actual['layers/mlp/up/bias'] == ('bert.encoder.layer.{layer}.intermediate.dense.bias',)


@pytest.mark.parametrize(('tied', 'key', 'other'), [(True, 'bias', 'decoder.bias'), (False, 'decoder.bias', 'bias')])
def test_the_bias_of_the_head_is_that_of_the_decoder_if_it_is_untied(tied, key, other):
    """Same as transformers: `bias` and `decoder.bias` are one parameter if weights are tied."""
    actual = keys(head='lm', tied=tied)
    assert actual['mlm_head/bias'] == (f'cls.predictions.{key}', f'cls.predictions.{other}')
    assert ('head/kernel' in actual) is not tied
