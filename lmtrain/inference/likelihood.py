"""Log-likelihoods of continuations of texts; what texts have in common is encoded once.

    beginning of several texts    prompts of a row: rest of a text │ its continuations │ rest of another text │ ...
    [1, S]                        [B, T]

A prompt is a segment of its row, a tree: its text is the trunk, and each continuation a branch
(`attention_kernels.AttentionMask`). A row attends to the keys and values of the beginning (`lmtrain.models.kv_cache`).
"""

import collections
import contextlib
import contextvars
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.errors import NonFiniteOutput
from lmtrain.inference.batches import FINE, MAX_TOKENS, Grid, is_coarse, pack, rounded
from lmtrain.inference.sample import bucket
from lmtrain.models import virtual_tokens
from lmtrain.models.rotary import by_length
from lmtrain.tree import Params

# A common beginning is encoded by itself if that saves so many tokens: it is a program of its own, and divides batches.
LEAST_SAVED = 256


class TokenPrompt(NamedTuple):
    """A text as token ids, and the continuations whose likelihoods are compared, or () to generate one.

    Attributes:
      context_ids: int32 [C], C >= 1: the text that all continuations follow, with the begin token.
      continuations: int32 [L] each, L >= 1. A token that contains the end of the text and the beginning of a choice is
        part of the continuation, and so is whatever else is not the same in all of them.
    """

    context_ids: np.ndarray
    continuations: tuple[np.ndarray, ...] = ()


class Beginning(NamedTuple):
    """The cache of the beginning of texts, encoded by a model.

    Attributes:
      params: of that model.
      ids: int32 [S].
      cache: see `models.kv_cache`.
    """

    params: Params
    ids: np.ndarray
    cache: dict[str, Any]


_KEPT: contextvars.ContextVar[list[Beginning] | None] = contextvars.ContextVar('kept', default=None)


@contextlib.contextmanager
def kept_beginnings() -> Iterator[list[Beginning]]:
    """A context that keeps the cache of each common beginning of prompts, however short; later prompts read it.

    Without it a call of `log_likelihoods` encodes the beginnings of its own prompts, and a single prompt as a whole.
    With it the latency of a query can be measured whose demonstrations were encoded before, as a server keeps them.

    Yields the beginnings that are kept.
    """
    kept: list[Beginning] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


class Likelihoods(NamedTuple):
    """What `log_likelihoods` returns, in the order of the prompts and of their continuations.

    Attributes:
      nats: for each prompt float64 [continuations], the log-likelihood of each continuation after the context.
      tokens: for each prompt int64 [continuations], the number of tokens of each continuation.
      greedy: for each prompt bool [continuations], whether every token of the continuation is the most likely one after
        those before it; [] unless requested.
      computed_tokens: number of tokens that the model has read to compute them, without padding. A context counts once
        for all of its continuations, and a common beginning of several prompts once for all of them.
    """

    nats: list[np.ndarray]
    tokens: list[np.ndarray]
    greedy: list[np.ndarray]
    computed_tokens: int


def log_likelihoods(
    model, params: Params, prompts: Sequence[TokenPrompt], batch_size: int, *, greedy: bool = False
) -> Likelihoods:
    """log p(continuation | context) in nats of every continuation of every prompt.

    A context and a continuation together have at most as many tokens as the model's context, without the last, which
    is not read (`sample.max_new_tokens`). Up to `batch_size` rows are computed together, each of a long prompt or of
    several short ones. The results do not depend on the batch size, nor on the other prompts, beyond rounding in
    float32.

    Lengths are rounded up (`rounded`), so that few programs are compiled: more so those of a small model
    (`batches.is_coarse`). Equal prompts are computed once.

    Raises NonFiniteOutput if a log-likelihood is not finite.
    """
    model = dataclasses.replace(model, unroll=1, remat='none')  # one layer is compiled: faster, and as fast to run
    context = virtual_tokens.room(model, params)
    distinct = {_key(each): each for each in prompts if each.continuations}
    options = {'context': context, 'batch_size': batch_size, 'greedy': greedy}
    # The angles of such a text depend on its length: the keys of its beginning are those of no other text.
    whole = [key for key, each in distinct.items() if _length(each) > _fixed_angles(model, context)]
    results, computed = _score_whole(model, params, {key: distinct.pop(key) for key in whole}, **options)
    for group, shared, cache in _groups(params, distinct):
        values, tokens = _score_group(model, params, group, shared, cache, **options)
        results |= values
        computed += tokens
    if not all(np.all(np.isfinite(nats)) for nats, _ in results.values()):
        raise NonFiniteOutput('the model gives log-likelihoods that are not finite: its parameters are broken')
    values = [results[_key(each)] if each.continuations else (np.zeros(0), np.zeros(0, bool)) for each in prompts]
    tokens = [np.array([len(ids) for ids in each.continuations], np.int64) for each in prompts]
    return Likelihoods([nats for nats, _ in values], tokens, [top for _, top in values if greedy], computed)


