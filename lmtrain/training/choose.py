"""Which checkpoint and which member of a run a command reads, if the user names none."""

from pathlib import Path
from typing import NamedTuple

from lmtrain import checkpoint
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json_lines
from lmtrain.report import evaluations
from lmtrain.training import init_from, sweep

AUTO = 'auto'


class ChosenCheckpoint(NamedTuple):
    """Attributes:
    step: 'last', 'best' or a number, as `checkpoint.restore` reads it.
    member: of a sweep; 0 for a run.
    notes: a line for each choice that the user may not expect.
    """

    step: int | str
    member: int
    notes: tuple[str, ...] = ()


def choose(directory, step: int | str = AUTO, member: int | None = None) -> ChosenCheckpoint:
    """The checkpoint and the member that a command reads from the folder of a run.

    Args:
      step: 'last', 'best' (lowest validation loss), a number, or 'auto': the best if the loss was measured more than
        twice and has risen since, else the last. In a sweep, each member has a best step of its own.
      member: of a sweep. None is the best by validation: the lowest loss of the learning rate with the lowest mean.

    Raises InputError for a member that does not exist; a folder without a run raises when it is opened.
    """
    path = Path(directory)
    members = init_from.read_run(path)[2] if (path / 'config.json').is_file() else ()
    lines, notes = read_json_lines(path / 'metrics.jsonl'), []
    if members and member is None:
        member, notes = _best_member(members, lines)
    member = member or 0
    if not 0 <= member < max(len(members), 1):
        range_ = f'the sweep has the members 0 to {len(members) - 1}' if members else f'{path} is no sweep'
        raise InputError(f'member {member}: {range_}')
    if step in (AUTO, 'best'):
        step, note = _best_step(path, step, lines, member if members else None)
        notes += note
    return ChosenCheckpoint(step, member, tuple(notes))


def _best_member(members, lines) -> tuple[int, list[str]]:
    """(the best member by the last evaluation, 0 before it; a line on it)."""
    last = next((line for line in reversed(lines) if 'validation_loss_members' in line), None)
    if last is None:
        return 0, ['member 0 of the sweep, which has not been evaluated yet (--member)']
    index = sweep.best_member(members, [float(loss) for loss in last['validation_loss_members']])
    one = members[index]
    rate = f'rate {one.learning_rate:g}, seed {one.seed}'
    return index, [f'member {index} of the sweep, the best by validation: {rate} (--member)']


def _best_step(path: Path, step: str, lines, member: int | None) -> tuple[int | str, list[str]]:
    """(the step for 'auto' or 'best', a line on it if it is not the last)."""
    measured, saved = evaluations.losses(lines, member), checkpoint.steps(path / 'checkpoints')
    known = {each: loss for each, loss in measured.items() if each in saved}
    # By its name a damaged checkpoint of a run is replaced by the next best. Manifests know no members.
    chosen = 'best' if member is None or not known else evaluations.best(known)
    if step == 'best':
        return chosen, []
    if not known or not evaluations.rose(measured) or evaluations.best(known) == max(saved):
        return 'last', []
    best, last, policy = evaluations.best(known), max(saved), evaluations.of_policy(lines)
    name, value = evaluations.score(known[best], policy)
    than = f'the last is {last:,}'
    if last in measured:
        than = f'{evaluations.score(measured[last], policy)[1]:.4f} after the last, {last:,}'
    return chosen, [f'step {best:,}, the best: validation {name} {value:.4f} ({than}; --step=last)']


def check_is_one_model(directory: str, field: str) -> None:
    """Raises InputError if `directory`, which `field` names, is the folder of a sweep: its members differ.

    `init_from.open_base` reads member 0, which runs by earlier versions have recorded: only new runs are checked.
    """
    path = local_path(directory, field)
    if (path / 'checkpoints').is_dir() and (members := init_from.read_run(path)[2]):
        way_out = f'lmtrain export --format=hf --workdir={directory} --member=N --to=DIR'
        raise InputError(
            f'{field} = {directory} is a sweep of {len(members)} members, and must be one model: write a member by '
            f'`{way_out}`, and name DIR (without --member it is the best by validation)'
        )
