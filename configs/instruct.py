"""Instruction tuning: conversations in, the loss on the assistant's tokens alone; full, LoRA or any other method.

Command: lmtrain train --config=configs/instruct.py --config.init.base=DIR --config.task.train=rows.jsonl \\
         --config.adapt.method=lora --workdir=runs/instruct
Cost:    set by the base; minutes on two CPU cores for 260k parameters
Score:   experiments/instruct: validation loss of the answers before and after, full beside LoRA
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.tokenizer = 'base'
    config.data.seq_len = 256
    config.data.batch_size = 16
    config.task.name = 'chat'  # messages, prompt + completion, alpaca and sharegpt rows are recognised
    config.task.pack = True
    config.task.too_long = 'drop'
    config.budget.steps = 300
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = 0.05
    config.schedule.final = 0.0
    config.evaluate.every_steps = 100
    return config
