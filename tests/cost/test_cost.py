"""The arithmetic of cost, against compiled programs and against published figures."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain import cost, models, tree
from lmtrain.cost import hlo
from lmtrain.models import lm_head
from lmtrain.tasks import token_loss
from lmtrain.training import step

TINY = {
    'vocab_size': 256,
    'max_len': 256,
    'num_layers': 2,
    'width': 64,
    'num_heads': 4,
    'num_kv_heads': 4,
    'head_dim': 16,
    'mlp_dim': 256,
    'positions': 'learned',
    'rope_theta': 10_000.0,
    'norm': 'layernorm',
    'norm_eps': 1e-5,
    'norm_place': 'pre',
    'embed_norm': False,
    'activation': 'gelu',
    'bias': True,
    'tied': True,
    'causal': True,
    'mlm_head': False,
    'qk_norm': False,
    'logit_softcap': 0.0,
    'attention_softcap': 0.0,
    'window': 0,
    'dropout': 0.0,
    'dtype': 'float32',
    'remat': 'none',
    'unroll': 2,
    'attention': 'auto',
}
GPT2 = TINY
LLAMA = TINY | {
    'positions': 'rotary',
    'norm': 'rmsnorm',
    'activation': 'swiglu',
    'bias': False,
    'tied': False,
    'num_kv_heads': 2,
    'mlp_dim': 192,
    'qk_norm': True,
}
BERT = TINY | {'causal': False, 'mlm_head': True, 'norm_place': 'post'}
BIG_HEAD = LLAMA | {'vocab_size': 12_000}
ROWS, LENGTH = 2, 256


def compiled(settings, learns, predicted=None):
    """(compiled value_and_grad, trainable and frozen shapes, model) of one micro-batch."""
    model = models.Transformer(**settings)
    batch = {'tokens': np.zeros((ROWS, LENGTH), np.int32)}
    wanted = (ROWS, predicted or LENGTH)
    batch |= {'targets': np.zeros(wanted, np.int32), 'loss_mask': np.ones(wanted, np.float32)}
    if predicted:
        batch['select'] = np.zeros(wanted, np.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)['params'])
    trainable, frozen = tree.split(params, learns)

    def run(trainable, frozen, batch):
        def loss(trainable):
            return step.sums(token_loss.loss, model, tree.join(frozen, trainable), batch)[0]['loss']

        return jax.value_and_grad(loss)(trainable)

    # What LLVM makes of it has no FLOPs; without its optimizations the test takes half the time.
    program = jax.jit(run).lower(trainable, frozen, batch).compile({'xla_backend_optimization_level': 0})
    return program, trainable, frozen, model


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize(
    ('settings', 'learns', 'predicted'),
    [
        pytest.param(GPT2, '.*', None, id='gpt2'),
        pytest.param(GPT2 | {'unroll': 1}, '.*', None, id='gpt2 scanned'),
        pytest.param(LLAMA, '.*', None, id='llama'),
        pytest.param(LLAMA | {'unroll': 1}, '.*', None, id='llama scanned'),
        pytest.param(
            BIG_HEAD | {'unroll': 1, 'remat': 'full'}, '.*', None, id='recomputed layers and chunks of the head'
        ),
        pytest.param(LLAMA | {'window': 40, 'global_layers': (0,)}, '.*', None, id='window in all layers but one'),
        pytest.param(BERT | {'unroll': 1}, '.*', 38, id='bert predicts 38'),
        pytest.param(LLAMA, 'layers/.*/kernel', None, id='frozen embedding'),
        pytest.param(LLAMA, '.*/scale', None, id='norms alone'),
        pytest.param(LLAMA | {'unroll': 1}, 'layers/mlp/down/kernel', None, id='one matrix, scanned'),
        pytest.param(LLAMA, 'head/kernel', None, id='head alone'),
    ],
)
def test_compiled_flops_are_the_analytic_ones(settings, learns, predicted):
    program, _, _, model = compiled(settings, learns, predicted)
    expected = cost.flops_per_step(model, ROWS, LENGTH, learns, predicted=predicted, block=128)
    np.testing.assert_allclose(hlo.compiled_flops(program), expected.executed, rtol=0.005)


def gpt2_124m(**changes):
    sizes = {'vocab_size': 50304, 'width': 768, 'num_layers': 12, 'num_heads': 12, 'num_kv_heads': 12, 'head_dim': 64}
    return types.SimpleNamespace(**TINY | sizes | {'mlp_dim': 3072, 'unroll': 1, 'head': 'lm'} | changes)


def test_published_figures():
    """nanoGPT's 6N + 12LHQT, attention counted in full and causally, a token of GPT-2 124M at T = 1024."""
    full = cost.flops_per_step(gpt2_124m(), 3, 1024)
    causal = cost.flops_per_step(gpt2_124m(), 3, 1024, block=1)
    np.testing.assert_allclose(full.total / 3 / 1024, 854.7e6, rtol=1e-4)
    np.testing.assert_allclose(causal.total / 3 / 1024, 798.0e6, rtol=2e-4)
    assert full.backward == 2 * full.forward
    assert full.executed == full.total + full.again


