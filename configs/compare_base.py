"""The base of the default comparison: a smaller model than the quickstart's, with a longer context.

Command: lmtrain compare --workdir=runs/compare
         lmtrain train --config=configs/compare_base.py  (alone, on the whole embedded corpus)
Cost:    under four minutes on two CPU cores
Score:   bits per byte of held-out modules in WORKDIR/base/report.md; the arms are in WORKDIR/report.html
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.data.seq_len = 512  # demonstrations need context
    config.data.batch_size = 4
    config.model.width = 128
    config.model.num_heads = 4
    config.budget.hours = None
    config.budget.steps = 1000  # and not hours: every machine compares on the same base
    config.evaluate.every_steps = config.checkpoint.every_steps = 500
    config.log.tensorboard = False
    return config
