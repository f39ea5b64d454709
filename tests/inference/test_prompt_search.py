"""Prompt search: it finds a planted prompt, stays within its budget, and depends on its seed alone."""

import functools

import numpy as np
import pytest

from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.inference import prompt_search, prompting
from lmtrain.inference.prompt_search import answer_nats, search

BYTES = Bytes()
FORM = {'template': '{text} is {gold}', 'answer': 'gold', 'choices': ('a', 'b'), 'batch_size': 8}
VARIANTS = [prompting.PromptSettings(**FORM, instruction=each, separator='\n') for each in ('', 'Say it', 'a or b?')]


def rows_of(texts, place='rows'):
    return [Row(f'{place}:{i}', {'text': text, 'gold': 'ab'[i % 2]}) for i, text in enumerate(texts)]


ROWS, POOL = rows_of(['cat', 'dog', 'hen', 'owl']), rows_of(['cow', 'pig', 'cat', 'ant', 'bee', 'fly'], 'pool')


@pytest.mark.parametrize('how', ['greedy', 'random'])
def test_the_best_prompt_is_that_with_the_highest_likelihood(computes, how):
    result = search(*computes, ROWS, VARIANTS, POOL, shots=2, budget=20_000, how=how, seed=1)
    assert result.computed_tokens == sum(each['computed_tokens'] for each in result.candidates) <= 20_000
    assert len(result.candidates) > 20
    best = result.candidates[result.best]
    assert best['log_likelihood'] == max(each['log_likelihood'] for each in result.candidates)
    assert [row.place for row in result.demonstrations] == best['demonstrations']
    scores = prompting.score(*computes, ROWS, result.settings, demonstrations=result.demonstrations)
    assert scores.results['accuracy'] == best['accuracy']
    right, raw = ['ab'.index(row['answer']) for row in scores.rows], [np.array(row['nats']) for row in scores.rows]
    # At the best temperature, which is never worse than 1.
    tempered = [
        np.mean([answer_nats(nats / temperature, index) for nats, index in zip(raw, right)])
        for temperature in np.geomspace(0.05, 100, 400)
    ]
    assert best['log_likelihood'] == pytest.approx(max(tempered), abs=1e-3)
    assert best['log_likelihood'] >= np.mean([answer_nats(nats, index) for nats, index in zip(raw, right)]) - 1e-6
    assert {each['variant'] for each in result.candidates} == {0, 1, 2}
    assert {len(each['demonstrations']) for each in result.candidates} == {0, 1, 2}


@pytest.mark.parametrize('how', ['greedy', 'random'])
def test_a_search_depends_on_its_seed_and_stays_within_its_budget(computes, how):
    run = functools.partial(search, *computes, ROWS, VARIANTS, POOL, shots=2, how=how)
    assert run(budget=3000, seed=1) == run(budget=3000, seed=1)
    assert run(budget=3000, seed=1).candidates != run(budget=3000, seed=2).candidates
    for budget in (200, 500, 1100):
        result = run(budget=budget)
        assert budget / 3 < result.computed_tokens
        assert result.computed_tokens <= budget or len(result.candidates) == 1
    with pytest.raises(ValueError, match='budget=20 tokens, and the first candidate needs about'):
        run(budget=20)


class Planted:
    """Scores by hand: the right prompt is variant 1 with rows 3 and 1, in this order."""

    calls = 0

    def __call__(self, candidate):
        self.calls += 1
        right = (3, 1)
        return (candidate.variant == 1) + sum(a == b for a, b in zip(candidate.demonstrations[::-1], right[::-1]))


@pytest.mark.parametrize('how', ['greedy', 'random'])
def test_a_planted_prompt_is_found(how):
    evaluate, seen = Planted(), []

    def record(candidate):
        seen.append((evaluate(candidate), candidate))
        return seen[-1][0]

    prompt_search.SEARCHES[how](record, prompt_search._Space(2, 5, 2), np.random.default_rng(0))
    assert max(seen)[1] == prompt_search.PromptCandidate(1, (3, 1))
    if how == 'greedy':  # the last comparison is with the best
        assert seen[-1] == max(seen)


def test_likelihoods_of_answers_are_divided_by_those_of_all_choices():
    nats = np.log([0.06, 0.02, 0.04])
    assert answer_nats(nats, 2) == pytest.approx(np.log(1 / 3))
    assert answer_nats(nats[:1], 0) == pytest.approx(np.log(0.06))


def test_generated_answers_are_scored_by_their_likelihood(computes):
    variants = [each._replace(choices=()) for each in VARIANTS[:2]]
    result = search(*computes, ROWS, variants, POOL, shots=1, budget=1500)
    assert result.settings.choices == () and result.candidates[0]['accuracy'] is None
    one = variants[result.candidates[0]['variant']]
    asked = [q._replace(choices=(q.answer,)) for q in prompting.ask(ROWS, one)[0]]
    nats = prompting.score_choices(*computes, asked, [[]] * 4, one).nats
    assert result.candidates[0]['log_likelihood'] == pytest.approx(np.mean(nats), abs=1e-5)


def test_choices_of_the_answers_stay_complete(computes):
    variants = [each._replace(choices='gold') for each in VARIANTS[:1]]
    result = search(*computes, ROWS, variants, POOL, shots=1, budget=2000)
    assert result.settings.choices == ('a', 'b')


def test_prompts_that_do_not_fit_are_not_chosen(computes):
    pool = rows_of(['x' * 60, 'y' * 60])
    result = search(*computes, ROWS, VARIANTS[:1], pool, shots=2, budget=5000)
    assert result.demonstrations == [] and [each['fits'] for each in result.candidates[:3]] == [True, False, False]


def test_a_row_that_is_always_too_long_does_not_decide_what_fits(computes):
    rows, pool = [*ROWS, *rows_of(['z' * 200])], rows_of(['x', 'y' * 60])
    result = search(*computes, rows, [VARIANTS[0]._replace(cut=True)], pool, shots=1, budget=9000)
    fits = {tuple(each['demonstrations']): each['fits'] for each in result.candidates}
    assert fits == {(): True, ('rows:0',): True, ('rows:1',): False}


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'how': 'annealing'}, "search = 'annealing' is none of greedy, random"),
        ({'variants': []}, 'needs variants and selection rows, not 0 and 4'),
        ({'rows': []}, 'needs variants and selection rows, not 3 and 0'),
    ],
)
def test_what_is_refused(computes, changes, message):
    arguments = {'rows': ROWS, 'variants': VARIANTS, 'pool': POOL, 'shots': 1, 'budget': 1000} | changes
    with pytest.raises(ValueError, match=message):
        search(*computes, **arguments)
