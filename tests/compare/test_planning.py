"""Plans: what each arm needs, and why an arm cannot run."""

import jax
import pytest

from configs import compare
from lmtrain import tree
from lmtrain.compare import arms, planning, prompted, trained, trials
from lmtrain.runtime import preflight


def test_answers_with_the_same_tokens_are_refused_for_every_arm_that_answers_as_text(small):
    shared, selected = small('plans', ('few_shot', 'lora_text', 'full_text', 'continued', 'head'))
    assert not any(planning.plan(shared, arm).reason for arm in selected)
    facts = shared.task.facts | {'completions': [shared.task.completions[0]] * 3}
    shared = shared._replace(task=shared.task._replace(facts=facts))
    refused = {arm.name: 'have the same tokens' in planning.plan(shared, arm).reason for arm in selected}
    assert refused == {'few_shot': True, 'lora_text': True, 'full_text': True, 'continued': True, 'head': False}


def test_rates_one_after_another_need_less_memory_and_as_many_flops(small):
    def change(config):
        config.compare.arms.apart = config.compare.arms.full.copy_and_resolve_references()
        config.compare.arms.apart.vectorised = False

    shared, selected = small('memory', ('full', 'apart'), change)
    plans = {arm.name: planning.plan(shared, arm) for arm in selected}
    together, apart = plans['full'], plans['apart']
    assert (together.sequential, apart.sequential) == (False, True)
    assert together.memory / 4 < apart.memory < together.memory / 2
    assert apart.flops == pytest.approx(together.flops) and apart.flops > 0 and apart.trainable == '.*'


def test_a_policy_has_a_grid_of_rates_one_after_another(small):
    def change(config):
        config.compare.arms.one = config.compare.arms.grpo.copy_and_resolve_references()
        config.compare.arms.one.learning_rates = (2e-3,)
        config.compare.arms.grpo.learning_rates = (1e-3, 2e-3)

    shared, selected = small('policies', ('grpo', 'one'), change)
    plans = {arm.name: planning.plan(shared, arm) for arm in selected}
    assert (plans['grpo'].reason, plans['one'].reason) == ('', '')
    assert plans['grpo'].flops == pytest.approx(2 * plans['one'].flops) and plans['one'].flops > 0
    assert plans['grpo'].memory == plans['one'].memory
    shared = shared._replace(plans=plans)
    [grpo, *_] = trials.listed(shared, selected)
    own = trained.runs(shared, grpo, trained.recipe(shared, grpo))
    assert [(name, config.optimizer.learning_rate) for name, config in own] == [('rate0', 1e-3), ('rate1', 2e-3)]


def test_a_grid_that_fills_the_memory_of_a_cpu_is_trained_one_rate_after_another(small, monkeypatch):
    shared, [full] = small('host', ('full',))
    together = planning.plan(shared, full)
    state = 3 * 3 * 4 * tree.count(shared.model.params)  # three rates, parameters and two moments, float32
    assert together.memory > 5 * state / 3 + 2 * state  # with gradients and activations, and two copies of the state
    devices = jax.local_device_count()
    for share, sequential in ((0.7, False), (0.8, True)):
        monkeypatch.setattr(preflight, 'host_memory', lambda share=share: int(devices * together.memory / share))
        assert planning.plan(shared, full).sequential is sequential


def test_a_search_is_planned_at_its_budget(small):
    def change(config):
        config.compare.arms.search.budget = 5000
        config.compare.arms.poor = config.compare.arms.search.copy_and_resolve_references()
        config.compare.arms.poor.budget = 100

    shared, selected = small('budget', ('search', 'few_shot', 'poor'), change)
    plans = {arm.name: planning.plan(shared, arm) for arm in selected}
    params = shared.model.model.num_layers * 12 * shared.model.model.width**2
    assert plans['search'].flops > 2 * 5000 * params / 2 and plans['search'].trainable == ''
    assert plans['few_shot'].memory > 0
    assert plans['poor'].reason.startswith('compare.arms.poor.budget=100 tokens, and one prompt without demonstrations')


def test_a_search_is_planned_with_its_longest_instruction(small):
    shared, [arm] = small('longest', ('search',))
    trial, prompt = trials.Trial(arm, 16, 1, 0), {'shots': 0, 'select': 'first', 'places': []}
    texts = arms.instructions(arm, shared.task.classes)
    tokens = [prompted.scored_once(shared, trial, prompt | {'instruction': text}).tokens for text in texts]
    assert tokens == sorted(tokens) and tokens[0] < tokens[-1]
    for budget, reason in ((round((tokens[-2] + tokens[-1]) / 2), 'one prompt without'), (round(tokens[-1]) + 1, '')):
        own = arm._replace(settings=arm.settings | {'budget': budget})
        assert (reason in planning.plan(shared, own).reason) and bool(planning.plan(shared, own).reason) == bool(reason)


def test_a_search_is_planned_without_draws_and_orders_which_it_does_not_have(small):
    def of_draws(draws):
        def change(config):
            config.compare.update({'draws': draws, 'templates': ()})

        shared, [arm] = small(f'search{draws}', ('search',), change)
        return planning.plan(shared, arm).flops

    assert of_draws(6) == of_draws(0) > 0


def test_a_prompt_is_planned_with_its_draws_and_the_test_rows(small):
    def few(name, **changes):
        def change(config):
            config.compare.update(changes)

        shared, [arm] = small(name, ('few_shot',), change)
        return planning.plan(shared, arm).flops, len(shared.task.selection)

    flops, rows = few('drawn', draws=6, templates=(), test=4)
    without, _ = few('undrawn', draws=0, templates=(), test=4)
    more, _ = few('tested', draws=0, templates=(), test=4 + rows)
    # Six sets of demonstrations, and six orders of the set of the trial.
    assert flops - without == pytest.approx(12 * (more - without), rel=1e-3) and more > without


def test_a_budget_in_hours_is_that_of_each_rate(small):
    def change(config):
        config.budget.update({'steps': None, 'hours': 0.5})
        config.compare.arms.apart = config.compare.arms.full.copy_and_resolve_references()
        config.compare.arms.apart.vectorised = False

    shared, selected = small('hours', ('full', 'apart'), change)
    shared = shared._replace(plans={arm.name: planning.plan(shared, arm) for arm in selected})
    assert all(plan.flops > 3 * 0.5 * 3600 * 1e6 for plan in shared.plans.values())
    for trial in trials.listed(shared, selected):
        own = trained.runs(shared, trial, trained.recipe(shared, trial))
        hours = [config.budget.hours for _, config in own]
        assert hours == ([1.5] if trial.arm.name == 'full' else [0.5] * 3)


def test_an_arm_that_cannot_run_has_a_reason(small):
    def change(config):
        config.compare.arms.unable = compare.arm({'adapt.method': 'layers'}, learning_rates=(1.0,), description='')

    shared, [arm] = small('unable', ('unable',), change)
    plan = planning.plan(shared, arm)
    assert 'layers.last=0' in plan.reason and plan == planning.Plan(plan.reason)
    assert f'unable: {plan.reason}'[:60] in planning.page(shared, [arm])
