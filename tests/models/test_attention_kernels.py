"""Every attention backend that this machine can run equals the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.models import attention_kernels
from lmtrain.models.attention_kernels import AttentionMask, attend
from lmtrain.models.hooks import ShardingHooks

CASES = {
    'causal': {},
    'bidirectional': {'causal': False},
    'window': {'window': 70},
    'bidirectional window': {'causal': False, 'window': 9},
    'softcap': {'softcap': 2.0},
    'scale': {'scale': 0.6},
}


def inputs(B=2, T=140, H=4, G=2, K=8, dtype='float32'):
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.normal(size=(B, T, n, K)), dtype) for n in (H, G, G))
    cuts = np.array([[60, 130], [7, 140]])
    segments = (np.arange(T)[None] >= cuts[:, :1]).astype(np.int32) + 1
    segments = np.where(np.arange(T)[None] < cuts[:, 1:], segments, 0)
    return query, key, value, jnp.asarray(segments)


def formula(query, key, value, segments, causal=True, window=0, softcap=0.0, scale=None):
    B, T, H, K = query.shape
    key, value = (np.repeat(np.asarray(x, np.float64), H // key.shape[2], axis=2) for x in (key, value))
    scores = np.einsum('BTHK,BSHK->BHTS', np.asarray(query, np.float64), key) * (scale or 1 / np.sqrt(K))
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    mask = (distance >= 0) | (not causal)
    if window:
        mask &= np.abs(distance) < window
    mask = mask[None] & (np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None])
    weights = np.exp(scores) * mask[:, None]
    return np.einsum('BHTS,BSHK->BTHK', weights / weights.sum(-1, keepdims=True), value)


def masked_attention(
    query, key, value, segments=None, causal=True, window=0, query_index=None, prefix=0, positions=None, **options
):
    """`attend` with the fields of the mask as arguments."""
    mask = AttentionMask(causal, window, segments, segments, query_index, prefix, positions)
    return attend(query, key, value, mask, **options)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_formula(case):
    query, key, value, segments = inputs()
    out = jax.jit(functools.partial(masked_attention, **{'causal': True} | case))(query, key, value, segments)
    np.testing.assert_allclose(out, formula(query, key, value, segments, **case), atol=1e-5)


def test_rows_of_padding_are_finite_and_without_gradient():
    query, key, value, segments = inputs(T=12)
    segments = jnp.zeros_like(segments).at[0, :5].set(1)

    def total(query, key, value):
        out = masked_attention(query, key, value, segments)
        return jnp.sum(jnp.where((segments > 0)[..., None, None], out, 0) ** 2)

    for grad in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value):
        assert np.all(np.isfinite(grad))
        assert np.all(np.asarray(grad)[np.asarray(segments) == 0] == 0)
        assert np.any(grad)


HOPPER, AMPERE, BLACKWELL, TURING = (9, 0), (8, 0), (10, 0), (7, 5)
UNSUPPORTED = {
    'length': ('splash', (), {'T': 12}, {}, 'a multiple of 128 positions, not 12'),
    'dtype': ('cudnn', HOPPER, {}, {}, "needs dtype 'bfloat16' or 'float16', not 'float32'"),
    'softcap': ('cudnn', HOPPER, {'dtype': 'bfloat16'}, {'softcap': 2.0}, 'does not support softcap'),
    'odd length': ('cudnn', HOPPER, {'dtype': 'bfloat16', 'T': 13}, {}, 'an even number of positions, not 13'),
    'heads': ('cudnn', HOPPER, {'dtype': 'bfloat16', 'K': 12}, {}, 'multiple of 8 and at most 256 on this GPU, not 12'),
    'wide heads': ('cudnn', HOPPER, {'dtype': 'bfloat16', 'K': 264}, {}, 'at most 256 on this GPU, not 264'),
    'wide heads on ampere': ('cudnn', AMPERE, {'dtype': 'bfloat16', 'K': 136}, {}, 'at most 128 on this GPU, not 136'),
    'wide heads on blackwell': ('cudnn', BLACKWELL, {'dtype': 'bfloat16', 'K': 136}, {}, 'at most 128'),
    'an old gpu': ('cudnn', TURING, {'dtype': 'bfloat16'}, {}, 'compute capability 8.0, and this GPU has 7.5'),
    'no nvidia gpu': ('cudnn', (), {'dtype': 'bfloat16'}, {}, 'this device has none'),
    'window': ('splash', (), {'T': 128}, {'window': np.int32(9)}, 'window that is known at compile time'),
    'cache': ('splash', (), {'T': 128}, {'query_index': np.zeros((2, 128), np.int32)}, 'does not support a cache'),
}


@pytest.mark.parametrize(('kernel', 'capability', 'shape', 'options', 'message'), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_an_explicit_kernel_reports_what_it_does_not_support_and_auto_falls_back_to_xla(
    kernel, capability, shape, options, message
):
    query, key, value, _ = inputs(**shape)
    options |= {'hooks': ShardingHooks(attention_kernel=kernel, capability=capability)}
    with pytest.raises(ValueError, match=f"attention='{kernel}' .*{message}.*'auto' or 'xla'"):
        masked_attention(query, key, value, **options, backend=kernel)

    def program(backend):
        function = functools.partial(masked_attention, **options, backend=backend)
        return str(jax.make_jaxpr(function)(query, key, value))

    assert program('auto') == program('xla')


def test_without_a_kernel_of_the_devices_every_backend_is_xla():
    query, key, value, _ = inputs(T=128)
    actual = masked_attention(query, key, value, causal=True, backend='splash')
    np.testing.assert_array_equal(actual, masked_attention(query, key, value, causal=True))


def test_splash_equals_xla_with_gradients(monkeypatch):
    """The TPU kernel, interpreted here."""
    monkeypatch.setitem(
        attention_kernels.KERNELS, 'splash', functools.partial(attention_kernels.splash, interpret=True)
    )
    query, key, value, segments = inputs(T=128)
    options = {'causal': True, 'window': 9, 'softcap': 2.0, 'hooks': ShardingHooks(attention_kernel='splash')}

    def run(backend):
        def total(*operands):
            out = masked_attention(*operands, segments, **options, backend=backend)
            return jnp.sum(out**2)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, key, value)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-5), run('splash'), run('xla'))


CUDNN = CASES | {'causal, window traced': {'window': np.int32(70)}, 'bidirectional, whole': {'causal': False}}
del CUDNN['softcap']


@pytest.mark.parametrize(
    ('case', 'segmented'),
    [
        pytest.param(case, segmented, id=f'{of}-{name}', marks=[pytest.mark.slow] * (segmented == (i % 2)))
        for of, segmented in (('segments', True), ('one segment', False))
        for i, (name, case) in enumerate(CUDNN.items())
    ],
)
def test_the_call_of_cudnn_computes_the_formula(monkeypatch, case, segmented):
    """The call, executed by XLA. cuDNN supports no window to the right of a query, so none may be requested."""
    calls = []
    by_xla = jax.nn.dot_product_attention

    def attention(*operands, implementation, **options):
        calls.append(options)
        assert implementation == 'cudnn'
        return by_xla(*operands, implementation='xla', **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', attention)
    monkeypatch.setattr(attention_kernels, 'unsupported_reason', lambda *_, **__: '')  # it takes no float32
    query, key, value, segments = inputs()
    segments = segments if segmented else None
    options = {'causal': True} | case | {'hooks': ShardingHooks(attention_kernel='cudnn', capability=HOPPER)}
    out = masked_attention(query, key, value, segments, **options)
    whole = jnp.ones(query.shape[:2], jnp.int32) if segments is None else segments
    np.testing.assert_allclose(out, formula(query, key, value, whole, **case), atol=1e-5)
    (call,) = calls
    window = call['local_window_size']
    assert window is None or call['is_causal'] and window == (69, 0)
    assert segmented or call['is_causal'] == (call['mask'] is None) or 'window' in case or call['mask'] is None


def test_heads_that_fit_reach_cudnn(monkeypatch):
    calls = []
    monkeypatch.setitem(attention_kernels.KERNELS, 'cudnn', lambda query, *_, **options: calls.append(options) or query)
    for K, capability in ((256, HOPPER), (128, AMPERE), (64, (8, 9)), (128, BLACKWELL)):
        query, key, value, _ = inputs(T=12, K=K, dtype='bfloat16')
        hooks = ShardingHooks(attention_kernel='cudnn', capability=capability)
        masked_attention(query, key, value, causal=False, window=3, hooks=hooks, backend='cudnn')
    assert [call['scale'] for call in calls] == [1 / 16, 128**-0.5, 1 / 8, 128**-0.5]


def output_and_gradients(operands, weight, segments, **options):
    """(out, the gradients of sum(out * weight))."""

    def total(*operands):
        out = masked_attention(*operands, segments, **options)
        return jnp.sum(out.astype(jnp.float32) * weight.astype(jnp.float32)), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*operands)
    return out, *gradients


@pytest.mark.parametrize('options', [{'causal': True}, {'causal': False, 'softcap': 9.0}], ids=['causal', 'soft-cap'])
def test_in_bfloat16_only_operands_and_results_are_rounded(options):
    """Against float32 attention of the rounded operands. Scores are large and values have a common offset, so that any
    sum, scale or difference in bfloat16 causes an error of up to 25 times the bound."""
    *operands, segments = inputs(T=140, K=24, dtype='bfloat16')
    weight = jax.random.normal(jax.random.key(1), operands[0].shape, 'bfloat16')
    operands[0] *= 3
    operands[2] += 20
    actual = output_and_gradients(operands, weight, segments, **options)
    expected = output_and_gradients([x.astype(jnp.float32) for x in operands], weight, segments, **options)
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert jnp.linalg.norm(ours.astype(jnp.float32) - exact) < 0.0035 * jnp.linalg.norm(exact)


def test_gradients_in_float32_are_those_of_the_formula():
    """By central differences of the formula in float64."""
    query, key, value, segments = inputs(T=12)
    weight = np.random.default_rng(0).normal(size=query.shape)
    options = {'window': 5, 'softcap': 2.0, 'scale': 0.6}
    _, *gradients = output_and_gradients((query, key, value), jnp.asarray(weight), segments, causal=True, **options)
    operands = [np.asarray(x, np.float64) for x in (query, key, value)]
    random = np.random.default_rng(1)
    for i, gradient in enumerate(gradients):
        direction = random.normal(size=operands[i].shape)

        def moved(step, i=i, direction=direction):
            changed = [x + step * direction if j == i else x for j, x in enumerate(operands)]
            return np.sum(weight * formula(*changed, segments, **options))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), slope, rtol=1e-4)


@pytest.mark.parametrize(
    ('causal', 'window'),
    [
        pytest.param(True, 0, id='True-whole'),
        pytest.param(False, 0, id='False-whole', marks=pytest.mark.slow),
        pytest.param(True, 6, id='True-window', marks=pytest.mark.slow),
        pytest.param(False, 6, id='False-window'),
        pytest.param(True, np.int32(6), id='True-traced'),
        pytest.param(False, np.int32(6), id='False-traced', marks=pytest.mark.slow),
    ],
)
def test_a_prefix_precedes_every_document_and_counts_towards_its_window(window, causal):
    """Equals each document alone, with the prefix as its first keys; one begins in the second block of queries."""
    P, T, cut = 4, 140, 131
    query, key, value = map(np.asarray, inputs(T=T)[:3])
    front_key, front_value = map(np.asarray, inputs(T=P)[1:3])
    segments = np.tile(np.repeat(np.array([1, 2], np.int32), [cut, T - cut]), (2, 1))
    positions = np.tile(np.concatenate([np.arange(cut), np.arange(T - cut)]).astype(np.int32), (2, 1))
    longer = [np.concatenate(pair, axis=1) for pair in ((front_key, key), (front_value, value))]
    options = {'causal': causal, 'prefix': P, 'positions': positions}
    out = jax.jit(functools.partial(masked_attention, window=window, **options))(query, *longer, segments)
    for start, stop in ((0, cut), (cut, T)):
        alone = [
            np.concatenate([front, x[:, start:stop]], axis=1)
            for front, x in ((np.zeros_like(query[:, :P]), query), (front_key, key), (front_value, value))
        ]
        one = np.ones(alone[0].shape[:2])
        np.testing.assert_allclose(
            out[:, start:stop], formula(*alone, one, causal=causal, window=int(window))[:, P:], atol=1e-5
        )


@pytest.mark.parametrize('window', [0, 70, 'traced'])
@pytest.mark.parametrize('segmented', [False, True])
def test_chunks_have_the_gradients_of_the_whole_and_keep_no_weights(window, segmented):
    """Also under a checkpoint that saves all, as that of a sharded model does."""
    query, key, value, segments = inputs(T=256)
    mask = AttentionMask(True, query_index=jnp.tile(jnp.arange(256)[None], (2, 1)))
    mask = mask._replace(query_segments=segments, key_segments=segments) if segmented else mask

    def weighted(attend, query, key, value, window):
        out = attend(query, key, value, mask._replace(window=window))
        return (out * jnp.arange(out.size).reshape(out.shape)).sum()

    size = jnp.int32(70) if window == 'traced' else window
    chunked, whole = (functools.partial(weighted, each) for each in (attention_kernels.attend_chunked, attend))
    gradients = [jax.grad(each, (0, 1, 2))(query, key, value, size) for each in (chunked, whole)]
    for actual, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-1)
    saved = jax.checkpoint(lambda *args: chunked(*args, size), policy=jax.checkpoint_policies.everything_saveable)
    largest = max(leaf.size for leaf in jax.tree.leaves(jax.vjp(saved, query, key, value)[1]))
    assert largest == query.size
