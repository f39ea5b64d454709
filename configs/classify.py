"""Sentences to classes (or numbers, task.name='regress'), on a pretrained encoder or decoder, with any method.

Command: lmtrain train --config=configs/classify.py --config.init.base=DIR --config.task.train=train.csv \\
         --config.task.text=text --config.task.label=category --config.adapt.method=lora --workdir=runs/classify
Cost:    minutes on two CPU cores for a MiniLM encoder and a thousand rows
Score:   experiments/finetune: accuracy of head alone, BitFit, LoRA, prefix and full on banking77 and sentence polarity
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.tokenizer = 'base'
    config.data.seq_len = 128
    config.data.batch_size = 32
    config.task.name = 'classify'
    config.task.too_long = 'cut'
    config.budget.steps = 500
    config.optimizer.learning_rate = 3e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.999
    config.schedule.name = 'linear'
    config.schedule.warmup = 0.1
    config.schedule.final = 0.0
    config.evaluate.every_steps = 250
    config.sample.prompts = ()
    return config
