"""FLOPs of a step by arithmetic, against compiled programs and published figures."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain import cost, models, tree
from lmtrain.cost import hlo

ROWS, LENGTH = 2, 256
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


@pytest.mark.parametrize(
    ('settings', 'trainable', 'predicted'),
    [
        pytest.param(GPT2, '.*', None, id='gpt2', marks=pytest.mark.slow),
        pytest.param(GPT2 | {'unroll': 1}, '.*', None, id='gpt2 scanned'),
        pytest.param(LLAMA, '.*', None, id='llama'),
        pytest.param(LLAMA | {'unroll': 1}, '.*', None, id='llama scanned', marks=pytest.mark.slow),
        pytest.param(
            BIG_HEAD | {'unroll': 1, 'remat': 'full'}, '.*', None, id='recomputed layers and chunks of the head'
        ),
        pytest.param(LLAMA | {'window': 40, 'global_layers': (0,)}, '.*', None, id='window in all layers but one'),
        pytest.param(BERT | {'unroll': 1}, '.*', 38, id='bert predicts 38'),
        pytest.param(LLAMA, 'layers/.*/kernel', None, id='frozen embedding'),
        pytest.param(LLAMA, '.*/scale', None, id='norms alone', marks=pytest.mark.slow),
        pytest.param(LLAMA | {'unroll': 1}, 'layers/mlp/down/kernel', None, id='one matrix, scanned'),
        pytest.param(LLAMA, 'head/kernel', None, id='head alone', marks=pytest.mark.slow),
    ],
)
def test_flops_equal_those_of_the_compiled_step(compiled, settings, trainable, predicted):
    program, _, _, model = compiled(settings, trainable, predicted)
    expected = cost.flops_per_step(model, ROWS, LENGTH, trainable, predicted=predicted, block=128)
    np.testing.assert_allclose(hlo.compiled_flops(program), expected.executed, rtol=0.005)


def gpt2_124m(**changes):
    sizes = {'vocab_size': 50304, 'width': 768, 'num_layers': 12, 'num_heads': 12, 'num_kv_heads': 12, 'head_dim': 64}
    return types.SimpleNamespace(
        **TINY | sizes | {'mlp_dim': 3072, 'unroll': 1, 'head': 'lm', 'global_layers': ()} | changes
    )


def test_published_flops_of_gpt2():
    """nanoGPT's 6N + 12LHQT, attention counted in full and causally, a token of GPT-2 124M at T = 1024."""
    full = cost.flops_per_step(gpt2_124m(), 3, 1024)
    causal = cost.flops_per_step(gpt2_124m(), 3, 1024, block=1)
    np.testing.assert_allclose(full.total / 3 / 1024, 854.7e6, rtol=1e-4)
    np.testing.assert_allclose(causal.total / 3 / 1024, 798.0e6, rtol=2e-4)
    assert full.backward == 2 * full.forward
    assert full.executed == full.total + full.again


def test_keys_per_query_by_counting():
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


def test_prefixes_add_keys_and_prompts_add_tokens():
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
    def total(trainable):
        return cost.flops_per_step(gpt2_124m(tied=False, positions='none'), 1, 1024, trainable)

    whole, embedding, nothing_before = total('.*'), total('embed/embedding'), total('head/kernel')
    matrices = 2 * 1024 * (12 * 12 * 768**2 + 768 * 50304)
    np.testing.assert_allclose(whole.total - embedding.total, matrices)
    np.testing.assert_allclose(nothing_before.backward, 2 * 1024 * 768 * 50304)
    assert total('layers/.*/bias').total < whole.total


def test_remat_adds_recomputation_and_no_model_flops():
    none, dots, full = (cost.flops_per_step(gpt2_124m(remat=remat), 1, 1024) for remat in ('none', 'dots', 'full'))
    assert none.total == dots.total == full.total
    assert none.again < dots.again < full.again < full.forward


def test_task_head_reads_one_vector_per_row_or_per_token():
    about = BERT | {'mlm_head': False, 'num_labels': 3}
    rows, words = (models.Transformer(**about, head=head) for head in ('classify', 'tag'))
    forward = [cost.flops_per_step(model, ROWS, LENGTH).forward for model in (rows, words)]
    assert forward[1] - forward[0] == 2 * (ROWS * LENGTH - ROWS) * 64 * 3
    backward = [cost.flops_per_step(model, ROWS, LENGTH, r'task_head/.*').backward for model in (rows, words)]
    assert backward == [2 * ROWS * 64 * 3, 2 * ROWS * LENGTH * 64 * 3]
