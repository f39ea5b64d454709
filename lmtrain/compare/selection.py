"""What is chosen on the selection rows, and by what: the lowest loss at a temperature that is fitted on them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain import checkpoint
from lmtrain.errors import NonFiniteOutput
from lmtrain.files import read_json_lines
from lmtrain.report.writers import numbers

# What is measured of a candidate on the selection rows; its other fields are the choice.
MEASURED = ('loss', 'accuracy', 'shots_mean', 'prompt_tokens', 'dropped', 'cut')
NO_SCORES = {'loss': None, 'accuracy': None}  # of a member that has diverged


def evaluated(folder: Path, learning_rates: Sequence[float]) -> list[dict[str, Any]]:
    """{'learning_rate', 'member', 'step', 'loss', 'accuracy'} of each member of a run at each evaluated step.

    Only steps with a checkpoint, which alone can be chosen. The loss is that of the training task. Of a member that has
    diverged, loss and accuracy are None at every step, as a run of its own would have ended without results.
    """
    saved, candidates = set(checkpoint.steps(folder / 'checkpoints')), []
    lines = [numbers(line) for line in read_json_lines(folder / 'metrics.jsonl') if 'validation_loss' in line]
    all_losses = [line.get('validation_loss_members', [line['validation_loss']]) for line in lines]
    usable = [all(map(math.isfinite, losses)) for losses in zip(*all_losses)]
    for line in lines:
        if line['step'] not in saved:
            continue
        losses = line.get('validation_loss_members', [line['validation_loss']])
        accuracies = line.get('validation_accuracy_members', [line.get('validation_accuracy')] * len(losses))
        for member, (rate, loss, accuracy) in enumerate(zip(learning_rates, losses, accuracies, strict=True)):
            about = {'learning_rate': rate, 'member': member, 'step': line['step']}
            candidates.append(about | ({'loss': loss, 'accuracy': accuracy} if usable[member] else NO_SCORES))
    return candidates


def choose(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The candidate with the lowest loss on the selection rows; of equal ones the first.

    By loss and not by accuracy: on a few rows, many candidates have the same accuracy. The losses are those at the
    temperature of each candidate, as on the test rows: a raw loss would choose the candidate that is the least sure.

    Raises NonFiniteOutput if no loss is finite.
    """
    usable = [each for each in candidates if each['loss'] is not None and math.isfinite(each['loss'])]
    if not usable:
        raise NonFiniteOutput('no candidate has a finite loss on the selection rows')
    return min(usable, key=lambda each: each['loss'])


def outcome(best: Mapping[str, Any], tried: Sequence[dict[str, Any]], rows: int) -> dict[str, Any]:
    """{'chosen', 'selection'} of trial.json: a candidate, what it reaches on the selection rows, and the others."""
    measured = {name: value for name, value in best.items() if name in MEASURED}
    chosen = {name: value for name, value in best.items() if name not in MEASURED}
    return {'chosen': chosen, 'selection': {'rows': rows} | measured | {'candidates': list(tried)}}
