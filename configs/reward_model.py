"""A reward model: a score for every text, from pairs of a chosen and a rejected completion (Bradley-Terry).

Command: lmtrain train --config=configs/reward_model.py --workdir=runs/reward_model
         with --config.task.train=pairs.jsonl --config.init.base=DIR --config.data.tokenizer=base on a file of your own:
         prompt + chosen + rejected as texts or messages, whole conversations, or transcripts of hh-rlhf
Cost:    two minutes on two CPU cores for generated rows, from scratch
Score:   experiments/preferences: accuracy on held-out pairs of hh-rlhf
"""

from configs import sft


def get_config():
    config = sft.get_config()
    config.data.seq_len = 2048  # of a row, which holds both sides; batches are padded to their own rows, not to it
    config.data.validation = 0.1  # of the rows of a file; generated rows have a split of their own
    config.task.name = 'reward'
    config.task.train = (f'{sft.ROWS},rows=20000',)  # mistakes are of many kinds
    config.task.text, config.task.label, config.task.template = (), '', 'auto'
    config.task.too_long = 'cut'
    config.objective.centring = 0.01
    config.budget.steps = 600
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.sample.prompts = ()
    return config
