"""What is chosen on the selection rows: learning rate and step of a trained arm."""

import math
from pathlib import Path
from typing import Any

from lmtrain import checkpoint
from lmtrain.errors import NonFiniteOutput
from lmtrain.files import read_json_lines


def candidates(folder: Path, learning_rates: list[float]) -> list[dict[str, Any]]:
    """{'learning_rate', 'member', 'step', 'loss', 'accuracy'} of each member of a run at each evaluated step."""
    listed = []
    for line in read_json_lines(folder / 'metrics.jsonl'):
        if 'validation_loss' not in line:
            continue
        losses = line.get('validation_loss_members', [line['validation_loss']])
        accuracies = line.get('validation_accuracy_members', [line.get('validation_accuracy')] * len(losses))
        for member, (rate, loss, accuracy) in enumerate(zip(learning_rates, losses, accuracies, strict=True)):
            about = {'learning_rate': rate, 'member': member, 'step': line['step']}
            listed.append(about | {'loss': loss, 'accuracy': accuracy})
    return listed


def choose(folder: Path, listed: list[dict[str, Any]]) -> dict[str, Any]:
    """The candidate with the lowest loss on the selection rows, among steps with a checkpoint.

    By loss and not by accuracy: of a few rows, many candidates have the same accuracy.

    Raises NonFiniteOutput if no loss is finite.
    """
    saved = set(checkpoint.steps(folder / 'checkpoints'))
    usable = [each for each in listed if each['step'] in saved and math.isfinite(each['loss'])]
    if not usable:
        raise NonFiniteOutput('no learning rate of the grid has a finite loss on the selection rows')
    return min(usable, key=lambda each: each['loss'])
