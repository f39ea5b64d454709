"""Demonstrations: never the row itself, the same for every order, and ranked as the formulas say."""

import collections
import functools
import math
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.inference import prompting
from lmtrain.inference.demonstrations import ALL, SELECTORS, bm25, embeddings, most_that_fit, select
from lmtrain.inference.questions import Question
from lmtrain.models import Transformer

TEXTS = ['the cat sat on the mat', 'a dog sat', 'cats and dogs', 'the bank is closed', 'open a bank account now please',
         'the the the', 'is my card here', 'card lost']  # fmt: skip


def question(context: str, answer: str = 'x') -> Question:
    return Question(f'row {context}', context, (), answer)


def letters(texts) -> np.ndarray:
    """An embedding: the counts of letters, as unit vectors."""
    counts = np.array([[text.count(letter) for letter in 'abcdeghiklmnoprstuy'] for text in texts], np.float64)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def pool_of(size: int = 24) -> list[Question]:
    """Texts of which each occurs under two answers."""
    return [question(f'{TEXTS[number % 12 % 8]} {number % 12}', f'{number % 5}') for number in range(size)]


@pytest.mark.parametrize('how', SELECTORS)
@pytest.mark.parametrize('shots', [4, ALL])
def test_no_row_is_a_demonstration_of_itself(how, shots):
    pool = pool_of()
    for query, drawn in zip(pool, select(pool, pool, shots, how, embed=letters), strict=True):
        assert query.context not in [each.context for each in drawn]
        assert len(set(drawn)) == len(drawn) == (4 if shots == 4 else 22)


@pytest.mark.parametrize('how', sorted({*SELECTORS} - {'first'}))
def test_demonstrations_depend_on_the_row_and_the_seed_alone(how):
    pool = pool_of()
    mixed = random.Random(0).sample(pool, len(pool))

    def drawn(queries, pool, seed):
        chosen = select(queries, pool, 3, how, seed=seed, embed=letters)
        return {query: [each[1:] for each in own] for query, own in zip(queries, chosen, strict=True)}

    first = drawn(pool, pool, 0)
    assert first == drawn(mixed, mixed, 0)
    assert {**drawn(pool[:1], mixed, 0)} == {pool[0]: first[pool[0]]}
    if how in ('random', 'fixed', 'balanced'):
        assert first != drawn(pool, pool, 1)
    if how in ('random', 'balanced'):
        assert len({tuple(own) for own in first.values()}) > 5


def test_random_draws_are_those_of_numpy_with_the_digest_of_the_text():
    pool = [question(f'q{number:02}') for number in range(14)]
    (drawn,) = select([question('été')], pool, 4, seed=3)
    assert [each.context for each in drawn] == ['q06', 'q08', 'q03', 'q11']


def test_balanced_has_every_answer_equally_often():
    answers = 'a' * 9 + 'b' * 9 + 'c' * 2
    pool = [question(f'{number}', answer) for number, answer in enumerate(answers)]
    for shots, counts in ((3, [1, 1, 1]), (6, [2, 2, 2]), (8, [2, 3, 3]), (5, [1, 2, 2]), (ALL, [2, 9, 9])):
        (drawn,) = select([question('here')], pool, shots, 'balanced')
        assert sorted(collections.Counter(each.answer for each in drawn).values()) == counts
    for number in range(6):  # the end of a prompt that loses its first demonstrations is balanced too
        assert {each.answer for each in drawn[len(drawn) - 3 :]} == {*'abc'}, number
    own = list(select([question('0', 'a')], pool[:1] + pool[8:11], 3, 'balanced'))[0]
    assert sorted(each.context for each in own) == ['10', '8', '9']


def test_first_is_the_same_for_all_rows():
    pool = pool_of()
    drawn = list(select([question('new'), question('newer'), pool[1]], pool, 3, 'first'))
    assert drawn == [pool[:3], pool[:3], [pool[0], *pool[2:4]]]


