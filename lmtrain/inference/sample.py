"""Sampling: texts that continue prompts, as a list or in pieces; `decode` holds the compiled programs."""

import collections
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmtrain.errors import InputError, NonFiniteOutput
from lmtrain.inference import decode
from lmtrain.models import Transformer
from lmtrain.models.rotary import angles_change_after
from lmtrain.models.virtual_tokens import num_virtual_tokens, room
from lmtrain.tree import Params

MAX_BATCH = 64  # prompts decoded together, unless a caller says how many
SHORTEST = 16  # minimum padded length; longer ones are rounded up to powers of two, so that few programs are compiled


class Generated(NamedTuple):
    """The continuation of a prompt."""

    ids: list[int]  # without the end token
    finish_reason: str  # 'stop' (an end token), 'length' (max_tokens) or 'context' (model.max_len)


class PromptBatch(NamedTuple):
    """Padded prompts and the settings of their texts: row p * samples + g is text g of prompt p."""

    tokens: np.ndarray  # int32 [P, T]
    lengths: np.ndarray  # int32 [P]; 0 in padding rows
    settings: decode.SamplingSettings  # of P * samples rows
    method: decode.DecodingMethod
    room: int  # M, for generated tokens


def generate(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int = MAX_BATCH,
    weights: Params | None = None,
    **settings,
) -> list[Generated]:
    """The continuation of each prompt, in their order; arguments and errors are those of `stream`.

    Prompts of about the same length share a batch, so that a long one does not pad all others.
    """
    settings |= {'max_tokens': max_tokens}
    check_settings(**settings)
    check_prompts(model, prompts, settings['vocab_size'], num_virtual_tokens(params))
    texts: list[list[int]] = [[] for _ in prompts]
    reasons = [''] * len(prompts)
    order = np.argsort([-len(prompt) for prompt in prompts], kind='stable').tolist()
    for row, ids, reason in _pieces(model, params, prompts, order, settings, batch_size, max_tokens, weights):
        texts[row] += ids
        reasons[row] = reason
    return [Generated(*each) for each in zip(texts, reasons, strict=True)]


def stream(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    every: int = 8,
    batch_size: int = MAX_BATCH,
    weights: Params | None = None,
    **settings,
) -> Iterator[tuple[int, list[int], str]]:
    """Yields (row, its new ids, its `Generated.finish_reason` or '' while it continues) during generation.

    A text ends at any of `end_ids` (which is not part of it), after `max_tokens`, or when the model has read `max_len`
    tokens including the prompt (`max_new_tokens`). The text of a prompt depends on `seed`, on the prompt, and on the
    number of equal prompts before it; not on the rest of the batch, nor on `every`, the number of tokens between two
    yields. The first token of every text is yielded by itself.

    Args:
      batch_size: prompts decoded together, at most; the first of them are decoded first.
      weights: `decode.decoding_params` of `params` and of the padded number of prompts, for a caller that generates
        several times; None makes them.
      settings: max_tokens, temperature, top_k, top_p, seed, end_ids and vocab_size, all required, and absent: see
        `check_settings`, which is called before anything compiles.

    Raises InputError, and NonFiniteOutput if a logit is nan or infinite.
    """
    check_settings(**settings)
    check_prompts(model, prompts, settings['vocab_size'], num_virtual_tokens(params))
    if every < 1:
        raise InputError(f'every={every} must be at least 1')
    return _pieces(model, params, prompts, range(len(prompts)), settings, batch_size, every, weights)


def _pieces(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    order: Sequence[int],
    settings: Mapping[str, Any],
    batch_size: int,
    every: int,
    weights: Params | None,
) -> Iterator[tuple[int, list[int], str]]:
    """What `stream` yields, of batches that hold the prompts in this order, each padded to its own longest prompt.

    Args:
      order: the rows of `prompts`, equal prompts among them in the order of `prompts`: a text depends on it.
    """
    if batch_size < 1:
        raise InputError(f'batch_size={batch_size} must be at least 1')
    size, seen = bucket(len(prompts), 1, batch_size), collections.Counter()
    for first in range(0, len(prompts), size):
        part, before = order[first : first + size], np.zeros(size, np.int32)
        batch = prompt_batch(model, params, [prompts[row] for row in part], settings, rows=size, seen=seen)
        for state in states(model, params, batch, every, weights):
            state = jax.device_get(state)
            for row in np.flatnonzero(state.num_tokens > before):
                new = state.text[row, before[row] : state.num_tokens[row] - state.stopped[row]]
                reason = 'stop' if state.stopped[row] else 'length' if state.done[row] else ''
                full = reason == 'length' and state.num_tokens[row] < settings['max_tokens']
                yield part[row], new.tolist(), 'context' if full else reason
            before = state.num_tokens


