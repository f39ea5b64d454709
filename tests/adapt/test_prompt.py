"""Initial values of soft prompts."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import adapt
from lmtrain.models import Transformer
from lmtrain.models.pretrained import shapes_of

MODEL = dataclasses.replace(Transformer(**tiny.get_config().model), embed_scale=3.0)  # as Gemma scales its embeddings


def started(**settings):
    """(embedding [V, D], initial prompt [P, D]) of a model that scales its embeddings."""
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda x: draws.normal(0, 0.5, x.shape).astype(np.float32), shapes_of(MODEL))
    method = adapt.method('prompt', MODEL, params, **settings)
    return params['embed']['embedding'], np.asarray(method.start(jax.random.key(1), params)['prompt']['embedding'])


def test_text_starts_as_its_scaled_embeddings():
    table, prompt = started(length=5, init='text', ids=(7, 43, 9))
    np.testing.assert_allclose(prompt, 3 * table[[7, 43, 9, 7, 43]], rtol=1e-6)


def test_vocab_starts_as_scaled_rows_of_the_embedding():
    table, prompt = started(length=5, init='vocab', ids=())
    rows = [int(np.argmin(np.abs(3 * table - row).sum(1))) for row in prompt]
    np.testing.assert_allclose(prompt, 3 * table[rows], rtol=1e-6)
    assert len(set(rows)) > 1


def test_random_has_the_deviation_of_the_scaled_embedding():
    _, prompt = started(length=64, init='random', ids=())
    assert prompt.std() == pytest.approx(3 * 0.5, rel=0.1)
