"""Text from a model: one compiled prefill and one compiled decode loop over a key-value cache."""

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
from lmtrain.models.rotary import reread_after
from lmtrain.models.virtual_tokens import num_virtual_tokens
from lmtrain.tree import Params

ROWS = 64  # prompts decoded together; further ones wait for these
ENDS = 16  # end tokens at most; fewer are filled up, so that other sets are the same program
SHORTEST = 16  # lengths are padded to powers of two from here on, so that few programs exist


class Settings(NamedTuple):
    """What is asked of a batch. All of it is traced: other wishes are the same program."""

    seed: jax.Array  # uint32
    tag: jax.Array  # uint32 [B], what a row's draws depend on beside the seed
    limit: jax.Array  # int32 [B], tokens to make; 0 in rows that only fill the batch
    temperature: jax.Array  # float32, 0 is greedy
    top_k: jax.Array  # int32, 0 is all
    top_p: jax.Array  # float32
    known: jax.Array  # bool [V], of each row of the embedding whether it may be drawn
    end_ids: jax.Array  # int32 [ENDS], a text ends at any of them; -1 if there are fewer


class Progress(NamedTuple):
    """What a batch has become so far."""

    text: jax.Array  # int32 [B, S], the tokens made
    made: jax.Array  # int32 [B], how many
    done: jax.Array  # bool [B]
    stopped: jax.Array  # bool [B], done because an end token was drawn
    finite: jax.Array  # bool, of every logit that was read


class Generated(NamedTuple):
    """The continuation of a prompt."""

    ids: list[int]  # without the end token
    finish_reason: str  # 'stop' (an end token), 'length' (max_tokens) or 'context' (no room in the model is left)


def generate(
    model: Transformer, params: Params, prompts: Sequence[Sequence[int]], *, max_tokens: int, **settings
) -> list[Generated]:
    """The continuation of each prompt, in their order; arguments and errors are those of `stream`."""
    texts: list[list[int]] = [[] for _ in prompts]
    reasons = [''] * len(prompts)
    settings |= {'max_tokens': max_tokens, 'every': max_tokens}
    for row, ids, reasons[row] in stream(model, params, prompts, **settings):
        texts[row] += ids
    return [Generated(*each) for each in zip(texts, reasons, strict=True)]


