"""The number of train steps of a budget."""

import math
from collections.abc import Mapping

from lmtrain.errors import InputError

BUDGETS = ('steps', 'tokens', 'flops', 'hours')


def total_steps(budget: Mapping, tokens_per_step: int, flops_per_step: float, flops_before: float = 0.0) -> int | None:
    """Steps of a budget in steps, tokens or FLOPs, rounded up; None for a budget in hours.

    Args:
      flops_before: FLOPs that are spent before the first step.

    Raises InputError unless exactly one of the four is set, to a positive and finite number whose steps fit in int32,
    or if a budget in FLOPs is spent before the first step.

    >>> total_steps({'tokens': 1e6}, tokens_per_step=8192, flops_per_step=1e9)
    123
    """
    unknown = set(budget) - set(BUDGETS)
    if unknown:
        raise InputError(f'budget.{sorted(unknown)[0]}: a budget is one of {", ".join(BUDGETS)}')
    chosen = {name: budget[name] for name in BUDGETS if name in budget and budget[name] is not None}
    if len(chosen) != 1:
        fields = ' and '.join(f'budget.{name} = {value}' for name, value in chosen.items()) or 'nothing'
        raise InputError(f'the budget is exactly one of {", ".join(BUDGETS)}; {fields} is set')
    ((name, value),) = chosen.items()
    if not (value > 0 and math.isfinite(value)) or (name == 'steps' and value != int(value)):
        kind = 'whole' if name == 'steps' else 'finite'
        raise InputError(f'budget.{name} = {value}: it must be a positive {kind} number')
    if name == 'hours':
        return None
    if name == 'flops' and value <= flops_before:
        raise InputError(
            f'budget.flops = {value:.3g}: {flops_before:.3g} FLOP are spent before the first step; raise it'
        )
    left = value - (flops_before if name == 'flops' else 0)
    steps = math.ceil(left / {'steps': 1, 'tokens': tokens_per_step, 'flops': flops_per_step}[name])
    if steps >= 2**31:
        raise InputError(
            f'budget.{name} = {value} is {steps:,} steps, which are counted in 31 bits, up to {2**31 - 1:,}; lower it'
        )
    return steps
