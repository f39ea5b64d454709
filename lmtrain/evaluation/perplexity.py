"""Bits per byte of texts under a causal language model, in windows that cover every token once."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.errors import InputError
from lmtrain.inference.likelihood import TokenPrompt, log_likelihoods
from lmtrain.models.virtual_tokens import room
from lmtrain.runtime import progress
from lmtrain.tree import Params


def windows(ids: np.ndarray, begin: int, context: int) -> list[TokenPrompt]:
    """The windows of a text: each reads at most `context` tokens, and each token is predicted once.

    The first window begins with the token `begin`. Each later one begins with the last token of the one before it; the
    last reads as many tokens before those that it predicts as fit. Same as lm-eval's rolling log-likelihood.

    >>> [(w.context_ids.tolist(), w.continuations[0].tolist()) for w in windows(np.arange(1, 8), 0, 3)]
    [([0], [1, 2, 3]), ([3], [4, 5, 6]), ([4, 5, 6], [7])]
    """
    whole = np.insert(ids, 0, begin).astype(np.int32)
    prompts = []
    for first in range(1, len(whole), context):
        end = min(first + context, len(whole))
        prompts.append(TokenPrompt(whole[max(0, end - 1 - context) : first], (whole[first:end],)))
    return prompts


def check_language_model(model) -> None:
    """Raises InputError if a model gives texts no probability."""
    if not model.causal or model.head != 'lm':
        way_out = '' if model.head in ('lm', 'none') else '; `lmtrain predict` gives what the head predicts'
        raise InputError(
            f'model.causal={model.causal}, model.head={model.head!r}: only a causal language model gives texts a '
            f'probability{way_out}'
        )


def bits_per_byte(
    model, params: Params, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 32
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """(results, texts): {'bits_per_byte', 'perplexity' (per token), 'tokens', 'bytes', 'computed_tokens', ...}.

    Bits per byte is the sum of -log2 p of all tokens divided by the number of bytes of UTF-8. Its standard error is
    that of a ratio of sums over texts (Cochran 1977, Sampling Techniques, equation 6.13), None for one text. Of each
    text there is {'nats', 'tokens', 'bytes'}.

    Raises InputError if the model is not a causal language model, or no text has a token.
    """
    check_language_model(model)
    context = room(model, params)
    encoded = tokenizer.encode_batch(texts)
    each = [windows(ids, tokenizer.begin_id, context) for ids in encoded]
    flat = [prompt for prompts in each for prompt in prompts]
    if not flat:
        raise InputError('no text has a token')
    with progress.phase('scoring the text', brief=True):
        result = log_likelihoods(model, params, flat, batch_size)
    nats = np.array([float(own[0]) for own in result.nats])
    ends = np.cumsum([0, *map(len, each)])
    rows = [
        {'nats': -float(nats[start:end].sum()), 'tokens': len(ids), 'bytes': len(text.encode())}
        for start, end, ids, text in zip(ends[:-1], ends[1:], encoded, texts, strict=True)
    ]
    bits, sizes = np.array([row['nats'] for row in rows]) / math.log(2), np.array([row['bytes'] for row in rows])
    ratio, n = bits.sum() / sizes.sum(), len(rows)
    error = math.sqrt(n / (n - 1) * np.sum((bits - ratio * sizes) ** 2)) / int(sizes.sum()) if n > 1 else None
    tokens = sum(row['tokens'] for row in rows)
    results = {'bits_per_byte': float(ratio), 'bits_per_byte_stderr': error}
    results |= {'perplexity': math.exp(-nats.sum() / tokens), 'tokens': tokens, 'bytes': int(sizes.sum())}
    return results | {'computed_tokens': result.computed_tokens}, rows
