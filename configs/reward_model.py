"""A reward model: a score for every text, from pairs of a chosen and a rejected completion (Bradley-Terry).

Command: lmtrain train --config=configs/reward_model.py --workdir=runs/reward_model
         lmtrain train --config=configs/reward_model.py --config.task.train="('pairs.jsonl',)" --config.init.base=DIR \\
         --config.task.validation="()" --config.data.tokenizer=base --config.data.seq_len=512 --workdir=runs/reward_model
         (prompt + chosen + rejected as texts or messages, or transcripts of hh-rlhf; a row holds both sides)
Cost:    a minute on two CPU cores for generated rows, from scratch
Score:   experiments/preferences: accuracy on held-out pairs of hh-rlhf
"""

from configs import base, sft


def get_config():
    config = sft.get_config()
    config.task.name = 'reward'
    config.task.text, config.task.label, config.task.template = (), '', 'auto'
    config.task.too_long = 'cut'
    config.data.seq_len = 64
    config.data.validation = 0.1  # of the rows of a file
    config.objective.centring = 0.01
    config.optimizer.learning_rate = 3e-4
    config.optimizer.weight_decay = 0.0
    config.sample.prompts = ()
    return config
