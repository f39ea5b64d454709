"""Sampling: one compiled prefill and one compiled decode loop over a key-value cache."""

import collections
import dataclasses
import functools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.errors import InputError, NonFiniteOutput
from lmtrain.models import Transformer
from lmtrain.models.rotary import angles_change_after
from lmtrain.models.virtual_tokens import num_virtual_tokens
from lmtrain.tree import Params

MAX_BATCH = 64  # prompts decoded together
MAX_END_IDS = 16  # end tokens are padded to this number, so that every set of them uses the same program
SHORTEST = 16  # minimum padded length; longer ones are rounded up to powers of two, so that few programs are compiled


class SamplingSettings(NamedTuple):
    """Sampling settings of a batch. All are traced, so that other values use the same program."""

    seed: jax.Array  # uint32
    tag: jax.Array  # uint32 [B]; a row draws with a key of seed and tag
    limit: jax.Array  # int32 [B], tokens to generate; 0 in padding rows
    temperature: jax.Array  # float32, 0 is greedy
    top_k: jax.Array  # int32, 0 is all
    top_p: jax.Array  # float32
    allowed: jax.Array  # bool [V], which rows of the embedding may be drawn
    end_ids: jax.Array  # int32 [MAX_END_IDS], a text ends at any of them; -1 if there are fewer


class DecodeState(NamedTuple):
    """State of a batch while it is decoded."""

    text: jax.Array  # int32 [B, S], the generated tokens
    num_tokens: jax.Array  # int32 [B], their number
    done: jax.Array  # bool [B]
    stopped: jax.Array  # bool [B], done because an end token was drawn
    finite: jax.Array  # bool, of every logit that was read


class Generated(NamedTuple):
    """The continuation of a prompt."""

    ids: list[int]  # without the end token
    finish_reason: str  # 'stop' (an end token), 'length' (max_tokens) or 'context' (model.max_len)


def generate(
    model: Transformer, params: Params, prompts: Sequence[Sequence[int]], *, max_tokens: int, **settings
) -> list[Generated]:
    """The continuation of each prompt, in their order; arguments and errors are those of `stream`."""
    texts: list[list[int]] = [[] for _ in prompts]
    reasons = [''] * len(prompts)
    settings |= {'max_tokens': max_tokens, 'every': max_tokens}
    for row, ids, reason in stream(model, params, prompts, **settings):
        texts[row] += ids
        reasons[row] = reason
    return [Generated(*each) for each in zip(texts, reasons, strict=True)]


