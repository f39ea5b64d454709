"""Settings that contradict each other are refused by name, before anything is read or compiled."""

import importlib
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest

import configs
from configs.base import get_config
from lmtrain.compare import arms
from lmtrain.errors import InputError
from lmtrain.tasks import TASKS
from lmtrain.training import checks
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve


@pytest.mark.parametrize(
    ('changed', 'error'),
    [
        ({'seed': 2**32}, r'seed = 4294967296: it must lie in \[0, 2\^32\)'),
        ({'mesh.tensor': 4, 'mesh.data': 2}, r'model.num_heads = 6 does not divide over mesh.tensor = 4'),
        ({'model.causal': True, 'data.mask_rate': 0.15}, 'data.mask_rate = 0.15 with model.causal = True'),
        ({'task.test': ('new.csv',)}, "task.test = \\('new.csv',\\) with task.name = 'text', which reads data.source"),
        ({'model.causal': False, 'data.mask_rate': 0.0}, 'data.mask_rate = 0.0 with model.causal = False'),
        ({'adapt.method': 'prompt', 'data.isolate': True}, "adapt.method = 'prompt' with several documents in a row"),
        ({'adapt.dropout': 1.0}, r'adapt.dropout = 1.0: it must lie in \[0, 1\)'),
        ({'watchdog.step': -1}, 'watchdog.step = -1.0: it must be at least 0'),
    ],
)
def test_contradicting_settings_are_refused_by_name(changed, error):
    config = get_config()
    config.model.update(width=48, num_heads=6, num_layers=1, vocab_size=258)
    config.budget.steps, config.data.batch_size = 4, 8
    config.update_from_flattened_dict(changed)
    with pytest.raises(ValueError, match=error):
        build(*resolve(config))


@pytest.mark.parametrize(
    ('task', 'pack', 'way_out'),
    [
        ('text', False, 'alone. Set data.isolate=False, or another method'),
        ('chat', True, 'alone. Set task.pack=False, or another method'),
        ('preference', False, "task.name = 'preference' always compares texts in one row: use adapt.method='lora'"),
        ('reward', True, "task.name = 'reward' always compares texts in one row: use adapt.method='lora'"),
    ],
)
def test_soft_prompt_with_packed_rows_names_a_way_out_that_helps(task, pack, way_out):
    config = get_config()
    config.task.name, config.task.pack, config.adapt.method = task, pack, 'prompt'
    prompt = {'prompt': {'embedding': np.zeros((20, 4))}}
    with pytest.raises(InputError, match=re.escape(way_out)):
        checks.check_leaves(config, SimpleNamespace(attention='auto'), prompt, SimpleNamespace(shape={}))


def test_rows_beyond_learned_positions_are_refused_and_a_large_seq_len_is_not():
    """data.seq_len bounds the rows; what counts is how long they are."""
    config = get_config()
    config.data.seq_len = 2048
    learned = SimpleNamespace(positions='learned', max_len=514, position_offset=2)
    checks.check_positions(config, learned, 512, {})
    checks.check_positions(config, SimpleNamespace(positions='rotary', max_len=32, position_offset=0), 2048, {})
    expected = 'data.seq_len = 2048: there are rows of 520 tokens, and the model has 512 learned positions: set data.s'
    with pytest.raises(InputError, match=expected):
        checks.check_positions(config, learned, 520, {})
    for method in ('prompt', 'prefix'):
        with pytest.raises(InputError, match='the model has 492 learned positions'):
            checks.check_positions(config, learned, 496, {method: {'embedding': np.zeros((20, 4))}})


OBJECTIVES = [(task.name, objective) for task in TASKS.values() for objective in task.losses]
OTHER = {
    'z_loss': 0.1, 'beta': 0.3, 'label_smoothing': 0.1, 'target_margin': 1.0, 'desirable': 2.0, 'undesirable': 2.0,
    'reference': 'live', 'centring': 0.01, 'clip_low': 0.1, 'clip_high': 0.28, 'kl_weight': 0.1, 'kl_estimator': 'k1',
    'aggregation': 'grpo', 'ratio': 'sequence', 'value_clip': 0.1, 'value_weight': 0.5,
}  # fmt: skip