def test_fixed_is_one_draw_of_a_seed_in_which_a_query_skips_itself():
    pool = [question(f'q{number:02}') for number in range(14)]
    new = [question('new'), question('newer')]
    first, second = select(new, pool, 4, 'fixed', seed=3)
    (all_of_them,) = select(new[:1], pool, ALL, 'fixed', seed=3)
    assert first == second == all_of_them[:4] and first != sorted(first)
    (own,) = select([first[1]], pool, 4, 'fixed', seed=3)
    assert own == [first[0], first[2], first[3], all_of_them[4]]
    sets = {tuple(next(select(new, pool[::-1], 4, 'fixed', seed=seed))) for seed in range(20)}
    assert len({frozenset(each) for each in sets}) > 15 and {each for own in sets for each in own} == {*pool}
    (smaller,) = select(new[:1], pool[:-1], ALL, 'fixed', seed=3)
    assert smaller == [each for each in all_of_them if each != pool[-1]]  # a new row moves no other


def test_texts_with_known_embeddings_are_not_embedded_again():
    pool, queries, embedded = pool_of(), [question('a card'), question('the mat')], []

    def counted(texts):
        embedded.extend(texts)
        return letters(texts)

    expected = list(select(queries, pool, 4, 'nearest', embed=letters))
    vectors = dict(zip(texts := [row.context for row in pool], letters(texts)))
    assert list(select(queries, pool, 4, 'nearest', embed=counted, vectors=vectors)) == expected
    assert embedded == ['a card', 'the mat']


def okapi(query: str, texts, k1=1.2, b=0.75) -> list[float]:
    """BM25, word by word."""
    words = [re.findall(r'\w+', text.lower()) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        score = 0.0
        for word in re.findall(r'\w+', query.lower()):
            n = sum(word in each for each in words)
            f, idf = own.count(word), math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(own) / mean))
        scores.append(score)
    return scores


def test_bm25_is_the_formula():
    queries = ['The cat, the dog', 'BANK account', 'zebra', '']
    scores = bm25(queries, TEXTS)
    for number, query in enumerate(queries):
        np.testing.assert_allclose(scores(number), okapi(query, TEXTS), rtol=1e-12)


@pytest.mark.parametrize('how', ['bm25', 'nearest'])
def test_the_most_similar_rows_are_last(how):
    query, pool = question('is the cat on my card'), [question(text) for text in TEXTS]
    (drawn,) = select([query], pool, 5, how, embed=letters)
    values = okapi(query.context, TEXTS) if how == 'bm25' else (letters(TEXTS) @ letters([query.context])[0]).tolist()
    order = sorted(range(len(TEXTS)), key=lambda i: values[i])[-5:]
    assert [each.context for each in drawn] == [TEXTS[i] for i in order]


def test_equally_similar_rows_are_in_random_order():
    pool = [question(f'word{number}') for number in range(40)]
    (drawn,) = select([question('unknown')], pool, 10, 'bm25')
    assert sorted(each.context for each in drawn) != sorted(each.context for each in pool)[:10]


def test_as_many_demonstrations_as_fit():
    tried = []

    def fits(some):
        tried.append(len(some))
        return sum(some) <= 5000

    sizes = [1 + number % 7 for number in range(4000)]
    most = most_that_fit(sizes, fits)
    assert sum(sizes[-most:]) <= 5000 < sum(sizes[-most - 1 :])
    assert max(tried) <= 2 * most and len(tried) < 20
    for guess, prompts in ((most, 2), (most - 1, 22), (most + 1, 22), (4000, 20)):  # the number of another row
        tried.clear()
        assert most_that_fit(sizes, fits, guess=guess) == most and len(tried) <= prompts


@pytest.mark.parametrize(
    'shots, how, message',
    [
        (13, 'random', 'row q0: shots=13 demonstrations, but there are only 12 other rows'),
        (-2, 'random', 'shots=-2: a number of demonstrations, or -1'),
        (2, 'nearst', "select = 'nearst' is none of .*did you mean 'nearest'"),
    ],
)
def test_what_is_refused(shots, how, message):
    pool = [question(f'q{number % 7}', f'{number}') for number in range(14)]
    with pytest.raises(ValueError, match=message):
        select(pool, pool, shots, how)
    with pytest.raises(ValueError, match='there is no row to take them from'):
        select(pool, [], 1)


# --- through `score`


TEXTS_OF_ROWS = ['cat', 'cart', 'dog', 'dodge', 'cats', 'doggy']
ROWS = [Row(f'rows:{i}', {'text': text, 'gold': 'ab'[i % 2]}) for i, text in enumerate(TEXTS_OF_ROWS)]
SETTINGS = prompting.PromptSettings('{text} is {gold}', 'gold', ('a', 'b'), separator='\n', batch_size=4)


