"""The number of train steps of a budget."""

import math
from collections.abc import Mapping

from lmtrain.errors import InputError

BUDGETS = ('steps', 'tokens', 'flops', 'hours')


def total_steps(budget: Mapping, tokens_per_step: int, flops_per_step: float) -> int | None:
    """Steps of a budget in steps, tokens or FLOPs, rounded up; None for one in hours.

    Raises ValueError unless exactly one of the four is set, to a positive, finite number that int32 can count in steps.
    """
    unknown = set(budget) - set(BUDGETS)
    if unknown:
        raise InputError(f'budget.{sorted(unknown)[0]}: a budget is one of {", ".join(BUDGETS)}')
    chosen = {name: budget[name] for name in BUDGETS if name in budget and budget[name] is not None}
    if len(chosen) != 1:
        said = ' and '.join(f'budget.{name} = {value}' for name, value in chosen.items()) or 'nothing'
        raise InputError(f'the budget is exactly one of {", ".join(BUDGETS)}; {said} is set')
    ((name, value),) = chosen.items()
    if not (value > 0 and math.isfinite(value)) or (name == 'steps' and value != int(value)):
        raise InputError(
            f'budget.{name} = {value}: it must be a positive {"whole" if name == "steps" else "finite"} number'
        )
    steps = {
        'steps': lambda: int(value),
        'tokens': lambda: math.ceil(value / tokens_per_step),
        'flops': lambda: math.ceil(value / flops_per_step),
        'hours': lambda: None,
    }[name]()
    if steps and steps >= 2**31:
        raise InputError(
            f'budget.{name} = {value} makes {steps:,} steps: they are counted in 31 bits, up to {2**31 - 1:,}'
        )
    return steps
