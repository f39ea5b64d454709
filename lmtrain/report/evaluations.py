"""The evaluations of a run in metrics.jsonl: the best step, and whether the run overfits."""

import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain.files import read_json_lines
from lmtrain.report import terminal

# Epochs after which the same text teaches nothing more: Muennighoff et al. 2023, arXiv 2305.16264, section 6.
MANY_EPOCHS = 40
MEMORISED = 1.5  # times the training loss: a validation loss above it, after many epochs, is that of a memorised text
RISING = 2  # evaluations in a row above the best one, after which a rise counts as overfitting


class Overfitting(NamedTuple):
    """A validation loss that rises while the training loss falls, from the best evaluation to the last.

    The training losses are means over the steps before each of the two evaluations.
    """

    best: int
    last: int
    validation: tuple[float, float]
    training: tuple[float, float]


def losses(lines: Sequence[Mapping[str, Any]], member: int | None = None) -> dict[int, float]:
    """{step: validation loss} of lines of metrics.jsonl, of the finite ones; `member`: those of one run of a sweep.

    >>> losses([{'step': 5, 'validation_loss': 2.0, 'validation_loss_members': [1.0, 3.0]}, {'step': 6}], 1)
    {5: 3.0}
    """
    name = 'validation_loss'
    evaluated = [line for line in lines if name in line]
    values = {line['step']: line[name] if member is None else line[f'{name}_members'][member] for line in evaluated}
    return {step: float(loss) for step, loss in values.items() if math.isfinite(float(loss))}


