"""Texts in parts, each encoded once after those before it, equal one forward pass over every whole text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain.models import Transformer, kv_cache

VOCAB, CONTEXT = 31, 192
CASES = {
    'rotary': {},
    'grouped keys': {'num_kv_heads': 2, 'qk_norm': True},
    'learned': {'positions': 'learned', 'norm': 'layernorm', 'bias': True},
    'sinusoidal': {'positions': 'sinusoidal'},
    'window': {'window': 5},
    'window of some layers': {'window': 7, 'global_layers': (1,), 'local_rope_theta': 50.0},
    'window of some layers, unrolled': {'window': 7, 'global_layers': (1,), 'unroll': 3},
    'caps and a scale': {'num_kv_heads': 2, 'attention_softcap': 2.0, 'logit_softcap': 3.0, 'attention_scale': 0.9},
    'soft prompt': {'leaves': ('prompt',), 'positions': 'learned'},
    'soft prompt in a window': {'leaves': ('prompt',), 'window': 6},
    'prefix': {'leaves': ('prefix',)},
    'prefix in a window': {'leaves': ('prefix',), 'window': 9},
    'soft prompt and prefix': {'leaves': ('prompt', 'prefix'), 'positions': 'learned'},
    'bfloat16': {'dtype': 'bfloat16', 'num_kv_heads': 1},
}
# What the other cases contain.
SLOW = {'rotary', 'grouped keys', 'sinusoidal', 'window', 'window of some layers, unrolled', 'soft prompt', 'prefix'}
NOTHING_SHARED = ['rotary', 'soft prompt in a window', 'prefix']


def build(leaves=(), **settings):
    """(model, parameters), all of them random and large enough for uneven weights."""
    config = base.get_config()
    small = {'vocab_size': VOCAB, 'max_len': CONTEXT, 'num_layers': 3, 'width': 16, 'num_heads': 4, 'num_kv_heads': 4}
    config.model.update(small | {'head_dim': 8, 'mlp_dim': 24, 'unroll': 1} | settings)
    model = Transformer(**config.model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params'])
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.normal(0.0, 0.4, shape), jnp.float32)

    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)
    if 'prompt' in leaves:
        params['prompt'] = {'embedding': draw(3, 16)}
    if 'prefix' in leaves:
        front = {f'prefix_{name}': draw(3, 4, model.num_kv_heads, 8) for name in ('key', 'value')}
        params['layers']['attention'] |= front
    return model, params


def padded(rows, length):
    """{'tokens', 'segment_ids'} of texts."""
    batch = {name: np.zeros((len(rows), length), np.int32) for name in ('tokens', 'segment_ids')}
    for row, ids in enumerate(rows):
        batch['tokens'][row, : len(ids)], batch['segment_ids'][row, : len(ids)] = ids, 1
    return batch


@pytest.mark.parametrize(
    ('name', 'shared'),
    [
        *(pytest.param(name, 11, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES),
        *(pytest.param(name, 0, marks=[pytest.mark.slow] * (name in SLOW)) for name in NOTHING_SHARED),
    ],
)
def test_parts_equal_whole_texts(name, shared):
    model, params = build(**CASES[name])
    random = np.random.default_rng(1)
    texts = [[random.integers(0, VOCAB, count) for count in counts] for counts in ((5, 2, 4, 1), (9, 3, 3, 6))]
    first = random.integers(0, VOCAB, shared)
    apply = jax.jit(functools.partial(model.apply, {'params': params}), static_argnames='store')

    chain = [apply(padded([first], 16), store=True)['cache']] if shared else []
    chain = [*chain, apply(padded([context for context, *_ in texts], 12), past=chain, store=True)['cache']]
    virtual = 3 * ('prompt' in params)
    assert sum(cache['length'] for cache in chain).tolist() == [virtual + shared + 5, virtual + shared + 9]
    packed = {name: np.zeros((2, 13), np.int32) for name in ('tokens', 'segment_ids', 'positions')}
    for row, (_, *ends) in enumerate(texts):
        at = 0
        for number, ids in enumerate(ends, 1):
            span = slice(at, at := at + len(ids))
            packed['tokens'][row, span], packed['segment_ids'][row, span] = ids, number
            packed['positions'][row, span] = np.arange(len(ids))
    logits = np.asarray(apply(packed, past=chain)['logits'])

    wholes = [np.concatenate([first, context, end]) for context, *ends in texts for end in ends]
    expected = np.asarray(apply(padded(wholes, 32))['logits'])
    scale, tolerance = np.abs(expected).max(), 0.05 if model.dtype == 'bfloat16' else 1e-5
    for row, (context, *ends) in enumerate(texts):
        at = 0
        for number, ids in enumerate(ends):
            whole = expected[3 * row + number, shared + len(context) :][: len(ids)]
            np.testing.assert_allclose(logits[row, at : at + len(ids)], whole, atol=tolerance * scale)
            at += len(ids)
    np.testing.assert_array_less(1e-2, np.ptp(expected, axis=0).max())


@pytest.mark.parametrize('name', ['window of some layers', pytest.param('prefix', marks=pytest.mark.slow)])
def test_blocks_of_queries_equal_whole_texts(monkeypatch, name):
    monkeypatch.setattr(kv_cache, 'BLOCK', 4)
    test_parts_equal_whole_texts(name, 11)
