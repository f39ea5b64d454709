"""Settings that contradict each other are refused by name, before anything is read or compiled."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from configs import dpo
from configs.base import get_config
from lmtrain.errors import InputError
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import has_setting
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


@pytest.mark.parametrize(('task', 'objective'), OBJECTIVES)
def test_label_smoothing_is_refused_by_an_objective_that_does_not_read_it(task, objective):
    config = dpo.get_config()
    config.task.name, config.objective.name, config.objective.label_smoothing = task, objective, 0.1
    if has_setting(TASKS[task].loss(objective), 'label_smoothing'):
        checks.check_settings(config)
    else:
        expected = f"label_smoothing = 0.1 with objective.name = '{objective}' of task.name = '{task}', which .* set it"
        with pytest.raises(InputError, match=expected):
            checks.check_settings(config)


@pytest.mark.parametrize(('task', 'objective'), [each for each in OBJECTIVES if each[0] in ('preference', 'unpaired')])
def test_the_recipe_of_preferences_takes_each_of_their_objectives(task, objective):
    config = dpo.get_config()
    config.task.name, config.objective.name = task, objective
    checks.check_settings(config)
