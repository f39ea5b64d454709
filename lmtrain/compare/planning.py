"""What each arm will need, before anything runs, and which arms cannot run on this base."""

import textwrap
from typing import NamedTuple

import jax

from lmtrain import cost
from lmtrain.compare import measures, predictors, prompted, trained
from lmtrain.compare.arms import Arm, instructions
from lmtrain.compare.trials import Comparison, Trial, listed
from lmtrain.cost import hardware, ledger
from lmtrain.errors import InputError
from lmtrain.evaluation.task_run import check_tokens
from lmtrain.inference.questions import Question
from lmtrain.report import terminal
from lmtrain.runtime import preflight
from lmtrain.tasks import TASKS
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

MEMORY_SHARE = 0.75  # of a device's memory, above which a grid is not trained as one program
SAVED_COPIES = 2  # of the state in a CPU's memory while a checkpoint is written: a snapshot, and Orbax's buffer


class Plan(NamedTuple):
    """What a trial of an arm needs.

    Attributes:
      reason: why the arm cannot run on this base; '' if it can.
      trainable: regex of the trained paths; '' of a prompt.
      flops: of a trial of the largest size, with its grid or search; of a prompt, with the test rows.
      memory: bytes of one device; of a CPU, with the copies of a checkpoint that is being written.
      sequential: whether the rates of the grid are trained one after another.
    """

    reason: str = ''
    trainable: str = ''
    flops: float = 0.0
    memory: int = 0
    sequential: bool = False


def plan(comparison: Comparison, arm: Arm) -> Plan:
    """The plan of an arm; it builds what a trial would build, and compiles nothing."""
    trial = Trial(arm, comparison.sizes[-1] if arm.uses_rows else 0, 1, 0)
    try:
        return (_trained if arm.kind == 'train' else _prompted)(comparison, trial)
    except InputError as error:
        return Plan(str(error))


def _trained(comparison: Comparison, trial: Trial) -> Plan:
    config = trained.recipe(comparison, trial)
    same = config.init.base == comparison.config.init.base
    if not TASKS[config.task.name].has_classes:
        _check_completions(comparison)
    run = build(*resolve(config, base=comparison.base if same else None))
    memory, available = run.memory['total'], run.device_memory
    if not available:
        memory += SAVED_COPIES * (
            run.memory['gradients'] + run.memory['moments']
        )  # of the size of the saved trainable leaves
        available = preflight.host_memory() // jax.local_device_count()
    sequential = not trial.arm.settings['vectorised'] or MEMORY_SHARE * available < memory
    members, rates = max(len(run.initial.members), 1), len(trial.arm.settings['learning_rates'])
    if sequential:
        memory //= members  # at most: members share the frozen leaves
    if run.total_steps:
        flops = run.spent(run.total_steps)['executed_flops']
    else:
        flops = config.budget.flops or 3600 * config.budget.hours * _speed(comparison)
    return Plan('', run.initial.method.trainable, flops * rates / members, memory, sequential)


def _prompted(comparison: Comparison, trial: Trial) -> Plan:
    model = comparison.model
    predictors.check_promptable(model.model)
    _check_completions(comparison)
    settings, selected = trial.arm.settings, len(comparison.task.selection)
    texts = instructions(trial.arm, comparison.task.classes)
    longest = max(texts, key=len)
    # What a search chooses is shared by all rows; its budget covers what it tries.
    select, tried = ('first', 1) if settings['search'] else (settings['select'], len(texts))
    chosen = {'instruction': longest, 'shots': min(settings['shots'], trial.size), 'select': select}
    pool, form = prompted.prompt(comparison, trial, chosen)
    query = measures.query_of_prompt(comparison, model, pool, form, settings['scores'])
    again = prompted.num_draws(comparison, trial, form) + len(prompted.template_texts(comparison, trial)[1:])
    again += prompted.num_orders(comparison, trial, form, prompted.held(trial, form))
    rows = (tried + again) * selected + comparison.task.facts['rows']['test']
    flops = ledger.scoring(model.model, model.params, query, rows).flops
    if settings['search']:
        flops += _search(comparison, trial, longest, settings['budget'])
    return Plan('', '', flops, measures.scoring_bytes(model, query))


def _search(comparison: Comparison, trial: Trial, instruction: str, budget: int) -> float:
    """FLOPs of a search, by those of a prompt without demonstrations; InputError if its budget is less than one.

    Args:
      instruction: the longest.
    """
    prompt = {'instruction': instruction, 'shots': 0, 'select': 'first', 'places': []}
    one = prompted.scored_once(comparison, trial, prompt)
    if one.tokens > budget:
        raise InputError(
            f'compare.arms.{trial.arm.name}.budget={budget:,} tokens, and one prompt without demonstrations reads '
            f'about {one.tokens:,.0f} tokens of the selection rows: raise it, or lower compare.selection'
        )
    return one.flops / one.tokens * budget


def _check_completions(comparison: Comparison) -> None:
    """Raises InputError if two classes have the same tokens as answers: no likelihood distinguishes them."""
    choices = tuple(comparison.task.completions)
    check_tokens([Question('config.task', '', choices, choices[0])], comparison.model.tokenizer)


def page(comparison: Comparison, arms: list[Arm]) -> str:
    """The table of `--dry_run`: trials, FLOPs, memory, time and money of every arm."""
    speed, prices = _speed(comparison), measures.prices(comparison)
    rows = [('arm', 'trials', 'FLOPs each', 'memory', 'time', 'price')]
    total = 0.0
    for arm in arms:
        own = comparison.plans[arm.name]
        count = sum(trial.arm == arm for trial in listed(comparison, arms))
        if own.reason:
            rows.append((arm.name, 'skipped', '', '', '', ''))
            continue
        seconds = count * own.flops / speed
        total += seconds
        price = ledger.money(seconds, prices)['price']
        cells = [
            f'{count}',
            terminal.unit(own.flops, 'FLOP'),
            terminal.unit(own.memory, 'B'),
            terminal.duration(seconds),
        ]
        rows.append((arm.name, *cells, '-' if price is None else f'{price:.2g} {comparison.config.compare.currency}'))
    lines = terminal.table(rows, right=(1, 2, 3, 4, 5))
    notes = [terminal.note('skipped', f'{arm.name}: {comparison.plans[arm.name].reason}') for arm in arms]
    notes = [note for arm, note in zip(arms, notes) if comparison.plans[arm.name].reason]
    about = f'total {terminal.duration(total)} at {terminal.unit(speed, "FLOP/s")}'
    about = textwrap.fill(f'{about}; compilation, evaluation and the test stage of trained arms come on top', 80)
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:], about, *notes])


def _speed(comparison: Comparison) -> float:
    """FLOP/s of this machine that a trial reaches: config.plan.mfu of the peak, or of a measured matrix product."""
    dtype = comparison.model.model.dtype
    peak = cost.peak_flops(jax.devices()[0].device_kind, dtype) or hardware.measured_peak(dtype)
    return comparison.config.plan.mfu * peak
