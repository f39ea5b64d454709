"""A run before its first step: the header that is printed, and the plan that results.json records.

Functions take a `training.run.Run`, which this package may not import.
"""

import math
from collections.abc import Mapping

from lmtrain import tree
from lmtrain.parallel import sharding
from lmtrain.report import evaluations, terminal
from lmtrain.report.terminal import counted, number, unit

COARSE = 30  # rows: the scores of fewer validation rows are coarse


def header(run, stand_in: bool = False) -> str:
    """The header of a run: parameters, batch, plan, device, memory, data, and what may surprise.

    Args:
      stand_in: its text is a stand-in, whose sizes and epochs have no meaning.
    """
    config, trainable, total = run.config, tree.count(run.shapes.trainable), tree.count(run.shapes.params)
    share = f'{number(trainable)} trainable ({terminal.percent(trainable / total)})'
    parts = ', '.join(f'{name} {unit(size, "B")}' for name, size in run.memory.items() if name != 'total')
    figures = {
        'parameters': f'{number(total)}, {"all trainable" if trainable == total else share}',
        'batch': _batch(run),
        'plan': _plan(run, None if stand_in or run.task.on_policy else run.steps_per_epoch),
        'device': f'{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, {config.model.dtype}',
        'memory': f'about {unit(run.memory["total"], "B")} per device: {parts}',
    }
    notes = [terminal.note(*line) for line in figures.items()]
    if run.task.reads_rows:
        notes += [terminal.note('rows', text) for text in (*_split_sizes(run.corpus.sizes), *run.corpus.notes)]
    if not run.task.reads_rows and not stand_in:
        notes.append(terminal.text(run.corpus.facts()))
    notes += [terminal.note('head', text) for text in run.notes]
    if run.is_padded and (repeated := run.stream('train', shuffle=True).repeated):
        notes.append(terminal.note('rows', f'{repeated} come twice in an epoch, to fill up its last batch'))
    if run.task.measures_text and run.total_steps and not stand_in:
        every = config.evaluate.every_steps
        if text := evaluations.many_epochs(run.total_steps, run.steps_per_epoch, every):
            notes.append(terminal.note('epochs', text))
    return '\n'.join([*notes, *_remarks(run)])


def _split_sizes(sizes: Mapping[str, int]) -> list[str]:
    """The rows of each split, and whether those of validation are too few for fine scores.

    >>> _split_sizes({'train': 1054, 'validation': 3, 'test': 3})
    ['train 1,054, validation 3, test 3', 'validation has 3 rows: its scores are coarse (one row weighs 33 %)']
    """
    lines, count = [', '.join(f'{split} {size:,}' for split, size in sizes.items())], sizes['validation']
    if 0 < count < COARSE:
        rows = counted(count, 'row')
        lines.append(f'validation has {rows}: its scores are coarse (one row weighs {100 / count:.0f} %)')
    return lines


def _batch(run) -> str:
    """Rows, their length with padding, and among how many devices and micro-batches they are divided."""
    rows, accumulate = run.config.data.batch_size, run.config.optimizer.accumulate
    length = round(run.tokens_per_step / rows)
    size = f'{length:,} tokens' + (f' (on average; at most {run.longest:,})' if length < run.longest else '')
    padded = ', padding included' * (length < run.config.data.seq_len)
    text = f'{rows:,} rows x {size} = {run.tokens_per_step:,} tokens per step{padded}'
    replicas = run.mesh.shape['data'] * run.mesh.shape['fsdp']  # devices that share the rows
    factors = [f'{accumulate} micro-batches'] if accumulate > 1 else []
    factors += [f'{replicas} devices'] if replicas > 1 else []
    if not factors:
        return text
    return f'{text}, over {" x ".join(factors)}: {counted(rows // (accumulate * replicas), "row")} each'


def _plan(run, steps_per_epoch: int | None) -> str:
    """Steps, tokens, epochs and FLOPs; `steps_per_epoch` is None if it is unknown."""
    budget, steps = run.config.budget, run.total_steps
    flops = (steps or 1) * run.flops_per_step.total  # of one step for a budget that steps do not decide
    if run.rollout_flops or steps and run.reference_flops:
        flops = run.spent(steps or 1)['flops']
    if steps is None and budget.flops:
        return f'{unit(budget.flops, "FLOP")}, of which a step takes at most {unit(flops, "FLOP")}'
    if steps is None:
        epoch = f'; an epoch is {counted(steps_per_epoch, "step")}' if steps_per_epoch else ''
        duration = terminal.duration(3600 * budget.hours)
        return f'{budget.hours:g} hours of wall clock ({duration}); {unit(flops, "FLOP")} per step{epoch}'
    spent = f' ({terminal.epochs(steps / steps_per_epoch)} epochs)' if steps_per_epoch else ''
    return f'{steps:,} steps, {number(steps * run.tokens_per_step)} tokens{spent}, {unit(flops, "FLOP")}'


