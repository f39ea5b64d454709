"""The smallest run that executes every module, for tests: seconds on one core.

Command: lmtrain train --config=configs/tiny.py --workdir=runs/tiny
Cost:    seconds, once the text is cut into tokens
Score:   none is claimed; the loss falls
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.tokenizer = 'bytes'
    config.data.vocab_size = 257
    config.data.seq_len = 32
    config.data.batch_size = 8
    config.model.num_layers = 2
    config.model.width = 32
    config.model.num_heads = 2
    config.budget.steps = 20
    config.schedule.warmup = 0.1
    config.evaluate.every_steps = (config.budget.get_ref('steps') + 1) // 2
    config.evaluate.max_batches = 2
    config.checkpoint.every_steps = (config.budget.get_ref('steps') + 1) // 2
    config.log.every_steps = 5
    config.sample.max_tokens = 16
    return config
