"""A tag for every word (named entities), on a pretrained encoder, with any method of adaptation.

Command: lmtrain train --config=configs/tag.py --config.init.base=DIR --config.task.train=train.conll \\
         --config.adapt.method=lora --workdir=runs/tag
Cost:    minutes on two CPU cores for a MiniLM encoder
Score:   experiments/finetune: F1 of entities on WNUT17
"""

from configs import classify


def get_config():
    config = classify.get_config()
    config.task.name = 'tag'
    config.task.text = ('tokens',)
    config.task.label = 'tags'
    return config