def _groups(params, prompts: dict) -> Iterator[tuple[dict, int, dict[str, Any] | None]]:
    """(some of {key: TokenPrompt}, the number of tokens of their common beginning, its cache if it is kept)."""
    beginnings, rest = _KEPT.get(), dict(prompts)
    for each in sorted(beginnings or (), key=lambda each: -len(each.ids)):
        n = len(each.ids)
        after = [key for key, (ids, _) in rest.items() if len(ids) > n and np.array_equal(ids[:n], each.ids)]
        if after and each.params is params:
            yield {key: rest.pop(key) for key in after}, n, each.cache
    least, keys = LEAST_SAVED if beginnings is None else 1, list(rest)
    for length, members in shared_beginnings([each.context_ids for each in rest.values()], least):
        yield {keys[i]: rest[keys[i]] for i in members}, length, None


def _key(prompt: TokenPrompt) -> tuple[bytes, ...]:
    return prompt.context_ids.tobytes(), *(ids.tobytes() for ids in prompt.continuations)


def _length(prompt: TokenPrompt) -> int:
    """Number of tokens that are read of the context and its longest continuation."""
    return len(prompt.context_ids) + max(map(len, prompt.continuations)) - 1


def _fixed_angles(model, context: int) -> float:
    """Number of tokens up to which the angles of a text do not depend on its length."""
    original = dict(model.rope_scaling).get('original_max_position_embeddings', 0)
    return original - (model.max_len - context) if by_length(model.rope_scaling) else math.inf


def shared_beginnings(texts: Sequence[np.ndarray], least: int | None = None) -> list[tuple[int, list[int]]]:
    """Groups of texts with a common beginning that is encoded once: [(its length, indices into `texts`)].

    The length is 0 for texts that share nothing worthwhile, and shorter than every text of the group. The groups save
    the most tokens of all groups of neighbours in the sorted order; each group must save `least`
    (None: `LEAST_SAVED`).

    >>> texts = [np.array([*range(200), n]) for n in (7, 8, 9)] + [np.array([5, 6])]
    >>> shared_beginnings(texts)
    [(200, [0, 1, 2]), (0, [3])]
    """
    least = LEAST_SAVED if least is None else least
    order = sorted(range(len(texts)), key=lambda i: texts[i].tobytes())
    common = np.zeros(len(texts), np.int64)  # of each text and the one before it
    for at in range(1, len(order)):
        one, other = texts[order[at - 1]], texts[order[at]]
        common[at] = min(common_length(one, other), len(one) - 1, len(other) - 1)
    # best[j]: tokens saved among the first j texts of the order; first[j]: start of the group that ends there.
    best, first = np.zeros(len(texts) + 1, np.int64), np.arange(-1, len(texts))
    shortest = np.zeros(0, np.int64)  # of each start: the common length of the texts from it to the one at j
    for j in range(1, len(texts) + 1):
        shortest = np.append(np.minimum(shortest, common[j - 1]), np.iinfo(np.int64).max)
        best[j] = best[j - 1]
        if j > 1:
            saved = shortest[:-1] * np.arange(j - 1, 0, -1)
            total = np.where(saved >= least, best[: j - 1] + saved - least, -1)
            start = int(np.argmax(total))
            if total[start] > best[j]:
                best[j], first[j] = total[start], start
    groups, alone, j = [], [], len(texts)
    while j:
        start = int(first[j])
        if j - start > 1:
            groups.append((int(common[start + 1 : j].min()), sorted(order[start:j])))
        else:
            alone.append(order[start])
        j = start
    return [*groups[::-1], *([(0, sorted(alone))] if alone else [])]


