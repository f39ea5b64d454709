"""Continual pretraining: trains a base on new text, with a share of the old text (replay) and a new warmup.

Command: lmtrain train --config=configs/continual.py --config.init.base=DIR --config.data.source=new.txt \\
         --config.data.mix="(('old.txt', 0.1),)" --config.evaluate.sources=old.txt --workdir=runs/continual
Cost:    on two CPU cores minutes for a model of 260k parameters
Score:   experiments/continual: bits per byte of the new text and of the old one, before and after, beside LoRA's
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.tokenizer = 'base'
    config.data.document = 'paragraph'
    config.budget.tokens = 1e6
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = 0.05  # re-warming: the moments of the base's optimizer are not there
    config.schedule.final = 0.0
    config.evaluate.every_steps = 100
    return config
