"""Demonstrations: which rows of a pool precede a row in its prompt, and in which order.

The row itself is never among them, nor any other row with its text: the prompt would contain the answer. The selection
for a row depends on its text, the pool, the number of shots and the seed, and not on other rows or a batch; only that
of 'first' depends on the order of the pool.
"""

import bisect
import collections
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.hash_rng import hash_unit
from lmtrain.errors import InputError, wrong_choice
from lmtrain.inference.batches import FINE
from lmtrain.inference.likelihood import padded
from lmtrain.inference.questions import Question
from lmtrain.inference.sample import bucket
from lmtrain.models import virtual_tokens
from lmtrain.tree import Params

SELECTORS = ('random', 'fixed', 'balanced', 'first', 'bm25', 'nearest')
SHARED = ('fixed', 'first')  # the same rows in the same order for all queries: prompts have a common beginning
ALL = -1  # shots: all other rows of the pool; the prompt drops some until it fits into the context

K1, B = 1.2, 0.75  # of BM25: saturation of the term frequency, normalisation by length

EmbedTexts = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors float32 [len(texts), D]


def select(
    queries: Sequence[Question],
    pool: Sequence[Question],
    shots: int,
    how: str = 'random',
    *,
    seed: int = 0,
    embed: EmbedTexts | None = None,
    vectors: Mapping[str, np.ndarray] = {},
) -> Iterator[list[Question]]:
    """Yields the demonstrations of each query, in the order of the prompt.

    If a prompt is too long, its first demonstrations are dropped ('fixed': its last). Therefore the most similar ones
    are last, and the answers of 'balanced' stay balanced.

    Args:
      pool: rows that may be demonstrations; it may contain the queries. Equal rows count once.
      shots: demonstrations of each query; `ALL` (-1) is every other row of the pool.
      how: 'random', a draw for each query; 'fixed', one random draw of a seed for all queries in one order, of which a
        query skips itself and takes the next row, so that prompts share a prefix; 'balanced', a random draw with
        equally many rows of each answer, as far as the pool has them; 'first', the first rows of the pool in its order,
        so that all queries share them; 'bm25', the rows with the highest Okapi BM25 of the query's words (`bm25`);
        'nearest', those with the highest cosine of `embed`. Equally similar rows are in random order.
      seed: of the random draws.
      embed: of 'nearest', such as `functools.partial(embeddings, model, params, tokenizer)`.
      vectors: {text: its embedding} of texts that are embedded already.

    Raises:
      InputError: the pool has fewer than `shots` other rows, or there is no selector `how`.
    """
    if how not in SELECTORS:
        raise wrong_choice('select', how, SELECTORS)
    if shots < ALL:
        raise InputError(f'shots={shots}: a number of demonstrations, or {ALL} for as many as fit')
    if not shots:
        return iter([[] for _ in queries])
    pool = _ordered(pool, how, seed)
    if not pool:
        raise InputError(f'shots={shots} demonstrations, but there is no row to take them from')
    same_context = collections.defaultdict(list)  # text -> indices into the pool
    for index, row in enumerate(pool):
        same_context[row.context].append(index)
    for query in queries:
        others = len(pool) - len(same_context.get(query.context, ()))
        if shots > others:
            raise InputError(f'{query.place}: shots={shots} demonstrations, but there are only {others} other rows')
    similarity = _similarity(queries, pool, how, embed, vectors)

    def of_query(number: int) -> list[Question]:
        context = queries[number].context
        own = same_context.get(context, ())
        count = len(pool) if shots == ALL else shots + len(own)
        order = _order(pool, own, count, how, _generator(seed, context), similarity(number))
        drawn = [pool[index] for index in order[: len(pool) if shots == ALL else shots]]
        return drawn if how in ('random', *SHARED) else drawn[::-1]

    return map(of_query, range(len(queries)))


def _ordered(pool: Sequence[Question], how: str, seed: int) -> list[Question]:
    """The different rows of a pool in an order that does not depend on its own, except for 'first'."""
    rows = list({(q.context, q.answer): q for q in pool}.values())
    if how != 'first':
        rows.sort(key=lambda q: (q.context, q.answer))
    if how == 'fixed':
        rows.sort(key=lambda q: hash_unit(f'demonstrations {seed}', json.dumps([q.context, q.answer])))
    return rows