def test_keys_of_a_query_by_counting_them():
    """Against a loop over queries: a window of w keys holds the query itself and the w - 1 before it."""
    model = types.SimpleNamespace(causal=True, window=5, num_layers=4, global_layers=(1,))
    seen = sum(min(index + 1, 5) for index in range(24)) / 24
    everything = sum(index + 1 for index in range(24)) / 24
    assert cost.keys_per_query(model, 24, block=1) == pytest.approx(0.75 * seen + 0.25 * everything)
    blocks = (
        sum(8 * (stop - max(0, stop - 8 - 4)) for stop in (8, 16, 24)) / 24
    )  # each block reads what its queries see
    model.global_layers = ()
    assert cost.keys_per_query(model, 24, block=8) == pytest.approx(blocks)
    assert cost.keys_per_query(types.SimpleNamespace(causal=False, window=5, num_layers=4), 24, block=1) == 24


def test_prefixes_are_keys_and_prompts_are_tokens():
    model = gpt2_124m(positions='rotary')
    plain = cost.flops_per_step(model, 1, 1024)

    def with_leaves(path, shape):
        shapes = {'layers/mlp/up/kernel': (12, 768, 3072), path: shape}
        params = tree.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
        return cost.flops_per_step(model, 1, 1024, params=params)

    prefix = with_leaves('layers/attention/prefix_key', (12, 20, 12, 64))
    np.testing.assert_allclose(prefix.forward - plain.forward, 12 * 4 * 1024 * 768 * 20)  # scores and their products
    prompt = with_leaves('prompt/embedding', (20, 768))
    per_token = 12 * (2 * 12 * 768**2 + 4 * 768 * 1044)
    np.testing.assert_allclose(prompt.forward - plain.forward, 20 * per_token + 12 * 4 * 768 * 20 * 1024)


def test_frozen_matrices_have_no_weight_gradient():
    def total(learns):
        return cost.flops_per_step(gpt2_124m(tied=False, positions='none'), 1, 1024, learns)

    whole, embedding, nothing_before = total('.*'), total('embed/embedding'), total('head/kernel')
    matrices = 2 * 1024 * (12 * 12 * 768**2 + 768 * 50304)
    np.testing.assert_allclose(whole.total - embedding.total, matrices)
    np.testing.assert_allclose(nothing_before.backward, 2 * 1024 * 768 * 50304)
    assert total('layers/.*/bias').total < whole.total


def test_remat_is_work_done_again_and_not_of_the_model():
    none, dots, full = (cost.flops_per_step(gpt2_124m(remat=remat), 1, 1024) for remat in ('none', 'dots', 'full'))
    assert none.total == dots.total == full.total
    assert none.again < dots.again < full.again < full.forward


def test_the_head_is_chunked_where_the_model_does_it():
    assert (cost.HEAD_WHOLE, cost.HEAD_CHUNKS) == (lm_head.WHOLE, lm_head.CHUNKS)


def test_the_head_of_a_task_reads_a_vector_of_each_row_or_of_each_token():
    about = BERT | {'mlm_head': False, 'num_labels': 3}
    rows, words = (models.Transformer(**about, head=head) for head in ('classify', 'tag'))
    forward = [cost.flops_per_step(model, ROWS, LENGTH).forward for model in (rows, words)]
    assert forward[1] - forward[0] == 2 * (ROWS * LENGTH - ROWS) * 64 * 3
    backward = [cost.flops_per_step(model, ROWS, LENGTH, r'task_head/.*').backward for model in (rows, words)]
    assert backward == [2 * ROWS * 64 * 3, 2 * ROWS * LENGTH * 64 * 3]


@pytest.mark.parametrize(
    ('budget', 'steps'),
    [
        ({'steps': 7}, 7),
        ({'steps': 7, 'tokens': None, 'flops': None, 'hours': None}, 7),
        ({'tokens': 1000.0}, 10),
        ({'tokens': 1001.0}, 11),
        ({'tokens': 1.0}, 1),
        ({'flops': 1e6}, 100),
        ({'flops': 1e6 + 1}, 101),
        ({'hours': 0.5}, None),
    ],
)
def test_the_steps_of_a_budget(budget, steps):
    assert cost.total_steps(budget, tokens_per_step=100, flops_per_step=1e4) == steps