def stream(
    model: Transformer, params: Params, prompts: Sequence[Sequence[int]], *, every: int = 8, **settings
) -> Iterator[tuple[int, list[int], str]]:
    """Yields (row, the ids it has gained, its `Generated.finish_reason` or '' while it goes on) as texts are made.

    A text is done at any of `end_ids` (which is not part of it), after `max_tokens`, or when the model has read its
    `max_len` tokens, prompt included (`room`). What a prompt gets depends on `seed`, on the prompt, and on how many
    equal ones came before it; not on what else is in the batch, nor on `every`, the tokens made between two yields.

    Arguments are those of `check`, which is called before anything is compiled. Raises FloatingPointError if a logit
    is nan or infinite.
    """
    check(model, prompts, every=every, **settings)
    max_tokens, vocab_size = settings['max_tokens'], min(settings['vocab_size'], model.vocab_size)
    end_ids = [token for token in settings['end_ids'] if token < vocab_size]  # no other can be drawn
    known = np.arange(model.vocab_size) < vocab_size
    known[[token for token in settings.get('absent', ()) if token < vocab_size]] = False
    model = dataclasses.replace(model, attention='xla', remat='none')  # kernels take no cache, and no gradient is taken
    longest = max(map(len, prompts))
    taken = num_virtual_tokens(params)  # positions of a soft prompt or a prefix
    context = model.max_len - taken
    if longest > context:
        raise InputError(
            f'a prompt has {longest} tokens, but model.max_len={model.max_len} leaves {context} beside the {taken} '
            'positions that are learnt: shorten it'
        )
    prompt_length = bucket(longest, SHORTEST, context)
    cache_length = bucket(longest + max_tokens, SHORTEST, context)
    batch_size = bucket(len(prompts), 1, ROWS)

    tokens = np.zeros((-(-len(prompts) // batch_size) * batch_size, prompt_length), np.int32)
    lengths, limits = np.zeros((2, len(tokens)), np.int32)
    tags = np.zeros(len(tokens), np.uint32)
    seen = collections.Counter()
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        limits[row] = min(max_tokens, room(model, prompt) - taken)
        tags[row] = zlib.crc32(np.array([seen[tuple(prompt)], *prompt], np.int32).tobytes())
        seen[tuple(prompt)] += 1

    def batches():
        for start in range(0, len(tokens), batch_size):
            some = slice(start, start + batch_size)
            asked = Settings(
                seed=np.uint32(settings['seed']),
                tag=tags[some],
                limit=limits[some],
                temperature=np.float32(settings['temperature']),
                top_k=np.int32(settings['top_k']),
                top_p=np.float32(settings['top_p']),
                known=known,
                end_ids=np.array([*end_ids, *[-1] * (ENDS - len(end_ids))], np.int32),
            )
            for row, ids, reason in _batch(model, params, tokens[some], lengths[some], asked, cache_length, every):
                full = reason == 'length' and limits[start + row] < max_tokens
                yield start + row, ids, 'context' if full else reason

    return batches()


def check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    end_ids: Sequence[int],
    vocab_size: int,
    absent: Sequence[int] = (),
    every: int = 8,
) -> None:
    """Raises ValueError if an argument is out of range, if there is no prompt or one is empty or longer than the
    model's context, or if the model is not causal.

    Args:
      prompts: ids, at least one each: the token that begins a document, if nothing else (`Tokenizer.encode_prompt`).
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: draws from this many of the likeliest tokens; 0 is all.
      top_p: draws from the fewest tokens whose probability, after `top_k`, is at least this (arXiv 1904.09751).
      end_ids: a text ends at any of these tokens; at most `ENDS`. () goes on to `max_tokens`.
      vocab_size: the tokenizer's. Rows of the embedding beyond it are never drawn, nor are entries of the tokenizer
        that have no row in the embedding.
      absent: ids below `vocab_size` that the tokenizer skips (`Tokenizer.absent`). They are not drawn either.
      every: see `stream`.
    """
    numbers = {'max_tokens': (max_tokens, 1, 2**31 - 1), 'every': (every, 1, 2**31 - 1), 'seed': (seed, 0, 2**32 - 1)}
    numbers |= {'temperature': (temperature, 0, math.inf), 'top_k': (top_k, 0, 2**31 - 1), 'top_p': (top_p, 0, 1)}
    numbers |= {'vocab_size': (vocab_size, 1, 2**31 - 1)}
    numbers |= {f'end_ids[{i}]': (token, 0, vocab_size - 1) for i, token in enumerate(end_ids)}
    for name, (value, least, most) in numbers.items():
        if not least <= value <= most or math.isinf(value):
            raise InputError(f'{name}={value} must lie in [{least}, {most}]')
    if not top_p:
        raise InputError('top_p=0 leaves no token to draw; temperature=0 takes the likeliest')
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot continue a text')
    if not prompts:
        raise InputError('there is no prompt; the empty text is one, the token that begins a document')
    if len(end_ids) > ENDS:
        raise InputError(f'end_ids has {len(end_ids)} tokens, and a text is compared with {ENDS} at most')
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f'prompt {row} is empty: begin it with the token that begins a document')
        if len(prompt) > model.max_len:
            raise InputError(
                f'prompt {row} has {len(prompt)} tokens, but the context of the model holds '
                f'model.max_len={model.max_len}: shorten it'
            )
        size = min(vocab_size, model.vocab_size)
        if strays := [token for token in prompt if not 0 <= token < size]:
            sizes = f'the tokenizer has {vocab_size} entries and the embedding {model.vocab_size} rows'
            raise InputError(f'prompt {row} has the token {strays[0]}, but {sizes}')


def room(model: Transformer, prompt: Sequence[int]) -> int:
    """Tokens that can follow a prompt: the last is predicted from a full context of `max_len`."""
    return model.max_len + 1 - len(prompt)


def bucket(n: int, least: int, most: int) -> int:
    """n rounded up to a power of two, at least `least` and at most `most`."""
    return min(max(least, 1 << (n - 1).bit_length()), most)


def _batch(model, params, tokens_BT, lengths_B, settings, cache_length, every):
    """`stream` for one padded batch; a text that grows beyond `reread_after` positions is read again, once."""
    B = len(tokens_BT)
    cache, logits_BV = prefill(model, params, tokens_BT, lengths_B, cache_length)
    progress = Progress(
        text=np.zeros((B, cache_length), np.int32),
        made=np.zeros(B, np.int32),
        done=settings.limit == 0,
        stopped=np.zeros(B, bool),
        finite=np.bool_(True),
    )
    edge = max(0, reread_after(model.rope_scaling) - num_virtual_tokens(params))  # tokens; 0: no text is read again
    steps = 1  # the first token alone, so that it is seen soon
    while not np.all(progress.done):
        before, open_rows = progress.made, np.flatnonzero(~progress.done)
        cache, logits_BV, progress = decode(model, params, cache, logits_BV, progress, settings, np.int32(steps))
        progress = jax.device_get(progress)
        if not progress.finite:
            raise NonFiniteOutput('the model gives logits that are nan or infinite: its parameters are broken')
        for row in open_rows:
            gained = progress.text[row, before[row] : progress.made[row]]
            reason = 'stop' if progress.stopped[row] else 'length' if progress.done[row] else ''
            yield int(row), gained.tolist(), reason
        read_B = lengths_B + progress.made
        if edge and np.any(read_B[~progress.done] == edge + 1):
            whole_BT = np.zeros((B, cache_length), np.int32)
            for row, length in enumerate(lengths_B):
                whole_BT[row, :length] = tokens_BT[row, :length]
                whole_BT[row, length : read_B[row]] = progress.text[row, : progress.made[row]]
            cache, logits_BV = prefill(model, params, whole_BT, read_B, cache_length)
        left = edge + 1 - read_B[~progress.done]
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
def decode(model, params, cache, logits_BV, progress: Progress, settings: Settings, steps):
    """(cache, logits, Progress) after `steps` more tokens a row, fewer where all rows are done; steps is traced."""

    def going(carry):
        step, _, _, progress = carry
        return (step < steps) & ~jnp.all(progress.done)

    def body(carry):
        step, cache, logits_BV, progress = carry
        progress, token_B = advance(progress, logits_BV, settings)
        batch = {'tokens': token_B[:, None], 'segment_ids': (~progress.done).astype(jnp.int32)[:, None]}
        outputs = model.apply({'params': params}, batch, cache=cache)
        return step + 1, outputs['cache'], outputs['logits'][:, 0], progress

    return jax.lax.while_loop(going, body, (jnp.int32(0), cache, logits_BV, progress))[1:]


def advance(progress: Progress, logits_BV, settings: Settings) -> tuple[Progress, jax.Array]:
    """(Progress, int32 [B]): a token drawn for every row that is not done, part of its text unless it ends it."""
    B, V = logits_BV.shape
    known_V = jnp.pad(settings.known, (0, V - len(settings.known)))
    sound = jnp.isfinite(logits_BV) | ~known_V[None] | progress.done[:, None]
    key = jax.random.key(settings.seed)
    keys_B = jax.vmap(lambda *row: functools.reduce(jax.random.fold_in, row, key))(settings.tag, progress.made)
    logits_BV = jnp.where(known_V[None], logits_BV, -jnp.inf)
    token_B = draw(keys_B, logits_BV, settings.temperature, settings.top_k, settings.top_p)

    stopped_B = progress.stopped | ~progress.done & jnp.any(token_B[:, None] == settings.end_ids[None], axis=1)
    ended_B = progress.done | stopped_B
    slot_B = jnp.where(ended_B, progress.text.shape[1], progress.made)  # out of range: nowhere
    made_B = progress.made + ~ended_B
    progress = Progress(
        text=progress.text.at[jnp.arange(B), slot_B].set(token_B, mode='drop'),
        made=made_B,
        done=ended_B | (made_B >= settings.limit),
        stopped=stopped_B,
        finite=progress.finite & jnp.all(sound),
    )
    return progress, token_B


def draw(keys_B, logits_BV, temperature, top_k, top_p) -> jax.Array:
    """int32 [B], one token a row; what is not asked for (draws, sorting) is not computed."""

    def sample(logits_BV):
        # From the maximum down, so that no temperature overflows.
        logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
        cut = (top_k > 0) | (top_p < 1)
        logits_BV = jax.lax.cond(cut, lambda x: truncate(x, top_k, top_p), lambda x: x, logits_BV)
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

    def greedy(logits_BV):
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, sample, greedy, logits_BV)


def truncate(logits_BV, top_k, top_p) -> jax.Array:
    """Logits with -inf for all but the `top_k` likeliest (0: all) and, of these, the fewest whose mass is >= `top_p`.

    Exact, by sorting; of equal logits at the edge the lower ids are kept.
    """
    V = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    kept_BV = (jnp.arange(V)[None] < jnp.where(top_k > 0, top_k, V)) & (sorted_BV > -jnp.inf)
    probability_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
    likelier_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # the mass of those before this one
    kept_BV &= (likelier_BV < top_p) | (top_p >= 1)
    edge_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    above_BV, at_BV = logits_BV > edge_B1, logits_BV == edge_B1
    places_B1 = jnp.sum(kept_BV, axis=-1, keepdims=True) - jnp.sum(above_BV, axis=-1, keepdims=True)
    return jnp.where(above_BV | at_BV & (jnp.cumsum(at_BV, axis=-1) <= places_B1), logits_BV, -jnp.inf)