def most_that_fit(
    drawn: Sequence[Question], fits: Callable[[Sequence[Question]], bool], least: int = 32, guess: int = 0
) -> int:
    """How many of the last demonstrations fit together; `least` at least, or all of them, which may not fit.

    `fits(some)`: whether a prompt with these demonstrations fits. By doubling and bisection: no prompt that is tried
    has more than twice the demonstrations of the longest that fits. A `guess` that is right, such as the number of
    another row, is confirmed by two prompts.

    >>> most_that_fit(range(1000), lambda some: len(some) <= 70), most_that_fit(range(1000), lambda some: False)
    (70, 32)
    """
    if least < guess < len(drawn) and fits(drawn[len(drawn) - guess :]):
        if not fits(drawn[len(drawn) - guess - 1 :]):
            return guess
    low, high = 0, min(least, len(drawn))
    while high < len(drawn) and fits(drawn[len(drawn) - high :]):
        low, high = high, min(2 * high, len(drawn))
    if high <= least:
        return high
    numbers = range(low + 1, high + 1)
    return low + bisect.bisect_left(numbers, True, key=lambda n: not fits(drawn[len(drawn) - n :]))


def _generator(seed: int, context: str) -> np.random.Generator:
    """The draws of a row; they depend on its text and on the seed alone."""
    digest = np.frombuffer(hashlib.sha256(context.encode()).digest(), np.uint32)
    return np.random.default_rng([seed, *digest.tolist()])


def _order(pool, own: Sequence[int], count: int, how: str, rng, similarity: np.ndarray | None) -> list[int]:
    """Indices into the pool without `own`, the first choice first; at least `count` less those of `own`."""
    if how in SHARED:
        drawn = np.arange(len(pool))
    elif how == 'random':
        drawn = rng.choice(len(pool), count, replace=False)
    else:
        drawn = rng.permutation(len(pool))
    drawn = drawn[~np.isin(drawn, own)]
    if similarity is not None:
        drawn = drawn[np.argsort(-similarity[drawn], kind='stable')]
    return alternate([q.answer for q in pool], drawn.tolist(), rng) if how == 'balanced' else drawn.tolist()


