"""A run with another budget in the same folder: its schedule continues, or `--extend` begins a new one.

The learning rate is a function of the spent share of the budget, so another budget would have given the steps that were
already taken another learning rate. Two schedules define how a run continues: 'constant', and 'wsd' from the last
checkpoint before its decay (arXiv 2405.18392). Their warmup stays that of the first budget. For the others, a new
schedule begins at the newest checkpoint if the user asks for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.checkpoint import manifest
from lmtrain.cost.budget import total_steps
from lmtrain.errors import InputError

FIELDS = ('begin', 'warmup_budget')  # of config.schedule, which record what was decided here
CONTINUES = {'constant': 'free', 'wsd': 'continued'}  # schedules that define a longer run
MARGIN = 1e-6  # relative: a progress is rounded to float32
DECAYED = 'decayed'  # suffix of checkpoints of a decay that was taken back


class Amount(NamedTuple):
    """A budget: 'steps', 'tokens', 'flops' or 'hours', and how many."""

    unit: str
    value: float


def amount(config: Mapping[str, Any]) -> Amount:
    """The budget of a config.

    >>> amount({'budget': {'steps': None, 'tokens': 1e6}})
    Amount(unit='tokens', value=1000000.0)
    """
    set_budgets = (Amount(unit, value) for unit, value in config['budget'].items() if value is not None)
    return next(set_budgets, Amount('', 0.0))


def spent(extra: Mapping[str, Any], budget: Amount) -> float:
    """How much of a budget is spent at a checkpoint, in its unit, as the schedule counts: its share of the steps.

    A budget in tokens or FLOPs is divided into whole steps, rounded up, after what is computed before the first one. So
    the share is not exactly that of the counted tokens or FLOPs.

    Args:
      extra: the counters that the loop saves, with the step.

    >>> round(spent({'step': 98, 'tokens': 98 * 8192, 'flops': 0.0}, Amount('tokens', 1e6)))  # of 123 steps
    796748
    """
    if budget.unit == 'steps':
        return extra['step']
    if budget.unit == 'hours':
        return extra.get('hours', extra['elapsed'] / 3600)  # runs of other budgets and earlier versions lack it
    if budget.unit == 'flops' and 'rollout_flops' in extra:  # completions decide how many steps there are
        return extra['flops']
    step, before = extra['step'], extra.get('reference_flops', 0.0)
    each = round(extra['tokens'] / step), (extra['flops'] - before) / step
    return step / total_steps({budget.unit: budget.value}, *each, before) * budget.value


def newest(directory: Path) -> dict[str, Any]:
    """The counters at the newest intact checkpoint of a run; {} if there is none."""
    step = manifest.first_intact(directory / 'checkpoints', 'last', quarantine=False)
    return _counters(directory, step) if step >= 0 else {}


def _counters(directory: Path, step: int) -> dict[str, Any]:
    return manifest.read(directory / 'checkpoints' / str(step))['extra'] | {'step': step}


def schedule(saved: Mapping[str, Any], config, directory: Path, extend: bool) -> dict[str, float]:
    """The values of `FIELDS` for a run in a folder that holds a run.

    Args:
      saved: the config of the folder.
      config: the config of this start.
      extend: a new schedule begins at the newest checkpoint if the budget is another one than the saved.

    Raises InputError if there is nothing to extend.
    """
    typed = {name: config.schedule[name] for name in FIELDS}
    if any(typed.values()):
        return typed
    own = {name: saved['schedule'][name] for name in FIELDS}
    before, after = amount(saved), amount(config)
    if before == after:
        if extend and not own['begin']:
            raise InputError(f'--extend: budget.{after.unit} = {after.value:,} is the budget of {directory}; raise it')
        return own
    if not extend:
        warms_up = saved['schedule']['name'] in CONTINUES and saved['schedule']['warmup'] > 0
        if not warms_up or before.unit != after.unit:
            return own
        return own | {'warmup_budget': own['warmup_budget'] or float(before.value - own['begin'])}
    counters = newest(directory)
    if not counters:
        raise InputError(f'--extend: {directory} holds no checkpoint: leave --extend out')
    if (done := spent(counters, after)) >= after.value:
        raise InputError(
            f'--extend: {done:,g} {after.unit} are spent already, and budget.{after.unit} = {after.value:,g}: raise it'
        )
    return {'begin': float(done), 'warmup_budget': 0.0}


def kind(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What a changed budget means for a resumed run; both configs are nested.

    Returns 'free' (the learning rate does not depend on it), 'continued' (from before the decay), 'extended' (a new
    schedule begins), or 'fixed': the schedule does not define it.
    """
    old, new = before['schedule'], after['schedule']
    if old['begin'] != new['begin']:
        return 'extended'
    same_unit = amount(before).unit == amount(after).unit or old['name'] == 'constant' and not old['warmup']
    return CONTINUES.get(old['name'], 'fixed') if old['name'] == new['name'] and same_unit else 'fixed'


def decay_start(config: Mapping[str, Any]) -> float:
    """The spent budget, in its unit, at which the decay of 'wsd' starts.

    >>> decay_start({'budget': {'steps': 100}, 'schedule': {'begin': 50.0, 'decay': 0.2}})
    90.0
    """
    begin, length = config['schedule']['begin'], amount(config).value - config['schedule']['begin']
    return begin + (1.0 - config['schedule']['decay']) * length


def before_decay(directory: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """The last intact checkpoint at which neither budget has begun its decay; -1 if none is left."""
    limits = [(amount(each), decay_start(each) * (1 - MARGIN)) for each in (saved, config)]
    for step in reversed(manifest.steps(directory / 'checkpoints')):
        try:
            counters = _counters(directory, step)
        except manifest.Damaged:
            continue
        if all(spent(counters, budget) < limit for budget, limit in limits):
            return step
    return -1


def set_aside(directory: Path, step: int) -> list[int]:
    """Renames the checkpoints after `step` to '<step>.decayed', and returns their steps. May be repeated."""
    later = [each for each in manifest.steps(directory / 'checkpoints') if each > step]
    for each in later:
        path = directory / 'checkpoints' / str(each)
        target, number = path.with_name(f'{each}.{DECAYED}'), 0
        while target.exists():
            number += 1
            target = path.with_name(f'{each}.{DECAYED}.{number}')
        path.rename(target)
    return later