def stream(
    model: Transformer, params: Params, prompts: Sequence[Sequence[int]], *, every: int = 8, **settings
) -> Iterator[tuple[int, list[int], str]]:
    """Yields (row, its new ids, its `Generated.finish_reason` or '' while it continues) during generation.

    A text ends at any of `end_ids` (which is not part of it), after `max_tokens`, or when the model has read `max_len`
    tokens including the prompt (`max_new_tokens`). The text of a prompt depends on `seed`, on the prompt, and on the
    number of equal prompts before it; not on the rest of the batch, nor on `every`, the number of tokens between two
    yields.

    The other arguments are those of `check_settings`, which is called before anything compiles.

    Raises InputError, and NonFiniteOutput if a logit is nan or infinite.
    """
    virtual = num_virtual_tokens(params)  # positions of a soft prompt or a prefix
    check_settings(**settings)
    check_prompts(model, prompts, settings['vocab_size'], virtual)
    if every < 1:
        raise InputError(f'every={every} must be at least 1')
    max_tokens, vocab_size = settings['max_tokens'], min(settings['vocab_size'], model.vocab_size)
    end_ids = [token for token in settings['end_ids'] if token < vocab_size]  # no other can be drawn
    allowed = np.arange(model.vocab_size) < vocab_size
    allowed[[token for token in settings.get('absent', ()) if token < vocab_size]] = False
    model = dataclasses.replace(model, attention='xla', remat='none')  # kernels take no cache, and no gradient is taken
    longest = max(map(len, prompts))
    context = model.max_len - virtual
    prompt_length = bucket(longest, SHORTEST, context)
    cache_length = bucket(longest + max_tokens, SHORTEST, context)
    batch_size = bucket(len(prompts), 1, MAX_BATCH)

    tokens, lengths, tags = _pad(prompts, -(-len(prompts) // batch_size) * batch_size, prompt_length)
    limits = np.zeros(len(tokens), np.int32)
    limits[: len(prompts)] = [min(max_tokens, max_new_tokens(model, prompt) - virtual) for prompt in prompts]

    def batches():
        for start in range(0, len(tokens), batch_size):
            some = slice(start, start + batch_size)
            sampling = SamplingSettings(
                seed=np.uint32(settings['seed']),
                tag=tags[some],
                limit=limits[some],
                temperature=np.float32(settings['temperature']),
                top_k=np.int32(settings['top_k']),
                top_p=np.float32(settings['top_p']),
                allowed=allowed,
                end_ids=np.array([*end_ids, *[-1] * (MAX_END_IDS - len(end_ids))], np.int32),
            )
            for row, ids, reason in _batch(model, params, tokens[some], lengths[some], sampling, cache_length, every):
                full = reason == 'length' and limits[start + row] < max_tokens
                yield start + row, ids, 'context' if full else reason

    return batches()


def _pad(prompts: Sequence[Sequence[int]], rows: int, length: int):
    """(tokens int32 [rows, length], lengths int32 [rows], tags uint32 [rows]); equal prompts have different tags."""
    tokens, lengths, tags = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.uint32)
    seen = collections.Counter()
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        tags[row] = zlib.crc32(np.array([seen[tuple(prompt)], *prompt], np.int32).tobytes())
        seen[tuple(prompt)] += 1
    return tokens, lengths, tags


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
      end_ids: a text ends at any of these tokens; at most `MAX_END_IDS`. () continues to `max_tokens`.
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
    if len(end_ids) > MAX_END_IDS:
        raise InputError(f'end_ids has {len(end_ids)} tokens, but at most {MAX_END_IDS} are supported')


def check_prompts(model: Transformer, prompts: Sequence[Sequence[int]], vocab_size: int, virtual: int = 0) -> None:
    """Raises InputError if the model cannot continue these prompts.

    Args:
      prompts: ids, at least one each: that of the begin token (`Tokenizer.encode_prompt`).
      vocab_size: the tokenizer's.
      virtual: positions before each prompt, `virtual_tokens.num_virtual_tokens`.
    """
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot continue a text')
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
    """Number of tokens that can follow a prompt: the last is predicted from a full context of `max_len`."""
    return model.max_len + 1 - len(prompt)


def bucket(n: int, least: int, most: int) -> int:
    """n rounded up to a power of two, at least `least` and at most `most`.

    >>> bucket(5, 1, 64), bucket(5, 16, 64), bucket(100, 16, 64)
    (8, 16, 64)
    """
    return min(max(least, 1 << (n - 1).bit_length()), most)


def _batch(model, params, tokens_BT, lengths_B, settings, cache_length, every):
    """`stream` for one padded batch; a text longer than `angles_change_after` positions is prefilled again, once."""
    B = len(tokens_BT)
    cache, logits_BV = prefill(model, params, tokens_BT, lengths_B, cache_length)
    state = DecodeState(
        text=np.zeros((B, cache_length), np.int32),
        num_tokens=np.zeros(B, np.int32),
        done=settings.limit == 0,
        stopped=np.zeros(B, bool),
        finite=np.bool_(True),
    )
    edge = max(
        0, angles_change_after(model.rope_scaling) - num_virtual_tokens(params)
    )  # tokens; 0: no text is prefilled again
    steps = 1  # the first token alone, so that it appears soon
    while not np.all(state.done):
        before, active_rows = state.num_tokens, np.flatnonzero(~state.done)
        cache, logits_BV, state = decode(model, params, cache, logits_BV, state, settings, np.int32(steps))
        state = jax.device_get(state)
        if not state.finite:
            raise NonFiniteOutput('the model gives logits that are nan or infinite: its parameters are broken')
        for row in active_rows:
            new = state.text[row, before[row] : state.num_tokens[row]]
            reason = 'stop' if state.stopped[row] else 'length' if state.done[row] else ''
            yield int(row), new.tolist(), reason
        # A row that is done because the context is full has one token more than the cache.
        read_B = np.minimum(lengths_B + state.num_tokens, cache_length)
        if edge and np.any(read_B[~state.done] == edge + 1):
            whole_BT = np.zeros((B, cache_length), np.int32)
            for row, length in enumerate(lengths_B):
                whole_BT[row, :length] = tokens_BT[row, :length]
                whole_BT[row, length : read_B[row]] = state.text[row, : read_B[row] - length]
            cache, logits_BV = prefill(model, params, whole_BT, read_B, cache_length)
        left = edge + 1 - read_B[~state.done]
        steps = min([every, *left[left > 0].tolist()])


@functools.partial(jax.jit, static_argnames=('model', 'cache_length'))
def prefill(model, params, tokens_BT, lengths_B, cache_length: int):
    """(cache, logits float32 [B, V] of the next token) after reading prompts int32 [B, T], padded on the right."""
    B, T = tokens_BT.shape
    batch = {
        'tokens': tokens_BT,
        'segment_ids': (jnp.arange(T)[None] < lengths_B[:, None]).astype(jnp.int32),
        'select': jnp.maximum(lengths_B - 1, 0)[:, None],
    }
    outputs = model.apply({'params': params}, batch, cache=model.init_cache(B, cache_length))
    return outputs['cache'], outputs['logits'][:, 0]


@functools.partial(jax.jit, static_argnames='model', donate_argnames=('cache', 'logits_BV'))
def decode(model, params, cache, logits_BV, state: DecodeState, settings: SamplingSettings, steps):
    """(cache, logits, DecodeState) after `steps` more tokens per row, fewer if all rows are done; `steps` is traced."""

    def going(carry):
        step, _, _, state = carry
        return (step < steps) & ~jnp.all(state.done)

    def body(carry):
        step, cache, logits_BV, state = carry
        state, token_B = advance(state, logits_BV, settings)
        batch = {'tokens': token_B[:, None], 'segment_ids': (~state.done).astype(jnp.int32)[:, None]}
        outputs = model.apply({'params': params}, batch, cache=cache)
        return step + 1, outputs['cache'], outputs['logits'][:, 0], state

    return jax.lax.while_loop(going, body, (jnp.int32(0), cache, logits_BV, state))[1:]


def advance(state: DecodeState, logits_BV, settings: SamplingSettings) -> tuple[DecodeState, jax.Array]:
    """(DecodeState, int32 [B]): one token drawn per row. Texts that are not done gain it, except for end tokens."""
    B, V = logits_BV.shape
    allowed_V = jnp.pad(settings.allowed, (0, V - len(settings.allowed)))
    finite = jnp.isfinite(logits_BV) | ~allowed_V[None] | state.done[:, None]
    key = jax.random.key(settings.seed)
    keys_B = jax.vmap(lambda *row: functools.reduce(jax.random.fold_in, row, key))(settings.tag, state.num_tokens)
    logits_BV = jnp.where(allowed_V[None], logits_BV, -jnp.inf)
    token_B = draw(keys_B, logits_BV, settings.temperature, settings.top_k, settings.top_p)

    stopped_B = state.stopped | ~state.done & jnp.any(token_B[:, None] == settings.end_ids[None], axis=1)
    ended_B = state.done | stopped_B
    slot_B = jnp.where(ended_B, state.text.shape[1], state.num_tokens)  # out of range: not stored
    count_B = state.num_tokens + ~ended_B
    state = DecodeState(
        text=state.text.at[jnp.arange(B), slot_B].set(token_B, mode='drop'),
        num_tokens=count_B,
        done=ended_B | (count_B >= settings.limit),
        stopped=stopped_B,
        finite=state.finite & jnp.all(finite),
    )
    return state, token_B


def draw(keys_B, logits_BV, temperature, top_k, top_p) -> jax.Array:
    """int32 [B], one token a row; sorting and draws are computed only if the settings need them."""

    def sample(logits_BV):
        # Relative to the maximum, so that no temperature overflows.
        logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
        cut = (top_k > 0) | (top_p < 1)
        logits_BV = jax.lax.cond(cut, lambda x: truncate(x, top_k, top_p), lambda x: x, logits_BV)
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

    def greedy(logits_BV):
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, sample, greedy, logits_BV)


def truncate(logits_BV, top_k, top_p) -> jax.Array:
    """Logits with -inf for all but the `top_k` most likely (0: all) and, of these, the fewest whose mass is >= `top_p`.

    Exact, by sorting; of equal logits at the threshold the lower ids remain.
    """
    V = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    remaining_BV = (jnp.arange(V)[None] < jnp.where(top_k > 0, top_k, V)) & (sorted_BV > -jnp.inf)
    probability_BV = jax.nn.softmax(jnp.where(remaining_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # the mass of more likely tokens
    remaining_BV &= (before_BV < top_p) | (top_p >= 1)
    threshold_B1 = jnp.min(jnp.where(remaining_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    above_BV, at_BV = logits_BV > threshold_B1, logits_BV == threshold_B1
    places_B1 = jnp.sum(remaining_BV, axis=-1, keepdims=True) - jnp.sum(above_BV, axis=-1, keepdims=True)
    return jnp.where(above_BV | at_BV & (jnp.cumsum(at_BV, axis=-1) <= places_B1), logits_BV, -jnp.inf)
