"""trains what a recipe says, evaluates it, samples from it, and writes a report; goes on where a run stopped.

lmtrain train --config=configs/quickstart.py --workdir=runs/quickstart
lmtrain train --config=configs/quickstart.py --config.model.num_layers=6 --config.budget.steps=2000
lmtrain train --config=configs/pretrain_gpt2.py --dry_run
lmtrain train --config=configs/pretrain_gpt2.py --coordinator=10.0.0.1:8476 --num_processes=4 --process_id=0
"""

import atexit
import pathlib
import signal
import sys

from absl import flags

from launch import distributed, process_setup, recipe, show

FLAGS = flags.FlagValues()
recipe.define(FLAGS)
flags.DEFINE_string('workdir', None, 'where the run is kept and found again; runs/NAME by default', flag_values=FLAGS)
distributed.define(FLAGS)
flags.DEFINE_bool('dry_run', False, 'shows what would be run and what it needs, then stops', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    process_setup.prepare()  # first: recipes of models import jax
    config = recipe.from_flags(values)
    if values.dry_run:  # late imports: a mistyped field need not wait for jax
        from lmtrain.plan import dry_run

        page = dry_run.dry_run(config)
        show.page(values)
        print(f'\n{page}')
    else:
        from lmtrain.runtime import lifecycle

        sys.excepthook = lifecycle.exit_on_exception
        signal.signal(signal.SIGTERM, lifecycle.exit_requeue)  # until the run takes signals itself
        # What a signal may stop is over when Python leaves: it takes nothing from the exit code.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        with distributed.joined(values):
            from lmtrain import api

            api.train(config, pathlib.Path(values.workdir or f'runs/{recipe.stem(values.config)}'))
