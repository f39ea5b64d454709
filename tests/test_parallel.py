"""A step over many devices is the step over one, whatever the mesh, and its exchanges are few and written down."""

import math

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import sharding, traffic
from lmtrain.assemble import assemble

LLAMA = {'model.num_heads': 8, 'model.num_kv_heads': 8, 'model.head_dim': 8, 'model.vocab_size': 384, 'budget.steps': 4}
BERT = LLAMA | {'data.corrupt': 0.15, 'model.causal': False, 'model.bias': True, 'model.norm': 'layernorm'}
LORA = {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/(attention|mlp)/.*', 4),), 'adapt.dropout': 0.1}
MICRO = {'data.batch_size': 16, 'optimizer.accumulate': 2, 'model.remat': 'full', 'model.unroll': 1}


def run_of(text, mesh, more):
    config = tiny.get_config()
    config.update_from_flattened_dict(
        {'data.source': str(text), 'data.cache': str(text.parent / 'cache'), 'data.validation': 0.2}
        | LLAMA
        | more
        | {f'mesh.{axis}': size for axis, size in zip(sharding.AXES, mesh, strict=True)}
    )
    return assemble(config, devices=jax.devices()[: math.prod(mesh)])


def losses(run):
    state, step, stream, put = run.initial_state(), run.train_step(), run.train_stream(), sharding.place(run.mesh)
    found = []
    for i in range(3):
        state, measured = step(state, put(stream.batch(i)), np.float32(i / 4))
        found += [measured['loss'].item(), measured['grad_norm'].item()]
    return found, np.sum(run.eval_step()(state.params, put(run.stream('validation').batch(0)))['loss'])


@pytest.mark.parametrize(
    ('meshes', 'more'),
    [
        ([(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (1, 2, 2, 2)], {}),
        ([(2, 2, 2, 1)], BERT),
        ([(1, 4, 2, 1), (2, 2, 1, 2)], MICRO),
        ([(2, 2, 2, 1)], LORA | {'sweep.seeds': (1, 2)}),
        ([(1, 4, 2, 1)], {'adapt.method': 'prompt', 'data.isolate': False, 'model.dropout': 0.1}),
        ([(1, 4, 1, 2)], {'data.isolate': False, 'data.seq_len': 256, 'model.positions': 'learned'}),
    ],
    ids=['llama', 'bert', 'micro-batches', 'lora sweep', 'prompt', 'blocks of queries'],
)
def test_a_step_over_eight_devices_is_that_over_one(text, meshes, more):
    expected = losses(run_of(text, (1, 1, 1, 1), more))
    for mesh in meshes:
        found = losses(run_of(text, mesh, more))
        np.testing.assert_allclose(np.hstack(found), np.hstack(expected), rtol=1e-5, err_msg=str(mesh))


@pytest.mark.parametrize('more', [{'model.unroll': 1}, MICRO, LORA], ids=['scan', 'micro-batches', 'lora'])
@pytest.mark.parametrize(
    'mesh',
    [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (2, 2, 2, 1), (1, 2, 2, 2)],
    ids=lambda mesh: 'x'.join(map(str, mesh)),
)
def test_little_more_is_exchanged_than_the_mesh_needs(text, mesh, more, capfd):
    more = {'data.seq_len': 128, 'model.width': 64, 'data.batch_size': 32} | more
    run = run_of(text, mesh, more | {'adapt.dropout': 0.0})
    (compiled,) = run.train_steps().values()
    found, least = traffic.audit(compiled.as_text(), run.mesh), traffic.minimum(run)
    if more.get('adapt.method') != 'lora' or mesh[2] == 1:  # low ranks have sums of their own over tensor
        assert sum(found.values()) <= 1.05 * sum(least.values()), (found, least)
    assert {kind for kind, _ in found} <= {kind for kind, _ in least} | {'all-reduce'}
    assert 'rematerialization' not in capfd.readouterr().err


@pytest.mark.parametrize(
    ('mesh', 'more', 'message'),
    [
        ((1, 1, 8, 1), {'model.num_kv_heads': 4}, r'model.num_kv_heads = 4 does not divide over mesh.tensor = 8'),
        ((1, 1, 1, 8), {'data.seq_len': 60}, r'mesh.sequence = 8 with data.seq_len = 60'),
        ((1, 1, 1, 8), {'data.corrupt': 0.15, 'model.causal': False}, 'only whole text'),
        ((1, 1, 1, 8), {'adapt.method': 'prefix'}, "adapt.method = 'prefix'"),
        ((1, 1, 1, 8), {'model.dropout': 0.1}, 'model.dropout = 0.1'),
    ],
)
def test_what_a_mesh_cannot_divide_is_refused(text, mesh, more, message):
    with pytest.raises(ValueError, match=message):
        run_of(text, mesh, more)


def test_the_vocabulary_is_filled_up_to_what_tensor_divides(text):
    run = run_of(text, (1, 4, 2, 1), {'model.vocab_size': 257})
    assert run.shapes.params['embed']['embedding'].shape[0] == 384
    assert run_of(text, (8, 1, 1, 1), {'model.vocab_size': 257}).config.model.vocab_size == 257
