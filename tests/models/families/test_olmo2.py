"""The defaults of optional fields in a config.json of OLMo 2; tests of families compare outputs."""

import pytest

from lmtrain.models.families import olmo2
from lmtrain.models.hf import Fields

SIZES = {'vocab_size': 64, 'max_position_embeddings': 32, 'num_hidden_layers': 2, 'hidden_size': 16}
SIZES |= {'model_type': 'olmo2', 'num_attention_heads': 2, 'intermediate_size': 24}


@pytest.mark.parametrize(
    ('given', 'name', 'value'),
    [
        ({}, 'norm_eps', 1e-5),  # transformers' Olmo2Config; the published files say 1e-6
        ({'rms_norm_eps': 1e-6}, 'norm_eps', 1e-6),
        ({}, 'biased', ()),
        ({'attention_bias': True}, 'biased', ('query', 'key', 'value', 'output')),
    ],
)
def test_fields_and_their_defaults(given, name, value):
    assert olmo2.settings(Fields(SIZES | given))[name] == value
