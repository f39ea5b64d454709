"""The state before the first step: dtypes of trainable and frozen leaves, and what a checkpoint stores of it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from configs import tiny
from lmtrain import tree
from lmtrain.training.build import build


def test_frozen_leaves_of_the_base_have_their_dtype_and_are_not_stored(text):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(text.parent / 'cache'), 0.2
    config.mesh.data, config.trainable = 1, '.*norm.*'
    run = build(config, devices=jax.devices()[:1])
    assert 'base' not in run.fingerprints and tree.flatten(run.initial.stored(run.shapes).frozen)
    config.init.frozen_dtype = 'bfloat16'
    shapes = tree.unflatten({path: leaf for path, leaf in tree.flatten(run.shapes.params).items() if 'mlp' not in path})
    initial = dataclasses.replace(run.initial, config=config, base=SimpleNamespace(hash='abc', shapes=shapes))
    assert dataclasses.replace(run, initial=initial).fingerprints['base'] == 'abc'
    stored = tree.flatten(initial.stored(run.shapes).frozen)
    assert stored and all('mlp' in path for path in stored)  # which the base lacks
    half = jax.tree.map(lambda leaf: jnp.zeros((1,), jnp.float16), run.shapes.params)
    for path, leaf in tree.flatten(initial.cast(half)).items():
        dtype = 'float32' if 'norm' in path else 'float16' if 'mlp' in path else 'bfloat16'
        assert leaf.dtype == dtype, path


def test_trainable_leaves_have_one_optimizer_state(text, monkeypatch):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(text.parent / 'cache'), 0.2
    config.mesh.data = 1
    initial = build(config, devices=jax.devices()[:1]).initial
    created = []
    tx = initial.tx._replace(init=lambda params: created.append(params) or initial.tx.init(params))
    base = SimpleNamespace(shapes=initial.shapes.params)
    shapes = dataclasses.replace(initial, tx=tx, base=base).shapes
    assert len(created) == 1
    assert jax.tree.structure(shapes.opt_state) == jax.tree.structure(initial.shapes.opt_state)
