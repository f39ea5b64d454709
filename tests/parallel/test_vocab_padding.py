"""A vocabulary that the mesh does not divide is padded in memory, without effect on numbers and files."""

import math

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import tree
from lmtrain.parallel import sharding, vocab_padding
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve
from lmtrain.training.train import train

ODD = 261  # of which the tokenizer has 257


def test_tables_of_an_adapter_are_padded_along_the_vocabulary():
    leaves = {'embed/embedding': (5, 4), 'embed/lora_a': (5, 2), 'embed/lora_b': (2, 4), 'head/kernel': (4, 5)}
    params = tree.unflatten({path: np.ones(shape, np.float32) for path, shape in leaves.items()})
    padded = tree.flatten(vocab_padding.pad(params, 3))
    shapes = {'embed/embedding': (8, 4), 'embed/lora_a': (8, 2), 'embed/lora_b': (2, 4), 'head/kernel': (4, 8)}
    assert {path: leaf.shape for path, leaf in padded.items()} == shapes
    assert not np.any(padded['embed/lora_a'][5:]) and np.all(padded['embed/lora_a'][:5] == 1)


def config_of(text, mesh, **more):
    config = tiny.get_config()
    base = {'data.source': str(text), 'data.cache': str(text.parent / 'cache'), 'data.validation': 0.2}
    base |= {'model.vocab_size': ODD, 'objective.z_loss': 1e-3, 'budget.steps': 4, 'schedule.warmup': 0.0}
    base |= {'model.num_layers': 1, 'sample.prompts': ()}
    config.update_from_flattened_dict(
        base | more | {f'mesh.{axis}': size for axis, size in zip(sharding.AXES, mesh, strict=True)}
    )
    return config


def measured(text, mesh, steps=3, **more):
    """(metrics of the first steps, sums of an evaluation, run, state) on a mesh."""
    run = build(*resolve(config_of(text, mesh, **more)), devices=jax.devices()[: math.prod(mesh)])
    state, step, stream, put = run.initial.on_mesh(), run.train_step(), run.train_stream(), sharding.place(run.mesh)
    actual = []
    for i in range(steps):
        state, values = step(state, put(stream.batch(i)), np.float32(i / 4))
        actual.append([values[name].item() for name in ('loss', 'nats', 'grad_norm', 'update_norm', 'param_norm')])
    sums = run.eval_step()(state.params, put(run.stream('validation').batch(0)))
    return actual, jax.device_get(sums), run, state


@pytest.mark.slow
@pytest.mark.parametrize(
    'more',
    [
        {'model.tied': True},
        {'model.tied': False},
        {'data.mask_rate': 0.2, 'model.causal': False, 'data.vocab_size': 258},
    ],
    ids=['tied', 'untied', 'masked'],
)
def test_padding_of_the_vocabulary_changes_no_number(text, more):
    expected, sums, *_ = measured(text, (1, 1, 1, 1), **more)
    actual, filled_sums, run, state = measured(text, (1, 2, 2, 1), **more)
    assert run.model.vocab_fill == 384 - ODD
    assert state.params['embed']['embedding'].shape[0] == 384
    np.testing.assert_allclose(actual, expected, rtol=2e-5)
    for name in sums:
        np.testing.assert_allclose(filled_sums[name], sums[name], rtol=1e-5)
    for path, leaf in tree.flatten(state.params).items():
        if path in ('embed/embedding', 'head/kernel'):
            rest = leaf[ODD:] if path == 'embed/embedding' else leaf[:, ODD:]
            assert rest.size and not np.any(rest)
    batch = run.stream('validation').batch(0)
    logits = run.model.apply({'params': jax.device_get(state.params)}, {'tokens': batch['tokens']})['logits']
    assert logits.shape[-1] == ODD


def test_initial_parameters_do_not_depend_on_the_mesh(text):
    one, filled = (
        build(config_of(text, mesh), devices=jax.devices()[: math.prod(mesh)]) for mesh in ((1,) * 4, (1, 1, 2, 1))
    )
    ours, stored = one.initial.on_mesh(), filled.initial.stored(filled.initial.on_mesh())
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, ours)
    jax.tree.map(np.testing.assert_array_equal, ours.params, stored.params)
    whole = filled.initial.complete(stored)
    assert jax.tree.map(lambda x: (x.shape, x.sharding.spec), whole) == jax.tree.map(
        lambda x: (x.shape, x.sharding.spec), filled.shapes
    )


@pytest.mark.slow
@pytest.mark.parametrize('more', [{}, {'sweep.seeds': (1, 2)}, {'optimizer.name': 'adafactor'}], ids=str)
def test_a_run_resumes_on_a_tensor_mesh_and_back(text, tmp_path, more):
    """Two steps on one device, one on a tensor mesh, one on one device again; compared with a run on one device."""
    devices = jax.device_count()
    last = {}
    for name, stops in (('alone', [4]), ('moved', [2, 3, 4])):
        for number, stop in enumerate(stops):
            mesh = (1, devices // 2, 2, 1) if number == 1 else (devices, 1, 1, 1)
            limits = {'budget.steps': stop, 'schedule.name': 'constant', 'checkpoint.every_steps': 1}
            config = config_of(text, mesh, **(more | limits | {'data.batch_size': devices}))
            last[name] = train(config, tmp_path / name)
    losses = [last[name]['validation']['loss'] for name in ('alone', 'moved')]
    np.testing.assert_allclose(*losses, rtol=2e-3 if 'optimizer.name' in more else 1e-5)


@pytest.mark.parametrize(
    ('size', 'tensor', 'rows'), [(384, 2, 0), (385, 1, 0), (385, 2, 127), (50257, 4, 47), (5, 3, 379)]
)
def test_the_number_of_padding_rows(size, tensor, rows):
    assert vocab_padding.num_padding_rows(size, tensor) == rows
    assert (size + rows) % tensor == 0


@pytest.mark.slow
@pytest.mark.parametrize('method', ['full', 'lora', 'prompt'])
def test_the_vocabulary_of_a_base_is_padded_too(text, base_run, method):
    more = {'init.base': str(base_run), 'data.isolate': False, 'data.tokenizer': 'base', 'adapt.method': method}
    more |= {'adapt.prompt.length': 3} if method == 'prompt' else {}
    more |= {'adapt.lora.rank': (('embed/embedding|.*/query/kernel', 2),)} if method == 'lora' else {}
    expected, sums, *_ = measured(text, (1, 1, 1, 1), **more)
    actual, filled_sums, run, state = measured(text, (1, 1, 2, 1), **more)
    assert run.model.vocab_fill == 384 - ODD
    np.testing.assert_allclose(actual, expected, rtol=2e-5)
    np.testing.assert_allclose(filled_sums['loss'], sums['loss'], rtol=1e-5)
    kept = tree.flatten(run.initial.stored(state).trainable)
    assert all(ODD in leaf.shape for path, leaf in kept.items() if path.startswith('embed/emb'))


@pytest.fixture(scope='module')
def base_run(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp('base') / 'run'
    train(
        config_of(
            text,
            (8, 1, 1, 1),
            **{
                'budget.steps': 1,
            },
        ),
        folder,
    )
    return folder