@pytest.mark.parametrize(('task', 'objective'), OBJECTIVES)
def test_a_setting_is_refused_by_an_objective_that_does_not_read_it(task, objective):
    """Those of config.objective, each with another value than its default."""
    for name, value in OTHER.items():
        config = get_config()
        config.task.name, config.objective.name, config.objective[name] = task, objective, value
        config.budget.steps = 4
        checks.check_settings(config)
        if name in TASKS[task].settings(objective):
            checks.check_read(config)
            continue
        expected = f"objective.{name} = {value!r} with objective.name = '{objective}' of task.name = '{task}', which"
        with pytest.raises(InputError, match=f'{re.escape(expected)} .* set it to .* is read by '):
            checks.check_read(config)
    assert OTHER.keys() == set(get_config().objective) - {'name', 'pool', 'max_tokens'}


@pytest.mark.parametrize(
    ('task', 'changes', 'message'),
    [
        ('ppo', {'objective.aggregation': 'grpo'}, "set it to 'dapo', its default; it is read by grpo of policy"),
        ('policy', {'objective.name': 'rloo', 'policy.scale': 'none'}, "'group', its default; it is read by grpo of p"),
        ('policy', {'policy.gamma': 0.9}, 'policy.gamma = 0.9 .* it is read by ppo of ppo'),
        ('preference', {'objective.centring': 0.01}, 'it is read by bradley_terry of reward'),
        ('text', {'objective.label_smoothing': 0.1}, 'it is read by dpo, dpo_norm of preference'),
        ('unpaired', {'objective.z_loss': 0.1}, 'it is read by .* of text and .* of chat'),
    ],
)
def test_the_error_names_the_objectives_that_read_a_setting(task, changes, message):
    config = get_config()
    config.task.name = task
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        checks.check_read(config)


RECIPES = sorted(path.stem for path in pathlib.Path(configs.__file__).parent.glob('*.py') if path.stem != '__init__')


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_takes_each_objective_of_its_task(name):
    """What a recipe sets is not refused if objective.name alone changes, in no arm of a comparison either."""
    config = importlib.import_module(f'configs.{name}').get_config()
    if name == 'base':
        config.budget.steps = 4
    if 'compare' in config:
        config.compare.only = ()
    own = [arms.recipe(config, arm) for arm in arms.read(config.compare)] if 'compare' in config else [config]
    for each in own:
        for objective in ('', *TASKS[each.task.name].losses):
            each.objective.name = objective
            checks.check_settings(each)
            checks.check_read(each)
    if name == 'dpo':
        config.task.name, config.objective.name = 'unpaired', ''
        checks.check_read(config)


def test_shared_settings_of_a_comparison_reach_the_arms_that_read_them():
    config = importlib.import_module('configs.compare').get_config()
    config.compare.only = ()
    config.objective.update(label_smoothing=0.1, kl_weight=0.02, aggregation='dr_grpo', pool='mean')
    config.policy.scale, config.policy.max_tokens = 'none', 7
    own = {arm.name: arms.recipe(config, arm) for arm in arms.read(config.compare) if arm.kind == 'train'}
    for each in own.values():
        checks.check_read(each)
    assert {name for name, each in own.items() if each.objective.label_smoothing} == {'dpo'}
    assert {name for name, each in own.items() if each.objective.kl_weight} == {'grpo', 'rloo', 'ppo'}
    assert [own[name].policy.scale for name in ('grpo', 'rloo', 'ppo')] == ['none', 'group', 'group']
    assert own['grpo'].objective.aggregation == 'dr_grpo' != own['ppo'].objective.aggregation
    assert all(each.objective.pool == 'mean' for each in own.values())


def test_a_run_that_exists_goes_on_with_a_setting_that_is_not_read(tmp_path):
    config = get_config()
    config.objective.aggregation, config.budget.steps, config.data.tokenizer = 'grpo', 4, 'bytes'
    with pytest.raises(InputError, match="objective.aggregation = 'grpo'"):
        resolve(config, tmp_path)
    (tmp_path / 'config.json').write_text(config.to_json(), encoding='utf-8')
    assert resolve(config, tmp_path)[0].objective.aggregation == 'grpo'


def test_the_tokens_of_completions_may_change_in_a_config_without_references():
    config = get_config().copy_and_resolve_references().unlock()
    config.task.name, config.policy.max_tokens = 'ppo', 32
    checks.check_read(config)
