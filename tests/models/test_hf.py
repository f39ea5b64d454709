"""Every field of config.json that a family reads has the effect that it has in transformers."""

import collections
import dataclasses
import functools
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments.parity import cases, fields, heads
from lmtrain.models import hf, load_pretrained, pretrained, safetensors

GOLDENS = json.loads((pathlib.Path(__file__).parent / 'goldens_fields.json').read_text(encoding='utf-8'))
CONFIGS = fields.DECODERS | fields.ENCODERS
QUICK = {'xla_backend_optimization_level': 0}


@functools.partial(jax.jit, static_argnames='model', compiler_options=QUICK)
def logits(model, params, batch):
    return model.apply({'params': params}, batch)['logits']


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_equal_those_of_transformers(tmp_path, name):
    (tmp_path / 'config.json').write_text(json.dumps(CONFIGS[name]), encoding='utf-8')
    tensors = {key: cases.weights(key, tuple(shape)) for key, shape in GOLDENS[name]['shapes'].items()}
    safetensors.write(tmp_path, {key: (x.shape, x.dtype) for key, x in tensors.items()}, tensors.__getitem__)
    model, params = load_pretrained(tmp_path)
    model = dataclasses.replace(model, unroll=1)
    batch, sampled = cases.batch(), cases.sampled
    if name in fields.ENCODERS:
        batch, sampled = heads.batch(CONFIGS[name]), heads.sampled
    actual = np.asarray(sampled(logits(model, params, batch)))
    np.testing.assert_allclose(actual.ravel(), np.array(GOLDENS[name]['logits'], np.float32), atol=2e-5)


# Fields that say the same as others (which are covered), or of which a file has only one of two.
ALIASES = {
    'partial_rotary_factor': 'refused unless it is 1, except of a phi3, which has a case; rotary_pct of a gpt_neox',
    'rope_parameters': 'how transformers 5 writes rope_theta and rope_scaling',
    '_sliding_window_pattern': 'how transformers 5 writes sliding_window_pattern',
    'original_max_position_embeddings': 'also in rope_scaling',
    'num_labels': 'the length of id2label',
    'id2label': 'the names of the labels',
}


def test_every_field_that_a_family_reads_has_a_case_with_another_value_than_its_default(monkeypatch):
    """Compared with transformers: in goldens.json, goldens_heads.json or goldens_fields.json."""
    read, fixed = collections.defaultdict(set), set()

    class Recorder(hf.Fields):
        def take(self, name, default=hf.REQUIRED):
            given = super().take(name, default)
            read[self.family, name] |= {given not in (default, None) and name in self.names}
            return given

        def only(self, name, *values):
            fixed.add((self.family, name))
            super().only(name, *values)

    monkeypatch.setattr(pretrained, 'Fields', Recorder)
    for config in [*cases.DECODERS.values(), *heads.CASES.values(), *CONFIGS.values()]:
        pretrained.model_of({name: value for name, value in config.items() if value is not None})
    unread = set(importlib.import_module('lmtrain.models.families.modernbert').UNREAD)
    missing = {key for key, others in read.items() if True not in others} - fixed
    # rotary_emb_base is the name of a gpt_neox's rope_theta, and a roberta whose hidden_act is not gelu is refused.
    missing -= {('gpt_neox', 'rope_theta'), ('roberta', 'hidden_act')}
    assert {key for key in missing if key[1] not in {*ALIASES, *unread}} == set()


@pytest.mark.parametrize(
    ('kind', 'labels'),
    [('multi_label_classification', 3), ('multi_label_classification', 1), ('regression', 2), ('ranking', 2)],
)
def test_outputs_that_are_neither_exclusive_classes_nor_one_number_are_rejected(kind, labels):
    config = heads.CASES['bert, classify'] | {'id2label': {str(i): f'label {i}' for i in range(labels)}}
    plain = pretrained.model_of(config)
    with pytest.raises(ValueError, match=f"problem_type='{kind}' of a head with {labels} .*--ignore=problem_type"):
        pretrained.model_of(config | {'problem_type': kind})
    assert pretrained.model_of(config | {'problem_type': kind}, ignore=('problem_type',)) == plain