def alternate(answers: Sequence[str], shuffled: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Indices in rounds of one row of each answer that has rows left, the answers of a round in random order.

    Args:
      answers: of all rows. shuffled: the indices of those that are taken, the last first.

    >>> alternate('aab', [0, 1, 2], np.random.default_rng(0))
    [1, 2, 0]
    """
    rows: dict[str, list[int]] = collections.defaultdict(list)
    for index in shuffled:
        rows[answers[index]].append(index)
    order = []
    while rows:
        answers = list(rows)
        for answer in (answers[i] for i in rng.permutation(len(answers))):
            order.append(rows[answer].pop())
            if not rows[answer]:
                del rows[answer]
    return order


def _similarity(
    queries, pool, how: str, embed: EmbedTexts | None, vectors: Mapping
) -> Callable[[int], np.ndarray | None]:
    """number of a query -> its similarity float [len(pool)] to each row of the pool; None for draws."""
    texts, asked = [q.context for q in pool], [q.context for q in queries]
    if how == 'bm25':
        return bm25(asked, texts)
    if how != 'nearest':
        return lambda index: None
    if embed is None:
        raise ValueError("select='nearest' needs `embed`")
    distinct = [text for text in dict.fromkeys(texts + asked) if text not in vectors]  # each is embedded once
    vectors = {**vectors, **dict(zip(distinct, embed(distinct) if distinct else (), strict=True))}
    matrix = np.stack([vectors[text] for text in texts])
    return lambda number: matrix @ vectors[asked[number]]


def bm25(queries: Sequence[str], texts: Sequence[str]) -> Callable[[int], np.ndarray]:
    """index of a query -> float64 [len(texts)], the Okapi BM25 of its words and each text.

    sum over the words q of the query: idf(q) f (k1 + 1) / (f + k1 (1 - b + b length / mean length)), with f the number
    of times that q occurs in the text (Robertson and Zaragoza 2009, The Probabilistic Relevance Framework, equation
    3.15), and idf(q) = ln(1 + (N - n + 0.5) / (n + 0.5)) for a word in n of N texts, which is positive (Lucene). Words
    are runs of letters, digits and underscores in lower case.

    >>> scores = bm25(['a grey cat'], ['the cat sat', 'grey cats', 'a dog'])(0)
    >>> scores.round(2).tolist()
    [0.88, 1.04, 1.04]
    """
    from scipy import sparse  # late: only this selector needs it

    ids: dict[str, int] = {}
    counts = [collections.Counter(re.findall(r'\w+', text.lower())) for text in texts]
    for each in counts:
        for word in each:
            ids.setdefault(word, len(ids))
    row = np.repeat(np.arange(len(texts)), [len(each) for each in counts])
    column = np.array([ids[word] for each in counts for word in each], np.int64)
    frequency = np.array([count for each in counts for count in each.values()], np.float64)
    length = np.bincount(row, frequency, len(texts))
    texts_with = np.bincount(column, minlength=len(ids))
    idf = np.log1p((len(texts) - texts_with + 0.5) / (texts_with + 0.5))
    norm = K1 * (1 - B + B * length / max(length.mean(), 1.0))
    weight = idf[column] * frequency * (K1 + 1) / (frequency + norm[row])
    by_word = sparse.csr_array((weight, (column, row)), (len(ids), len(texts)))

    def scores(index: int) -> np.ndarray:
        words = [ids[word] for word in re.findall(r'\w+', queries[index].lower()) if word in ids]
        return by_word[words].sum(axis=0) if words else np.zeros(len(texts))

    return scores


def embeddings(model, params: Params, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """float32 [len(texts), D]: the mean of the last hidden states of each text, as a unit vector.

    The mean is over the tokens of the text, without the special tokens around it. A text that is longer than the
    context is encoded in consecutive pieces, and the mean is over all of them. Embeddings do not depend on the batch.
    """
    context = virtual_tokens.room(model, params)
    prefix, _, suffix, _ = tokenizer.layout
    room = context - len(prefix) - len(suffix)
    if room < 1:
        raise InputError(f'the context of the model has {context} tokens, which holds no text to embed')
    pieces: dict[int, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)  # padded length -> (text, ids)
    for index, ids in enumerate(tokenizer.encode_batch(texts)):
        for first in range(0, len(ids), room):
            piece = np.concatenate([prefix, ids[first : first + room], suffix]).astype(np.int32)
            pieces[bucket(len(piece), FINE.text, context)].append((index, piece))
    sums = np.zeros((len(texts), model.width))
    for T, members in sorted(pieces.items()):
        for first in range(0, len(members), batch_size):
            some = members[first : first + batch_size]
            batch = padded([ids for _, ids in some], batch_size, T)
            weights = np.zeros((batch_size, T), np.float32)
            for row, (_, ids) in enumerate(some):
                weights[row, len(prefix) : len(ids) - len(suffix)] = 1
            totals = np.asarray(_sum_hidden(model, params, batch, weights), np.float64)
            np.add.at(sums, [index for index, _ in some], totals[: len(some)])
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def embedded(
    model, params: Params, tokenizer: Tokenizer, pool: Sequence[Question], batch_size: int = 32
) -> dict[str, np.ndarray]:
    """{text: its embedding} of the rows of a pool, the `vectors` of `select`."""
    texts = list(dict.fromkeys(row.context for row in pool))
    return dict(zip(texts, embeddings(model, params, tokenizer, texts, batch_size), strict=True))


@functools.partial(jax.jit, static_argnames='model')
def _sum_hidden(model, params, batch, weights_BT):
    """float32 [B, D]: the weighted sum of the last hidden states of each row."""
    hidden_BTD = model.apply({'params': params}, batch)['hidden'].astype(jnp.float32)
    return jnp.sum(hidden_BTD * weights_BT[..., None], axis=1)
