"""A block equals its equations for every placement of the norms; its dropout keys and initial scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer, block, transformer
from lmtrain.models.attention import Attention
from lmtrain.models.layers import FeedForward
from lmtrain.models.linear import stddev

V, T, N, D = 17, 6, 3, 64
PLACES = {
    'pre': {},
    'post': {'norm_place': 'post'},
    'branch': {'norm_place': 'branch'},
    'sandwich': {'norm_place': 'sandwich'},
    'parallel': {'parallel': True},
}


def build(**settings):
    config = base.get_config()
    small = {'vocab_size': V, 'max_len': 8, 'num_layers': N, 'width': D, 'num_heads': 4, 'unroll': N}
    config.model.update(small | {'positions': 'none'} | settings)
    return Transformer(**config.model)


@functools.cache
def initial(model):
    return jax.jit(model.init)(jax.random.key(0), {'tokens': jnp.zeros((1, T), jnp.int32)})['params']


@pytest.mark.parametrize('place', PLACES)
def test_blocks_equal_their_equations(place, monkeypatch):
    """The first two layers, with x @ kernel + 1 in place of attention and feed-forward."""
    model = build(**PLACES[place])
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * random.normal(size=x.shape), np.float32), initial(model))

    def projected(module, x, *_):
        name = 'output' if isinstance(module, Attention) else 'down'
        leaves = module.get_variable('params', name)
        return x @ leaves['kernel'][:D] + 1

    monkeypatch.setattr(
        Attention, '__call__', lambda self, x, inputs, cache=None, drop=None: (projected(self, x), cache)
    )
    monkeypatch.setattr(FeedForward, '__call__', projected)
    tokens = random.integers(0, V, (2, T))
    actual = model.apply({'params': params}, {'tokens': jnp.asarray(tokens)})['hidden']

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + model.norm_eps) * scale

    x = params['embed']['embedding'][tokens].astype(np.float64)
    for i in range(N):
        leaves = jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'])
        scales = {name: leaf['scale'] for name, leaf in leaves.items() if name.endswith('norm')}
        kernels = {'attention': leaves['attention']['output']['kernel'], 'mlp': leaves['mlp']['down']['kernel'][:D]}

        def branch(x, name, scales=scales, kernels=kernels):
            if place in ('pre', 'sandwich', 'parallel'):
                x = norm(x, scales[f'{name}_norm'])
            y = x @ kernels[name] + 1
            return {
                'branch': lambda: norm(y, scales[f'{name}_norm']),
                'sandwich': lambda: norm(y, scales[f'{name}_post_norm']),
            }.get(place, lambda: y)()

        if place == 'parallel':
            x = x + branch(x, 'attention') + branch(x, 'mlp')
            continue
        for name in ('attention', 'mlp'):
            x = x + branch(x, name)
            x = norm(x, scales[f'{name}_norm']) if place == 'post' else x
    expected = x if place == 'post' else norm(x, params['final_norm']['scale'])
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


def test_every_dropout_has_its_own_key(monkeypatch):
    """Each layer's two branches, the embeddings, and the inputs of low-rank paths; all the same rows."""
    seen = []

    def recorded(x, rate, key, row):
        if key is not None and rate:
            seen.append((rate, tuple(jax.random.key_data(key).tolist())))
            assert row.tolist() == [5, 2]
        return x

    for module in (block, transformer):
        monkeypatch.setattr(module, 'dropout', recorded)
    model = build(dropout=0.2)
    leaves = tree.flatten(initial(model))
    for name, (rows, columns) in {'attention/query': (D, D), 'mlp/down': (4 * D, D)}.items():
        new = {'lora_a': jnp.ones((N, rows, 2)), 'lora_b': jnp.ones((N, 2, columns)), 'lora_scale': jnp.ones(N)}
        leaves |= {f'layers/{name}/{leaf}': x for leaf, x in new.items()}
    batch = {'tokens': jnp.zeros((2, T), jnp.int32), 'row': jnp.array([5, 2])}
    options = {'train': True, 'rngs': {'dropout': jax.random.key(1)}, 'adapter_dropout': 0.4}
    model.apply({'params': tree.unflatten(leaves)}, batch, **options)
    assert [rate for rate, _ in seen].count(0.2) == 2 * N + 1
    assert [rate for rate, _ in seen].count(0.4) == 2 * N
    assert len({key for _, key in seen}) == len(seen) == 4 * N + 1


@pytest.mark.parametrize(('place', 'shrunk'), [('pre', (2 * N) ** -0.5), ('post', 1.0)])
def test_initial_standard_deviations(place, shrunk):
    """0.02, smaller by sqrt(2N) for the 2N outputs added to the residual (GPT-2), except with norm_place='post'."""
    for path, leaf in tree.flatten(initial(build(norm_place=place))).items():
        if path.endswith('kernel') or path == 'embed/embedding':
            scale = 0.02 * (shrunk if 'output' in path or 'down' in path else 1)
            np.testing.assert_allclose(np.std(leaf, axis=tuple(range(leaf.ndim))[-2:]), scale, rtol=0.08, err_msg=path)


def test_initial_weights_of_wide_models_are_smaller():
    """SmallInit, sqrt(2 / 5D), which is below 0.02 for D > 1,000."""
    assert stddev(64) == stddev(1000) == 0.02
    assert stddev(4096) == pytest.approx((2 / (5 * 4096)) ** 0.5)
