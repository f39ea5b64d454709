"""Bits per byte: windows of lm-eval, sums by hand, and the standard error of a ratio."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.evaluation.perplexity import bits_per_byte, windows


def rolling(tokens, prefix, max_len):
    """lm-eval 0.4.13, utils.get_rolling_token_windows with context_len=1, then make_disjoint_window."""
    predicted = min(max_len, len(tokens))
    pairs = [([prefix, *tokens[: predicted - 1]], tokens[:predicted])]
    while predicted < len(tokens):
        size = min(len(tokens) - predicted, max_len)
        end = predicted + size
        pairs.append((tokens[end - max_len - 1 : end - 1], tokens[end - size : end]))
        predicted += size
    return [(a[: len(a) - (len(b) - 1)], b) for a, b in pairs]


@pytest.mark.parametrize('size', [1, 6, 7, 8, 14, 15, 20])
def test_windows_are_those_of_lm_eval(size):
    tokens = list(range(100, 100 + size))
    own = [(w.context_ids.tolist(), w.continuations[0].tolist()) for w in windows(np.array(tokens), 7, 7)]
    assert own == rolling(tokens, 7, 7)


@pytest.mark.slow
def test_bits_are_those_of_each_token(computes):
    model, params, tokenizer = computes
    texts = ['the cat sat', 'été ' * 30, 'b']
    results, rows = bits_per_byte(model, params, tokenizer, texts, batch_size=4)
    for text, row in zip(texts, rows, strict=True):
        nats = 0.0
        for window in windows(np.array([*text.encode()]), tokenizer.begin_id, model.max_len):
            ids = np.concatenate([window.context_ids, window.continuations[0]])
            logits = model.apply({'params': params}, {'tokens': jnp.asarray(ids[None, :-1])})['logits'][0]
            logp = np.asarray(jax.nn.log_softmax(logits), np.float64)[np.arange(len(ids) - 1), ids[1:]]
            nats -= logp[len(window.context_ids) - 1 :].sum()
        assert row['nats'] == pytest.approx(nats, rel=1e-5) and row['bytes'] == len(text.encode())
    total = sum(row['nats'] for row in rows)
    assert results['bits_per_byte'] == pytest.approx(total / math.log(2) / (11 + 180 + 1))
    assert results['perplexity'] == pytest.approx(math.exp(total / 192))
    assert bits_per_byte(model, params, tokenizer, texts, batch_size=1)[0]['bits_per_byte'] == pytest.approx(
        results['bits_per_byte'], rel=1e-6
    )


@pytest.mark.slow
def test_the_standard_error_is_that_of_resampled_texts(computes):
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 105, size)).decode() for size in rng.integers(5, 60, 80)]
    results, rows = bits_per_byte(*computes, texts)
    bits, sizes = (np.array([row[name] for row in rows]) for name in ('nats', 'bytes'))
    drawn = rng.integers(len(texts), size=(4000, len(texts)))
    ratios = bits[drawn].sum(1) / sizes[drawn].sum(1) / math.log(2)
    assert results['bits_per_byte_stderr'] == pytest.approx(ratios.std(), rel=0.05)
    assert type(results['bits_per_byte_stderr']) is float
    assert bits_per_byte(*computes, texts[:1])[0]['bits_per_byte_stderr'] is None


def test_only_causal_language_models_have_a_perplexity(computes):
    model, params, tokenizer = computes
    for changes in ({'causal': False}, {'head': 'none'}):
        with pytest.raises(ValueError, match='only a causal language model gives'):
            bits_per_byte(dataclasses.replace(model, **changes), params, tokenizer, ['a'])
    with pytest.raises(ValueError, match='no text has a token'):
        bits_per_byte(*computes, [''])
