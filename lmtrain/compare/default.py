"""The default comparison: a base pretrained on the embedded corpus, and a task made from it; no outside data.

WORKDIR/data/   docstrings.jsonl, the rows, and pretraining.jsonl, which has none of their modules
WORKDIR/base/   the run that pretrains the base
"""

from pathlib import Path
from typing import Any

from lmtrain.data import docstring_task
from lmtrain.report import terminal
from lmtrain.training import train as training

TEMPLATE = '# {docstring}\n{package}'  # a comment, as in the source that the base has read


def lacks_base(config, directory: Path) -> bool:
    """Whether `fill_in` would train a base."""
    return not (config.init.base or config.task.train or (directory / 'base' / 'results.json').exists())


def fill_in(config, directory: Path, steps: int | None = None) -> Any:
    """The config with the base and the task filled in, if it names neither; the base is trained unless it is there.

    Args:
      steps: of the training of the base; None are those of its recipe. A plan needs a base of the right shapes only.
    """
    if config.init.base or config.task.train:
        return config
    directory = directory.absolute()
    data, base = directory / 'data', directory / 'base'
    if not all((data / name).exists() for name in docstring_task.FILES):
        docstring_task.write(data)
    if not (base / 'results.json').exists():
        from configs import compare_base  # late: only this comparison needs it

        print(terminal.note('base', 'pretrained on the embedded corpus first, without the packages of the task'))
        recipe = compare_base.get_config()
        recipe.data.source, recipe.data.cache = str(data / 'pretraining.jsonl'), config.data.cache
        if steps:
            recipe.budget.steps, recipe.evaluate.max_batches = steps, 1
        training.train(recipe, base)
    config = config.copy_and_resolve_references().unlock()
    config.init.base = str(base)
    config.task.train, config.task.text, config.task.label = (
        (str(data / 'docstrings.jsonl'),),
        ('docstring',),
        'package',
    )
    config.compare.template = config.compare.template or TEMPLATE
    return config.lock()