@pytest.mark.parametrize(
    ('budget', 'says'),
    [
        ({}, 'nothing is set'),
        ({'steps': None, 'hours': None}, 'nothing is set'),
        ({'steps': 5, 'tokens': 1e6}, 'budget.steps = 5 and budget.tokens = 1000000.0 is set'),
        ({'steps': 0}, 'budget.steps = 0'),
        ({'steps': -3}, 'budget.steps = -3'),
        ({'steps': 2.5}, 'budget.steps = 2.5: it must be a positive whole number'),
        ({'tokens': 0.0}, 'budget.tokens = 0.0'),
        ({'hours': float('nan')}, 'budget.hours = nan'),
        ({'flops': float('inf')}, 'budget.flops = inf'),
        ({'epochs': 3}, 'budget.epochs'),
    ],
)
def test_a_wrong_budget_is_named(budget, says):
    with pytest.raises(ValueError, match=says):
        cost.total_steps(budget, 100, 1e4)


@pytest.mark.parametrize(
    ('kind', 'dtype', 'peak'),
    [
        ('TPU v3', 'bfloat16', 61.5e12),
        ('TPU v4', 'bfloat16', 275e12),
        ('TPU v5 lite', 'bfloat16', 197e12),
        ('TPU v5e', 'float32', 197e12),
        ('TPU v5p', 'bfloat16', 459e12),
        ('TPU v5', 'bfloat16', 459e12),
        ('TPU v6 lite', 'bfloat16', 918e12),
        ('TPU7x', 'bfloat16', 1153.5e12),
        ('NVIDIA A100-SXM4-80GB', 'bfloat16', 312e12),
        ('NVIDIA A100-SXM4-40GB', 'float32', 156e12),
        ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.5e12),
        ('NVIDIA H100 PCIe', 'bfloat16', 756e12),
        ('NVIDIA H200', 'bfloat16', 989.5e12),
        ('NVIDIA GH200 480GB', 'bfloat16', 989.5e12),
        ('NVIDIA B200', 'bfloat16', 2250e12),
        ('NVIDIA GB200', 'bfloat16', 2500e12),
        ('NVIDIA GeForce RTX 4090', 'bfloat16', 165.2e12),
        ('NVIDIA L4', 'bfloat16', 121e12),
        ('NVIDIA L40S', 'bfloat16', 362e12),
        ('cpu', 'float32', None),
        ('NVIDIA H1000', 'bfloat16', None),
        ('NVIDIA H100 80GB HBM3', 'int4', None),
    ],
)
def test_peaks(kind, dtype, peak):
    assert cost.peak_flops(kind, dtype) == peak


@pytest.mark.usefixtures('no_compilation_cache')
def test_memory_is_exact_but_for_activations():
    program, trainable, frozen, model = compiled(GPT2 | {'unroll': 1}, 'layers/.*')
    moments = {'mu': trainable, 'nu': trainable}
    found = cost.memory(trainable, frozen, moments, model, ROWS, LENGTH)
    assert found['parameters'] == tree.size(trainable) + tree.size(frozen)
    assert found['gradients'] == tree.size(trainable)
    assert found['moments'] == 2 * tree.size(trainable)
    assert found['total'] == sum(size for name, size in found.items() if name != 'total')
    held = program.memory_analysis().temp_size_in_bytes
    assert 0.4 < found['activations'] / held < 2.5


def test_remat_and_a_frozen_body_keep_less():
    shapes = {'layers': {'kernel': jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    model = models.Transformer(**GPT2)

    def activations(**changes):
        return cost.memory(shapes, {}, {}, dataclasses.replace(model, **changes), 8, 256)['activations']

    assert activations(remat='full') < activations(remat='dots') < activations(remat='none')
    assert activations(dtype='bfloat16') < activations()
    only_head = {'head': {'kernel': jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    assert cost.memory(only_head, shapes, {}, model, 8, 256)['activations'] < activations(remat='full')


def test_memory_of_a_device_follows_the_sharding():
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
    leaf = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=cut)
    found = cost.memory(
        {'layers': {'kernel': leaf}}, {}, {'count': jnp.zeros((), jnp.int32)}, models.Transformer(**GPT2), 1, 8
    )
    assert found['parameters'] == 4 * math.prod(leaf.shape) // 8
    assert found['moments'] == 4