def prompt_batch(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    *,
    rows: int,
    samples: int = 1,
    logprob: bool = False,
    seen: collections.Counter | None = None,
) -> PromptBatch:
    """The batch of `samples` texts of each prompt, with the lengths of one of few programs.

    Args:
      settings: those of `check_settings`.
      rows: P, to which the prompts are padded.
      logprob: whether the log-probability of every token is computed.
      seen: how many texts earlier batches have of each prompt, a tuple; those of this batch are added. None: none.
    """
    context = room(model, params)
    vocab_size, max_tokens = min(settings['vocab_size'], model.vocab_size), settings['max_tokens']
    end_ids = [token for token in settings['end_ids'] if token < vocab_size]  # no other can be drawn
    allowed = np.arange(model.vocab_size) < vocab_size
    allowed[[token for token in settings.get('absent', ()) if token < vocab_size]] = False
    temperature, top_k, top_p = (settings[name] for name in ('temperature', 'top_k', 'top_p'))
    T, M = lengths(model, params, max(map(len, prompts)), max_tokens)
    tokens, sizes, tags = _pad(prompts, rows, T, samples, seen)
    limits = np.zeros(rows, np.int32)
    virtual = model.max_len - context
    limits[: len(prompts)] = [min(max_tokens, max_new_tokens(model, prompt) - virtual) for prompt in prompts]
    traced = decode.SamplingSettings(
        seed=np.uint32(settings['seed']),
        tag=tags,
        limit=np.repeat(limits, samples),
        temperature=np.float32(temperature),
        top_k=np.int32(top_k),
        top_p=np.float32(top_p),
        allowed=None if np.all(allowed) else allowed,
        end_ids=np.array([*end_ids, *[-1] * (decode.MAX_END_IDS - len(end_ids))], np.int32),
    )
    method = decode.DecodingMethod(temperature == 0, temperature > 0 and (top_k > 0 or top_p < 1), logprob)
    return PromptBatch(tokens, sizes, traced, method, M)


def lengths(model: Transformer, params: Params, longest: int, max_tokens: int) -> tuple[int, int]:
    """(T, to which prompts of at most `longest` tokens are padded; M, room for generated tokens)."""
    context = room(model, params)
    return bucket(longest, SHORTEST, context), bucket(max_tokens, SHORTEST, context)


def states(
    model: Transformer, params: Params, batch: PromptBatch, every: int, weights: Params | None = None
) -> Iterator[decode.DecodeState]:
    """Yields the state after the first token, and after `every` more, until all texts are done.

    A text longer than `angles_change_after` positions is prefilled again, once.

    Raises NonFiniteOutput if a logit is nan or infinite.
    """
    scanned, unrolled = decode.for_decoding(model)
    settings, method = batch.settings, batch.method
    # In tokens; 0: no text is prefilled again.
    edge = max(0, angles_change_after(model.rope_scaling) - num_virtual_tokens(params))
    state = decode.start(settings, batch.room, method)
    tokens, lengths, steps, past = batch.tokens, batch.lengths, every, None
    while True:
        if past is None:
            past, cache, state = decode.prefill(scanned, params, tokens, lengths, state, settings, method)
        else:
            weights = weights or decode.decoding_params(model, params, len(state.done))
            cache, state = decode.decode(unrolled, weights, past, cache, state, settings, np.int32(steps), method)
        done, num_tokens, finite = jax.device_get((state.done, state.num_tokens, state.finite))
        if not finite:
            raise NonFiniteOutput('the model gives logits that are nan or infinite: its parameters are broken')
        yield state
        if np.all(done):
            return
        steps = every
        if edge:
            samples = len(done) // len(batch.tokens)
            read = np.repeat(batch.lengths, samples) + num_tokens
            if np.any(read[~done] == edge + 1):
                tokens, lengths, past = *_texts(batch, jax.device_get(state), model.max_len), None
            left = edge + 1 - read[~done]
            steps = min([every, *left[left > 0].tolist()])


