"""Trials that train: an ordinary run in the trial's folder, whose rate and step are chosen on the selection rows."""

import itertools
import math
import operator
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from lmtrain import adapt
from lmtrain.compare import arms, choice_scores, forgetting, measures, predictors, selection
from lmtrain.compare.predictors import Predict
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.cost import ledger
from lmtrain.cost.query import Query
from lmtrain.data.example_store import batch_lengths
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference.calibration import log_softmax
from lmtrain.inference.prompting import PromptSettings
from lmtrain.models import virtual_tokens
from lmtrain.runtime import lifecycle
from lmtrain.tasks import TASKS
from lmtrain.tasks.prepare import encode_rows
from lmtrain.training import init_from
from lmtrain.training import load as loading
from lmtrain.training import train as training
from lmtrain.training.load import LoadedModel

ROUND = 16  # tokens, to which the length of a batch is rounded up
MAX_EVALUATIONS = 10  # of a budget that is not in steps: how many of its last evaluated steps can be chosen
# The texts of a row that a task reads together, each by the names of its fields: of a head, of an answer as text, of
# both sides of a pair, and of a policy without its answer.
HEAD, ANSWER, PROMPT = (('text', 'text2'),), (('prompt', 'completion'),), (('prompt',),)
PAIR = (('prompt', 'chosen'), ('prompt', 'rejected'))