@pytest.mark.slow
def test_scores_are_those_after_the_nearest_rows(computes):
    model, params, tokenizer = computes
    scores = prompting.score(*computes, ROWS, SETTINGS._replace(shots=2, select='nearest'))
    asked, _ = prompting.ask(ROWS, SETTINGS)
    assert scores.results['embedded_tokens'] == sum(len(each.context) for each in asked)
    vectors = embeddings(model, params, tokenizer, [each.context for each in asked])
    for number, row in enumerate(scores.rows):
        similar = vectors @ vectors[number]
        similar[number] = -2
        drawn = [asked[index] for index in np.argsort(similar)[-2:]]
        alone = prompting.score_choices(*computes, [asked[number]], [drawn], SETTINGS)
        np.testing.assert_allclose(row['nats'], alone.nats[0], rtol=1e-4)


def test_as_many_demonstrations_as_fit_are_used_and_counted(computes):
    scores = prompting.score(*computes, ROWS, SETTINGS._replace(shots=ALL, select='bm25', instruction='#' * 30))
    results = scores.results
    assert 0 < results['dropped'] == 6 * 5 - round(6 * results['shots_mean'])
    assert f'{results["shots_mean"]:.1f} shots' in prompting.line(results)


@pytest.mark.parametrize('choices', [('a', 'b'), ()])
def test_long_prompts_share_the_beginning_of_a_fixed_draw(computes, monkeypatch, choices):
    prompts, name = [], 'log_likelihoods' if choices else 'generate'
    module = prompting.likelihood if choices else prompting.sample
    compute = getattr(module, name)

    def spy(model, params, asked, *args, **options):
        prompts.extend(asked)
        return compute(model, params, asked, *args, **options)

    monkeypatch.setattr(module, name, spy)
    pool = [Row(f'pool:{i}', {'text': f'{i} {text}', 'gold': 'ab'[i % 2]}) for i, text in enumerate(TEXTS_OF_ROWS * 4)]
    settings = SETTINGS._replace(shots=ALL, select='fixed', choices=choices, max_tokens=2)
    rows = [*ROWS, Row('long', {'text': 'x' * 24, 'gold': 'a'})]  # which has room for fewer
    results = prompting.score(*computes, rows, settings, demonstrations=pool).results
    texts = [computes[2].decode([*(each.context_ids if choices else each)]) for each in prompts]
    assert results['dropped'] and 1 < results['shots_mean'] < len(pool)
    lines = [text.split('\n')[:-1] for text in texts]
    least = min(map(len, lines))
    assert 1 <= least < max(map(len, lines))
    assert len({tuple(each[:least]) for each in lines}) == 1


# --- embeddings


@functools.cache
def model_of(**settings):
    model = base.get_config().model.to_dict() | {'num_layers': 2, 'width': 16, 'num_heads': 4}
    model = Transformer(
        **model
        | {'vocab_size': Bytes().vocab_size, 'max_len': 24, 'head_dim': 4, 'mlp_dim': 32, 'unroll': 2}
        | settings
    )
    return model, jax.jit(model.init)(jax.random.key(0), {'tokens': jnp.zeros((1, 8), jnp.int32)})['params']


@pytest.mark.slow
@pytest.mark.parametrize('settings', [{}, {'causal': False}, {'head': 'none', 'causal': False}])
def test_embeddings_are_means_of_hidden_states(settings):
    model, params = model_of(**settings)
    texts = ['ab', 'été', 'abcdefgh' * 5, 'ba', '']
    vectors = embeddings(model, params, Bytes(), texts, batch_size=4)
    assert vectors.dtype == np.float32
    begin, end = Bytes().begin_id, Bytes().end_id
    for text, vector in zip(texts[:4], vectors[:4], strict=True):
        total, raw = 0, text.encode()
        for first in range(0, len(raw), 22):  # of 24 positions, two are those of BEGIN and END
            ids = np.array([[begin, *raw[first : first + 22], end]], np.int32)
            total += np.asarray(model.apply({'params': params}, {'tokens': ids})['hidden'])[0, 1:-1].sum(0)
        np.testing.assert_allclose(vector, total / np.linalg.norm(total), atol=2e-6)
    assert not vectors[4].any()
    np.testing.assert_allclose(embeddings(model, params, Bytes(), texts[1:2], batch_size=4)[0], vectors[1], atol=1e-6)
