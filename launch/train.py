"""trains what a recipe says, evaluates it, samples from it, and writes a report; goes on where a run stopped.

lmtrain train --config=configs/quickstart.py --workdir=runs/quickstart
lmtrain train --config=configs/quickstart.py --config.model.num_layers=6 --config.budget.steps=2000
lmtrain train --config=configs/pretrain_gpt2.py --dry_run
"""

import atexit
import pathlib
import signal
import sys

from absl import flags

from launch import machine, recipe, show

FLAGS = flags.FlagValues()
recipe.define(FLAGS)
flags.DEFINE_string('workdir', None, 'where the run is kept and found again; runs/NAME by default', flag_values=FLAGS)
flags.DEFINE_bool('dry_run', False, 'shows what would be run and what it needs, then stops', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    config = recipe.from_flags(values)
    machine.prepare()
    if values.dry_run:  # late imports: a mistyped field need not wait for jax
        from lmtrain import plan

        page = plan.dry_run(config)
        show.page(values)
        print(f'\n{page}')
    else:
        from lmtrain import survive, train

        sys.excepthook = survive.exit_on_exception
        # What a signal may stop is over when Python leaves: it takes nothing from the exit code.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        train.train(config, pathlib.Path(values.workdir or f'runs/{recipe.stem(values.config)}'))
