"""Angles equal those of transformers (experiments/parity/rotary.py) and depend only on their document."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer, rotary

GOLDENS = json.loads((pathlib.Path(__file__).parent / 'goldens_rotary.json').read_text(encoding='utf-8'))
V, D, CONTEXT = 31, 32, 6
STRETCHED = {
    'dynamic': (('rope_type', 'dynamic'), ('factor', 4.0), ('original_max_position_embeddings', CONTEXT)),
    'longrope': (
        ('rope_type', 'longrope'),
        ('factor', 4.0),
        ('original_max_position_embeddings', CONTEXT),
        ('short_factor', (1.0, 1.1, 1.2, 1.3)),
        ('long_factor', (1.0, 3.0, 5.0, 9.0)),
    ),
}
both = pytest.mark.parametrize('kind', STRETCHED)


@pytest.mark.parametrize('golden', GOLDENS['cases'], ids=lambda golden: f'{golden["scaling"]["rope_type"]}')
def test_frequencies_equal_those_of_transformers(golden):
    scaling = {k: tuple(v) if isinstance(v, list) else v for k, v in golden['scaling'].items()}
    rotary.check_scaling(tuple(scaling.items()), GOLDENS['dim'])
    actual, factor = rotary.scaled_frequencies(
        GOLDENS['dim'], GOLDENS['theta'], scaling, jnp.array([[golden['length']]])
    )
    np.testing.assert_allclose(jnp.ravel(actual), golden['frequencies'], rtol=2e-6)
    assert factor == pytest.approx(golden['factor'], rel=1e-6)


def test_pairs_are_rotated_by_position_times_frequency():
    """(x + iy) e^(i t / theta^(2j/R)) in the layout of LLaMA, of the first R of K dimensions; the rest is unchanged."""
    R, theta = 4, 100.0
    positions = np.array([[0, 3, 1000]], np.int32)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 6)).astype(np.float32)
    actual = rotary.rotate(jnp.asarray(x), *rotary.rotary_angles(jnp.asarray(positions), R, theta))
    pairs = x[..., :2] + 1j * x[..., 2:4]
    turned = pairs * np.exp(1j * positions[:, :, None, None] * theta ** (-np.arange(0, R, 2) / R))
    np.testing.assert_allclose(actual[..., :2] + 1j * actual[..., 2:4], turned, atol=2e-4)
    np.testing.assert_array_equal(actual[..., 4:], x[..., 4:])


def test_bfloat16_is_rounded_once():
    """Angles and products are float32: the result is that of the rounded vector, rounded."""
    x = jax.random.normal(jax.random.key(0), (1, 300, 2, 16), 'bfloat16')
    angles = rotary.rotary_angles(jnp.arange(700, 1000)[None], 16, 500.0)
    exact = rotary.rotate(x.astype(jnp.float32), *angles).astype(jnp.bfloat16)
    np.testing.assert_array_equal(rotary.rotate(x, *angles), exact)


def test_the_factor_multiplies_cos_and_sin():
    scaling = STRETCHED['longrope']
    cos, sin = rotary.rotary_angles(jnp.arange(9)[None], 8, 100.0, scaling, jnp.array([[9]]))
    factor = math.sqrt(1 + math.log(4) / math.log(CONTEXT))
    np.testing.assert_allclose(jnp.hypot(cos, sin), np.full((1, 9, 4), factor), rtol=1e-5)


def test_sinusoids_equal_the_formula_of_the_paper():
    """Sines before cosines, of position / 10000^(2i/D), divided by sqrt(D)."""
    angle = np.array([0, 5, 77])[:, None] / 10_000 ** (np.arange(0, 8, 2) / 8)
    wanted = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1) / math.sqrt(8)
    np.testing.assert_allclose(rotary.sinusoids(jnp.array([[0, 5, 77]]), 8)[0], wanted, atol=1e-5)


def test_lengths_of_documents_with_any_segment_ids():
    """Of the tokens on this device, from whole rows; documents need not be contiguous."""
    segments = np.array([[900, 900, 7, 7, 7, 0], [-3, 5, -3, -3, 5, 5]], np.int32)
    positions = np.array([[4, 5, 0, 1, 2, 0], [0, 1, 5, 2, 3, 0]], np.int32)
    actual = rotary.lengths(jnp.asarray(segments[:, 1:4]), jnp.asarray(positions), jnp.asarray(segments))
    np.testing.assert_array_equal(actual, [[6, 3, 3], [4, 6, 6]])
    np.testing.assert_array_equal(rotary.lengths(None, jnp.asarray(positions), None), [[6], [6]])


@functools.cache
def model_of(kind):
    config = base.get_config()
    config.model.update({'vocab_size': V, 'max_len': 64, 'num_layers': 2, 'width': D, 'num_heads': 4, 'unroll': 1})
    config.model.update({'rope_scaling': STRETCHED[kind], 'window': 5, 'global_layers': (1,), 'local_rope_theta': 50.0})
    model = Transformer(**config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)})['params']
    random = np.random.default_rng(0)
    drawn = {
        path: random.normal(2.0 * path.endswith('scale'), 0.2, x.shape) for path, x in tree.flatten(shapes).items()
    }
    return model, tree.unflatten({path: leaf.astype(np.float32) for path, leaf in drawn.items()})


@functools.partial(jax.jit, static_argnames=('model', 'store'))
def compiled(model, params, batch, store, **caches):
    return model.apply({'params': params}, batch, store=store, **caches)


def run(kind, batch, store=False, **caches):
    return compiled(*model_of(kind), batch, store, **caches)


@both
def test_angles_do_not_depend_on_padding_or_other_documents(kind):
    """One document is within the original context and one beyond; both with padding, and packed in one row."""
    tokens = np.random.default_rng(0).integers(0, V, (2, 14), dtype=np.int32)
    real = (np.arange(14)[None] < np.array([[5], [9]])).astype(np.int32)
    wanted = [
        run(kind, {'tokens': row[None, :length]})['logits'][0] for row, length in zip(tokens, (5, 9), strict=True)
    ]
    padded = run(kind, {'tokens': tokens, 'segment_ids': real})['logits']
    packed = {
        'tokens': np.concatenate([tokens[0, :5], tokens[1, :9]])[None],
        'segment_ids': np.repeat([1, 2], [5, 9]).astype(np.int32)[None],
        'positions': np.concatenate([np.arange(5), np.arange(9)]).astype(np.int32)[None],
    }
    together = run(kind, packed)['logits'][0]
    for actual in (padded[0, :5], together[:5]):
        np.testing.assert_allclose(actual, wanted[0], atol=1e-5)
    for actual in (padded[1, :9], together[5:]):
        np.testing.assert_allclose(actual, wanted[1], atol=1e-5)
    shorter = run(kind, {'tokens': tokens[1:, :5]})['logits'][0]
    assert np.max(np.abs(wanted[1][:5] - shorter)) > 1e-2  # the length of the row itself does matter


@both
def test_a_cache_keeps_the_angles_of_the_length_at_which_it_was_filled(kind):
    """Within the original context they equal those of the whole text; beyond it, only those read together do."""
    tokens = np.random.default_rng(1).integers(0, V, (2, 12), dtype=np.int32)
    model, _ = model_of(kind)
    for lengths in (np.array([3, 5]), np.array([8, 10])):
        real = (np.arange(10)[None] < lengths[:, None]).astype(np.int32)
        outputs = run(kind, {'tokens': tokens[:, :10], 'segment_ids': real}, store=True)
        wanted = run(kind, {'tokens': tokens[:, :10], 'segment_ids': real})
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(outputs['logits'][row, :length], wanted['logits'][row, :length], atol=1e-5)
        if lengths[1] < CONTEXT or kind == 'longrope':
            caches = {'past': (outputs['cache'],), 'cache': model.init_cache(2, 2)}
            outputs = run(kind, {'tokens': tokens[np.arange(2), lengths][:, None]}, **caches)
            real = (np.arange(12)[None] <= lengths[:, None]).astype(np.int32)
            wanted = run(kind, {'tokens': tokens, 'segment_ids': real})['logits'][np.arange(2), lengths]
            np.testing.assert_allclose(outputs['logits'][:, 0], wanted, atol=1e-5)
