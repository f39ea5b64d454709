"""A new family is one module and its entry in the table; every family offers the names of the protocol."""

import sys
import types

import jax
import numpy as np
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer, load_pretrained, pretrained, safetensors, save_pretrained
from lmtrain.models.families.family import FAMILIES, MODULES, Family
from lmtrain.models.hf import BUFFERS, Entry, size_fields
from lmtrain.models.hf_heads import DECODER_HEADS

# What the file lmtrain/models/families/toy.py would contain: GPT-2's layers with other names.
ARCHITECTURES = {'toy': 'ToyForCausalLM'}
HEADS = DECODER_HEADS._replace(missing={'toy': ('span',)})
PREFIX = 'body.'
IGNORED = rf'{BUFFERS}|step'
TOY = {
    'family': 'toy',
    'positions': 'learned',
    'norm': 'layernorm',
    'norm_eps': 1e-5,
    'activation': 'relu',
    'bias': True,
}
SIZES = {'1K': TOY | {'vocab_size': 11, 'max_len': 16, 'num_layers': 2, 'width': 8, 'num_heads': 2}}
LAYER = {
    'norm1': 'attention_norm',
    'q': 'attention/query',
    'k': 'attention/key',
    'v': 'attention/value',
    'o': 'attention/output',
    'norm2': 'mlp_norm',
    'wide': 'mlp/up',
    'narrow': 'mlp/down',
}


def settings(fields):
    width, num_heads = fields.take('hidden_size'), fields.take('num_attention_heads')
    return TOY | {
        'vocab_size': fields.take('vocab_size'),
        'max_len': fields.take('max_position_embeddings'),
        'num_layers': fields.take('num_hidden_layers'),
        'width': width,
        'num_heads': num_heads,
        'num_kv_heads': num_heads,
        'head_dim': width // num_heads,
        'mlp_dim': fields.take('intermediate_size'),
        'tied': fields.take('tied', True),
    }


def fields(model):
    return size_fields(model) | {'tied': model.tied}


def entries(model):
    names = {'body.norm': 'final_norm'} | {
        f'body.{{layer}}.{theirs}': f'layers/{ours}' for theirs, ours in LAYER.items()
    }
    tables = {'body.words': 'embed', 'body.places': 'positions'}
    own = [Entry((f'{ours}/embedding',), f'{theirs}.weight') for theirs, ours in tables.items()]
    for theirs, ours in names.items():
        norm = ours.endswith('norm')
        own.append(Entry((f'{ours}/scale' if norm else f'{ours}/kernel',), f'{theirs}.weight', linear=not norm))
        own.append(Entry((f'{ours}/bias',), f'{theirs}.bias'))
    return own + ([] if model.tied else [Entry(('head/kernel',), 'out.weight', linear=True)])


@pytest.fixture
def toy(monkeypatch) -> Family:
    """The family as a separate module, in the table."""
    module = types.ModuleType('toy')
    for name in ('ARCHITECTURES', 'HEADS', 'PREFIX', 'IGNORED', 'SIZES', 'settings', 'fields', 'entries'):
        setattr(module, name, getattr(sys.modules[__name__], name))
    for kind in ARCHITECTURES:
        monkeypatch.setitem(FAMILIES, kind, module)
    return module


def model_of(**changes) -> Transformer:
    config = base.get_config()
    config.model.update(SIZES['1K'] | {'tied': True} | changes)
    return Transformer(**config.model)


def random_params(model):
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), pretrained.shapes_of(model))


@pytest.mark.parametrize('changes', [{}, {'tied': False}, {'head': 'classify', 'num_labels': 3, 'head_pool': 'last'}])
def test_a_new_family_is_written_and_read_back(toy, tmp_path, changes):
    model = model_of(**changes, **({'head_bias': False} if 'head' in changes else {}))
    params = random_params(model)
    save_pretrained(tmp_path, model, params)
    again, leaves = load_pretrained(tmp_path)
    assert again == model
    expected = tree.flatten(params)
    assert tree.flatten(leaves).keys() == expected.keys()
    for path, leaf in tree.flatten(leaves).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_files_of_a_tied_model_may_repeat_the_embedding_and_ignored_tensors(toy, tmp_path):
    model = model_of()
    save_pretrained(tmp_path, model, random_params(model))
    tensors = {key: tensor.read() for key, tensor in safetensors.find(tmp_path).items()}

    def load(more):
        arrays = tensors | more
        safetensors.write(tmp_path, {key: (x.shape, x.dtype) for key, x in arrays.items()}, arrays.__getitem__)
        return load_pretrained(tmp_path)[0]

    assert load({'out.weight': tensors['body.words.weight'], 'step': np.zeros(1, np.float32)}) == model
    with pytest.raises(ValueError, match="'out.weight' is not 'body.words.weight', though config.json ties them"):
        load({'out.weight': tensors['body.words.weight'] + 1})
    with pytest.raises(ValueError, match="'steps' .* is not part of a toy"):
        load({'steps': np.zeros(1, np.float32)})


def test_a_head_without_a_class_of_transformers_is_rejected(toy):
    with pytest.raises(ValueError, match='transformers has no ToyForQuestionAnswering'):
        pretrained.config_of(model_of(head='span', num_labels=2))


@pytest.mark.parametrize('module', MODULES, ids=lambda module: module.__name__.rpartition('.')[2])
def test_every_family_offers_the_names_of_the_protocol(module):
    names = {name for name in {*Family.__annotations__, *vars(Family)} if not name.startswith('_')}
    assert {'HEADS', 'settings'} <= names
    assert {name for name in names if not hasattr(module, name)} == set()
    assert set(module.HEADS.settings) == {'none', 'classify', 'tag', 'span'}
    assert not module.HEADS.projections or set(module.HEADS.projections) == set(module.HEADS.settings)
    assert all(FAMILIES[kind] is module for kind in module.ARCHITECTURES)
