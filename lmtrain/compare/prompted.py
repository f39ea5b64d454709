"""Trials that prompt: instruction, scoring and, by a search, demonstrations are chosen on the selection rows."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.compare import choice_scores, measures, predictors, selection
from lmtrain.compare.predictors import Predict
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.cost import ledger
from lmtrain.cost.flops import forward_flops
from lmtrain.data.rows import Row
from lmtrain.inference import prompt_search
from lmtrain.inference.prompting import PromptSettings

SCALE = ('score', 'bias', 'temperature')  # of a candidate: how its likelihoods become probabilities


def run(comparison: Comparison, trial: Trial, folder: Path) -> dict[str, Any]:
    """Chooses a prompt and measures it; the content of trial.json."""
    predictors.check_promptable(comparison.model.model)
    start, settings = time.perf_counter(), trial.arm.settings
    spent = ledger.NOTHING
    if settings['search']:
        chosen, tried, spent = _search(comparison, trial)
    else:
        tried = _candidates(comparison, trial)
        best = selection.choose(tried)
        chosen = {name: best[name] for name in ('instruction', 'shots', 'select', *SCALE)}
    pool, form = prompt(comparison, trial, chosen)
    seconds = time.perf_counter() - start
    predict = predictor(comparison, trial, chosen)
    result = measures.on_selection(comparison, predict, chosen, tried)
    result['blocks'] = measures.blocks(comparison, trial, predict)
    result['draws'] = draws(comparison, trial, form, chosen)
    model = comparison.model
    query = measures.query_of_prompt(comparison, model, pool, form, [chosen['score']])
    every = measures.query_of_prompt(comparison, model, pool, form, settings['scores'])
    prompts = 1 if settings['search'] else len({each['instruction'] for each in tried})
    compared = ledger.scoring(model.model, model.params, every, prompts * len(comparison.task.selection))
    spent = ledger.Spent(spent.flops + compared.flops, spent.tokens + compared.tokens)
    text = form.instruction + ''.join(row.fields['prompt'] + row.fields['completion'] for row in pool)
    result['ledger'] = ledger.of_prompt(
        model.model,
        model.params,
        query,
        text_bytes=len(text.encode()),
        selection=spent._replace(seconds=seconds),
        query_seconds=measures.latency(comparison, predict),
        update_seconds=seconds if settings['search'] else 0.0,
        prices=measures.prices(comparison),
    )
    return result


def num_draws(comparison: Comparison, trial: Trial, form: PromptSettings) -> int:
    """How many accuracies `draws` has: compare.draws of arms that draw demonstrations, at the largest size; else 0."""
    if trial.size != comparison.sizes[-1] or form.select not in ('random', 'fixed', 'balanced') or form.shots < 1:
        return 0
    return comparison.config.compare.draws


def draws(comparison: Comparison, trial: Trial, form: PromptSettings, chosen: dict[str, Any]) -> list[float]:
    """Accuracies on the selection rows with other sets and orders of demonstrations, the same for all rows.

    How much the prompt depends on the draw.
    """
    pool, task, accuracies = comparison.subset(trial.size, trial.seed), comparison.task, []
    rng = np.random.default_rng(trial.seed)
    for _ in range(num_draws(comparison, trial, form)):
        order = [pool[index] for index in rng.permutation(len(pool)).tolist()]
        shared = form._replace(select='first')
        predict = predictors.by_likelihood(comparison.model, order, shared, chosen)
        accuracies.append(choice_scores.score(predict(task.selection), task.selection, task.classes).accuracy)
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
    form = _form(comparison, trial, chosen['instruction'])
    return pool, form._replace(shots=chosen['shots'], select=chosen['select'])


def _form(comparison: Comparison, trial: Trial, instruction: str) -> PromptSettings:
    settings = trial.arm.settings
    shots = min(settings['shots'], trial.size)  # ALL is negative
    options = {'shots': shots, 'select': settings['select'], 'seed': trial.seed}
    return predictors.settings(comparison.task, instruction=instruction, **options)


def _candidates(comparison: Comparison, trial: Trial) -> list[dict[str, Any]]:
    """Every instruction of the arm with every score of choices, on the selection rows."""
    task, pool, tried = comparison.task, comparison.subset(trial.size, trial.seed), []
    for instruction in trial.arm.settings['instructions'] or ('',):
        form = _form(comparison, trial, instruction)
        names = trial.arm.settings['scores']
        scored = choice_scores.of_rows(comparison.model, pool, form, task.selection, names)
        about = {'instruction': instruction, 'shots': form.shots, 'select': form.select}
        tried += [about | each for each in choice_scores.candidates(scored, task.selection, task.classes)]
    return tried


def _search(comparison: Comparison, trial: Trial) -> tuple[dict[str, Any], list[dict[str, Any]], ledger.Spent]:
    """(the choice, all candidates, what they cost) of a search over instructions, demonstrations and their order."""
    settings, model = trial.arm.settings, comparison.model
    instructions: Sequence[str] = settings['instructions'] or ('',)
    pool = comparison.subset(trial.size, trial.seed)
    result = prompt_search.search(
        model.model,
        model.params,
        model.tokenizer,
        comparison.task.selection,
        [_form(comparison, trial, instruction) for instruction in instructions],
        pool,
        shots=min(settings['shots'], trial.size),
        budget=settings['budget'],
        how=settings['search'],
        seed=trial.seed,
    )
    places = [row.fields['place'] for row in result.demonstrations]
    chosen = {'instruction': result.settings.instruction, 'shots': result.settings.shots}
    chosen |= {'select': result.settings.select, 'places': places}
    task, names = comparison.task, trial.arm.settings['scores']
    scored = choice_scores.of_rows(model, *prompt(comparison, trial, chosen), task.selection, names)
    best = selection.choose(choice_scores.candidates(scored, task.selection, task.classes))
    chosen |= {name: best[name] for name in SCALE}
    tried = [
        {
            'instruction': instructions[each['variant']],
            'demonstrations': len(each['demonstrations']),
            'accuracy': each['accuracy'],
            'loss': -each['log_likelihood'],
        }
        for each in result.candidates
    ]
    return chosen, tried, spent(comparison, result.computed_tokens)


def spent(comparison: Comparison, tokens: int) -> ledger.Spent:
    """What a number of computed tokens costs; every token is multiplied by half a context of keys."""
    model, params = comparison.model.model, comparison.model.params
    return ledger.Spent(forward_flops(model, tokens, model.max_len / 2, 0, params=params), tokens)
