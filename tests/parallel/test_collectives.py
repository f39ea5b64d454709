"""A step on many devices equals the step on one device, for every mesh, and communicates no more than necessary."""

import functools
import math

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain.cost import hlo, traffic
from lmtrain.models import attention_kernels, settings
from lmtrain.parallel import collectives, sharding
from lmtrain.report import summary
from lmtrain.training.build import build

LLAMA = {'model.num_heads': 8, 'model.num_kv_heads': 8, 'model.head_dim': 8, 'model.vocab_size': 384, 'budget.steps': 4}
SCAN = {'model.unroll': 1}  # compiles one layer, not two; the other tests unroll them
BERT = LLAMA | {'data.mask_rate': 0.15, 'model.causal': False, 'model.bias': True, 'model.norm': 'layernorm'}
LORA = {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/(attention|mlp)/.*', 4),), 'adapt.dropout': 0.1}
MUON = {'optimizer.name': 'muon', 'model.num_layers': 3, 'model.unroll': 1}  # eight devices do not divide 3 layers
DYNAMIC = {
    'model.rope_scaling': (('rope_type', 'dynamic'), ('factor', 4.0), ('original_max_position_embeddings', 16)),
    'model.num_layers': 1,
    'model.unroll': 1,
}
MICRO = {'data.batch_size': 16, 'optimizer.accumulate': 2, 'model.remat': 'full', 'model.unroll': 1}


def run_of(text, mesh, more):
    config = tiny.get_config()
    config.update_from_flattened_dict(
        {'data.source': str(text), 'data.cache': str(text.parent / 'cache'), 'data.validation': 0.2}
        | LLAMA
        | more
        | {f'mesh.{axis}': size for axis, size in zip(sharding.AXES, mesh, strict=True)}
    )
    return build(config, devices=jax.devices()[: math.prod(mesh)])


def losses(run, start):
    """[loss and gradient norm of three steps from the state `start`], and the summed loss of an evaluation batch."""
    place = sharding.place(run.mesh)
    state = jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), start, run.shapes)
    step, stream, metrics = run.train_step(), run.train_stream(), []
    for i in range(3):
        state, measured = step(state, place(stream.batch(i)), np.float32(i / 4))
        metrics += [measured['loss'].item(), measured['grad_norm'].item()]
    return metrics, np.sum(run.eval_step()(state.params, place(run.stream('validation').batch(0)))['loss'])


@functools.cache
def reference(text, more):
    """(initial state on the host, `losses` from it) on one device; `more` are the items of a dict of settings."""
    run = run_of(text, (1, 1, 1, 1), dict(more))
    start = jax.device_get(run.initial.on_mesh())
    return start, losses(run, start)


@pytest.mark.slow
@pytest.mark.parametrize('more', [SCAN, LORA | {'sweep.seeds': (1, 2)}], ids=['scan', 'lora sweep'])
def test_the_initial_state_over_eight_devices_is_that_over_one(text, more):
    start, _ = reference(text, tuple(more.items()))
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(run_of(text, (2, 2, 2, 1), more).initial.on_mesh()), start
    )