def _score_group(
    model, params, group: dict, shared: int, cache=None, *, context: int, batch_size: int, greedy: bool
) -> tuple[dict, int]:
    """({key: (nats float64 [continuations], greedy bool [continuations])}, tokens read) of {key: TokenPrompt}.

    All contexts begin with the same `shared` tokens; `cache` is theirs, or None to encode them.
    """
    grid = Grid(context, batch_size, model.vocab_size if greedy else 0, is_coarse(model, params, batch_size))
    computed = 0
    if shared and cache is None:
        beginning = next(iter(group.values())).context_ids[:shared]
        cache, computed = _encode(model, params, padded([beginning], 1, grid.beginning(shared))), shared
        if (kept := _KEPT.get()) is not None:
            kept.append(Beginning(params, beginning, cache))
    past = (cache,) if shared else ()
    keys, prompts = list(group), list(group.values())
    sizes = [(len(ids) - shared + sum(map(len, ends)) - len(ends), sum(map(len, ends))) for ids, ends in prompts]
    computed += sum(tokens for tokens, _ in sizes)
    alone = not past and virtual_tokens.prompt(params) is not None  # which precedes the first segment of a row
    pending = []
    for rows, shape in pack(sizes, grid, alone):
        batch = _packed([[prompts[index] for index in row] for row in rows], shared, *shape)
        pending.append((rows, _nats(model, params, batch, past, greedy)))
    results = {}
    for rows, columns in pending:
        nats_BM, top_BM = jax.device_get(columns)
        for row, members in enumerate(rows):
            at = 0
            for index in members:
                ends = np.cumsum([at, *map(len, prompts[index].continuations)])
                spans = [slice(*pair) for pair in itertools.pairwise(ends.tolist())]
                nats = [np.sum(nats_BM[row, span], dtype=np.float64) for span in spans]
                results[keys[index]] = np.array(nats), np.array([np.all(top_BM[row, span]) for span in spans])
                at = int(ends[-1])
    return results, computed


def padded(texts: Sequence[np.ndarray], B: int, T: int) -> dict[str, np.ndarray]:
    """{'tokens', 'segment_ids' int32 [B, T]} of at most B texts of at most T tokens."""
    batch = {name: np.zeros((B, T), np.int32) for name in ('tokens', 'segment_ids')}
    for row, ids in enumerate(texts):
        batch['tokens'][row, : len(ids)], batch['segment_ids'][row, : len(ids)] = ids, 1
    return batch


def _packed(rows: Sequence[Sequence[TokenPrompt]], shared: int, B: int, T: int, M: int) -> dict[str, np.ndarray]:
    """Columns int32 [B, T] of rows of prompts without their first `shared` tokens, and 'select', 'targets' [B, M].

    Each continuation is predicted from the last token of its text on, and its own last token is not read.
    """
    batch = {name: np.zeros((B, T), np.int32) for name in ('tokens', 'segment_ids', 'positions', 'branches')}
    batch |= {name: np.zeros((B, M), np.int32) for name in ('select', 'targets')}
    for row, prompts in enumerate(rows):
        at = target = 0
        for segment, (context, continuations) in enumerate(prompts, 1):
            own = context[shared:]
            last = at + len(own) - 1
            for branch, ids in enumerate((own, *(ids[:-1] for ids in continuations))):
                span, start = slice(at, at := at + len(ids)), len(own) if branch else 0
                batch['tokens'][row, span], batch['segment_ids'][row, span] = ids, segment
                batch['branches'][row, span], batch['positions'][row, span] = branch, start + np.arange(len(ids))
                if branch:
                    whole = continuations[branch - 1]
                    predicted = slice(target, target := target + len(whole))
                    batch['select'][row, predicted] = [last, *range(span.start, span.stop)]
                    batch['targets'][row, predicted] = whole
    return batch


@functools.partial(jax.jit, static_argnames='model')
def _encode(model, params, batch):
    """The cache of a text."""
    return model.apply({'params': params}, batch, store=True)['cache']