def _texts(batch: PromptBatch, state: decode.DecodeState, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [B, T], lengths int32 [B]) of the prompts with what was generated."""
    samples = len(state.text) // len(batch.tokens)
    texts = [
        [*batch.tokens[row // samples, : batch.lengths[row // samples]], *state.text[row, : state.num_tokens[row]]]
        for row in range(len(state.text))
    ]
    texts = [text[:most] for text in texts]  # one that is done because the context is full has a token more
    tokens, lengths, _ = _pad(texts, len(texts), bucket(max(map(len, texts)), SHORTEST, most))
    return tokens, lengths


def _pad(
    texts: Sequence[Sequence[int]], rows: int, length: int, samples: int = 1, seen: collections.Counter | None = None
):
    """(tokens int32 [rows, length], lengths int32 [rows], tags uint32 [rows * samples]).

    All samples of equal texts have different tags, also of those `seen` in other batches (`prompt_batch`).
    """
    tokens, lengths = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
    tags, seen = np.zeros((rows, samples), np.uint32), collections.Counter() if seen is None else seen
    for row, text in enumerate(texts):
        tokens[row, : len(text)], lengths[row] = text, len(text)
        for sample in range(samples):
            tags[row, sample] = zlib.crc32(np.array([seen[tuple(text)], *text], np.int32).tobytes())
            seen[tuple(text)] += 1
    return tokens, lengths, tags.reshape(-1)


def check_settings(
    *,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    end_ids: Sequence[int],
    vocab_size: int,
    absent: Sequence[int] = (),
) -> None:
    """Raises InputError if a setting of the sampling is out of range.

    Args:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: draws from this number of most likely tokens; 0 is all.
      top_p: draws from the fewest tokens whose probability, after `top_k`, is at least this (arXiv 1904.09751).
      end_ids: a text ends at any of these tokens; at most `decode.MAX_END_IDS`. () continues to `max_tokens`.
      vocab_size: the tokenizer's. Rows of the embedding beyond it are never drawn, nor are entries of the tokenizer
        that have no row in the embedding.
      absent: ids below `vocab_size` that the tokenizer does not use (`Tokenizer.absent`). They are not drawn either.
    """
    numbers = {'max_tokens': (max_tokens, 1, 2**31 - 1), 'seed': (seed, 0, 2**32 - 1)}
    numbers |= {'temperature': (temperature, 0, math.inf), 'top_k': (top_k, 0, 2**31 - 1), 'top_p': (top_p, 0, 1)}
    numbers |= {'vocab_size': (vocab_size, 1, 2**31 - 1)}
    numbers |= {f'end_ids[{i}]': (token, 0, vocab_size - 1) for i, token in enumerate(end_ids)}
    for name, (value, least, most) in numbers.items():
        if not least <= value <= most or math.isinf(value):
            raise InputError(f'{name}={value} must lie in [{least}, {most}]')
    if not top_p:
        raise InputError('top_p=0 leaves no token to draw; temperature=0 takes the most likely one')
    if len(end_ids) > decode.MAX_END_IDS:
        raise InputError(f'end_ids has {len(end_ids)} tokens, but at most {decode.MAX_END_IDS} are supported')


def check_model(model: Transformer) -> None:
    """Raises InputError if the model continues no text."""
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot continue a text')
    if model.head != 'lm':
        way_out = '' if model.head == 'none' else ': `lmtrain predict` gives what the head predicts'
        raise InputError(f'model.head={model.head!r} continues no text{way_out}')


def check_prompts(model: Transformer, prompts: Sequence[Sequence[int]], vocab_size: int, virtual: int = 0) -> None:
    """Raises InputError if the model cannot continue these prompts.

    Args:
      prompts: ids, at least one each: that of the begin token (`Tokenizer.encode_prompt`).
      vocab_size: the tokenizer's.
      virtual: positions before each prompt, `virtual_tokens.num_virtual_tokens`.
    """
    check_model(model)
    if not prompts:
        raise InputError('there is no prompt; for an empty text, give the begin token')
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f'prompt {row} is empty: begin it with the begin token')
        if len(prompt) > model.max_len - virtual:
            less = f' minus {virtual} virtual tokens' if virtual else ''
            raise InputError(
                f'prompt {row} has {len(prompt)} tokens, but the context of the model holds '
                f'model.max_len={model.max_len}{less}: shorten it'
            )
        size = min(vocab_size, model.vocab_size)
        if strays := [token for token in prompt if not 0 <= token < size]:
            sizes = f'the tokenizer has {vocab_size} entries and the embedding {model.vocab_size} rows'
            raise InputError(f'prompt {row} has the token {strays[0]}, but {sizes}')


def max_new_tokens(model: Transformer, prompt: Sequence[int]) -> int:
    """Number of tokens that can follow a prompt: the last is predicted from a full context of `max_len`.

    Without virtual tokens: a caller whose parameters have some subtracts `num_virtual_tokens(params)`.
    """
    return model.max_len + 1 - len(prompt)


def bucket(n: int, least: int, most: int) -> int:
    """n rounded up to a power of two, at least `least` and at most `most`.

    >>> bucket(5, 1, 64), bucket(5, 16, 64), bucket(100, 16, 64)
    (8, 16, 64)
    """
    return min(max(least, 1 << (n - 1).bit_length()), most)
