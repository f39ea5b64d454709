"""The answer's place in a context (extractive question answering), on a pretrained encoder.

Command: lmtrain train --config=configs/span.py --config.init.base=DIR --config.task.train=train.json \\
         --config.adapt.method=lora --workdir=runs/span
Cost:    minutes on two CPU cores for a MiniLM encoder
Score:   experiments/finetune: exact match on XQuAD's English part
"""

from configs import classify


def get_config():
    config = classify.get_config()
    config.data.seq_len = 384
    config.data.batch_size = 16
    config.task.name = 'span'
    config.task.text = ('question', 'context')
    config.task.label = 'answers'
    return config
