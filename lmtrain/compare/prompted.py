"""Trials that prompt: instruction, scoring and, by a search, demonstrations are chosen on the selection rows."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.compare import arms, choice_scores, measures, predictors, rows, selection
from lmtrain.compare.predictors import Predict
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.cost import ledger
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference import demonstrations, prompt_search
from lmtrain.inference.prompting import PromptSettings
from lmtrain.inference.questions import Question, ask


def run(comparison: Comparison, trial: Trial, folder: Path) -> dict[str, Any]:
    """Chooses a prompt and measures it; the content of trial.json."""
    predictors.check_promptable(comparison.model.model)
    start, settings, model = time.perf_counter(), trial.arm.settings, comparison.model
    if settings['search']:
        best, tried, searched = _search(comparison, trial)
    else:
        tried, searched = _candidates(comparison, trial), ledger.NOTHING
        best = selection.choose(tried)
    seconds = time.perf_counter() - start
    result = selection.outcome(best, tried, len(comparison.task.selection))
    chosen = result['chosen']
    pool, form = prompt(comparison, trial, chosen)
    predict = predictor(comparison, trial, chosen)
    result['blocks'] = measures.blocks(comparison, trial, predict)
    result |= {'draws': draws(comparison, trial, form, chosen), 'draws_fitted': True}
    result['orders'] = orders(comparison, trial, form, chosen, held(trial, form, result['selection']))
    result['template_texts'] = template_texts(comparison, trial)
    result['templates'] = templates(comparison, trial, chosen, result['selection'])
    tokens = result['selection']['prompt_tokens']
    query = measures.query_of_prompt(comparison, model, pool, form, [chosen['score']], tokens)
    of_instructions = [best] if settings['search'] else {each['instruction']: each for each in tried}.values()
    compared = [_compared(comparison, trial, each) for each in of_instructions]
    spent = ledger.together(searched, *compared, measures.embedding(model, pool, form), ledger.Spent(seconds=seconds))
    result['ledger'] = ledger.of_prompt(
        model.model,
        model.params,
        query,
        text_bytes=measures.stored_bytes(model, pool, form),
        selection=spent,
        **costs(comparison, trial, result, predict),
        update_seconds=seconds if settings['search'] else measures.embedding_seconds(comparison, form),
        prices=measures.prices(comparison),
    )
    return result


def _compared(comparison: Comparison, trial: Trial, candidate: dict[str, Any]) -> ledger.Spent:
    """What an instruction costs on the selection rows with all scores of the arm, without its seconds."""
    model, (pool, form) = comparison.model, prompt(comparison, trial, candidate)
    scores, tokens = trial.arm.settings['scores'], candidate['prompt_tokens']
    query = measures.query_of_prompt(comparison, model, pool, form, scores, tokens)
    return ledger.scoring(model.model, model.params, query, len(comparison.task.selection))


def costs(comparison: Comparison, trial: Trial, record: Mapping[str, Any], predict: Predict) -> dict[str, Any]:
    """{'peak_bytes', 'query_seconds', 'query_seconds_cached'} of a choice, see `lmtrain.cost.ledger`.

    Args:
      record: with 'chosen' and 'selection'.
      predict: the predictor of the choice.
    """
    model, scores = comparison.model, trial.arm.settings['scores']
    pool, form = prompt(comparison, trial, record['chosen'])
    every = measures.query_of_prompt(comparison, model, pool, form, scores, record['selection'].get('prompt_tokens'))
    return {'peak_bytes': measures.scoring_bytes(model, every)} | measures.latencies(comparison, predict, form)


def num_draws(comparison: Comparison, trial: Trial, form: PromptSettings) -> int:
    """How many accuracies `draws` has: compare.draws of arms that draw demonstrations, at the largest size; else 0."""
    if trial.size != comparison.sizes[-1] or form.select not in ('random', 'fixed', 'balanced') or not form.shots:
        return 0
    return comparison.config.compare.draws


def num_orders(comparison: Comparison, trial: Trial, form: PromptSettings, count: int) -> int:
    """How many accuracies `orders` has: `num_draws`, fewer if so few demonstrations have fewer other orders.

    Args:
      count: of the demonstrations, see `held`.
    """
    return min(num_draws(comparison, trial, form), math.factorial(count) - 1)


def held(trial: Trial, form: PromptSettings, selected: Mapping[str, Any] = {}) -> int:
    """How many demonstrations the prompts of a trial hold, their rounded mean.

    Args:
      selected: 'shots_mean' of the prompts, as they were scored; without it, all demonstrations are assumed to fit.
    """
    asked_for = trial.size if form.shots == demonstrations.ALL else form.shots
    return min(round(selected.get('shots_mean', asked_for)), trial.size)


def draws(comparison: Comparison, trial: Trial, form: PromptSettings, chosen: dict[str, Any]) -> list[float]:
    """Accuracies on the selection rows with other sets and orders of demonstrations, the same for all rows.

    How much the prompt depends on the draw. Those of 'balanced' are balanced, the last ones of the prompt too. A bias
    of the score is that of the draw, as it would be if the trial had drawn it.
    """
    pool, rng = comparison.subset(trial.size, trial.seed), np.random.default_rng(trial.seed)
    drawn = [_draw(pool, form, rng) for _ in range(num_draws(comparison, trial, form))]
    return [_accuracy(comparison, *each, chosen) for each in drawn]


def orders(
    comparison: Comparison, trial: Trial, form: PromptSettings, chosen: dict[str, Any], count: int
) -> list[float]:
    """Accuracies on the selection rows with the same `count` demonstrations in other orders, which all rows share.

    How much the prompt depends on the order alone. The demonstrations are those of the trial; if it draws others for
    each row, those of the first of `draws`. No order occurs twice, and none is that of the trial or the draw.
    """
    how_many = num_orders(comparison, trial, form, count)
    if not how_many:
        return []
    pool = comparison.subset(trial.size, trial.seed)
    if form.select != 'fixed':
        pool, form = _draw(pool, form, np.random.default_rng(trial.seed))
    pool = _shown(pool, form, count)
    rng, seen = np.random.default_rng([trial.seed, 1]), {tuple(row.place for row in pool): form}
    while len(seen) <= how_many:
        other = form._replace(select='fixed', shots=demonstrations.ALL, seed=int(rng.integers(2**31)))
        seen.setdefault(tuple(row.place for row in _shown(pool, other, count)), other)
    return [_accuracy(comparison, pool, other, chosen) for other in list(seen.values())[1:]]


def _draw(pool: list[Row], form: PromptSettings, rng: np.random.Generator) -> tuple[list[Row], PromptSettings]:
    """(rows, settings) of another set and order of demonstrations, which all queries share."""
    if form.select != 'balanced':
        return pool, form._replace(select='fixed', seed=int(rng.integers(2**31)))
    shuffled = rng.permutation(len(pool)).tolist()
    order = demonstrations.alternate([row.fields['label'] for row in pool], shuffled, rng)
    order = order if form.shots == demonstrations.ALL else order[: form.shots]
    return [pool[index] for index in order[::-1]], form._replace(select='first')


def _shown(pool: Sequence[Row], form: PromptSettings, count: int) -> list[Row]:
    """The demonstrations that queries share, in their order, of prompts that hold `count` of them."""
    query, by_place = Question('', '', (), ''), {row.place: row for row in pool}
    [drawn] = demonstrations.select([query], ask(pool, form)[0], form.shots, form.select, seed=form.seed)
    shown = drawn[:count] if form.select == 'fixed' else drawn[-count:]  # as a prompt that is too long drops others
    return [by_place[each.place] for each in shown]


def _accuracy(comparison: Comparison, pool: Sequence[Row], form: PromptSettings, chosen: dict[str, Any]) -> float:
    """The accuracy on the selection rows with the chosen score, its bias fitted on this prompt."""
    task = comparison.task
    scored = choice_scores.of_rows(comparison.model, pool, form, task.selection, [chosen['score']])
    [candidate] = choice_scores.candidates(scored, task.selection, task.classes)
    return candidate['accuracy']


def template_texts(comparison: Comparison, trial: Trial) -> list[str]:
    """The templates of `templates`, that of the comparison first: at the largest size and without rows, else []."""
    others = comparison.config.compare.templates
    is_measured = others and trial.size in (0, comparison.sizes[-1])
    return [comparison.task.facts['template'], *others] if is_measured else []


def templates(
    comparison: Comparison, trial: Trial, chosen: dict[str, Any], selected: Mapping[str, Any]
) -> list[float | None]:
    """Accuracies on the selection rows with the template of the comparison and the others of compare.templates.

    The same demonstrations, instruction and score; a bias of the score is that of the template. None if a template
    makes rows too long for the context.

    Args:
      selected: 'accuracy' with the template of the comparison, and 'cut', how many of the rows are too long with it.
    """
    if not template_texts(comparison, trial):
        return []
    (pool, form), task, accuracies = prompt(comparison, trial, chosen), comparison.task, [selected['accuracy']]
    for template in comparison.config.compare.templates:
        form = form._replace(
            choices=rows.completions_of(template, task.classes), calibrated=rows.content_free(template, 'label')
        )
        own, queries = (rows.in_template(each, template) for each in (pool, task.selection))
        try:
            scored = choice_scores.of_rows(comparison.model, own, form, queries, [chosen['score']])
        except InputError:  # this template makes a row too long for the model; the trial itself has answered all rows
            accuracies.append(None)
            continue
        [candidate] = choice_scores.candidates(scored, queries, task.classes)
        accuracies.append(candidate['accuracy'] if candidate['cut'] <= selected.get('cut', 0) else None)
    return accuracies


def predictor(comparison: Comparison, trial: Trial, chosen: dict[str, Any]) -> Predict:
    """The predictor of a finished trial, from what it chose."""
    return predictors.by_likelihood(comparison.model, *prompt(comparison, trial, chosen), chosen)


def prompt(comparison: Comparison, trial: Trial, chosen: dict[str, Any]) -> tuple[list[Row], PromptSettings]:
    """(the rows that may be demonstrations, the settings) of a choice."""
    pool = comparison.subset(trial.size, trial.seed)
    if 'places' in chosen:  # of a search: these rows in this order
        by_place = {row.fields['place']: row for row in pool}
        pool = [by_place[place] for place in chosen['places']]
    form = predictors.settings_of(comparison, trial, chosen['instruction'])
    return pool, form._replace(shots=chosen['shots'], select=chosen['select'])


def _candidates(comparison: Comparison, trial: Trial) -> list[dict[str, Any]]:
    """Every instruction of the arm with every score of choices, on the selection rows."""
    task, pool, tried = comparison.task, comparison.subset(trial.size, trial.seed), []
    vectors = predictors.pool_vectors(comparison.model, pool, predictors.settings_of(comparison, trial))
    for instruction in arms.instructions(trial.arm, task.classes):
        form = predictors.settings_of(comparison, trial, instruction)
        names = choice_scores.of_prompt(trial.arm.settings['scores'], form)
        scored = choice_scores.of_rows(comparison.model, pool, form, task.selection, names, vectors)
        about = {'instruction': instruction, 'shots': form.shots, 'select': form.select}
        tried += [about | each for each in choice_scores.candidates(scored, task.selection, task.classes)]
    return tried


def _search(comparison: Comparison, trial: Trial) -> tuple[dict[str, Any], list[dict[str, Any]], ledger.Spent]:
    """(the best, all candidates, what they cost) of a search over instructions, demonstrations and their order."""
    settings, model = trial.arm.settings, comparison.model
    instructions = arms.instructions(trial.arm, comparison.task.classes)
    pool = comparison.subset(trial.size, trial.seed)
    result = prompt_search.search(
        model.model,
        model.params,
        model.tokenizer,
        comparison.task.selection,
        [predictors.settings_of(comparison, trial, instruction) for instruction in instructions],
        pool,
        shots=min(settings['shots'], trial.size),
        budget=settings['budget'],
        how=settings['search'],
        seed=trial.seed,
    )
    places = [row.fields['place'] for row in result.demonstrations]
    chosen = {'instruction': result.settings.instruction, 'shots': result.settings.shots}
    chosen |= {'select': result.settings.select, 'places': places}
    task, place_of = comparison.task, {row.place: row.fields['place'] for row in pool}
    names = choice_scores.of_prompt(settings['scores'], result.settings)
    scored = choice_scores.of_rows(model, *prompt(comparison, trial, chosen), task.selection, names)
    best = chosen | selection.choose(choice_scores.candidates(scored, task.selection, task.classes))
    tried = [
        {
            'instruction': instructions[each['variant']],
            'shots': len(each['demonstrations']),
            'select': 'first',
            'places': [place_of[place] for place in each['demonstrations']],
            'accuracy': each['accuracy'],
            'loss': -each['log_likelihood'],
        }
        for each in result.candidates
    ]
    spent = ledger.together(*[scored_once(comparison, trial, each) for each in tried])
    return best, tried, spent._replace(tokens=result.computed_tokens)


def scored_once(comparison: Comparison, trial: Trial, candidate: dict[str, Any]) -> ledger.Spent:
    """What it costs to score the selection rows with one prompt: {'instruction', 'shots', 'select', 'places'}."""
    model = comparison.model
    query = measures.query_of_prompt(comparison, model, *prompt(comparison, trial, candidate), ['sum'])
    return ledger.scoring(model.model, model.params, query, len(comparison.task.selection))
