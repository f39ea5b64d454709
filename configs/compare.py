"""Prompt or train? All arms on one task, one base, the same rows and seeds.

Command: lmtrain compare --config=configs/compare.py --config.init.base=DIR --config.task.train="('train.csv',)" \\
         --config.task.text="('text',)" --config.task.label=category --workdir=runs/compare
Cost:    `--dry_run` prints FLOPs, memory and time of every trial
Score:   results.json and report.html of the folder: accuracy with intervals, cost, break-even
"""

from typing import Any

import ml_collections

from configs import classify


def arm(overrides: dict[str, Any], *, learning_rates: tuple[float, ...], description: str, vectorised: bool = True):
    """An arm that trains.

    Args:
      overrides: {'section.field': value} of the recipe.
      learning_rates: the grid. The rate is chosen on the selection rows, in every trial anew.
      vectorised: the rates are members of one program; False trains them one after another (less memory).
    """
    return ml_collections.ConfigDict(
        {
            'kind': 'train',
            'description': description,
            'overrides': tuple(overrides.items()),
            'learning_rates': learning_rates,
            'vectorised': vectorised,
        }
    )


def prompt(*, shots: int, select: str, description: str):
    """An arm that writes a prompt and trains nothing.

    Args:
      shots: demonstrations before each row, at most the rows of the trial.
      select: how they are chosen from the rows of the trial: 'random'.
    """
    return ml_collections.ConfigDict({'kind': 'prompt', 'description': description, 'shots': shots, 'select': select})


def arms():
    """The arms of the default comparison. The grids lie around each method's usual rate."""
    return ml_collections.ConfigDict(
        {
            'zero_shot': prompt(shots=0, select='random', description='the instruction alone'),
            'few_shot': prompt(shots=8, select='random', description='8 random demonstrations'),
            'head': arm(
                {'adapt.method': 'head'},
                learning_rates=(1e-3, 1e-2, 1e-1),
                description='a linear layer on the last hidden state',
            ),
            'lora': arm(
                {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)},
                learning_rates=(1e-3, 3e-3, 1e-2),
                description='LoRA of rank 8 on all layers, and a head',
            ),
            'full': arm(
                {'adapt.method': 'full'},
                learning_rates=(1e-4, 3e-4, 1e-3),
                description='all parameters, and a head',
            ),
        }
    )


def get_config():
    config = classify.get_config()
    config.budget.steps = 100
    config.evaluate.every_steps = 25
    config.log.tensorboard = False
    with config.unlocked():
        # Comparison: lmtrain.compare.comparison.run
        config.compare = ml_collections.ConfigDict()
        config.compare.sizes = (8, 32, 128, 512)  # training rows; sizes above the available rows are left out; 0 is all
        config.compare.seeds = 3  # trials per arm and size; each seed has other rows
        config.compare.selection = 64  # rows held out of the training rows, on which rate, step and prompt are chosen
        config.compare.test = 0  # rows of the test split; 0 is all
        config.compare.template = ''  # a row as text, ending in {label}; '' is '{text}\\nLabel: {label}'
        config.compare.only = ()  # names of the arms to run; () is all
        config.compare.currency = 'EUR'  # of the prices below
        config.compare.device_hour = 0.0  # price of one device for an hour
        config.compare.kwh = 0.0  # price of a kilowatt-hour
        config.compare.watts = 0.0  # power of one device
        # Arms: configs.compare.arm(...) or prompt(...) for each name
        config.compare.arms = arms()
    config.lock()
    config.compare.arms.unlock()  # a recipe may add arms
    return config
