"""Trials that train: the recipe of their run, and what is left of it."""

import itertools
import json
import types

import numpy as np
import pytest

from lmtrain import tree
from lmtrain.adapt.leaves import kind_of
from lmtrain.compare import choice_scores, measures, prompted, trained, trials
from lmtrain.cost import ledger
from lmtrain.files import read_json_lines, read_json_object
from lmtrain.runtime import lifecycle


def test_the_recipe_names_the_rows_of_the_trial_alone(small):
    def change(config):
        config.data.seq_len = 64

    shared, selected = small('recipes', ('head', 'lora_text', 'continued', 'scratch'), change)
    by_arm = {each.arm.name: each for each in trials.listed(shared, selected) if each.size == 16}
    recipes = {name: trained.recipe(shared, trial) for name, trial in by_arm.items()}
    for name, own in recipes.items():
        assert own.seed == 1 and not own.task.test and own.data.test == 0 and not own.log.plot, name
        assert own.checkpoint.every_steps == own.evaluate.every_steps == 2 and own.checkpoint.keep_last == 2, name
        assert 'compare' not in own, name
    head, text, continued, scratch = (recipes[name] for name in ('head', 'lora_text', 'continued', 'scratch'))
    assert head.task.train == (str(shared.subset_path(16, 1)),) and head.task.labels == shared.task.classes
    assert (text.task.text, text.task.label, text.task.template) == (('prompt',), 'completion', 'none')
    assert continued.data.source == str(shared.subset_path(16, 1)) and continued.data.split == 'tail'
    assert scratch.init.base == '' and scratch.model.width == shared.model.model.width
    assert head.data.seq_len == head.task.lengths[-1] <= 32 < 64  # the longest row, rounded up
    assert len(head.task.lengths) == 2 and text.data.seq_len == text.task.lengths[-1] <= 32


def test_rows_hold_the_longest_prompt_with_the_longest_answer(small, tmp_path):
    """The longest prompts have the short answer: the rejected side of a pair, or what a policy writes, is the long."""
    answers = ('b', 'a very long name of a class indeed, with many more words than are usual in it')
    rows = [{'note': f'{i} cats sat. ' * (1 + 4 * (i % 2)), 'animal': answers[(i + 1) % 2]} for i in range(60)]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')

    def change(config):
        config.task.train, config.data.seq_len = (str(tmp_path / 'rows.jsonl'),), 256

    policies = ('grpo', 'rloo', 'ppo')
    shared, selected = small('long', ('dpo', *policies), change)
    assert {name: plan.reason for name, plan in shared.plans.items()} == dict.fromkeys(('dpo', *policies), '')
    by_arm = {each.arm.name: trained.recipe(shared, each) for each in trials.listed(shared, selected)}
    longest = max(len(row.fields['prompt']) for row in shared.task.train)
    for name in policies:
        assert by_arm[name].data.seq_len >= longest + len(answers[1]) + 1
        assert by_arm[name].objective.max_tokens == by_arm[name].policy.max_tokens == len(answers[1]) + 2
    assert [(by_arm[name].task.name, by_arm[name].objective.name) for name in policies] == [
        ('policy', ''),
        ('policy', 'rloo'),
        ('ppo', ''),
    ]
    assert by_arm['dpo'].data.seq_len >= 2 * longest + len(''.join(answers))


def test_only_the_checkpoint_of_the_choice_is_left(tmp_path):
    for name in ('rate0', 'rate1'):
        for step in ('2', '4', '4.corrupt'):
            (tmp_path / name / 'checkpoints' / step).mkdir(parents=True)
    trained.remove_others(tmp_path, {'run': 'rate1', 'step': 2})
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob('*/checkpoints/*'))
    assert left == ['rate0/checkpoints/4.corrupt', 'rate1/checkpoints/2', 'rate1/checkpoints/4.corrupt']


def test_costs_of_runs_one_after_another_are_added_and_memory_is_the_largest():
    runs = [
        {'executed_flops': flops, 'seconds': 1.0, 'device_seconds': 2.0, 'tokens': 7, 'step_memory': memory}
        for flops, memory in ((10.0, 5), (20.0, 9))
    ]
    total = trained._sum(runs)
    assert total['executed_flops'] == 30 and total['device_seconds'] == 4 and total['tokens'] == 7
    assert total['peak_memory'] == 9