def of_policy(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether lines of metrics.jsonl are those of a policy, whose validation loss is minus its mean reward.

    >>> of_policy([{'step': 1, 'loss': 2.0}, {'step': 1, 'validation_loss': -0.5, 'validation_reward_error': 0.1}])
    True
    """
    return any('validation_reward_error' in line for line in lines)


def score(loss: float, policy: bool) -> tuple[str, float]:
    """(name, value) of what a validation loss is shown as: that of a policy is its reward.

    >>> score(2.0, policy=False), score(-0.5, policy=True)
    (('loss', 2.0), ('reward', 0.5))
    """
    return ('reward', -loss) if policy else ('loss', loss)


def best(measured: Mapping[int, float]) -> int:
    """The step with the lowest loss, the newer of two equal ones.

    >>> best({5: 2.0, 10: 1.5, 15: 1.5, 20: 1.7})
    15
    """
    return min(measured, key=lambda step: (measured[step], -step))


def rose(measured: Mapping[int, float]) -> bool:
    """Whether the loss was measured more than twice and the last one is not the lowest."""
    return len(measured) > 2 and best(measured) < max(measured)


def follow(bests: Sequence[Sequence], step: int, validation: Mapping[str, Any]) -> list[list]:
    """[[step with the lowest loss, this loss, number of evaluations since]] of a run, or of each member of a sweep.

    Args:
      bests: the result for the evaluation before; [] for none.
      validation: the evaluation after `step`.

    >>> follow(follow([], 10, {'loss': 2.0}), 20, {'loss': 3.0})
    [[10, 2.0, 1]]
    """
    measured = [float(loss) for loss in validation.get('loss_members', [validation['loss']])]
    measured = [loss if math.isfinite(loss) else sys.float_info.max for loss in measured]  # JSON has no infinity
    bests = bests or [[step, loss, -1] for loss in measured]
    return [
        [step, loss, 0] if loss < best else [at, best, since + 1]
        for (at, best, since), loss in zip(bests, measured, strict=True)
    ]


def exhausted(bests: Sequence[Sequence], patience: int) -> bool:
    """Whether a run ends early: no member improved in its last `patience` evaluations. 0 is never."""
    return patience > 0 and bool(bests) and all(since >= patience for _, _, since in bests)


def overfitting(lines: Sequence[Mapping[str, Any]]) -> Overfitting | None:
    """Where a run began to overfit; None if it did not, or there are too few evaluations to say."""
    measured = losses(lines)
    if len(measured) <= RISING or of_policy(lines):  # the training loss of a policy says little
        return None
    steps, lowest = sorted(measured), best(measured)
    if len([step for step in steps if step > lowest]) < RISING or steps[0] == lowest:
        return None

    def training(step: int) -> float | None:
        """The mean training loss between the evaluation before `step` and `step`."""
        before = max((other for other in steps if other < step), default=0)
        values = [float(line['loss']) for line in lines if 'loss' in line and before < line['step'] <= step]
        return sum(values) / len(values) if values else None

    then, now = training(lowest), training(steps[-1])
    if then is None or now is None or not now < then:
        return None
    return Overfitting(lowest, steps[-1], (measured[lowest], measured[steps[-1]]), (then, now))


def text(sign: Overfitting, steps_per_epoch: float | None) -> str:
    """The message on overfitting, with epochs if an epoch's steps are known."""
    epochs = f' ({sign.best / steps_per_epoch:.2g} epochs)' if steps_per_epoch else ''
    later = f' ({sign.last / steps_per_epoch:.2g} epochs)' if steps_per_epoch else ''
    return (
        f'from step {sign.best:,}{epochs} to {sign.last:,}{later} the validation loss rose from '
        f'{sign.validation[0]:.4f} to {sign.validation[1]:.4f} while the training loss fell from '
        f'{sign.training[0]:.4f} to {sign.training[1]:.4f}: more data, fewer steps or evaluate.patience help'
    )


def many_epochs(total_steps: int, steps_per_epoch: int, every: int) -> str:
    """The message before a run of many epochs of text; '' for fewer.

    Args:
      every: steps between evaluations.

    >>> many_epochs(400, 2, 500)[:67]
    '200 are planned; from about 40 on, a model only memorises its text.'
    """
    epochs, evaluated = total_steps / steps_per_epoch, math.ceil(total_steps / every)
    if epochs <= MANY_EPOCHS:
        return ''
    text = (
        f'{terminal.epochs(epochs)} are planned; from about {MANY_EPOCHS} on, a model only memorises its text. '
        f'More text, or budget.steps={MANY_EPOCHS * steps_per_epoch}, prevents it'
    )
    if evaluated > RISING:
        return text
    often = f'{terminal.counted(evaluated, "time")}, too few to see a rise'
    return f'{text}; validation is measured {often}: set evaluate.every_steps below {every}'


def memorised(lines: Sequence[Mapping[str, Any]], epochs: float) -> str:
    """The message on a text that was memorised: after many epochs, validation is far above training; else ''.

    One evaluation is enough. `lines`: of metrics.jsonl, of a run that measures bits per byte.
    """
    training = [float(line.get('nats', line['loss'])) for line in lines if 'loss' in line]
    validation = [float(line['validation_loss']) for line in lines if 'validation_bits_per_byte' in line]
    if epochs <= MANY_EPOCHS or not training or not validation or not validation[-1] > MEMORISED * training[-1]:
        return ''
    return (
        f'after {terminal.epochs(epochs)} epochs the training loss is {training[-1]:.4f} and the validation loss '
        f'{validation[-1]:.4f}: the model has memorised its training text; more text or fewer steps help'
    )


def remarks(folder: pathlib.Path, results: Mapping[str, Any]) -> dict[str, str]:
    """{name: sentence} on a run that ended: its best step beside the last, why it ended, and whether it overfits.

    Args:
      folder: of the run.
      results: the content of results.json.
    """
    lines = read_json_lines(folder / 'metrics.jsonl')
    every = {line['step']: float(line['validation_loss']) for line in lines if 'validation_loss' in line}
    measured, sentences, policy = losses(lines), {}, of_policy(lines)
    if 'sweep' in results:
        sentences['best'] = f'by validation: {best_of_sweep(results["sweep"])}; --member takes another'
    elif len(every) > 1 and measured and best(measured) == max(every):
        lowest = 'highest reward' if policy else 'lowest loss'
        sentences['best'] = f'step {max(every):,}, the last, has the {lowest} of {len(every)} evaluations'
    elif len(every) > 1 and measured:
        sentences['best'] = best_step(folder, every, policy)
    if results.get('stopped_early'):
        sentences['ended'] = f'early, after step {results["cost"]["steps"]:,}, by evaluate.patience'
    if len(every) > RISING and (sign := overfitting(lines)):
        cost = results.get('cost', {})
        sentences['overfits'] = text(sign, cost['steps'] / cost['epochs'] if cost.get('epochs') else None)
    elif by_heart := memorised(lines, results.get('cost', {}).get('epochs', 0.0)):
        sentences['memorised'] = by_heart
    return sentences


def best_step(folder: pathlib.Path, measured: Mapping[int, float], policy: bool) -> str:
    """The best step, with the lowest of the finite losses, beside the last, in a sentence."""
    lowest = best({step: loss for step, loss in measured.items() if math.isfinite(loss)})
    last = max(measured)
    saved = '--step=best reads it' if (folder / 'checkpoints' / str(lowest)).is_dir() else 'it is not saved'
    (name, then), (_, now) = (score(measured[step], policy) for step in (lowest, last))
    return f'step {lowest:,}: {name} {then:.4f}; the last, {last:,}: {now:.4f}; {saved}'


def by_rate(rates: Sequence[float]) -> dict[float, list[int]]:
    """{learning rate: indices of the members of a sweep with it}: these are repetitions of one experiment."""
    return {rate: [index for index, own in enumerate(rates) if own == rate] for rate in dict.fromkeys(rates)}


def best_member(rates: Sequence[float], measured: Sequence[float]) -> int:
    """The member with the lowest loss, of the learning rate with the lowest mean loss.

    A rate is behind those of which a smaller share of members has diverged; its mean is that of the others.

    >>> best_member((0.1, 0.1, 0.2, 0.2), (1.0, 3.0, 1.6, 1.5)), best_member((0.1, 0.2, 0.2), (1.0, 0.1, math.nan))
    (3, 0)
    >>> best_member((1.0, 1.0, 0.1, 0.1), (math.nan, math.nan, math.nan, 1.5))
    3
    """
    known, ranks = [loss if math.isfinite(loss) else math.inf for loss in measured], {}
    for rate, of in by_rate(rates).items():
        finite = [known[index] for index in of if known[index] < math.inf]
        ranks[rate] = 1 - len(finite) / len(of), sum(finite) / len(finite) if finite else math.inf
    return min(by_rate(rates)[min(ranks, key=ranks.get)], key=lambda index: known[index])


def best_of_sweep(swept: Mapping[str, Any]) -> str:
    """The best member of a sweep, in words; `swept`: 'sweep' of results.json."""
    members = swept['members']
    index = best_member([row['learning_rate'] for row in members], [float(row['loss']) for row in members])
    rate, seed = members[index]['learning_rate'], members[index]['seed']
    return f'learning rate {rate:g}, of it member {index} (seed {seed})'
