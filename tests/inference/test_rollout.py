"""Rollouts are those of `generate`, and their log-probabilities are what the trainer computes again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import tree
from lmtrain.inference import sample
from lmtrain.inference.rollout import rollout
from lmtrain.models import Transformer
from lmtrain.parallel import sharding

END, VOCAB, P = 9, 41, 3  # of the tokenizer; the embedding has 64 rows
DRAWN = {'temperature': 0.8, 'seed': 3, 'end_ids': [END], 'vocab_size': VOCAB, 'max_tokens': 14}
PROMPTS = [[3, 1, 4, 1, 5, 2, 6, 7, 8, 3], [7], [27, 2, 4], [11, 12], [5] * 17, [8, 8], [3], [6, 1, 2]]


def build(leaves=(), **settings):
    """(model, parameters), all of them random and large enough for uneven draws."""
    config = base.get_config()
    config.model.update({'vocab_size': 64, 'max_len': 64, 'num_layers': 3, 'width': 16, 'num_heads': 4})
    config.model.update({'num_kv_heads': 2, 'head_dim': 8, 'mlp_dim': 32, 'unroll': 1} | settings)
    model, random = Transformer(**config.model), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params'])

    def of(*shape):
        return jnp.asarray(random.normal(0.0, 0.5, shape), jnp.float32)

    params = jax.tree.map(lambda leaf: of(*leaf.shape), shapes)
    attention = params['layers']['attention']
    if 'prompt' in leaves:
        params['prompt'] = {'embedding': of(P, 16)}
    if 'prefix' in leaves:
        attention |= {f'prefix_{name}': of(3, P, 2, 8) for name in ('key', 'value')}
    if 'lora' in leaves:
        attention['query'] |= {'lora_a': of(3, 16, 2), 'lora_b': of(3, 2, 32), 'lora_scale': jnp.full(3, 2.0)}
    if 'ia3' in leaves:
        attention['query'] |= {'ia3_in': of(3, 16)}
        attention['value'] |= {'ia3_out': of(3, 16)}
        params['layers']['mlp']['down'] |= {'ia3_in': of(3, 32)}
    if 'network' in leaves:
        linear = {'kernel': of(16, 16), 'bias': of(16)}
        params['prompt'] = {'embedding': of(P, 16), 'mlp_0': linear, 'mlp_1': linear}
    if 'dora' in leaves:
        attention['query']['lora_magnitude'] = jnp.abs(of(3, 32))
    return model, params


CASES = {
    'grouped keys': {},
    'learned': {'positions': 'learned', 'norm': 'layernorm', 'bias': True, 'tied': False, 'num_kv_heads': 4},
    'window': {'window': 5},
    'window of some layers': {'window': 5, 'global_layers': (1,), 'local_rope_theta': 50.0},
    'caps': {'attention_softcap': 2.0, 'logit_softcap': 3.0, 'attention_scale': 0.9, 'norm': 'rmsnorm1p'},
    'soft prompt': {'leaves': ('prompt',)},
    'soft prompt in a window': {'leaves': ('prompt',), 'window': 6},
    'prefix in a window': {'leaves': ('prefix',), 'window': 6},
    'LoRA': {'leaves': ('lora',)},
    'IA3': {'leaves': ('ia3',), 'bias': True},
    'a network of a prompt': {'leaves': ('network',), 'activation': 'gelu'},
    'DoRA and a prefix': {'leaves': ('lora', 'dora', 'prefix')},
}


@functools.partial(jax.jit, static_argnames='model')
def logprob_of(model, params, tokens, targets, segments):
    batch = {'tokens': tokens, 'targets': targets, 'segment_ids': segments}
    return model.apply({'params': params}, batch)['logprob']


def recomputed(model, params, prompts, rows):
    """float32 [N, L]: log-probabilities of the completions by the forward pass of the trainer; 0 after them."""
    samples, (N, L) = len(rows.tokens) // len(prompts), rows.tokens.shape
    # The trainer's loss has no temperature: it is a factor of the head.
    columns = {name: np.zeros((N, 48), np.int32) for name in ('tokens', 'targets', 'segment_ids')}
    out = np.zeros((N, L), np.float32)
    for row, (ids, length) in enumerate(zip(np.asarray(rows.tokens), np.asarray(rows.lengths), strict=True)):
        whole = [*prompts[row // samples], *ids[:length]]
        columns['tokens'][row, : len(whole) - 1] = whole[:-1]
        columns['targets'][row, : len(whole) - 1] = whole[1:]
        columns['segment_ids'][row, : len(whole) - 1] = 1
    values = np.asarray(logprob_of(model, params, columns['tokens'], columns['targets'], columns['segment_ids']))
    for row, length in enumerate(rows.lengths):
        first = len(prompts[row // samples]) - 1
        out[row, :length] = values[row, first : first + length]
    return out


def check(model, params, prompts, rows):
    assert rows.tokens.dtype == rows.lengths.dtype == np.int32 and rows.ended.dtype == bool
    assert rows.logprob.dtype == np.float32
    np.testing.assert_allclose(rows.logprob, recomputed(model, params, prompts, rows), atol=1e-5)
    behind = np.arange(rows.tokens.shape[1])[None] >= np.asarray(rows.lengths)[:, None]
    assert not np.any(np.asarray(rows.tokens)[behind])
    last = np.take_along_axis(np.asarray(rows.tokens), np.asarray(rows.lengths)[:, None] - 1, axis=1)[:, 0]
    np.testing.assert_array_equal(rows.ended, last == END)
    assert 0 < np.sum(rows.ended) < len(rows.ended)


# What the other cases contain.
SLOW = {'window', 'soft prompt', 'LoRA', 'a network of a prompt'}


@pytest.mark.parametrize(
    'settings', [pytest.param(CASES[name], id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def test_log_probabilities_are_those_of_the_trainer(settings):
    model, params = build(**settings)
    check(model, params, PROMPTS, rollout(model, params, PROMPTS, samples=3, **DRAWN | {'temperature': 1.0}))


def test_segments_of_layers_equal_one_stack():
    model, params = build()
    options = {'samples': 3} | DRAWN
    whole = rollout(model, params, PROMPTS, **options)
    cut = rollout(model, tree.cut(params, (1, 2)), PROMPTS, **options)
    np.testing.assert_array_equal(cut.tokens, whole.tokens)
    np.testing.assert_allclose(cut.logprob, whole.logprob, atol=1e-5)


def test_samples_are_the_texts_of_equal_prompts():
    """Read once or many times; the end token and its log-probability belong to the completion."""
    model, params = build(window=6)
    rows = rollout(model, params, PROMPTS, samples=4, top_k=20, **DRAWN)
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    texts = sample.generate(model, params, repeated, top_k=20, top_p=1.0, **DRAWN)
    for ids, length, ended, text in zip(*map(np.asarray, rows[:3]), texts, strict=True):
        assert ids[: length - ended].tolist() == text.ids and ended == (text.finish_reason == 'stop')
    assert len({tuple(ids) for ids in np.asarray(rows.tokens).tolist()}) > 28
    again = rollout(model, params, PROMPTS, samples=4, top_k=20, **DRAWN)
    jax.tree.map(np.testing.assert_array_equal, rows, again)


@pytest.mark.parametrize('temperature', [0.8, 2.5])
def test_log_probabilities_are_those_at_the_temperature(temperature):
    """Dividing logits is the same as dividing the table of an untied head; the cut of the draws does not matter."""
    model, params = build(tied=False)
    rows = rollout(model, params, PROMPTS, samples=3, top_k=12, top_p=0.9, **DRAWN | {'temperature': temperature})
    cooled = params | {'head': {'kernel': params['head']['kernel'] / temperature}}
    check(model, cooled, PROMPTS, rows)


def test_the_most_likely_tokens_and_their_log_probabilities():
    model, params = build()
    rows = rollout(model, params, PROMPTS, samples=3, **DRAWN | {'temperature': 0.0})
    tokens = np.reshape(rows.tokens, (len(PROMPTS), 3, -1))
    np.testing.assert_array_equal(tokens, np.broadcast_to(tokens[:, :1], tokens.shape))
    np.testing.assert_allclose(rows.logprob, recomputed(model, params, PROMPTS, rows), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('axes', [{'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 4, 'tensor': 2}], ids=str)
@pytest.mark.parametrize('name', ['window', 'soft prompt', 'LoRA'])
def test_a_mesh_changes_nothing(name, axes):
    """The parameters are sharded as those of the trainer; 7 prompts do not divide over its devices."""
    model, params = build(**CASES[name])
    mesh = sharding.mesh(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1} | axes)
    on_mesh = jax.device_put(params, sharding.shardings(params, mesh))
    options = {'samples': 2} | DRAWN | {'temperature': 1.0}
    alone = rollout(model, params, PROMPTS[:7], **options)
    rows = rollout(model, on_mesh, PROMPTS[:7], mesh=mesh, **options)
    for name in ('tokens', 'lengths', 'ended'):
        np.testing.assert_array_equal(getattr(rows, name), getattr(alone, name))
    check(model, params, PROMPTS[:7], rows)


def test_completions_end_with_the_context():
    model, params = build()
    rows = rollout(model, params, [[7] * 60, [7]], samples=2, **DRAWN | {'end_ids': []})
    assert rows.lengths.tolist() == [5, 5, 14, 14] and not np.any(rows.ended)


def test_bfloat16_is_close():
    model, params = build(num_kv_heads=1)
    model = dataclasses.replace(model, dtype='bfloat16')
    rows = rollout(model, params, PROMPTS, samples=2, **DRAWN | {'temperature': 1.0})
    difference = np.abs(rows.logprob - recomputed(model, params, PROMPTS, rows))
    assert 0 < difference.mean() < 0.05


def test_invalid_arguments_are_rejected():
    model, params = build()
    with pytest.raises(ValueError, match='samples=0'):
        rollout(model, params, PROMPTS, samples=0, **DRAWN)
    with pytest.raises(ValueError, match='prompt 1 is empty'):
        rollout(model, params, [[1], []], samples=1, **DRAWN)
    with pytest.raises(ValueError, match='temperature=-1'):
        rollout(model, params, PROMPTS, samples=1, **DRAWN | {'temperature': -1.0})
