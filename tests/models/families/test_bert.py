"""The names under which files have the tensors of BERT; tests of encoders compare outputs."""

from types import SimpleNamespace

import pytest

from lmtrain.models.families import bert


def keys(**model):
    return {entry.paths[0]: (entry.key, *entry.also) for entry in bert.entries(SimpleNamespace(**model))}


def test_the_oldest_files_have_the_names_of_tensorflow():
    """LayerNorm multiplies by gamma and adds beta."""
    found, norm = keys(head='lm', tied=True), 'bert.encoder.layer.{layer}.output.LayerNorm'
    assert found['layers/mlp_norm/scale'] == (f'{norm}.weight', f'{norm}.gamma')
    assert found['layers/mlp_norm/bias'] == (f'{norm}.bias', f'{norm}.beta')
    assert found['layers/mlp/up/bias'] == ('bert.encoder.layer.{layer}.intermediate.dense.bias',)


@pytest.mark.parametrize(('tied', 'key', 'other'), [(True, 'bias', 'decoder.bias'), (False, 'decoder.bias', 'bias')])
def test_the_bias_of_the_head_is_that_of_the_decoder_if_it_is_untied(tied, key, other):
    """As in transformers, where `bias` and `decoder.bias` are one if weights are tied, and the latter is added."""
    found = keys(head='lm', tied=tied)
    assert found['mlm_head/bias'] == (f'cls.predictions.{key}', f'cls.predictions.{other}')
    assert ('head/kernel' in found) is not tied
