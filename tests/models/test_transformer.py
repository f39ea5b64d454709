"""Properties that every transformer has, for a list of variants; a variant is one line."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer

V, B, T, N = 61, 2, 12, 2
QUICK = {'xla_backend_optimization_level': 0}  # compile time is most of what these tests cost

ALTERNATING = {'window': 4, 'global_layers': (1,), 'local_rope_theta': 100.0}
VARIANTS = {
    'llama': {'unroll': N},
    'gpt2': {'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu', 'bias': True},
    'grouped': {'num_kv_heads': 2, 'qk_norm': True, 'tied': False},
    'window': {'window': 5, 'num_kv_heads': 1, 'activation': 'relu2'},
    'softcap': {'logit_softcap': 30.0, 'attention_softcap': 20.0, 'positions': 'sinusoidal', 'activation': 'geglu'},
    'sandwich, alternating': ALTERNATING
    | {'norm_place': 'sandwich', 'norm': 'rmsnorm1p', 'embed_scale': 6.0, 'attention_scale': 0.3, 'biased': ('query',)},
    'branch': {'norm_place': 'branch', 'qk_norm': True, 'qk_norm_over': 'projection', 'num_kv_heads': 2},
    'parallel, alternating': ALTERNATING | {'parallel': True, 'norm': 'layernorm', 'rotary_dim': 4, 'unroll': N},
    'post': {'norm_place': 'post', 'embed_norm': True, 'positions': 'none', 'remat': 'full'},
}
ENCODERS = {
    'bert': {'norm_place': 'post', 'embed_norm': True, 'positions': 'learned', 'mlm_head': True, 'bias': True},
    'window encoder': {'window': 3},
}


def build(**settings) -> Transformer:
    config = base.get_config()
    small = {'vocab_size': V, 'max_len': 32, 'num_layers': N, 'width': 32, 'num_heads': 4, 'unroll': 1}
    config.model.update(small | settings)
    return Transformer(**config.model)


def encoder(**settings) -> Transformer:
    return build(causal=False, activation='gelu_exact', norm='layernorm', **settings)


MODELS = {name: build(**s) for name, s in VARIANTS.items()} | {name: encoder(**s) for name, s in ENCODERS.items()}


def models(names, slow=()):
    """Parametrizes a test over models, of which some are slow because others have the same features."""
    cases = [pytest.param(MODELS[name], id=name, marks=[pytest.mark.slow] * (name in slow)) for name in names]
    return pytest.mark.parametrize('model', cases)


every_model = models(MODELS)


@functools.cache
def initial(model):
    return jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), packed())['params']


@functools.cache
def params_of(model):
    """Random parameters, so that every bias and scale has an effect."""
    shapes, random = jax.eval_shape(model.init, jax.random.key(0), packed())['params'], np.random.default_rng(1)
    mean = {path: 3.0 * path.endswith('scale') for path in tree.flatten(shapes)}
    drawn = {path: random.normal(mean[path], 0.12, leaf.shape) for path, leaf in tree.flatten(shapes).items()}
    return tree.unflatten({path: leaf.astype(np.float32) for path, leaf in drawn.items()})


@functools.cache
def compiled(model):
    def forward(params, batch, key, store, **caches):
        rngs = None if key is None else {'dropout': key}
        return model.apply({'params': params}, batch, train=key is not None, store=store, rngs=rngs, **caches)

    return jax.jit(forward, static_argnums=3, compiler_options=QUICK)


def forward(model, batch, key=None, store=False, params=None, **caches):
    return compiled(model)(params_of(model) if params is None else params, batch, key, store, **caches)


def example(rows=B, length=T):
    """One document per row."""
    tokens, targets = np.random.default_rng(2).integers(0, V, (2, rows, length), dtype=np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return {'tokens': tokens, 'targets': targets, 'segment_ids': np.ones_like(tokens), 'positions': positions}


def packed():
    """Rows of two documents, [0, 5) and [5, 9), and a tail of padding."""
    segments = np.array([1] * 5 + [2] * 4 + [0] * (T - 9), np.int32)
    positions = np.concatenate([np.arange(5), np.arange(4), np.zeros(T - 9)]).astype(np.int32)
    return example() | {'segment_ids': np.tile(segments, (B, 1)), 'positions': np.tile(positions, (B, 1))}


def influence(model, batch):
    """[T, T]: how much the output at t depends on the embedded input at s."""
    params = params_of(model)

    # A table of one row per token of the batch makes inputs differentiable one by one.
    own = {'tokens': np.arange(T)[None]} | {k: v[:1] for k, v in batch.items() if k not in ('tokens', 'targets')}
    mine = dict(params) | {'embed': {'embedding': params['embed']['embedding'][:T]}}
    model = dataclasses.replace(model, vocab_size=T)
    if 'head' in mine:
        mine['head'] = {'kernel': mine['head']['kernel'][:, :T]}
    if 'mlm_head' in mine:
        mine['mlm_head'] = mine['mlm_head'] | {'bias': mine['mlm_head']['bias'][:T]}

    def hidden(table):
        return model.apply({'params': mine | {'embed': {'embedding': table}}}, own)['hidden'][0].sum(-1)

    jacobian_TSD = jax.jit(jax.jacrev(hidden), compiler_options=QUICK)(mine['embed']['embedding'])
    return np.abs(np.asarray(jacobian_TSD)).sum(-1)


@every_model
def test_outputs_depend_on_exactly_the_visible_tokens(model):
    batch = packed()
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    segments = np.asarray(batch['segment_ids'][0])
    allowed = segments[:, None] == segments[None]
    if model.causal:
        allowed &= s <= t
    if model.window:  # every layer widens the view by a window
        allowed &= np.abs(t - s) <= N * (model.window - 1)
    seen = influence(model, batch)
    real = segments[:, None] > 0
    assert np.all(seen[~allowed] == 0)
    assert np.all((seen > 0)[allowed & real])


@every_model
def test_packed_documents_equal_separate_ones_and_padding_has_no_effect(model):
    batch, random = packed(), np.random.default_rng(4)
    together = forward(model, batch)['logprob']
    for start, stop in ((0, 5), (5, 9)):
        size = stop - start
        alone = example() | {'segment_ids': np.tile((np.arange(T) < size).astype(np.int32), (B, 1))}
        for name in ('tokens', 'targets'):
            alone[name] = random.integers(0, V, (B, T), dtype=np.int32)  # of the padding
            alone[name][:, :size] = batch[name][:, start:stop]
        np.testing.assert_allclose(
            forward(model, alone)['logprob'][:, :size], together[:, start:stop], rtol=1e-5, atol=2e-5
        )


def test_segments_and_positions_have_defaults():
    batch = packed()
    bare = {name: batch[name][:, :5] for name in ('tokens', 'targets')}
    for name in ('llama', 'gpt2', 'bert'):
        together = forward(MODELS[name], batch)['logprob'][:, :5]
        np.testing.assert_allclose(forward(MODELS[name], bare)['logprob'], together, rtol=1e-5, atol=2e-5)


@models(VARIANTS, slow={'llama', 'window', 'branch', 'post'})
def test_cached_decoding_equals_the_full_forward(model):
    batch, lengths = example(), np.array([7, 3])
    full = forward(model, batch)['logits']
    real = (np.arange(8)[None] < lengths[:, None]).astype(np.int32)
    outputs = forward(model, {'tokens': batch['tokens'][:, :8], 'segment_ids': real}, store=True)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(outputs['logits'][row, :length], full[row, :length], rtol=1e-5, atol=3e-5)
    past, cache = outputs['cache'], model.init_cache(B, 4)
    np.testing.assert_array_equal(past['length'], lengths)
    for step in range(4):
        at = lengths + step
        outputs = forward(model, {'tokens': batch['tokens'][np.arange(B), at][:, None]}, past=(past,), cache=cache)
        cache = outputs['cache']
        np.testing.assert_allclose(outputs['logits'][:, 0], full[np.arange(B), at], rtol=1e-5, atol=3e-5)
    assert cache['length'] == 4


def loss_and_gradient(model, batch, params):
    def loss(params):
        outputs = model.apply({'params': params}, batch, train=True, rngs={'dropout': jax.random.key(3)})
        return -jnp.mean(outputs['logprob'])

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)


@pytest.mark.parametrize(
    ('change', 'dropout'),
    [({'unroll': N}, 0.0), ({'remat': 'dots'}, 0.0), ({'unroll': N, 'remat': 'full'}, 0.2)],
)
def test_outputs_do_not_depend_on_remat_unroll_or_accumulation(change, dropout):
    batch = packed() | {'row': np.array([3, 1], np.int32)}
    settings = VARIANTS['gpt2'] | {'dropout': dropout}
    plain = build(**settings)
    expected, grads = loss_and_gradient(plain, batch, params_of(plain))
    value, changed = loss_and_gradient(build(**settings | change), batch, params_of(plain))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), changed, grads)


def test_scanned_and_unrolled_layers_with_different_windows_are_equal():
    batch = packed()
    one, all_ = (build(unroll=unroll, remat='dots', **ALTERNATING) for unroll in (1, N))
    expected, grads = loss_and_gradient(one, batch, params_of(one))
    value, straight = loss_and_gradient(all_, batch, params_of(one))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), straight, grads)
    alike = forward(build(window=4), batch)['logprob']  # the same parameters
    assert np.max(np.abs(alike - forward(one, batch)['logprob'])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('unroll', [1, 3])
def test_segments_equal_the_whole_stack(unroll):
    model = build(num_layers=3, unroll=unroll, dropout=0.2, remat='full')
    params, batch = params_of(model), packed()
    expected, grads = loss_and_gradient(model, batch, params)
    value, of_segments = loss_and_gradient(model, batch, tree.cut(params, (1, 2)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    grads = tree.cut(grads, (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), of_segments, grads)

    batch = {'tokens': batch['tokens'][:1]}
    full = forward(model, batch, params=params)['logits'][0]
    segments, ids = tree.cut(params, (2, 1)), batch['tokens']
    past = forward(model, {'tokens': ids[:, :-1]}, store=True, params=segments)['cache']
    last = {'past': (past,), 'cache': model.init_cache(1, 4)}
    np.testing.assert_allclose(
        forward(model, {'tokens': ids[:, -1:]}, params=segments, **last)['logits'][0, 0], full[-1], atol=1e-5
    )


def test_parameters_with_another_number_of_layers_are_rejected():
    with pytest.raises(ValueError, match='hold 3 layers, but model.num_layers=2'):
        build().apply({'params': initial(build(num_layers=3))}, example())


def test_initial_parameters_do_not_depend_on_unroll():
    one, all_ = (initial(build(unroll=n)) for n in (1, N))
    jax.tree.map(np.testing.assert_array_equal, one, all_)
    assert tree.flatten(one)['layers/attention/query/kernel'].shape == (N, 32, 32)
    first, second = tree.flatten(one)['layers/mlp/up/kernel']
    assert not np.array_equal(first, second)


@models(MODELS, slow=MODELS.keys() - {'llama', 'gpt2', 'post', 'bert'})
def test_the_first_loss_is_near_the_log_of_the_vocabulary(model):
    value = -np.mean(compiled(model)(initial(model), example(), None, False)['logprob'])
    assert value == pytest.approx(np.log(V), rel=0.05)


def test_bfloat16_is_close_to_float32():
    single, half = (build(dtype=dtype) for dtype in ('float32', 'bfloat16'))
    params = initial(single)
    outputs = compiled(half)(params, example(), None, False)
    assert outputs['hidden'].dtype == jnp.bfloat16
    assert outputs['logprob'].dtype == outputs['log_z'].dtype == outputs['logits'].dtype == jnp.float32
    expected = compiled(single)(params, example(), None, False)['logprob']
    np.testing.assert_allclose(outputs['logprob'], expected, atol=0.03)


def test_dropout_does_not_depend_on_the_division_of_the_batch():
    model = build(dropout=0.3)
    batch = example(rows=4) | {'row': np.arange(4, dtype=np.int32)}

    def run(rows, key=0):
        part = jax.tree.map(lambda x: x[np.array(rows)], batch)
        return np.asarray(forward(model, part, key=jax.random.key(key))['logprob'])

    whole = run([0, 1, 2, 3])
    for rows in ([0, 2], [3, 1]):
        np.testing.assert_allclose(run(rows), whole[rows], rtol=1e-5, atol=2e-5)
    assert not np.allclose(run([0, 2], key=1), whole[[0, 2]], atol=1e-3)
    assert not np.allclose(forward(model, batch)['logprob'], whole, atol=1e-3)


@pytest.mark.parametrize('name', ['gpt2', 'bert'])
def test_selected_outputs_equal_those_of_all_positions(name):
    batch, select = example(), np.array([[4, 1, 1], [0, 2, 11]], np.int32)
    targets = np.take_along_axis(batch['targets'], select, axis=1)
    chosen = forward(MODELS[name], batch | {'targets': targets, 'select': select})
    full = forward(MODELS[name], batch)
    for head in ('logprob', 'log_z'):
        np.testing.assert_allclose(
            chosen[head], np.take_along_axis(np.asarray(full[head]), select, axis=1), rtol=1e-5, atol=2e-5
        )


def test_one_layer_equals_its_equations():
    model = build(num_layers=1, unroll=1, num_heads=1, head_dim=32, tied=False)
    params = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params_of(model)).items()}
    batch = example(rows=1)

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * params[name].reshape(1, -1)

    def kernel(name):
        return params[f'layers/{name}/kernel'][0]

    def turn(x):
        angle = np.arange(T)[:, None] * 10_000.0 ** (-np.arange(16) / 16)[None]
        pairs = (x[:, :16] + 1j * x[:, 16:]) * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag], -1)

    x = params['embed/embedding'][np.asarray(batch['tokens'][0])]
    y = norm(x, 'layers/attention_norm/scale')
    scores = turn(y @ kernel('attention/query')) @ turn(y @ kernel('attention/key')).T / np.sqrt(32)
    weights = np.exp(scores) * np.tri(T)
    x = x + weights / weights.sum(-1, keepdims=True) @ (y @ kernel('attention/value')) @ kernel('attention/output')
    y = norm(x, 'layers/mlp_norm/scale')
    gate = y @ kernel('mlp/gate')
    x = x + (gate / (1 + np.exp(-gate)) * (y @ kernel('mlp/up'))) @ kernel('mlp/down')
    logits = norm(x, 'final_norm/scale') @ params['head/kernel']
    np.testing.assert_allclose(forward(model, batch)['logits'][0], logits, atol=1e-4)


INVALID = [
    (
        {'num_heads': 5, 'head_dim': 6},
        'num_heads=5 does not divide model.width=32: set model.num_heads to 4 or 8, or model.width to a multiple of 5',
    ),
    ({'num_kv_heads': 3}, 'num_kv_heads=3 does not divide model.num_heads=4: set model.num_kv_heads to 2 or 4,'),
    ({'num_kv_heads': 9}, 'num_kv_heads=9 does not divide model.num_heads=4: set model.num_kv_heads to 4,'),
    ({'head_dim': 7}, 'head_dim=7 is odd'),
    ({'activation': 'gleu'}, "did you mean 'gelu'"),
    ({'attention': 'flash'}, "'splash'"),
    ({'dtype': 'bf16'}, "did you mean 'bfloat16'"),
    ({'dropout': 1.0}, 'dropout=1.0'),
    ({'dropout': -0.1}, 'dropout=-0.1'),
    ({'vocab_size': 0}, 'vocab_size=0'),
    ({'window': -1}, 'window=-1'),
    ({'unroll': 3}, 'unroll=3'),
    ({'rope_theta': 0.0}, 'rope_theta=0.0'),
    ({'rotary_dim': 9}, 'rotary_dim=9'),
    ({'rotary_dim': 10}, 'rotary_dim=10 is more than model.head_dim=8'),
    ({'global_layers': (0,)}, 'global_layers=.0,. has no effect'),
    ({'local_rope_theta': 5.0}, 'local_rope_theta=5.0 has no effect'),
    ({'window': 4, 'global_layers': (2,)}, 'global_layers=.2,. are not all of 2 layers'),
    ({'biased': ('queries',)}, "'queries'"),
    ({'parallel': True, 'norm_place': 'post'}, "parallel needs norm_place='pre', not 'post'"),
    ({'rope_scaling': (('rope_type', 'linear'), ('factor', 0.0))}, 'factor=0.0 must be above 0'),
    ({'rope_scaling': (('rope_type', 'linaer'),)}, "rope_type = 'linaer' is none of .*, did you mean 'linear'"),
]


@pytest.mark.parametrize(('settings', 'message'), INVALID)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_rows_longer_than_learned_positions_are_rejected():
    model = build(positions='learned', max_len=8)
    with pytest.raises(ValueError, match='12 tokens is longer than model.max_len=8'):
        jax.eval_shape(model.init, jax.random.key(0), example())
    with pytest.raises(ValueError, match='max_len=8'):
        model.init_cache(1, 9)
    with pytest.raises(ValueError, match='causal'):
        MODELS['bert'].init_cache(1, 4)


def test_targets_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match='targets'):
        forward(MODELS['llama'], example() | {'targets': np.zeros((B, 3), np.int32)})
