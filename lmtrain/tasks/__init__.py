"""Tasks: what a model is trained to do. Each is one record, in a file of its own.

A new task is a file `lmtrain/tasks/NAME.py` that defines `TASK`, and its name here.
"""

import importlib

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