def test_a_type_of_the_problem_that_has_no_effect_is_skipped():
    config = heads.CASES['bert, classify']
    one = {'id2label': {'0': 'score'}, 'problem_type': 'regression'}
    assert pretrained.model_of(config | one).num_labels == 1
    for kind in (None, 'single_label_classification'):
        assert pretrained.model_of(config | {'problem_type': kind}) == pretrained.model_of(config)
    for config in (cases.DECODERS['llama'], heads.CASES['bert, tag']):  # no head for a row
        more = {'problem_type': 'multi_label_classification'}
        assert pretrained.model_of(config | more) == pretrained.model_of(config)


def test_the_type_of_the_problem_of_another_head_is_not_written():
    config = heads.CASES['bert, classify'] | {'id2label': {'0': 'score'}, 'problem_type': 'regression'}
    two = dataclasses.replace(pretrained.model_of(config), num_labels=2)
    assert 'problem_type' not in pretrained.config_of(two, like=config)


def test_defaults_of_sliding_windows():
    config = {name: value for name, value in fields.DECODERS['mistral fields'].items() if name != 'sliding_window'}
    assert pretrained.model_of(config).window == 4096
    config = fields.DECODERS['qwen2 fields'] | {'use_sliding_window': False}
    del config['layer_types']
    assert pretrained.model_of(config).window == 0


def test_a_softcap_that_transformers_does_not_apply_is_rejected():
    config = fields.DECODERS['gemma3 fields'] | {'attn_logit_softcapping': 1.5}
    with pytest.raises(ValueError, match='attn_logit_softcapping=1.5 of a gemma3_text is not supported'):
        pretrained.model_of(config)
    model = pretrained.model_of(fields.DECODERS['gemma3 fields'])
    with pytest.raises(ValueError, match=r'gemma3_text has no model.attention_softcap=1.5 \(only 0.0\)'):
        pretrained.config_of(dataclasses.replace(model, attention_softcap=1.5))


@pytest.mark.parametrize('name', ['gemma2 fields', 'llama fields', 'qwen3 fields', 'gpt_neox fields'])
@pytest.mark.parametrize('activation', ['relu2', 'geglu_exact'])
def test_an_unsupported_activation_is_named(name, activation):
    model = dataclasses.replace(pretrained.model_of(CONFIGS[name]), activation=activation)
    if name == 'gpt_neox fields' and activation == 'relu2':
        assert pretrained.config_of(model)['hidden_act'] == 'relu2'
        return
    with pytest.raises(ValueError, match=f"has no model.activation='{activation}'"):
        pretrained.config_of(model)


def test_the_default_attention_scale_is_written_as_head_dim():
    """attention_scale 0 is 1 / sqrt(head_dim), which is query_pre_attn_scalar = head_dim."""
    model = dataclasses.replace(pretrained.model_of(fields.DECODERS['gemma2 fields']), attention_scale=0.0)
    config = pretrained.config_of(model)
    assert config['query_pre_attn_scalar'] == model.head_dim == 12
    assert pretrained.model_of(config).attention_scale == pytest.approx(12**-0.5)


@pytest.mark.parametrize('name', ['qwen2', 'llama', 'gemma3', 'gpt2'])
def test_a_decoder_that_attends_in_both_directions_is_rejected(name):
    config = cases.DECODERS[name]
    assert pretrained.model_of(config | {'is_causal': True}) == pretrained.model_of(config)
    for off in (False, None):
        with pytest.raises(ValueError, match=f'is_causal={off} of a .* is not supported, only True'):
            pretrained.model_of(config | {'is_causal': off})


def test_an_encoder_may_say_that_it_is_not_causal():
    config = {'model_type': 'bert', 'vocab_size': 32, 'hidden_size': 16, 'num_hidden_layers': 1}
    config |= {'num_attention_heads': 2, 'intermediate_size': 16, 'max_position_embeddings': 16}
    for off in (False, None):
        assert pretrained.model_of(config | {'is_causal': off}) == pretrained.model_of(config)
    with pytest.raises(ValueError, match='is_causal=True of a bert is not supported, only False and None'):
        pretrained.model_of(config | {'is_causal': True})
