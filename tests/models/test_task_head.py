"""Heads of checkpoints: their outputs, the token that they read, and independence of padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer
from lmtrain.models.task_head import pool

SMALL = {
    'vocab_size': 31,
    'max_len': 16,
    'num_layers': 2,
    'width': 16,
    'num_heads': 2,
    'norm': 'layernorm',
    'unroll': 1,
}
HEADS = {
    'bert classify': ({'head': 'classify', 'num_labels': 3, 'head_activation': 'tanh', 'bias': True}, (2, 3)),
    'modernbert classify': (
        {'head': 'classify', 'num_labels': 3, 'head_activation': 'gelu_exact', 'head_pool': 'mean'},
        (2, 3),
    ),
    'decoder classify': ({'head': 'classify', 'num_labels': 1, 'head_pool': 'last', 'head_bias': False}, (2, 1)),
    'tag': ({'head': 'tag', 'num_labels': 5}, (2, 9, 5)),
    'span': ({'head': 'span', 'num_labels': 2}, (2, 9, 2)),
}


def build(**settings):
    config = base.get_config()
    config.model.update(SMALL | {name: value for name, value in settings.items() if name in config.model})
    rest = {name: value for name, value in settings.items() if name not in config.model}
    model = Transformer(**config.model, **rest)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {'tokens': np.ones((1, 4), np.int32)})['params']
    random, leaves = np.random.default_rng(1), tree.flatten(shapes)
    leaves = {path: random.normal(path.endswith('scale'), 0.3, leaf.shape) for path, leaf in leaves.items()}
    return model, tree.unflatten({path: leaf.astype(np.float32) for path, leaf in leaves.items()})


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch):
    return model.apply({'params': params}, batch)


def batch(T=9, lengths=(9, 5)):
    tokens = np.random.default_rng(0).integers(1, 31, (2, T), np.int32)
    return {'tokens': tokens, 'segment_ids': (np.arange(T)[None] < np.array(lengths)[:, None]).astype(np.int32)}


@pytest.mark.parametrize(('settings', 'shape'), HEADS.values(), ids=HEADS)
def test_logits_have_their_shape_and_do_not_depend_on_padding(settings, shape):
    model, params = build(causal=settings.get('head_pool') == 'last', **settings)
    full = batch()
    logits = apply(model, params, full)['logits']
    assert logits.shape == shape and logits.dtype == jnp.float32
    short = {name: column[1:, :5] for name, column in full.items()}
    alone = apply(model, params, short)['logits']
    np.testing.assert_allclose(logits[1:] if logits.ndim == 2 else logits[1:, :5], alone, atol=1e-5)


def test_without_segment_ids_all_tokens_are_real():
    model, params = build(causal=True, **HEADS['decoder classify'][0])
    whole = batch(lengths=(9, 9))
    bare = {'tokens': whole['tokens']}
    np.testing.assert_array_equal(*(apply(model, params, b)['logits'] for b in (whole, bare)))


@pytest.mark.parametrize('segments', [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], ids=['left padding', 'right padding'])
def test_pooling_ignores_padding(segments):
    x, real = jnp.arange(5.0)[None, :, None], np.flatnonzero(segments)
    for how, expected in (('first', real[0]), ('last', real[-1]), ('mean', real.mean())):
        assert pool(x, jnp.array([segments]), how)[0, 0] == expected


def test_mean_of_an_empty_row_is_finite():
    assert pool(jnp.ones((1, 3, 2)), jnp.zeros((1, 3), jnp.int32), 'mean').tolist() == [[0.0, 0.0]]


def test_a_model_without_head_returns_hidden_states_and_the_pooler():
    model, params = build(causal=False, head='none', head_activation='tanh', bias=True)
    outputs = apply(model, params, batch() | {'targets': np.ones((2, 9), np.int32)})
    assert outputs.keys() == {'hidden', 'pooled'}
    dense = params['task_head']['dense']
    np.testing.assert_allclose(
        outputs['pooled'], np.tanh(outputs['hidden'][:, 0] @ dense['kernel'] + dense['bias'][None]), atol=1e-6
    )


def test_token_types_default_to_zero():
    model, params = build(causal=False, token_types=2)
    plain = batch()
    first, second = (plain | {'token_types': np.full((2, 9), kind, np.int32)} for kind in (0, 1))
    logits = [apply(model, params, b)['logits'] for b in (plain, first, second)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.max(np.abs(logits[1] - logits[2])) > 0.1


def test_learned_positions_have_an_offset():
    """RoBERTa counts from padding_idx + 1."""
    model, params = build(causal=False, positions='learned', position_offset=2)
    plain, _ = build(causal=False, positions='learned')
    shifted = batch() | {'positions': np.tile(np.arange(2, 11, dtype=np.int32), (2, 1))}
    ours, expected = apply(model, params, batch())['logits'], apply(plain, params, shifted)['logits']
    np.testing.assert_array_equal(ours, expected)
    with pytest.raises(ValueError, match='longer than model.max_len=16'):
        model.apply({'params': params}, {'tokens': jnp.ones((1, 15), jnp.int32)})


def test_the_first_layer_may_lack_its_norm():
    """ModernBERT; a tree with the norm there applies it, so no leaf is ignored silently."""
    model, params = build(causal=False, first_norm=False)
    assert 'attention_norm' not in params['layers_0'] and 'attention_norm' in params['layers_1']
    bare = apply(model, params, batch())['logits']
    scale = {'attention_norm': {'scale': np.ones((1, 16), np.float32)}}
    normed = apply(model, params | {'layers_0': params['layers_0'] | scale}, batch())['logits']
    assert np.max(np.abs(bare - normed)) > 0.01


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'head': 'classify'}, "head='classify' needs model.num_labels, not 0"),
        ({'head': 'clasify', 'num_labels': 2}, "did you mean 'classify'"),
        ({'head': 'classify', 'num_labels': 2, 'head_pool': 'frist'}, "did you mean 'first'"),
        ({'first_norm': False, 'num_layers': 1}, 'two layers or more'),
    ],
)
def test_contradictory_settings_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        build(**settings)


@pytest.mark.parametrize('how', ['first', 'mean', 'last'])
def test_a_soft_prompt_is_pooled_like_tokens(how):
    """PEFT passes the embeddings of prompt and text to the class of the task: position 0 is a virtual token."""
    model, params = build(causal=False, head='classify', num_labels=3, head_activation='tanh', head_pool=how)
    text, ids = batch(), np.array([7, 3])
    longer = {name: np.pad(column, ((0, 0), (2, 0)), constant_values=1) for name, column in text.items()}
    longer['tokens'][:, :2] = ids
    prompted = apply(model, params | {'prompt': {'embedding': params['embed']['embedding'][ids]}}, text)['logits']
    np.testing.assert_allclose(prompted, apply(model, params, longer)['logits'], atol=1e-5)