def recipe(comparison: Comparison, trial: Trial) -> ml_collections.ConfigDict:
    """The config of the trial's run: an ordinary recipe, which names no test rows."""
    own, task = arms.recipe(comparison.config, trial.arm), comparison.task
    own.seed = trial.seed
    _name_rows(own, comparison, trial)
    if not own.init.base:  # from scratch
        own.model = ml_collections.ConfigDict(init_from.settings(own, comparison.model.model))
        own.data.tokenizer = str(comparison.base.tokenizer.absolute())
    rates, vectorised = tuple(trial.arm.settings['learning_rates']), trial.arm.settings['vectorised']
    own.optimizer.learning_rate = rates[0]
    own.sweep.learning_rates = rates if vectorised and len(rates) > 1 else ()
    own.evaluate.max_batches, own.evaluate.sources = 0, ()
    every = own.evaluate.every_steps
    for unit in ('flops', 'hours'):  # a sweep counts those of all members; the budget is that of each rate
        if own.budget[unit]:
            own.budget[unit] *= max(len(own.sweep.learning_rates), 1)
    steps = own.budget.steps or every * MAX_EVALUATIONS
    own.checkpoint.every_steps = every
    # Every evaluated step can be chosen; of a budget that is not in steps the last ones, and the best of the run.
    own.checkpoint.keep_last, own.checkpoint.keep_best = -(-steps // every), int(not own.budget.steps)
    own.sample.prompts = ()
    if TASKS[own.task.name].has_classes:
        own.task.labels = task.classes
    return own.lock()


def _name_rows(own, comparison: Comparison, trial: Trial) -> None:
    """The files and fields of the task, and no share of the rows for other splits."""
    subset, selected = comparison.subset_path(trial.size, trial.seed), comparison.task.folder / 'selection.jsonl'
    own.task.train, own.task.validation, own.task.test = (str(subset),), (str(selected.absolute()),), ()
    own.task.shots, own.data.root = 0, ''
    own.data.validation = own.data.test = 0.0
    task = TASKS[own.task.name]
    if task.on_policy:
        own.policy.max_tokens = own.objective.max_tokens = _longest_answer(comparison)  # the copy has no references
        own.data.seq_len = _rounded(max(lengths(comparison, PROMPT)) + own.policy.max_tokens)
    elif task.reads_rows:
        texts = PAIR if task.scores_segments else ANSWER if task.predicts_tokens else HEAD
        sizes = lengths(comparison, texts)
        room = min(len(texts) * own.data.seq_len, _rounded(max(sizes)))
        # Those of all rows, not of the trial's: all sizes and seeds run the same programs.
        own.task.lengths = batch_lengths(np.minimum(sizes, room), 1 if own.task.pack else own.task.buckets, room)
        own.data.seq_len = own.task.lengths[-1]
    if not task.reads_rows:  # continued pretraining on the texts of the rows; a tail of them is its validation text
        own.task.train = own.task.validation = ()
        own.data.source, own.data.text_field, own.data.mix = str(subset), 'text', ()
        own.data.split, own.data.validation = 'tail', 0.1
    elif task.predicts_tokens:
        own.task.text, own.task.label, own.task.template = ('prompt',), 'completion', 'none'
        own.task.labels = ()
        own.reward.field = 'completion'  # of a policy, whose completions are verified
        if task.scores_segments:  # pairs, whose fields have fixed names
            own.task.text, own.task.label = (), ''
    else:
        own.task.text, own.task.label = comparison.task.text_fields, 'label'


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND


def _longest_answer(comparison: Comparison) -> int:
    """Tokens of the longest answer of the task, with its end token."""
    return max(map(len, comparison.model.tokenizer.encode_batch(comparison.task.completions))) + 1


def lengths(comparison: Comparison, texts: Sequence[Sequence[str]]) -> list[int]:
    """Tokens of each training and selection row, at most.

    Args:
      texts: of a row, each by the names of the fields that are joined: HEAD, ANSWER, PAIR or PROMPT.
    """
    tokenizer = comparison.model.tokenizer
    fields = [row.fields for row in (*comparison.task.train, *comparison.task.selection)]
    specials = sum(map(len, tokenizer.layout[:3])) + 2  # and the begin and end tokens of a text
    sizes = np.zeros(len(fields), np.int64)
    for names in texts:
        joined = [''.join(own.get(name, '') for name in names) for own in fields]
        sizes += [len(ids) + specials for ids in tokenizer.encode_batch(joined)]
    return sizes.tolist()


def run(comparison: Comparison, trial: Trial, folder: Path) -> dict[str, Any]:
    """Trains the grid, chooses rate and step, and measures the choice; the content of trial.json.

    A rate that diverges is no candidate, as a diverged member of a sweep. Raises lifecycle.RunEnded if all do.
    """
    config = recipe(comparison, trial)
    costs, tried, seconds, diverged = [], [], 0.0, {}
    for name, own in runs(comparison, trial, config):
        try:
            costs.append(training.train(own, folder / name, programs=comparison.programs)['cost'])
        except lifecycle.RunEnded as ended:
            if ended.code != lifecycle.NON_FINITE:
                raise
            diverged[own.optimizer.learning_rate] = ended
            continue
        start = time.perf_counter()
        tried += candidates(comparison, trial, own, name)
        seconds += time.perf_counter() - start
    if not costs:
        raise next(iter(diverged.values()))
    result = selection.outcome(selection.choose(tried), tried, len(comparison.task.selection))
    # Of a sweep, a member that diverged has no loss; of rates one after another, its run has ended without one.
    unusable = {each['learning_rate'] for each in tried if each['loss'] is None} | set(diverged)
    result['selection'] |= {'diverged': sorted(unusable)} if unusable else {}
    chosen = result['chosen']
    loaded = load(comparison, trial, chosen)
    predict = predictor(comparison, trial, loaded, chosen)
    result['blocks'] = measures.blocks(comparison, trial, predict)
    result['rows_used'] = rows_used(comparison, trial, config)
    result |= forgetting.record(comparison, trial, loaded)
    tokens = result['selection'].get('prompt_tokens')
    query = _query(comparison, trial, loaded, chosen, tokens)
    evaluated = _spent(comparison, trial, loaded, query, costs, len(tried), tokens)
    lost = [_of_diverged(ended.cost) for ended in diverged.values()]
    spent = ledger.together(evaluated, ledger.Spent(seconds=seconds), *lost)
    result['ledger'] = ledger.of_training(
        loaded.model,
        loaded.params,
        comparison.plans[trial.arm.name].trainable,
        _sum(costs),
        query,
        members=len(trial.arm.settings['learning_rates']) - len(diverged),
        selection=spent,
        **latencies(comparison, trial, loaded, chosen),
        prices=measures.prices(comparison),
    )
    return result


def _of_diverged(cost: Mapping[str, Any]) -> ledger.Spent:
    """What a rate cost until it diverged, without the pass of a cached reference model, which `_sum` counts once."""
    flops = cost['executed_flops'] - cost.get('reference_flops', 0.0)
    return ledger.Spent(flops + cost.get('evaluation_flops', 0.0), cost['tokens'], cost['device_seconds'])


def _spent(
    comparison: Comparison,
    trial: Trial,
    loaded: LoadedModel,
    query: Query,
    costs: Sequence[dict[str, Any]],
    num_tried: int,
    prompt_tokens: float | None = None,
) -> ledger.Spent:
    """What the evaluation of the candidates on the selection rows costs, without its seconds.

    The run evaluates each of them once, of a policy by sampling; `_fitted` scores it once more, as text with all scores
    of the arm.

    Args:
      query: of the choice, with its score alone.
      costs: of the runs.
      prompt_tokens: see `measures.query_of_prompt`.
    """
    rows = len(comparison.task.selection)
    once = ledger.scoring(loaded.model, loaded.params, query, rows)
    sampled = [cost['evaluation_flops'] for cost in costs if 'evaluation_flops' in cost]
    evaluated = [ledger.Spent(sum(sampled))] if sampled else [once] * num_tried
    if TASKS[loaded.config.task.name].has_classes:
        return ledger.together(*evaluated, *[once] * num_tried)
    pool, form = prompt(comparison, trial)
    every = measures.query_of_prompt(comparison, loaded, pool, form, trial.arm.settings['scores'], prompt_tokens)
    scored = ledger.scoring(loaded.model, loaded.params, every, rows)
    return ledger.together(*evaluated, *[scored, measures.embedding(loaded, pool, form)] * num_tried)


def rows_used(comparison: Comparison, trial: Trial, config) -> int:
    """Rows of the subset that the training reads: not those whose answer lies beyond data.seq_len."""
    own, task = config.task, TASKS[config.task.name]
    if not task.reads_rows:
        return trial.size
    rows, form = comparison.subset(trial.size, trial.seed), {name: own[name] for name in ('text', 'label', 'labels')}
    tokenizer = comparison.model.tokenizer
    encoded, _ = encode_rows(rows, task, tokenizer, config.data.seq_len, too_long=own.too_long, **form)
    return len(np.unique(encoded.examples['test'].source))


def runs(comparison: Comparison, trial: Trial, config) -> list[tuple[str, Any]]:
    """[(folder in that of the trial, config)]: one sweep over the grid, or a run for each rate if that needs less."""
    rates = trial.arm.settings['learning_rates']
    if len(rates) == 1 or not comparison.plans[trial.arm.name].sequential:
        return [('', config)]
    each = []
    for index, rate in enumerate(rates):
        own = config.copy_and_resolve_references().unlock()
        for unit in ('flops', 'hours'):
            if own.budget[unit]:
                own.budget[unit] /= max(len(own.sweep.learning_rates), 1)
        own.optimizer.learning_rate, own.sweep.learning_rates = rate, ()
        each.append((f'rate{index}', own.lock()))
    return each


def _sum(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cost of all runs of a trial; tokens are those of one of them; memory is that of a step.

    The log-probabilities of a cached reference model are computed once for all of them.
    """
    total = {name: sum(cost[name] for cost in costs) for name in ('executed_flops', 'seconds', 'device_seconds')}
    total['executed_flops'] -= sum(cost.get('reference_flops', 0.0) for cost in costs[1:])
    return costs[0] | total | {'peak_memory': max(cost['step_memory'] for cost in costs)}


def candidates(comparison: Comparison, trial: Trial, config, name: str) -> list[dict[str, Any]]:
    """The rates and steps of the finished run in the folder `name`, each with what `_fitted` gives.

    Every step that the run has evaluated; of a task that reads no rows, whose loss says little about the answers, only
    the last one.
    """
    rates = config.sweep.learning_rates or (config.optimizer.learning_rate,)
    tried = selection.evaluated(comparison.folder / trial.folder / name, rates)
    if not TASKS[config.task.name].reads_rows:
        tried = [each for each in tried if each['step'] == tried[-1]['step']]
    fitted = []
    for step, members in itertools.groupby(tried, key=operator.itemgetter('step')):
        models = loading.load_members(comparison.folder / trial.folder / name, step)
        for each, loaded in zip(members, models, strict=True):
            usable = each['loss'] is not None and math.isfinite(each['loss'])  # others have diverged
            fitted.append(each | {'run': name} | (_fitted(comparison, trial, loaded) if usable else {}))
    return fitted


def _fitted(comparison: Comparison, trial: Trial, loaded: LoadedModel) -> dict[str, Any]:
    """{'temperature', 'loss', 'accuracy'} of a candidate on the selection rows, and how it scores answers as text."""
    task, rows = comparison.task, comparison.task.selection
    if not TASKS[loaded.config.task.name].has_classes:
        pool, form = prompt(comparison, trial)
        names = choice_scores.of_prompt(trial.arm.settings['scores'], form)
        scored = choice_scores.of_rows(loaded, pool, form, rows, names)
        return selection.choose(choice_scores.candidates(scored, rows, task.classes))
    log_p = predictor(comparison, trial, loaded, {'temperature': 1.0})(rows)
    temperature = choice_scores.fit_temperature(log_p, rows, task.classes)
    scores = choice_scores.score(log_softmax(log_p / temperature), rows, task.classes)
    return {'temperature': temperature, 'loss': scores.loss, 'accuracy': scores.accuracy}


def load(comparison: Comparison, trial: Trial, chosen: dict[str, Any]) -> LoadedModel:
    """The model of a trial's choice."""
    return loading.load_run(comparison.folder / trial.folder / chosen['run'], chosen['step'], chosen['member'])


def latencies(comparison: Comparison, trial: Trial, loaded: LoadedModel, chosen: dict[str, Any]) -> dict[str, Any]:
    """`measures.latencies` of a trial's choice as it answers queries.

    A head computes virtual tokens with each query: the latency with cached ones is not measured.
    """
    has_head = TASKS[loaded.config.task.name].has_classes
    form = None if has_head else prompt(comparison, trial)[1]
    measured = measures.latencies(comparison, predictor(comparison, trial, merged(loaded), chosen), form)
    is_recomputed = has_head and virtual_tokens.num_virtual_tokens(loaded.params) > 0
    return measured | ({'query_seconds_cached': None} if is_recomputed else {})


def merged(loaded: LoadedModel) -> LoadedModel:
    """The model as it answers queries: its adapter is folded in, as by `lmtrain export --merge`, if it can be.

    Virtual tokens and keys stay, and so does a LoRA of an embedding to which the head is tied.
    """
    try:
        return loaded._replace(params=adapt.fold(loaded.params))
    except InputError:
        return loaded


def predictor(comparison: Comparison, trial: Trial, loaded: LoadedModel, chosen: dict[str, Any]) -> Predict:
    """The predictor of a trained model: its head, or the likelihood of the answers after the arm's prompt."""
    if TASKS[loaded.config.task.name].has_classes:
        length = seq_len(comparison, trial, loaded)
        return predictors.by_head(loaded, comparison.task, length, chosen['temperature'])
    return predictors.by_likelihood(loaded, *prompt(comparison, trial), chosen)


def seq_len(comparison: Comparison, trial: Trial, loaded: LoadedModel) -> int:
    """Tokens of a row that a head reads: data.seq_len of the arm, if the model has room for them."""
    room = virtual_tokens.room(loaded.model, loaded.params)
    return min(arms.recipe(comparison.config, trial.arm).data.seq_len, room)


def prompt(comparison: Comparison, trial: Trial) -> tuple[list[Row], PromptSettings]:
    """(the rows that may be demonstrations, the settings) of an arm that answers as text."""
    return comparison.subset(trial.size, trial.seed), predictors.settings_of(comparison, trial)


def _query(
    comparison: Comparison, trial: Trial, loaded: LoadedModel, chosen: dict[str, Any], prompt_tokens: float | None
) -> Query:
    if TASKS[loaded.config.task.name].has_classes:
        return measures.query_of_head(comparison, loaded, seq_len(comparison, trial, loaded))
    pool, form = prompt(comparison, trial)
    return measures.query_of_prompt(comparison, loaded, pool, form, [chosen['score']], prompt_tokens)


def remove_others(folder: Path, chosen: dict[str, Any]) -> None:
    """Removes the checkpoints that were not chosen: those of all trials would fill a disk."""
    for path in sorted(folder.rglob('checkpoints/*')):
        is_chosen = path.parent == folder / chosen['run'] / 'checkpoints' and path.name == str(chosen['step'])
        if path.name.isdecimal() and not is_chosen:
            shutil.rmtree(path)