def _rollouts(run) -> list[str]:
    """How a policy run samples, and what its reference is."""
    policy, initial = run.config.policy, run.initial
    text = f'{policy.prompts} prompts x {policy.samples} completions of up to {policy.max_tokens} tokens'
    text += f' at temperature {policy.temperature:g}, then {terminal.counted(run.steps_per_rollout, "step")}'
    truncated = {'keep': 'are learned from', 'mask': 'are not learned from', 'penalty': f'lose {policy.penalty:g}'}
    if initial.only_added:
        reference = 'the base with the adapter off, which shares its parameters'
    elif run.config.objective.kl_weight:
        size = tree.size(initial.reference_params(initial.shapes.trainable))
        reference = f'a second copy of the trained parameters, {terminal.unit(size, "B")}'
    else:
        reference = 'none, since objective.kl_weight = 0: the divergence from the base is not measured'
    text += f', {terminal.unit(run.rollout_flops, "FLOP")} at most'
    layers, cache = (terminal.unit(size, 'B') for size in run.rollout_bytes)
    text += f'; meanwhile a device holds {layers} of copied layers and {cache} of keys and values'
    notes = {'rollout': f'{text}; completions without an end {truncated[policy.truncated]}', 'reference': reference}
    return [terminal.note(*item) for item in notes.items()]


def _remarks(run) -> list[str]:
    """Notes on what may surprise: padding, attention without its kernel, replicated leaves, checkpoints not ranked."""
    config, notes = run.config, _rollouts(run) if run.task.on_policy else []
    if fill := run.model.vocab_fill:
        text = f'{config.model.vocab_size:,} ids, and {fill} rows that mesh.tensor needs'
        notes.append(terminal.note('vocabulary', text))
    kernel = sharding.kernel(run.mesh)
    if kernel and run.model.attention == 'auto' and run.unsupported_reason:
        text = f'by XLA: {kernel} {run.unsupported_reason}'
        notes.append(terminal.note('attention', text))
    params = run.initial.member_shapes.params
    if run.mesh.size > 1 and (replicated := sharding.replicated(params, run.mesh)):
        notes.append(terminal.note('replicated', replicated))
    evaluated, saved = config.evaluate.every_steps, config.checkpoint.every_steps
    if config.checkpoint.keep_best and saved < (run.total_steps or 0) <= math.lcm(evaluated, saved):
        text = (
            'is the last one: no checkpoint before it has a validation loss, since '
            f'checkpoint.every_steps = {saved} and evaluate.every_steps = {evaluated} never meet'
        )
        notes.append(terminal.note('best', text))
    return notes


def finished(step: int, early: bool) -> str:
    """The line on a run of which nothing is left to train; `early`: evaluate.patience ended it."""
    reason = 'evaluate.patience ended the run' if early else 'the budget is spent'
    return terminal.note('finished', f'{reason} after step {step:,}: nothing is left to train')


def stopped_early(bests, patience: int) -> str:
    """The line on a run that ends before its budget is spent; `bests`: from `evaluations.follow`."""
    steps = ', '.join(f'{step:,}' for step in sorted({step for step, _, _ in bests}))
    text = f'early: {patience} evaluations in a row are not better than that of step {steps} (evaluate.patience)'
    return terminal.note('ends', text)


def planned(run) -> dict[str, float]:
    """Figures known before the run: 'peak_memory' of a device in bytes and, if known, the others.

    Seconds are those at the share config.plan.mfu of the peak of the devices.
    """
    figures = {'peak_memory': run.memory['total']}
    if run.total_steps:
        figures |= {'steps': run.total_steps, 'tokens': run.total_steps * run.tokens_per_step}
        figures |= {'epochs': run.total_steps / run.steps_per_epoch}
    if run.total_steps and run.peak_flops:
        flops = run.spent(run.total_steps)['flops']
        figures |= {'seconds': flops / run.peak_flops / run.config.plan.mfu}
    return figures