def test_a_member_that_diverged_is_no_candidate_and_stops_no_other(small, monkeypatch):
    shared, [arm] = small('diverged', ('head',), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    tried = [{'learning_rate': 1.0, 'member': m, 'step': 2, 'loss': loss} for m, loss in enumerate((float('nan'), 0.5))]
    monkeypatch.setattr(trained.selection, 'evaluated', lambda *arguments: tried)
    monkeypatch.setattr(trained.loading, 'load_members', lambda folder, step: iter((0, 1)))
    monkeypatch.setattr(trained, '_fitted', lambda shared, trial, member: {'loss': 0.1 * member})
    first, second = trained.candidates(shared, trial, trained.recipe(shared, trial), '')
    assert first['loss'] != first['loss'] and second['loss'] == pytest.approx(0.1) and second['run'] == ''


def one_after_another(*rates):
    """A change of the config of a comparison: these rates of the arm `full`, in steps enough to diverge."""

    def change(config):
        config.compare.arms.full.update({'learning_rates': rates, 'vectorised': False})
        config.budget.steps, config.evaluate.every_steps = 16, 8

    return change


def test_a_rate_that_diverges_fails_no_other_rate_of_a_trial(small):
    """Rates that are trained one after another, as where a sweep does not fit."""
    shared, [arm] = small('one_diverges', ('full',), one_after_another(1e-2, 1e12, 1e-3), sizes=(16,))
    [trial] = trials.listed(shared, [arm])
    record = trials.run(shared, trial, trained.run)
    assert record['status'] == 'done', record['reason']
    assert {each['learning_rate'] for each in record['selection']['candidates']} == {1e-2, 1e-3}
    assert record['selection']['diverged'] == [1e12] and record['chosen']['run'] in ('rate0', 'rate2')
    own = [read_json_object(shared.folder / trial.folder / f'rate{i}' / 'results.json')['cost'] for i in (0, 2)]
    each = own[0]['executed_flops']
    assert own[1]['executed_flops'] == each and record['ledger']['train_flops'] == each
    loaded, chosen = trained.load(shared, trial, record['chosen']), record['chosen']
    query = trained._query(shared, trial, loaded, chosen, None)
    scored = trained._spent(shared, trial, loaded, query, own, len(record['selection']['candidates']))
    # The other rate that finished, and the steps of the diverged one: 5 without a finite loss end it.
    steps = 16 * ((record['ledger']['selection_flops'] - scored.flops) / each - 1)
    assert 5 <= round(steps) < 16 and steps == pytest.approx(round(steps), abs=1e-3)
    assert record['ledger']['device_seconds'] > sum(cost['device_seconds'] for cost in own)


def test_a_member_of_a_sweep_that_diverges_is_reported(small):
    def change(config):
        one_after_another(1e-2, 1e12, 1e-3)(config)
        config.compare.arms.full.vectorised = True

    shared, [arm] = small('member_diverges', ('full',), change, sizes=(16,))
    [trial] = trials.listed(shared, [arm])
    record = trials.run(shared, trial, trained.run)
    assert record['status'] == 'done', record['reason']
    assert record['selection']['diverged'] == [1e12] and record['chosen']['learning_rate'] != 1e12
    cost = read_json_object(shared.folder / trial.folder / 'results.json')['cost']
    # All members are computed to the end: the cost is divided by three, and two are charged to the selection.
    assert record['ledger']['train_flops'] == pytest.approx(cost['executed_flops'] / 3)


def test_a_trial_whose_rates_all_diverge_has_failed_for_good(small):
    shared, [arm] = small('all_diverge', ('full',), one_after_another(1e12, 1e13), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    record = trials.run(shared, trial, trained.run)
    assert record['status'] == 'failed' and record['permanent'] and 'no finite loss' in record['reason']
    assert (shared.folder / trial.folder / 'rate1' / 'metrics.jsonl').exists()  # the second rate was tried


def test_a_signal_while_a_rate_is_trained_ends_the_trial(small, monkeypatch):
    def stopped(*arguments, **settings):
        raise lifecycle.RunEnded(lifecycle.REQUEUE, 'SIGTERM')

    shared, [arm] = small('signalled', ('full',), one_after_another(1e-2, 1e-3), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    monkeypatch.setattr(trained.training, 'train', stopped)
    with pytest.raises(lifecycle.RunEnded, match='SIGTERM'):
        trials.run(shared, trial, trained.run)


def test_a_head_is_chosen_and_used_at_its_temperature(small):
    shared, [arm] = small('head', ('head',), sizes=(16,))
    [trial] = trials.listed(shared, [arm])
    record = trials.run(shared, trial, trained.run)
    tried, chosen, rows = record['selection']['candidates'], record['chosen'], shared.task.selection
    assert len(tried) == 6 and all(each['temperature'] != 1 for each in tried)
    loaded = trained.load(shared, trial, chosen)
    scores, raw = (
        choice_scores.score(trained.predictor(shared, trial, loaded, each)(rows), rows, shared.task.classes)
        for each in (chosen, {'temperature': 1.0})
    )
    assert scores.loss == pytest.approx(min(each['loss'] for each in tried), abs=1e-5) and raw.loss > scores.loss
    assert scores.accuracy == raw.accuracy == record['selection']['accuracy']


def test_scores_that_are_compared_are_charged_to_the_selection(small):
    """A run has evaluated each candidate once, and each is scored by all scores of the arm."""

    def change(config):
        config.compare.arms.lora_text.update({'shots': 4, 'select': 'bm25', 'scores': ('sum', 'contrast')})
        config.compare.arms.continued.update({'shots': 4, 'select': 'nearest', 'scores': ('sum',)})

    shared, selected = small('charged', ('lora_text', 'continued'), change, sizes=(16,))
    by_arm = {trial.arm.name: trial for trial in trials.listed(shared, selected)}
    text, continued = by_arm['lora_text'], by_arm['continued']
    loaded = shared.model  # of a run on text, without a head
    model, params = loaded.model, loaded.params

    def scoring(trial, *scores):
        query = measures.query_of_prompt(shared, loaded, *trained.prompt(shared, trial), scores)
        return query, ledger.scoring(model, params, query, 8)

    query, once = scoring(text, 'sum')
    _, every = scoring(text, 'sum', 'contrast')
    spent = trained._spent(shared, text, loaded, query, [{}], 6)
    assert spent.flops == pytest.approx(6 * (once.flops + every.flops))
    assert spent.tokens == pytest.approx(6 * (once.tokens + every.tokens))
    assert every.flops > 1.05 * once.flops and spent.seconds == 0
    policy = trained._spent(shared, text, loaded, query, [{'evaluation_flops': 7.0}], 6)
    assert policy.flops == pytest.approx(7 + 6 * every.flops)
    query, once = scoring(continued, 'sum')
    embedded = measures.embedding(loaded, *trained.prompt(shared, continued))
    spent = trained._spent(shared, continued, loaded, query, [{}], 2)
    assert spent.flops == pytest.approx(4 * once.flops + 2 * embedded.flops) and embedded.flops > 0


@pytest.mark.parametrize(('shots', 'score'), [(0, 'sum'), (2, 'contrast')])
def test_answers_without_demonstrations_are_not_compared_by_contrast(small, monkeypatch, shots, score):
    def change(config):
        config.compare.arms.lora_text.update({'shots': shots, 'scores': ('sum', 'contrast')})
        config.compare.arms.few_shot.update({'shots': shots, 'scores': ('sum', 'contrast')})

    def last(tried):  # 'contrast', if it is there, and not the score with the lowest loss
        return tried[-1]

    shared, selected = small(f'contrast{shots}', ('lora_text', 'few_shot'), change, sizes=(4,))
    by_arm = {trial.arm.name: trial for trial in trials.listed(shared, selected)}
    monkeypatch.setattr(trained.selection, 'choose', last)
    assert trained._fitted(shared, by_arm['lora_text'], shared.model)['score'] == score
    assert prompted._candidates(shared, by_arm['few_shot'])[-1]['score'] == score


def test_the_best_step_of_a_budget_in_flops_is_a_candidate_though_many_steps_follow(small, monkeypatch):
    """The rate rises until it makes the loss worse by far."""

    def change(config):
        config.compare.arms.full.learning_rates = (0.1,)
        config.schedule.name, config.schedule.start, config.schedule.warmup = 'constant', 1e-3, 0.9
        config.budget.steps, config.budget.flops, config.evaluate.every_steps = None, 2.2e8, 1

    monkeypatch.setattr(trained, 'MAX_EVALUATIONS', 2)
    shared, [arm] = small('best_step', ('full',), change, sizes=(16,))
    [trial] = trials.listed(shared, [arm])
    record = trials.run(shared, trial, trained.run)
    assert record['status'] == 'done', record['reason']
    lines = read_json_lines(shared.folder / trial.folder / 'metrics.jsonl')
    losses = {line['step']: line['validation_loss'] for line in lines if 'validation_loss' in line}
    best, steps = min(losses, key=losses.get), sorted(losses)
    assert best < steps[-2] and {each['step'] for each in record['selection']['candidates']} == {best, *steps[-2:]}


def test_seconds_of_the_choice_are_part_of_the_creation(small, monkeypatch):
    shared, [arm] = small('seconds', ('head',), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    clock = itertools.count(step=1000.0)
    monkeypatch.setattr(trained, 'time', types.SimpleNamespace(perf_counter=lambda: next(clock)))
    record = trials.run(shared, trial, trained.run)
    cost = read_json_object(shared.folder / trial.folder / 'results.json')['cost']
    assert record['ledger']['device_seconds'] == pytest.approx(cost['device_seconds'] + 1000)


@pytest.mark.parametrize(('name', 'left'), [('lora', False), ('soft_prompt', True)])
def test_the_latency_is_that_of_merged_weights_and_the_scores_are_not(small, monkeypatch, name, left):
    shared, [arm] = small(f'merged_{name}', (name,), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    models, scored, timed = {}, [], []
    predictor = trained.predictor

    def recorded(comparison, trial, loaded, chosen):
        predict = predictor(comparison, trial, loaded, chosen)
        models[predict] = loaded
        return predict

    monkeypatch.setattr(trained, 'predictor', recorded)
    monkeypatch.setattr(measures, 'query_seconds', lambda predict, queries: timed.append(models[predict]) or 0.25)
    monkeypatch.setattr(measures, 'blocks', lambda *arguments: scored.append(models[arguments[-1]]) or [])
    record = trials.run(shared, trial, trained.run)
    assert record['status'] == 'done' and record['ledger']['query_seconds'] == 0.25, record['reason']
    assert record['ledger']['query_seconds_cached'] == (None if left else 0.25)  # virtual tokens are computed again
    assert adapted(scored[0]) and bool(adapted(timed[0])) == left and len(scored) == len(timed) == 1
    rows = shared.task.selection
    one, other = (predictor(shared, trial, loaded, record['chosen'])(rows) for loaded in (*scored, *timed))
    np.testing.assert_allclose(one, other, atol=1e-4)


def adapted(loaded):
    """The paths of adapters, without those of heads."""
    return [path for path in tree.flatten(loaded.params) if kind_of(path) and not path.startswith('heads/')]


def test_trials_of_other_rows_and_seeds_share_their_programs(small):
    shared, [arm] = small('programs', ('head',), seeds=2)
    listed = trials.listed(shared, [arm])
    records = [trials.run(shared, trial, trained.run) for trial in listed]
    assert len(records) == 4 and len({record['selection']['loss'] for record in records}) == 4
    lengths = trained.recipe(shared, listed[0]).task.lengths
    assert 2 <= len(shared.programs) <= 1 + len(lengths)  # of an evaluation, and of a train step of each length
    alone = shared._replace(folder=shared.folder / 'alone', programs=None)
    again = trials.run(alone, listed[-1], trained.run)
    assert again['selection']['loss'] == pytest.approx(records[-1]['selection']['loss'], rel=1e-6)
