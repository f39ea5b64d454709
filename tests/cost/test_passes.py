"""FLOPs of rollouts and of other passes outside of the train step, against the compiled programs that run them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import adapt, models
from lmtrain.cost import hlo, passes
from lmtrain.inference import decode, sample

SMALL = base.get_config().model.to_dict() | {'vocab_size': 200, 'max_len': 256, 'num_layers': 2, 'width': 64}
SMALL |= {'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 16, 'mlp_dim': 160, 'unroll': 1}
PROMPTS, SAMPLES, LONGEST, MAX_TOKENS, DRAWN = 3, 4, 40, 30, 21
SETTINGS = {'max_tokens': MAX_TOKENS, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0}
SETTINGS |= {'end_ids': [1], 'vocab_size': 200}
QUERY = ((r'.*/(query|down)/kernel', 6),)
CASES = {
    'full': ({}, 'full', {}),
    'untied': ({'tied': False, 'activation': 'gelu'}, 'full', {}),
    'window': ({'window': 24}, 'full', {}),
    'window in one of two layers': ({'window': 24, 'global_layers': (1,)}, 'full', {}),
    'lora': ({}, 'lora', {'rank': QUERY, 'alpha': (('.*', 8.0),)}),
    'prompt': ({}, 'prompt', {'length': 6}),
    'prefix': ({}, 'prefix', {'length': 6}),
}


def parameters(case):
    """(model, parameters) of a case."""
    changes, name, settings = CASES[case]
    model = models.Transformer(**SMALL | changes)
    params = jax.eval_shape(model.init, jax.random.key(0), {'tokens': np.zeros((1, 8), np.int32)})['params']
    start = adapt.method(name, model, params, **settings).start
    return model, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(start, jax.random.key(1), params))


def flops_of(function, *arguments):
    """FLOPs of the compiled jitted function."""
    return hlo.compiled_flops(function.lower(*arguments).compile({'xla_backend_optimization_level': 0}))


@pytest.mark.parametrize(
    'case',
    [pytest.param(name, marks=[pytest.mark.slow] * (name in {'untied', 'window', 'prefix'})) for name in CASES],
)
def test_flops_of_sampling_are_those_of_the_compiler(no_compilation_cache, monkeypatch, case):
    """The prefill, and the loop of the decoding with the number of its steps, which the program does not tell."""
    model, params = parameters(case)
    prompts = [[5] * LONGEST, [6] * 7, [7] * 11]
    batch = sample.prompt_batch(model, params, prompts, SETTINGS, rows=PROMPTS, samples=SAMPLES, logprob=True)
    scanned, unrolled = decode.for_decoding(model)
    state = decode.start(batch.settings, batch.room, batch.method)
    read = (scanned, params, batch.tokens, batch.lengths, state, batch.settings, batch.method)
    past, cache, state = decode.prefill.eval_shape(*read)
    weights = decode.decoding_params(model, params, PROMPTS * SAMPLES)
    draw = (unrolled, weights, past, cache, state, batch.settings, np.int32(MAX_TOKENS), batch.method)
    prefill = flops_of(decode.prefill, *read)
    monkeypatch.setattr(hlo, '_trips', lambda *_: DRAWN - 1)
    decoding = flops_of(decode.decode, *draw)
    assert decoding > prefill > 0

    T, M = sample.lengths(model, params, LONGEST, MAX_TOKENS)
    assert (T, M) == (batch.tokens.shape[1], batch.room) == (64, 32)
    first, whole = (
        passes.sampling_flops(model, params, passes.SamplingShape(PROMPTS, SAMPLES, T, M, drawn))
        for drawn in (1, DRAWN)
    )
    np.testing.assert_allclose(first, prefill, rtol=0.03)
    np.testing.assert_allclose(whole - first, decoding, rtol=0.03)


@pytest.mark.parametrize('case', ['full', 'lora'])
def test_flops_of_a_pass_are_those_of_the_compiler(no_compilation_cache, case):
    """Over rows of two blocks of queries, the second of which reads the keys of both."""
    model, params = parameters(case)
    batch = {name: np.zeros((2, 256), np.int32) for name in ('tokens', 'targets')}
    compiled = flops_of(jax.jit(lambda params: model.apply({'params': params}, batch)['logprob']), params)
    np.testing.assert_allclose(passes.pass_flops(model, params, 2, 256), compiled, rtol=0.01)


def test_flops_of_a_rollout_are_those_of_its_parts():
    model, params = parameters('lora')
    _, reference = parameters('full')
    sampled = passes.SamplingShape(PROMPTS, SAMPLES, 64, 32, DRAWN)
    scores = [passes.pass_flops(model, each, PROMPTS * SAMPLES, 80) for each in (params, reference)]
    assert scores[0] > scores[1]
    expected = passes.sampling_flops(model, params, sampled) + sum(scores)
    assert passes.rollout_flops(model, params, sampled, PROMPTS * SAMPLES, 80, [params, reference]) == expected