@pytest.mark.parametrize(
    ('meshes', 'more'),
    [
        pytest.param([(2, 2, 2, 1), (1, 2, 2, 2)], SCAN, id='scan'),
        pytest.param(
            [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8)], SCAN, id='scan, one axis', marks=pytest.mark.slow
        ),
        pytest.param([(2, 2, 2, 1)], BERT, id='bert', marks=pytest.mark.slow),
        pytest.param([(1, 4, 2, 1), (2, 2, 1, 2)], MICRO, id='micro-batches', marks=pytest.mark.slow),
        pytest.param([(2, 2, 2, 1)], LORA | {'sweep.seeds': (1, 2)}, id='lora sweep', marks=pytest.mark.slow),
        pytest.param(
            [(1, 4, 2, 1)],
            {'adapt.method': 'prompt', 'data.isolate': False, 'model.dropout': 0.1},
            id='prompt',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [(1, 4, 2, 1)],
            {'adapt.method': 'prefix', 'adapt.prefix.hidden': 64},
            id='prefix network',
            marks=pytest.mark.slow,
        ),
        # test_redistribute has the other meshes of Muon.
        pytest.param([(1, 8, 1, 1), (2, 2, 2, 1)], MUON, id='muon', marks=pytest.mark.slow),
        pytest.param(
            [(1, 4, 2, 1)], MUON | {'sweep.seeds': (1, 2), 'adapt.cut': (1, 2)}, id='muon sweep', marks=pytest.mark.slow
        ),
        pytest.param([(1, 1, 1, 8), (1, 2, 2, 2)], DYNAMIC, id='angles by the length of a row', marks=pytest.mark.slow),
        pytest.param(
            [(1, 4, 1, 2)],
            {'data.isolate': False, 'data.seq_len': 256, 'model.positions': 'learned'},
            id='blocks of queries',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_on_eight_devices_equals_that_on_one(text, meshes, more):
    start, expected = reference(text, tuple(more.items()))
    for mesh in meshes:
        found = losses(run_of(text, mesh, more), start)
        np.testing.assert_allclose(np.hstack(found), np.hstack(expected), rtol=1e-5, err_msg=str(mesh))


@pytest.mark.slow
def test_angles_by_document_length_do_not_depend_on_micro_batches(text):
    """Rows of several documents, whose lengths lie on both sides of the original context."""
    settings = (DYNAMIC | {'data.batch_size': 16, 'optimizer.accumulate': accumulate} for accumulate in (1, 4, 16))
    (_, one), *others = (reference(text, tuple(more.items())) for more in settings)
    for _, found in others:
        np.testing.assert_allclose(np.hstack(found), np.hstack(one), rtol=1e-5)


@pytest.mark.slow
def test_cudnn_runs_on_the_heads_of_each_device_with_traced_windows(text, monkeypatch):
    """Its call, executed by XLA in float32."""
    more = {'model.window': 9, 'model.global_layers': (1,), 'model.num_layers': 2, 'model.unroll': 1}
    start, expected = reference(text, tuple(more.items()))
    by_xla, shapes = jax.nn.dot_product_attention, []

    def attention(query, *operands, implementation, **options):
        assert implementation == 'cudnn'
        shapes.append(query.shape)
        return by_xla(query, *operands, implementation='xla', **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', attention)
    for module in (attention_kernels, settings):
        monkeypatch.setattr(module, 'unsupported_reason', lambda *_, **__: '')
    monkeypatch.setitem(sharding.PLATFORM_KERNELS, 'cpu', 'cudnn')
    found = losses(run_of(text, (2, 2, 2, 1), more), start)
    np.testing.assert_allclose(np.hstack(found), np.hstack(expected), rtol=1e-5)
    assert {shape[2] for shape in shapes} == {4}


def test_an_old_gpu_uses_xla_and_the_header_gives_the_reason(text, monkeypatch):
    monkeypatch.setitem(sharding.PLATFORM_KERNELS, 'cpu', 'cudnn')
    half = {'model.dtype': 'bfloat16'}
    window = BERT | half | {'model.window': 9}
    for capability, more, attention, note in (
        ((7, 5), half, 'xla', 'attention  by XLA: cudnn needs CUDA compute capability 8.0, and this GPU has 7.5'),
        ((9, 0), half | {'model.attention_softcap': 9.0}, 'xla', 'attention  by XLA: cudnn does not support softcap'),
        ((9, 0), window, 'cudnn', ''),
        (
            (9, 0),
            half | {'sweep.seeds': (0, 1)},
            'xla',
            'attention  by XLA: cudnn does not support the 2 members of a sweep',
        ),
    ):
        monkeypatch.setattr(sharding, 'capability', lambda mesh, capability=capability: capability)
        run = run_of(text, (1, 1, 1, 1), more)
        assert run.attention == attention
        header = ' '.join(summary.header(run).split())
        assert ' '.join(note.split()) in header and ('by XLA' in header) == bool(note)
    monkeypatch.setattr(sharding, 'capability', lambda mesh: (7, 5))
    with pytest.raises(
        ValueError, match=r"attention='cudnn' needs CUDA compute capability 8.0.* choose model.attention"
    ):
        run_of(text, (1, 1, 1, 1), half | {'model.attention': 'cudnn'})


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mesh', 'more'),
    [
        pytest.param((1, 1, 1, 1), {'model.num_layers': 1, 'model.unroll': 1}, id='one device'),
        pytest.param((2, 2, 2, 1), {'model.num_layers': 1, 'model.unroll': 1}, id='data x fsdp x tensor'),
        pytest.param((1, 8, 1, 1), MICRO, id='fsdp, micro-batches'),
        pytest.param((2, 2, 2, 1), MICRO, id='data x fsdp x tensor, micro-batches'),
    ],
)
def test_splash_runs_on_the_heads_of_each_device(text, mesh, more, monkeypatch):
    """The TPU's, interpreted."""
    more = {'data.seq_len': 128} | more
    start, expected = reference(text, tuple(more.items()))
    interpreted = functools.partial(attention_kernels.splash, interpret=True)
    shapes = []

    def splash(query, *operands, **options):
        shapes.append(query.shape)
        return interpreted(query, *operands, **options)

    monkeypatch.setitem(attention_kernels.KERNELS, 'splash', splash)
    monkeypatch.setitem(sharding.PLATFORM_KERNELS, 'cpu', 'splash')
    run = run_of(text, mesh, more)
    assert run.attention == 'splash'
    np.testing.assert_allclose(np.hstack(losses(run, start)), np.hstack(expected), rtol=1e-5)
    rows = run.config.data.batch_size // run.config.optimizer.accumulate // mesh[0] // mesh[1]
    assert (rows, 128, 8 // mesh[2], 8) in shapes


def test_steps_that_a_kernel_does_not_support(text, monkeypatch):
    assert run_of(text, (2, 2, 2, 1), {}).attention == 'xla'  # the CPU has none
    monkeypatch.setitem(sharding.PLATFORM_KERNELS, 'cpu', 'splash')
    whole = {'data.seq_len': 128}
    plain, fused = (run_of(text, (2, 2, 2, 1), whole | {'model.attention': name}) for name in ('xla', 'splash'))
    assert (plain.attention, fused.attention) == ('xla', 'splash')
    assert fused.memory['activations'] < plain.memory['activations']
    sequence = (2, 2, 1, 2)
    assert run_of(text, sequence, whole).attention == 'xla'
    with pytest.raises(
        ValueError, match="attention='splash' does not read keys of other devices, and mesh.sequence = 2"
    ):
        run_of(text, sequence, whole | {'model.attention': 'splash'})
    with pytest.raises(ValueError, match="attention='splash' cannot read layers/attention/prefix_key"):
        run_of(text, (2, 2, 2, 1), whole | {'model.attention': 'splash', 'adapt.method': 'prefix'})
    with pytest.raises(ValueError, match="attention='splash' needs a multiple of 128 positions, not 32"):
        run_of(text, (2, 2, 2, 1), {'data.seq_len': 32, 'model.attention': 'splash'})
    with pytest.raises(ValueError, match="attention='cudnn' needs a GPU, and the mesh has cpu; choose"):
        run_of(text, (2, 2, 2, 1), {'model.attention': 'cudnn'})


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize(
    ('mesh', 'more'),
    [
        pytest.param((8, 1, 1, 1), {'model.unroll': 1}, id='data, scan', marks=pytest.mark.slow),
        pytest.param((1, 1, 8, 1), {'model.unroll': 1}, id='tensor, scan', marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 2), {'model.unroll': 1}, id='fsdp x tensor x sequence, scan'),
        pytest.param((2, 2, 2, 1), MICRO, id='data x fsdp x tensor, micro-batches'),
        pytest.param((1, 8, 1, 1), LORA, id='fsdp, lora'),
        pytest.param((2, 2, 2, 1), MUON, id='data x fsdp x tensor, muon', marks=pytest.mark.slow),
    ],
)
def test_communication_is_near_the_minimum(text, mesh, more, capfd):
    more = {'data.seq_len': 128, 'model.width': 64, 'data.batch_size': 32} | more
    run = run_of(text, mesh, more | {'adapt.dropout': 0.0})
    (compiled,) = run.train_steps().values()
    actual, least = traffic.audit(compiled.as_text(), run.mesh), traffic.minimum(run)
    assert sum(actual.values()) <= 1.05 * sum(least.values()), (actual, least)
    assert {kind for kind, _ in actual} <= {kind for kind, _ in least} | {'all-reduce'}
    assert 'rematerialization' not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize('mesh', [(1, 1, 1, 1), (2, 2, 2, 1)], ids=str)
def test_products_of_the_optimizer_are_in_the_planned_flops(text, mesh):
    def flops(more):
        run = run_of(text, mesh, MUON | more)
        (compiled,) = run.train_steps().values()
        return np.array([hlo.compiled_flops(compiled), run.flops_per_step.executed / run.mesh.size])

    compiled, planned = flops({}) - flops({'optimizer.name': 'adamw'})
    assert compiled == planned > 0


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize(
    'mesh',
    [
        pytest.param((8, 1, 1, 1), marks=pytest.mark.slow),
        (1, 8, 1, 1),
        (1, 1, 8, 1),
        pytest.param((1, 1, 1, 8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_memory_of_a_device_is_near_the_estimate(text, mesh):
    """For every axis. The compiler keeps arrays that the estimate does not count, and frees some that it does."""
    more = {'data.seq_len': 256, 'model.width': 128, 'model.mlp_dim': 512, 'model.num_layers': 4, 'model.unroll': 1}
    run = run_of(text, mesh, more | {'model.head_dim': 16})
    (compiled,) = run.train_steps().values()
    theory = run.memory
    ratio = compiled.memory_analysis().temp_size_in_bytes / (theory['activations'] + theory['gradients'])
    assert 0.8 < ratio < 1.8


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize('tied', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_embedding_and_head_communicate_in_bfloat16(text, tied):
    """The looked-up embeddings and the gradient of the hidden states: each is one all-reduce as in a layer."""
    more = {'data.seq_len': 128, 'model.dtype': 'bfloat16', 'model.remat': 'full', 'model.unroll': 1}
    run = run_of(text, (1, 2, 4, 1), more | {'model.width': 128, 'model.tied': tied})
    (lowered,) = run.lowered().values()
    actual, least = traffic.audit(hlo.partitioned(lowered)[1], run.mesh), traffic.minimum(run)
    assert sum(actual.values()) <= 1.03 * sum(least.values()), (actual, least)


@pytest.mark.parametrize(
    ('mesh', 'more', 'message'),
    [
        ((1, 1, 8, 1), {'model.num_kv_heads': 4}, r'model.num_kv_heads = 4 does not divide over mesh.tensor = 8'),
        ((1, 1, 1, 8), {'data.seq_len': 60}, r'mesh.sequence = 8 with data.seq_len = 60'),
        ((1, 1, 1, 8), {'data.mask_rate': 0.15, 'model.causal': False}, 'only rows whose next tokens are predicted'),
        ((1, 1, 1, 8), {'adapt.method': 'prefix'}, "adapt.method = 'prefix'"),
        ((1, 1, 1, 8), {'model.dropout': 0.1}, 'model.dropout = 0.1'),
    ],
)
def test_sizes_that_a_mesh_cannot_divide_are_rejected(text, mesh, more, message):
    with pytest.raises(ValueError, match=message):
        run_of(text, mesh, more)


def test_remat_saves_gathered_keys_and_no_gathered_parameters():
    class Primitive:
        def __init__(self, name):
            self.name = name

    gather = Primitive('all_gather')
    assert not collectives.remat_policy(gather, axis_name=('fsdp',))
    assert collectives.remat_policy(gather, axis_name=('sequence',))
    assert not collectives.remat_policy(Primitive('custom_vjp_call'))
    assert collectives.remat_policy(Primitive('dot_general'))
