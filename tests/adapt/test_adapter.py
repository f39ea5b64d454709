"""Adapters: the equations of their layers, virtual tokens, several adapters in one batch, and wrong settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import adapt, tree
from lmtrain.adapt import lora, methods, prompt
from lmtrain.inference import sample
from lmtrain.models import Transformer
from lmtrain.models.linear import Embed, Linear

V, B, T, N, D, P = 31, 3, 12, 2, 16, 4
QUICK = {'xla_backend_optimization_level': 0}


def build(**settings) -> Transformer:
    config = base.get_config()
    small = {'vocab_size': V, 'max_len': 32, 'num_layers': N, 'width': D, 'num_heads': 2, 'unroll': 1}
    config.model.update(small | settings)
    return Transformer(**config.model)


MODELS = {
    'rotary': build(num_kv_heads=1, tied=False),
    'learned': build(positions='learned', norm='layernorm', activation='gelu', bias=True),
    'window': build(window=5),
    'alternating': build(window=5, global_layers=(1,)),
    'encoder': build(causal=False, norm='layernorm', activation='gelu', positions='learned'),
}


@functools.cache
def base_of(name):
    shapes = tree.flatten(jax.eval_shape(MODELS[name].init, jax.random.key(0), make_batch())['params'])
    random = np.random.default_rng(1)
    drawn = {path: random.normal(3.0 * path.endswith('scale'), 0.12, leaf.shape) for path, leaf in shapes.items()}
    return tree.unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in drawn.items()})


@functools.cache
def compiled(model):
    def forward(params, batch, key, store, **caches):
        options = caches | {'store': store, 'adapter_dropout': 0.4, 'rngs': None if key is None else {'dropout': key}}
        return model.apply({'params': params}, batch, train=key is not None, **options)

    return jax.jit(forward, static_argnums=3, compiler_options=QUICK)


def forward(name, params, batch, key=None, store=False, **caches):
    return compiled(MODELS[name])(params, batch, key, store, **caches)


def make_batch():
    return {'tokens': np.random.default_rng(2).integers(0, V, (B, T), dtype=np.int32)}


def adapted(name, method, key=3, **settings):
    """Parameters with an adapter whose every leaf matters."""
    params = base_of(name)
    chosen = adapt.method(method, MODELS[name], params, **settings)
    leaves, random = tree.flatten(chosen.start(jax.random.key(key), params)), np.random.default_rng(key)
    old = tree.flatten(params)
    for path in leaves.keys() - old.keys():
        if not path.endswith('lora_scale'):
            leaves[path] += 0.2 * random.normal(size=leaves[path].shape).astype(np.float32)
    return tree.unflatten(leaves)


LORA = {'rank': [('.*/(query|up)/kernel', 3)], 'alpha': [('.*', 6.0)]}


def test_linear_and_embed_equal_their_equations():
    random = np.random.default_rng(0)
    x, w, a, b = (random.normal(size=s).astype(np.float32) for s in ((2, 5), (5, 7), (5, 3), (3, 7)))
    bias, m, out = (random.normal(size=7).astype(np.float32) for _ in range(3))
    inward = random.normal(size=5).astype(np.float32)

    def linear(**leaves):
        return Linear(7, True, 0.02).apply({'params': {'kernel': w, 'bias': bias} | leaves}, x)

    low = {'lora_a': a, 'lora_b': b, 'lora_scale': np.float32(0.5)}
    whole = w + 0.5 * a @ b
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(linear(**low), x @ whole + bias[None])
    dora = whole * (m / np.linalg.norm(whole, axis=0))[None]
    close(linear(**low, lora_magnitude=m), x @ dora + bias[None])
    close(linear(ia3_out=out), (x @ w + bias[None]) * out[None])
    close(linear(ia3_in=inward), (x * inward[None]) @ w + bias[None])
    table = random.normal(size=(9, 7)).astype(np.float32)
    leaves = {'embedding': table, 'lora_a': random.normal(size=(9, 3)).astype(np.float32)} | {
        name: low[name] for name in ('lora_b', 'lora_scale')
    }
    index = np.array([[1, 8], [0, 1]])
    close(Embed(9, 7).apply({'params': leaves}, index), (table + 0.5 * leaves['lora_a'] @ b)[index])
    np.testing.assert_array_equal(Embed(9, 7).apply({'params': leaves}), table)


def test_dora_norm_has_no_gradient():
    random = np.random.default_rng(0)
    w, a, b, x = (random.normal(size=s).astype(np.float32) for s in ((5, 7), (5, 3), (3, 7), (2, 5)))
    m = np.linalg.norm(w, axis=0)

    def total(a):
        leaves = {'kernel': w, 'lora_a': a, 'lora_b': b, 'lora_scale': np.float32(1), 'lora_magnitude': m}
        return Linear(7, False, 0.02).apply({'params': leaves}, x).sum()

    norm = np.linalg.norm(w + a @ b, axis=0)
    expected = x.T @ np.broadcast_to(m / norm, (2, 7)) @ b.T
    np.testing.assert_allclose(jax.grad(total)(a), expected, rtol=1e-4, atol=1e-5)


def test_initial_values_of_lora():
    params = base_of('rotary')
    rank = [('layers/attention/query/kernel', (1, 3)), ('.*/down/kernel', 2), ('embed/embedding', 2)]
    new = lora.adapter(rank=rank, alpha=[('.*query.*', 6.0), ('.*', 8.0)], rslora=True)(jax.random.key(0), params)
    query, down = new['layers']['attention']['query'], new['layers']['mlp']['down']
    assert new.keys() == {'layers', 'embed'}
    assert query['lora_a'].shape == (N, D, 3) and query['lora_b'].shape == (N, 3, D)
    assert not np.any(query['lora_a'][0, :, 1:]) and np.all(query['lora_a'][1])
    np.testing.assert_allclose(query['lora_scale'], [6.0, 6.0 / 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(down['lora_scale'], 8.0 / 2**0.5, rtol=1e-6)
    bound = 1 / down['lora_a'].shape[1] ** 0.5
    assert 0.9 * bound < np.abs(down['lora_a']).max() <= bound and not np.any(down['lora_b'])
    assert not np.any(new['embed']['lora_a']) and 0.5 < np.std(new['embed']['lora_b']) < 1.5
    np.testing.assert_array_equal(
        params['layers']['mlp']['down']['kernel'], base_of('rotary')['layers']['mlp']['down']['kernel']
    )


@pytest.mark.parametrize(
    ('name', 'method'),
    [
        ('rotary', 'prefix'),
        pytest.param('rotary', 'prompt', marks=pytest.mark.slow),
        ('learned', 'prompt'),
        pytest.param('learned', 'prefix', marks=pytest.mark.slow),
        pytest.param('window', 'prompt', marks=pytest.mark.slow),
        pytest.param('window', 'prefix', marks=pytest.mark.slow),
        ('alternating', 'prompt'),
        ('alternating', 'prefix'),
    ],
)
def test_cached_decoding_with_virtual_tokens(name, method):
    params, whole = adapted(name, method, length=P), make_batch()
    full = forward(name, params, whole)['logits']
    assert full.shape == (B, T, V)
    assert np.abs(full - forward(name, base_of(name), whole)['logits']).max() > 0.1
    lengths = np.array([7, 3, 5])
    real = (np.arange(8)[None] < lengths[:, None]).astype(np.int32)
    outputs = forward(name, params, {'tokens': whole['tokens'][:, :8], 'segment_ids': real}, store=True)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(outputs['logits'][row, :length], full[row, :length], atol=2e-5)
    past, cache = outputs['cache'], MODELS[name].init_cache(B, 4)
    for at in (lengths, lengths + 1):
        token = {'tokens': whole['tokens'][np.arange(B), at][:, None]}
        outputs = forward(name, params, token, past=(past,), cache=cache)
        cache = outputs['cache']
        np.testing.assert_allclose(outputs['logits'][:, 0], full[np.arange(B), at], atol=2e-5)


@pytest.mark.parametrize('name', ['rotary', 'learned', 'encoder'])
def test_prompt_of_token_embeddings_equals_those_tokens(name):
    ids = [5, 9, 30, 2]
    params, batch = base_of(name), make_batch()
    one = prompt.adapter(length=P, init='text', ids=ids)
    prompted = forward(name, adapt.extend(one, jax.random.key(0), params), batch)
    front = np.tile(np.array(ids, np.int32), (B, 1))
    longer = forward(name, params, {'tokens': np.concatenate([front, batch['tokens']], axis=1)})
    for head in ('hidden', 'logits'):
        np.testing.assert_allclose(prompted[head], longer[head][:, P:], atol=1e-5)


@pytest.mark.parametrize('method', ['prompt', 'prefix'])
@pytest.mark.parametrize('name', ['learned', 'encoder'])
def test_padded_row_equals_the_row_alone(name, method):
    params, batch = adapted(name, method, length=P), make_batch()
    real = (np.arange(T)[None] < np.array([T, 5, 8])[:, None]).astype(np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))  # the default, given explicitly
    together = forward(name, params, batch | {'segment_ids': real, 'positions': positions})['logits']
    alone = forward(name, params, {'tokens': batch['tokens'][1:2, :5]})['logits']
    np.testing.assert_allclose(together[1, :5], alone[0], atol=1e-5)


def test_prefix_precedes_every_document_of_a_row():
    params, batch = adapted('window', 'prefix', length=P), make_batch()
    segments = np.tile(np.array([1] * 7 + [2] * 5, np.int32), (B, 1))
    positions = np.tile(np.concatenate([np.arange(7), np.arange(5)]).astype(np.int32), (B, 1))
    together = forward('window', params, batch | {'segment_ids': segments, 'positions': positions})['logits']
    alone = forward('window', params, {'tokens': batch['tokens'][:, 7:]})['logits']
    np.testing.assert_allclose(together[:, 7:], alone, atol=1e-5)


def test_generation_uses_the_prompt():
    model = MODELS['rotary']
    settings = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'vocab_size': V, 'max_tokens': 6}
    settings['end_ids'] = [0]
    params = base_of('rotary')
    ids = [7, 19]
    prompted = adapt.extend(prompt.adapter(length=2, init='text', ids=ids), jax.random.key(0), params)
    texts = [[3, 4, 5], [6]]
    expected = sample.generate(model, params, [ids + text for text in texts], **settings)
    assert sample.generate(model, prompted, texts, **settings) == expected
    with pytest.raises(ValueError, match='prompt 0 has 31 tokens, but .* model.max_len=32 minus 2 virtual tokens'):
        sample.generate(model, prompted, [[1] * 31], **settings)


def test_adapter_dropout_depends_on_row_and_layer():
    params = adapted('rotary', 'lora', **LORA)
    batch = make_batch() | {'row': np.arange(B, dtype=np.int32)}
    whole = forward('rotary', params, batch, key=jax.random.key(0))['logits']
    part = jax.tree.map(lambda x: x[np.array([2, 0])], batch)
    # Batches of two and of three rows have other programs, whose rounding differs by 1e-5; another mask by 1e-2.
    np.testing.assert_allclose(
        forward('rotary', params, part, key=jax.random.key(0))['logits'], whole[np.array([2, 0])], atol=1e-4
    )
    assert np.abs(forward('rotary', params, batch)['logits'] - whole).max() > 1e-2
    bare = forward('rotary', base_of('rotary'), batch)['logits']  # without a low-rank path nothing drops out
    np.testing.assert_array_equal(forward('rotary', base_of('rotary'), batch, key=jax.random.key(0))['logits'], bare)


def test_adapters_are_switched_and_mixed_in_one_batch():
    model, batch = MODELS['rotary'], make_batch()
    small = {'rank': [('.*/value/kernel', 1)], 'alpha': [('.*', 2.0)]}
    every = [adapted('rotary', 'lora', **LORA), adapted('rotary', 'lora', key=4, **small), base_of('rotary')]
    parts = [adapt.split_adapter(params) for params in every]
    for plain, own in parts:
        assert tree.flatten(plain).keys() == tree.flatten(base_of('rotary')).keys()
        assert tree.flatten(tree.join(plain, own)).keys() <= set(tree.flatten(every[0])) | set(tree.flatten(every[1]))
    stacked = adapt.stack([own for _, own in parts])
    which = np.array([1, 2, 0], np.int32)
    mixed = jax.jit(lambda batch: adapt.mix(model, parts[0][0], stacked, batch))(batch | {'adapter': which})
    for row, index in enumerate(which):
        alone = forward('rotary', every[index], batch)['logits'][row]
        np.testing.assert_allclose(mixed['logits'][row], alone, atol=1e-5)
    with pytest.raises(ValueError, match='no column adapter'):
        adapt.mix(model, parts[0][0], stacked, batch)
    with pytest.raises(ValueError, match='reaches from 1 to 3, but there are 3 adapters'):
        adapt.mix(model, parts[0][0], stacked, batch | {'adapter': np.array([1, 3, 2])})


def test_adapters_of_different_shapes_are_not_stacked():
    params = base_of('rotary')
    prompts = [{'prompt': {'embedding': np.zeros((n, D))}} for n in (2, 3)]
    with pytest.raises(ValueError, match=r'prompt/embedding is \(2, 16\) in adapter 0, but \(3, 16\) in others'):
        adapt.stack(prompts)
    with pytest.raises(ValueError, match='adapter 1 has no prompt/embedding'):
        adapt.stack([prompts[0], {}])
    assert adapt.split_adapter(params)[1] == {}


LEAVES = [
    ({'layers': {'attention': {'query': {'lora_A': 0}}}}, 'layers/attention/query/lora_A: no layer reads a leaf'),
    ({'layers': {'attention': {'lora_a': 0}}}, 'layers/attention/lora_a: no layer reads'),
    ({'head': {'lora_a': 0}}, 'head/lora_a: no layer reads'),
    ({'embed': {'lora_magnitude': 0}}, 'embed/lora_magnitude: no layer reads'),
    ({'promt': {'embedding': 0}}, 'promt/embedding: no layer reads'),
    ({'layers': {'mlp': {'up': {'kernel': 0}}}}, 'layers/mlp/up/kernel exists already'),
    ({'heads': {'logits': {'kernel': 0}}}, 'every model has an output of that name'),
]


def test_second_adapter_names_the_command_that_merges_the_first():
    command = 'lmtrain export --workdir=RUN --format=hf --merge --to=DIR'
    with pytest.raises(ValueError, match=f'lora_a exists already.*`{command}`, and name DIR as init.base'):
        adapt.method('lora', MODELS['rotary'], adapted('rotary', 'lora', **LORA), **LORA)


@pytest.mark.parametrize(('new', 'message'), LEAVES)
def test_leaf_that_no_layer_reads_is_refused(new, message):
    adapter = lambda rng, params: new  # noqa: E731
    with pytest.raises(ValueError, match=message):
        adapt.extend(adapter, jax.random.key(0), base_of('rotary'))


BAD = [
    ('lara', {}, "adapt.method = 'lara' is none of full, .*, did you mean 'lora'"),
    ('lora', LORA | {'rank': [('.*/qeury/kernel', 2)]}, "lora.rank: '.*/qeury/kernel' matches no parameter"),
    ('lora', LORA | {'rank': [('head/kernel', 2)]}, "'head/kernel' matches no parameter"),
    ('lora', LORA | {'alpha': [('.*query.*', 2.0)]}, 'lora.alpha: no pattern matches layers/mlp/up/kernel'),
    ('lora', LORA | {'rank': [('.*/query/kernel', (1, 2, 3))]}, 'has .2. layers, but rank'),
    ('lora', LORA | {'rank': [('.*/query/kernel', 0)]}, 'must be a whole number above 0'),
    ('lora', LORA | {'rank': [('embed/embedding', 2)], 'dora': True}, 'there is no DoRA'),
    ('lora', LORA | {'cut': (1, 2)}, 'do not divide the 2'),
    ('ia3', {'inputs': '.*/dwon/kernel'}, "ia3.inputs: '.*/dwon/kernel' matches no parameter"),
    ('prompt', {'length': 0}, '^adapt.prompt.length=0 .*, and adapt.prompt.hidden=0'),
    ('prompt', {'length': 2, 'init': 'word'}, "^adapt.prompt.init = 'word' is none of random, vocab, text"),
    (
        'prompt',
        {'length': 2, 'init': 'text'},
        "^adapt.prompt.init='text' and 0 ids of adapt.prompt.text: init='text' and a text require each other",
    ),
    (
        'prompt',
        {'length': 2, 'init': 'text', 'ids': [3, 31]},
        '^adapt.prompt.text has ids from 3 to 31, but the embedding has 31',
    ),
    ('prompt', {'length': 2, 'init': 'text', 'ids': [3], 'hidden': 4}, '^adapt.prompt.hidden=4 .* use hidden=0'),
    ('prefix', {'length': 0}, '^adapt.prefix.length=0 .*, adapt.prefix.hidden=0 and adapt.prefix.stddev=0.02 '),
    ('layers', {}, "^adapt.layers.trainable='' and adapt.layers.last=0: set exactly one of them"),
    ('layers', {'last': 3}, '^adapt.layers.last=3: the model has 2 layers; set it to 1 to 2'),
    ('layers', {'trainable': 'layers/2/.*'}, "^adapt.layers.trainable: 'layers/2/.*' matches no parameter"),
    ('bitfit', {}, "adapt.method='bitfit': trainable: '.*/bias' matches no parameter"),
    ('head', {}, 'no head is added'),
    ('head', {'head': {'name': 'my head', 'classes': 2}}, "head.name='my head' must be an identifier"),
]


@pytest.mark.parametrize(('method', 'settings', 'message'), BAD, ids=range(len(BAD)))
def test_wrong_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        adapt.method(method, MODELS['rotary'], base_of('rotary'), **settings)


def test_random_prompts_have_the_scale_of_embeddings():
    params = base_of('rotary')
    table = np.asarray(params['embed']['embedding'])
    for settings in ({}, {'hidden': 32}):
        one = prompt.adapter(length=200, init='random', **settings)
        folded = adapt.fold(adapt.extend(one, jax.random.key(0), params))['prompt']
        assert folded.keys() == {'embedding'}
        assert 0.6 < np.std(folded['embedding']) / np.std(table) < 1.6
    new = prompt.adapter(length=5, init='vocab', scale=2.0)(jax.random.key(0), params)
    rows = new['prompt']['embedding']
    assert all(np.any(np.all(np.isclose(table * 2.0, row), axis=1)) for row in rows)


def test_fold_reads_the_table_of_adapters(monkeypatch):
    class Side:
        @staticmethod
        def fold(params):
            return {'up': params['up'] + params['side']}

    monkeypatch.setitem(methods.ADAPTERS, 'side', Side)
    assert adapt.fold({'up': 2, 'side': 3}) == {'up': 5}


def test_largest_change_ignores_padding():
    params = adapted('rotary', 'lora', **LORA)
    batch = make_batch() | {'segment_ids': np.ones((B, T), np.int32)}
    change = adapt.largest_change(MODELS['rotary'], base_of('rotary'), params, batch)
    gap = forward('rotary', base_of('rotary'), batch)['logits'] - forward('rotary', params, batch)['logits']
    assert change == pytest.approx(float(jnp.abs(gap).max()), rel=1e-3)
    padding = batch | {'segment_ids': np.zeros((B, T), np.int32)}
    assert adapt.largest_change(MODELS['rotary'], base_of('rotary'), params, padding) == 0
    assert adapt.largest_change(MODELS['rotary'], params, adapt.fold(params), batch) < 1e-4


def test_largest_change_of_a_model_without_logits():
    """Its hidden states are compared, or its added head, as in a classifier on a bare encoder."""
    bare = dataclasses.replace(MODELS['rotary'], head='none')
    before, after = base_of('rotary'), adapted('rotary', 'lora', **LORA)
    outputs = [bare.apply({'params': params}, make_batch())['hidden'] for params in (before, after)]
    expected = float(jnp.abs(outputs[0] - outputs[1]).max())
    assert expected > 0.1
    assert adapt.largest_change(bare, before, after, make_batch()) == pytest.approx(expected, rel=1e-3)
    head = {'heads': {'classify': {'kernel': jnp.full((outputs[0].shape[-1], 2), 10.0)}}}
    gap = jnp.abs(jnp.sum(outputs[0] - outputs[1], axis=-1)).max() * 10
    assert adapt.largest_change(bare, before | head, after | head, make_batch()) == pytest.approx(float(gap), rel=1e-3)