def _values(outputs, targets_BM, greedy: bool):
    """(log p float32 [B, M], bool [B, M]) of targets; without `greedy` the logits are not materialised."""
    if not greedy:
        return outputs['logprob'], jnp.zeros(targets_BM.shape, bool)
    B, M = targets_BM.shape
    picked = _picked(outputs['logits'].reshape(B * M, -1), targets_BM.reshape(B * M, 1))
    return tuple(x.reshape(B, M) for x in picked)


def _picked(logits_BV, ids_BC):
    """(log p, whether it is the largest) of tokens, [B, C]."""
    logits_BC = jnp.take_along_axis(logits_BV, ids_BC, axis=1)
    top_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    log_z_B1 = jax.nn.logsumexp(logits_BV, axis=1, keepdims=True)
    return logits_BC - log_z_B1, logits_BC >= top_B1


def _score_whole(model, params, prompts: dict, *, context: int, batch_size: int, greedy: bool) -> tuple[dict, int]:
    """`_score_group` without anything shared: every continuation is read with its context."""
    shapes = collections.defaultdict(list)
    results = {key: (np.zeros(n := len(each.continuations)), np.zeros(n, bool)) for key, each in prompts.items()}
    for key, (start, continuations) in prompts.items():
        for index, ids in enumerate(continuations):
            T = bucket(len(start) + len(ids) - 1, FINE.text, context)
            shapes[T, bucket(len(ids), FINE.predicted, T)].append((key, index, np.append(start, ids), len(start)))
    computed = 0
    for (T, M), rows in sorted(shapes.items()):
        B = min(batch_size, max(1, MAX_TOKENS // T))
        for some in (rows[first : first + B] for first in range(0, len(rows), B)):
            batch = padded([ids[:-1] for _, _, ids, _ in some], B, T)
            batch |= {name: np.zeros((B, M), np.int32) for name in ('select', 'targets')}
            for row, (_, _, ids, start) in enumerate(some):
                count = len(ids) - start
                batch['select'][row, :count] = np.arange(start - 1, len(ids) - 1)
                batch['targets'][row, :count] = ids[start:]
            columns = jax.device_get(_nats(model, params, batch, (), greedy))
            for (key, index, ids, start), nats, top in zip(some, *columns, strict=False):
                results[key][0][index] = np.sum(nats[: len(ids) - start], dtype=np.float64)
                results[key][1][index] = np.all(top[: len(ids) - start])
                computed += len(ids) - 1
    return results, computed


def token_log_likelihoods(model, params: Params, prompts: Sequence[TokenPrompt], batch_size: int) -> list[np.ndarray]:
    """float32 [L] for each prompt: log p in nats of each token of its only continuation, after all before it.

    A context and its continuation together have at most as many tokens as in `log_likelihoods`.
    """
    model = dataclasses.replace(model, unroll=1, remat='none')
    context = virtual_tokens.room(model, params)
    shapes = collections.defaultdict(list)
    for index, (start, (ids,)) in enumerate(prompts):
        shapes[bucket(len(start) + len(ids) - 1, FINE.text, context)].append((index, np.append(start, ids), len(start)))
    values: list[np.ndarray] = [np.zeros(0, np.float32) for _ in prompts]
    for T, rows in sorted(shapes.items()):
        B = min(batch_size, max(1, MAX_TOKENS // T), rounded(len(rows)))
        for some in (rows[first : first + B] for first in range(0, len(rows), B)):
            batch = padded([ids[:-1] for _, ids, _ in some], B, T)
            batch['targets'] = padded([ids[1:] for _, ids, _ in some], B, T)['tokens']
            nats_BT, _ = jax.device_get(_nats(model, params, batch, (), False))
            for (index, ids, start), nats in zip(some, nats_BT, strict=False):
                values[index] = nats[start - 1 : len(ids) - 1]
    return values


@functools.partial(jax.jit, static_argnames=('model', 'greedy'))
def _nats(model, params, batch, past, greedy: bool):
    """(log p float32, whether it is the largest) of the targets of a batch, [B, M]."""
    return _values(model.apply({'params': params}, batch, past=past), batch['targets'], greedy)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal elements at the beginning.

    >>> common_length(np.array([1, 2, 3, 4]), np.array([1, 2, 5]))
    2
    """
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter
