"""compares prompting and training on the same rows: accuracy and cost for a task, a base and a budget.

lmtrain compare --config=configs/compare.py --config.init.base=DIR --config.task.train=train.csv \\
                --config.task.text=text --config.task.label=category --workdir=runs/which

Without --config: configs/compare.py, or, if neither a base nor rows are named,
configs/compare_docstrings.py, whose base and rows come from the embedded corpus.
The same command continues a comparison that was stopped; finished trials are
not run again. An arm is one line of the config: config.compare.arms.NAME.
--report rewrites report.html from results.json without running anything.
"""

import pathlib

from absl import flags

from launch import process_setup, recipe
from lmtrain.errors import InputError

FLAGS = flags.FlagValues()
recipe.define(FLAGS)
flags.DEFINE_string('workdir', None, 'folder of the comparison; runs/NAME by default', flag_values=FLAGS)
flags.DEFINE_bool('report', False, 'only write report.html and report.md again', flag_values=FLAGS)

flags.DEFINE_bool('dry_run', False, 'prints FLOPs, memory, time and money of every arm, then stops', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    process_setup.configure()
    name = recipe.stem(values.config) if values.config else 'compare'
    folder = pathlib.Path(values.workdir or f'runs/{name}')
    if values.report:
        from lmtrain.compare import report

        print(report.ending(report.read(folder), folder, report.write(folder)))
        return
    if not values.config:
        own = {text.partition('=')[0] for text in values.override} & {'init.base', 'task.train'}
        values.config = 'configs/compare.py' if own else 'configs/compare_docstrings.py'
    config = recipe.from_flags(values)
    if 'compare' not in config:
        raise InputError(f'{values.config} has no section compare: start from configs.compare.get_config()')
    from lmtrain.compare import comparison

    if values.dry_run:
        print(comparison.dry_run(config, folder))
    else:
        comparison.run(config, folder)
