"""A run before its first step: the header that is printed, and the plan that results.json records.

Functions take a `training.run.Run`, which this package may not import.
"""

import math

from lmtrain import tree
from lmtrain.parallel import sharding
from lmtrain.report import evaluations, terminal


def header(run, stand_in: bool = False) -> str:
    """The header of a run. `stand_in`: its text is a stand-in, whose sizes and epochs have no meaning."""
    config, shapes = run.config, run.shapes
    flops = (run.total_steps or 1) * run.flops_per_step.total
    if run.rollout_flops or run.total_steps and run.reference_flops:
        flops = run.spent(run.total_steps or 1)['flops']
    figures = terminal.header(
        config,
        run.mesh,
        trainable=tree.count(shapes.trainable),
        total=tree.count(shapes.params),
        total_steps=run.total_steps,
        steps_per_epoch=None if stand_in or run.task.on_policy else run.steps_per_epoch,
        tokens_per_step=run.tokens_per_step,
        longest=run.longest,
        flops=flops,
        memory=run.memory,
    )
    notes = [terminal.note('rows', text) for text in getattr(run.corpus, 'notes', ())]  # of a task
    if not run.task.reads_rows and not stand_in:
        notes.append(terminal.text(run.corpus.facts()))
    notes += [terminal.note('head', text) for text in run.notes]
    if run.is_padded and (repeated := run.stream('train', shuffle=True).repeated):
        notes.append(terminal.note('rows', f'{repeated} come twice in an epoch, to fill up its last batch'))
    if run.task.measures_text and run.total_steps and not stand_in:
        every = config.evaluate.every_steps
        if text := evaluations.many_epochs(run.total_steps, run.steps_per_epoch, every):
            notes.append(terminal.note('epochs', text))
    return '\n'.join([figures, *notes, *_remarks(run)])


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
