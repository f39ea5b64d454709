"""trains a recipe, evaluates it, samples from it and writes a report; resumes a run that was stopped.

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
flags.DEFINE_string('workdir', None, 'folder of the run; runs/NAME by default', flag_values=FLAGS)
text = 'continues the run in the folder to a larger budget with a new schedule, which begins at its newest checkpoint'
flags.DEFINE_bool('extend', False, text, flag_values=FLAGS)
distributed.define(FLAGS)
flags.DEFINE_bool('dry_run', False, 'prints the plan and the memory of the run, then stops', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    process_setup.configure()  # first: recipes of models import jax
    config = recipe.from_flags(values)
    workdir = pathlib.Path(values.workdir or f'runs/{recipe.stem(values.config)}')
    if values.dry_run:  # late imports: a mistyped field needs no jax
        from lmtrain.plan import dry_run

        page = dry_run.dry_run(config, exists=(workdir / 'config.json').exists())
        print(f'{show.title(values)}\n\n{page}\n\n{show.changes(values)}')
    else:
        from lmtrain.runtime import lifecycle

        sys.excepthook = lifecycle.exit_on_exception
        signal.signal(signal.SIGTERM, lifecycle.exit_requeue)  # until the run installs its own handler
        # After the run, a signal must not change the exit code.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        with distributed.joined(values):
            from lmtrain.training import train  # and not lmtrain.api, which also imports what a run does not need

            train.train(config, workdir, values.extend)
