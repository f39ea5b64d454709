"""Steps of a budget."""

import pytest

from lmtrain import cost
from lmtrain.errors import InputError


@pytest.mark.parametrize(
    ('budget', 'steps'),
    [
        ({'steps': 7}, 7),
        ({'steps': 7, 'tokens': None, 'flops': None, 'hours': None}, 7),
        ({'tokens': 1000.0}, 10),
        ({'tokens': 1001.0}, 11),
        ({'tokens': 1.0}, 1),
        ({'flops': 1e6}, 100),
        ({'flops': 1e6 + 1}, 101),
        ({'hours': 0.5}, None),
    ],
)
def test_total_steps_of_a_budget(budget, steps):
    assert cost.total_steps(budget, tokens_per_step=100, flops_per_step=1e4) == steps


def test_flops_before_the_first_step_are_part_of_the_budget():
    assert cost.total_steps({'flops': 1e6}, 100, 1e4, flops_before=3.05e5) == 70  # 69.5 steps
    assert cost.total_steps({'tokens': 1e6}, 100, 1e4, flops_before=3e5) == 10_000
    with pytest.raises(InputError, match='budget.flops = 3e\\+05: 3e\\+05 FLOP are spent before the first step'):
        cost.total_steps({'flops': 3e5}, 100, 1e4, flops_before=3e5)


@pytest.mark.parametrize(
    ('budget', 'message'),
    [
        ({}, 'nothing is set'),
        ({'steps': None, 'hours': None}, 'nothing is set'),
        ({'steps': 5, 'tokens': 1e6}, 'budget.steps = 5 and budget.tokens = 1000000.0 is set'),
        ({'steps': 0}, 'budget.steps = 0'),
        ({'steps': -3}, 'budget.steps = -3'),
        ({'steps': 2.5}, 'budget.steps = 2.5: it must be a positive whole number'),
        ({'tokens': 0.0}, 'budget.tokens = 0.0'),
        ({'hours': float('nan')}, 'budget.hours = nan'),
        ({'flops': float('inf')}, 'budget.flops = inf'),
        ({'epochs': 3}, 'budget.epochs'),
    ],
)
def test_wrong_budget_is_named(budget, message):
    with pytest.raises(ValueError, match=message):
        cost.total_steps(budget, 100, 1e4)
