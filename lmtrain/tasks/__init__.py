"""Tasks: what a model is trained to do. Each is one record, in a file of its own.

A new task is a file `lmtrain/tasks/NAME.py` that defines `TASK`, and its name here.
"""

import importlib
from collections.abc import Sequence

from lmtrain.tasks.task import Task

NAMES = (
    'text',
    'chat',
    'classify',
    'regress',
    'tag',
    'span',
    'reward',
    'preference',
    'unpaired',
    'policy',
    'ppo',
)
TASKS: dict[str, Task] = {name: importlib.import_module(f'lmtrain.tasks.{name}').TASK for name in NAMES}


def of_output(names: Sequence[str]) -> Task | None:
    """The task of an exported model whose outputs have these names; None if they do not tell it (`Task.output_name`).

    >>> of_output(('reward',)).name, of_output(('LABEL_0',))
    ('reward', None)
    """
    return next((task for task in TASKS.values() if task.output_name and tuple(names) == (task.output_name,)), None)
