"""Prompt search: the variant, demonstrations and order under which a model predicts the answers of selection rows best.

A candidate is one of several settings (instruction, template, separator) and a sequence of rows of a pool, the
demonstrations of every row. Its score is the mean log-likelihood of the right answers, which has less noise than an
accuracy. The search spends a budget of computed tokens, and reports how many it has spent. It reads the rows that it is
given and no others: rows that are reported later must not be among them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.rows import Row
from lmtrain.errors import InputError, wrong_choice
from lmtrain.inference import calibration
from lmtrain.inference.demonstrations import ALL, select
from lmtrain.inference.prompting import PromptSettings, score_choices
from lmtrain.inference.questions import Question, ask
from lmtrain.tree import Params

WIDTH = 8  # rows that are tried as the next demonstration of a greedy search
PATIENCE = 50  # candidates in a row that are not better, after which a greedy search ends; repeats, of a random one


class PromptCandidate(NamedTuple):
    """A prompt: index of its settings among the variants, and of its demonstrations in the pool, in their order."""

    variant: int
    demonstrations: tuple[int, ...] = ()


class SearchResult(NamedTuple):
    """What `search` returns.

    Attributes:
      settings, demonstrations: of the best prompt: `prompting.score(..., settings, demonstrations=demonstrations)`.
      candidates: all in the order of the search, {'variant', 'demonstrations' (places of rows), 'log_likelihood' (nats
        per row), 'accuracy' (None if answers are generated), 'computed_tokens', 'fits'}. One that does not fit into the
        context (`fits` False), with rows that have room for a prompt without demonstrations, is never the best.
      best: index into `candidates`.
      computed_tokens: of all candidates together.
    """

    settings: PromptSettings
    demonstrations: list[Row]
    candidates: list[dict[str, Any]]
    best: int
    computed_tokens: int


class BudgetSpent(Exception):
    """The next candidate would cost more than what is left."""


def search(
    model,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    variants: Sequence[PromptSettings],
    pool: Sequence[Row],
    *,
    shots: int,
    budget: int,
    how: str = 'greedy',
    seed: int = 0,
) -> SearchResult:
    """The best of the prompts that a budget of tokens can compare.

    Args:
      rows: selection rows. A row of the pool with the same text is left out of the prompt of that row.
      variants: settings that differ in `instruction`, `template`, `separator` or `system`; their `shots`, `select` and
        `seed` are not read. Each needs the choices of all rows, if it has choices.
      pool: rows that may be demonstrations.
      shots: the most demonstrations of a candidate.
      budget: computed tokens (`likelihood.Likelihoods`). A candidate is computed if its estimated cost is left;
        the estimate is corrected by the largest error so far, so that the budget is exceeded only by the first, or by
        one with a larger error.
      how: 'greedy' compares the variants without demonstrations, then appends the best of `WIDTH` random rows one at a
        time, then changes the best prompt in one place, as long as there is an improvement in `PATIENCE` attempts (the
        variant, one demonstration, or the order of two). 'random' draws the variant, the number of demonstrations, the
        rows and their order.
      seed: of all draws. The same arguments give the same result.

    Raises:
      InputError: what `questions.ask` raises, an unknown search, or a budget below the cost of one candidate.

    If there are choices, the likelihood of an answer is divided by that of all choices (softmax over the choices), at
    the temperature that is the best for the candidate (`calibration.fit_temperature`).
    """
    if how not in SEARCHES:
        raise wrong_choice('search', how, SEARCHES)
    if not variants or not rows:
        raise InputError(f'a prompt search needs variants and selection rows, not {len(variants)} and {len(rows)}')
    evaluate = _Evaluator(model, params, tokenizer, rows, variants, pool, budget)
    space = _Space(len(variants), len(pool), min(shots, len(pool)))
    try:
        SEARCHES[how](evaluate, space, np.random.default_rng(seed))
    except BudgetSpent:
        if not evaluate.table:
            raise
    candidates = list(evaluate.table)
    best = max(range(len(candidates)), key=lambda index: evaluate(candidates[index]))
    if math.isinf(evaluate(candidates[best])):
        raise InputError('no candidate of the prompt search fits into the context of the model')
    variant, chosen = candidates[best]
    settings = evaluate.resolved[variant]._replace(shots=ALL if chosen else 0, select='first')
    spent = evaluate.spent
    return SearchResult(settings, [pool[index] for index in chosen], list(evaluate.table.values()), best, spent)


class _Evaluator:
    """Candidate -> its mean log-likelihood, each computed once; -inf if it does not fit into the context.

    Attributes:
      resolved: the variants with their choices as texts.
      table: {PromptCandidate: its entry in `SearchResult.candidates`}.
    """

    def __init__(self, model, params, tokenizer: Tokenizer, rows, variants, pool, budget: int):
        self.computes = model, params, tokenizer
        self.rows, self.pool, self.budget = rows, pool, budget
        self.questions, self.others, self.resolved = [], [], []
        for settings in variants:
            asked, others = ask(rows, settings, pool)
            self.resolved.append(with_choices(settings, asked))
            self.questions.append(asked if settings.choices else [q._replace(choices=(q.answer,)) for q in asked])
            self.others.append(others)
        self.own = [self._own_tokens(settings, asked) for settings, asked in zip(variants, self.questions, strict=True)]
        self.table: dict[PromptCandidate, dict[str, Any]] = {}
        self.spent, self.underestimated = 0, 1.0

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.computes[2].encode_batch(texts)]

    def _own_tokens(self, settings: PromptSettings, asked: Sequence[Question]) -> int:
        """Tokens that are computed without demonstrations: the instruction once, and the questions and choices."""
        choices = sorted({choice for q in asked for choice in q.choices})
        sizes = dict(zip(choices, self._tokens(choices), strict=True))
        texts = sum(self._tokens([settings.instruction, *(q.context for q in asked)]))
        return texts + sum(1 + sizes[choice] for q in asked for choice in q.choices)

    def _estimate(self, candidate: PromptCandidate) -> float:
        settings, others = self.resolved[candidate.variant], self.others[candidate.variant]
        texts = [others[i].context + others[i].answer + settings.separator for i in candidate.demonstrations]
        return self.own[candidate.variant] + sum(self._tokens(texts) if texts else [])

    def __call__(self, candidate: PromptCandidate) -> float:
        if candidate not in self.table:
            estimate = self._estimate(candidate)
            if self.spent + estimate * self.underestimated > self.budget:
                if self.table:
                    raise BudgetSpent
                raise InputError(f'budget={self.budget:,} tokens, and the first candidate needs about {estimate:,.0f}')
            entry = self._compute(candidate)
            self.spent += entry['computed_tokens']
            self.underestimated = max(self.underestimated, entry['computed_tokens'] / estimate)
            self.table[candidate] = entry
        entry = self.table[candidate]
        return entry['log_likelihood'] if entry['fits'] else -math.inf

    def _compute(self, candidate: PromptCandidate) -> dict[str, Any]:
        variant, chosen = candidate
        asked, settings = self.questions[variant], self.resolved[variant]
        pool = [self.others[variant][index] for index in chosen]
        drawn = select(asked, pool, ALL, 'first') if pool else [[]] * len(asked)
        scores = score_choices(*self.computes, asked, drawn, settings)
        right = [q.choices.index(q.answer) for q in asked]
        nats = _fitted_nats(scores.nats, right)
        hits = [int(np.argmax(own)) == index for own, index in zip(scores.nats, right, strict=True)]
        return {
            'variant': variant,
            'demonstrations': [self.pool[index].place for index in chosen],
            'log_likelihood': float(np.mean(nats)),
            'accuracy': float(np.mean(hits)) if settings.choices else None,
            'computed_tokens': scores.computed_tokens,
            # A row that is cut is too long even without demonstrations, and loses all of them with every candidate.
            'fits': scores.dropped <= scores.cut * len(chosen),
        }


def _fitted_nats(scores: Sequence[np.ndarray], right: Sequence[int]) -> np.ndarray:
    """[N] log p of the right choices, at the temperature at which it is the highest; as `answer_nats` without others.

    Prompts differ in how sure the model is after them, which changes no answer and is corrected afterwards anyway.
    """
    count = max(map(len, scores))
    if count == 1:
        return np.array([answer_nats(own, index) for own, index in zip(scores, right, strict=True)])
    padded = np.array([np.pad(own, (0, count - len(own)), constant_values=-np.inf) for own in scores])
    temperature = calibration.fit_temperature(padded, right)
    return calibration.log_softmax(padded / temperature)[np.arange(len(padded)), right]


def with_choices(settings: PromptSettings, asked: Sequence[Question]) -> PromptSettings:
    """The settings with the choices as texts, if they are the answers of all rows: a prompt holds a few of the rows."""
    of_answers = settings.choices and settings.choices == settings.answer
    return settings._replace(choices=asked[0].choices) if of_answers else settings


def answer_nats(nats: np.ndarray, right: int) -> float:
    """log p of the right one among the choices, of their log-likelihoods [C]; of a single choice its log-likelihood.

    >>> round(answer_nats(np.log([0.03, 0.01]), 0), 4)  # log 0.75
    -0.2877
    """
    return float(nats[right] - np.logaddexp.reduce(nats)) if len(nats) > 1 else float(nats[right])


# --- searches


class _Space(NamedTuple):
    """Numbers of variants, of rows in the pool, and of demonstrations at most."""

    variants: int
    rows: int
    shots: int


def _greedy(evaluate: Callable[[PromptCandidate], float], space: _Space, rng: np.random.Generator) -> None:
    best = max(map(PromptCandidate, range(space.variants)), key=evaluate)
    prompt = best
    while len(prompt.demonstrations) < space.shots:
        left = np.setdiff1d(np.arange(space.rows), prompt.demonstrations)
        tried = rng.permutation(left)[:WIDTH].tolist()
        # The new row is the first: those that are there keep their places next to the question.
        longer = (prompt._replace(demonstrations=(row, *prompt.demonstrations)) for row in tried)
        prompt = max(longer, key=evaluate)
        best = max(best, prompt, key=evaluate)
        if math.isinf(evaluate(prompt)):
            break
    failures = 0
    while failures < PATIENCE:
        changed, failures = _change(best, space, rng), failures + 1
        if evaluate(changed) > evaluate(best):
            best, failures = changed, 0


def _change(candidate: PromptCandidate, space: _Space, rng: np.random.Generator) -> PromptCandidate:
    """Another variant, another demonstration, or two demonstrations exchanged; it may be the same candidate."""
    variant, chosen = candidate
    kind = int(rng.integers(3))
    if kind == 0 or not chosen:
        return PromptCandidate(int(rng.integers(space.variants)), chosen)
    changed, (a, b) = list(chosen), rng.integers(len(chosen), size=2)
    if kind == 1:
        row = int(rng.integers(space.rows))
        changed[a] = changed[a] if row in chosen else row
    else:
        changed[a], changed[b] = changed[b], changed[a]
    return PromptCandidate(variant, tuple(changed))


def _random(evaluate: Callable[[PromptCandidate], float], space: _Space, rng: np.random.Generator) -> None:
    seen, repeats = set(), 0
    while repeats < PATIENCE:
        number = int(rng.integers(space.shots + 1))
        rows = rng.choice(space.rows, number, replace=False).tolist() if number else []
        candidate = PromptCandidate(int(rng.integers(space.variants)), tuple(rows))
        repeats = repeats + 1 if candidate in seen else 0
        seen.add(candidate)
        evaluate(candidate)


SEARCHES = {'greedy': _greedy, 'random': _random}
