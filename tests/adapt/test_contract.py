"""The contract of every method, for causal and masked language modelling: one line adds a method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import adapt, optimizer, tree
from lmtrain.models import Transformer
from lmtrain.tasks import token_loss
from lmtrain.training import state, step

V, B, T, N, D, M = 31, 4, 10, 3, 16, 3
QUICK = {'xla_backend_optimization_level': 0}  # compile time is most of what these tests cost
PROJECTIONS = '.*/(query|value|down)/kernel'


def lora(**settings):
    return {'name': 'lora', 'rank': [(PROJECTIONS, 4)], 'alpha': [('.*', 8.0)]} | settings


METHODS = {
    'full': {'name': 'full'},
    'last layers': {'name': 'layers', 'last': 1},
    'layers by regex': {'name': 'layers', 'trainable': r'layers/(0|2)/mlp/.*|final_norm/scale|embed_norm/bias'},
    'bitfit': {'name': 'bitfit'},
    'norms': {'name': 'norms'},
    'lora': lora(),
    'lora of some layers': lora(rank=[('layers_1/.*/(key|up)/kernel', 2)], cut=(1, 2)),
    'lora of many ranks': lora(rank=[('.*/query/kernel', (1, 0, 3)), ('embed/embedding', 2)], rslora=True),
    'lora with a zero': lora(zero='a'),
    'dora': lora(dora=True),
    'ia3': {'name': 'ia3'},
    'prompt': {'name': 'prompt', 'length': 3},
    'p-tuning': {'name': 'prompt', 'length': 3, 'init': 'random', 'hidden': 8},
    'prefix': {'name': 'prefix', 'length': 3},
    'prefix by a network': {'name': 'prefix', 'length': 3, 'hidden': 8},
    'head': {'name': 'head', 'head': {'name': 'probe', 'classes': 5}},
    'lora with a head': lora(head={'name': 'probe', 'classes': 5}),
}
MOVES_AT_ONCE = {'prompt', 'p-tuning', 'prefix', 'prefix by a network'}  # no promise of the same output at the start
# Each method with both objectives, of which one in turn is not slow.
CASES = [
    pytest.param(name, objective, id=f'{objective}-{name}', marks=[pytest.mark.slow] * ((i + j) % 2))
    for i, name in enumerate(METHODS)
    for j, objective in enumerate(('causal', 'masked'))
]


def build(**settings) -> Transformer:
    config = base.get_config()
    small = {'vocab_size': V, 'max_len': 32, 'num_layers': N, 'width': D, 'num_heads': 2, 'unroll': 1}
    config.model.update(small | settings)
    return Transformer(**config.model)


MODELS = {
    'causal': build(num_kv_heads=1, tied=False, bias=True, activation='swiglu'),
    'masked': build(causal=False, mlm_head=True, positions='learned', norm='layernorm', activation='gelu', bias=True),
}


@functools.cache
def base_of(objective):
    model = MODELS[objective]
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), {'tokens': jnp.zeros((1, T), jnp.int32)})
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: 3 * x + 0.1 * random.normal(size=x.shape).astype(np.float32), params['params'])


def make_batch(objective):
    random = np.random.default_rng(2)
    drawn, targets = random.integers(0, V, (2, B, T), dtype=np.int32)
    real = (np.arange(T)[None] < np.array([T, 7, 4, 9])[:, None]).astype(np.int32)  # rows of several lengths
    batch = {'tokens': drawn, 'segment_ids': real, 'targets': targets, 'loss_mask': real.astype(np.float32)}
    if objective == 'masked':
        batch['select'] = np.tile(np.arange(M, dtype=np.int32), (B, 1))
        batch |= {name: batch[name][:, :M] for name in ('targets', 'loss_mask')}
    return batch


def method(name, objective):
    settings = dict(METHODS[name])
    if name == 'layers by regex' and objective == 'causal':
        settings['trainable'] = settings['trainable'].replace('|embed_norm/bias', '')
    return adapt.method(settings.pop('name'), MODELS[objective], base_of(objective), **settings)


@functools.cache
def compiled(model):
    return jax.jit(lambda params, batch: model.apply({'params': params}, batch), compiler_options=QUICK)


def loss(forward, batch):
    """Cross-entropy of tokens, and a term that trains the added head."""
    outputs = forward(batch)
    values, weights = token_loss.loss(lambda _: outputs, batch)
    if 'probe' in outputs:
        values['loss'] += jnp.mean(jnp.square(outputs['probe'] - 1.0), axis=-1)
    return values, weights


def train(model, trainable, params, batch, steps=50):
    """(state before, state after) some steps, with weight decay on all trainable leaves."""
    decay = dict.fromkeys(['weight_decay'], 0.1) | {'decayed': '.*', 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8}
    tx = optimizer.optimizer('adamw', **decay)
    before = state.create(jax.random.key(3), params, trainable, tx)
    options = {'learning_rate': 3e-3, 'clip': 1.0, 'trainable': before.trainable}
    one = step.make_train_step(step.make_gradient(model, loss), tx, lambda progress: 1.0 - 0 * progress, **options)
    run = jax.jit(lambda state: jax.lax.fori_loop(0, steps, lambda i, s: one(s, batch, 0.0)[0], state))
    return before, run.lower(before).compile(compiler_options=QUICK)(before)


@pytest.mark.parametrize(('name', 'objective'), CASES)
def test_method(name, objective):
    model, batch, chosen = MODELS[objective], make_batch(objective), method(name, objective)
    params = chosen.start(jax.random.key(5), base_of(objective))
    at_first = compiled(model)(base_of(objective), batch)
    extended = compiled(model)(params, batch)
    real = np.nonzero(batch['loss_mask'])
    change = np.abs(extended['logprob'] - at_first['logprob'])[real].max()
    assert change > 1e-3 if name in MOVES_AT_ONCE else change <= 1e-5
    for head in ('logprob', 'logits'):  # outputs are those of the text alone
        assert extended[head].shape == at_first[head].shape

    before, after = train(model, chosen.trainable, params, batch)
    assert int(after.counters['skipped']) == 0
    for path, leaf in tree.flatten(before.frozen).items():
        np.testing.assert_array_equal(tree.flatten(after.frozen)[path], leaf, err_msg=path)
    old, new = tree.flatten(before.trainable), tree.flatten(after.trainable)
    moments = after.opt_state[0]
    assert old.keys() == tree.flatten(moments.mu).keys() == tree.flatten(moments.nu).keys()
    still = [path for path in old if np.array_equal(old[path], new[path])]
    assert not still, still
    trained = compiled(model)(after.params, batch)
    assert np.mean(trained['logprob'][real]) > np.mean(extended['logprob'][real]) or name == 'head'

    if 'embed/lora_a' in old and model.tied:  # merged, it would change the head as well
        with pytest.raises(ValueError, match='the head is tied to embed/embedding'):
            adapt.fold(after.params)
        return
    folded = adapt.fold(after.params)
    np.testing.assert_allclose(compiled(model)(folded, batch)['logits'][real], trained['logits'][real], atol=1e-4)
    if not MOVES_AT_ONCE & {name} and 'head' not in name:  # a closed form leaves the base's own leaves
        plain = tree.cut(base_of(objective), chosen.cut) if chosen.cut else base_of(objective)
        assert tree.flatten(folded).keys() == tree.flatten(plain).keys()
