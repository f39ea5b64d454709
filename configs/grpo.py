"""GRPO: a model that answers learns from the rewards of its own answers, relative to others of the same prompt.

Command: lmtrain train --config=configs/grpo.py --config.init.base=runs/sft --workdir=runs/grpo
Cost:    minutes on two CPU cores for the default task, digits to sort, and the base of configs/sft.py
Score:   experiments/rewards: the held-out reward before and after, three seeds
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.tokenizer = 'base'
    config.data.seq_len = 24
    config.data.batch_size = 128
    config.task.name = 'policy'  # objective.name: 'grpo' or 'rloo'
    config.task.train = config.task.validation = config.task.test = ('generated:sort',)
    config.reward.verifier = 'exact'
    config.policy.prompts = 16
    config.policy.samples = 16  # 256 completions, two steps
    config.policy.max_tokens = 8
    config.objective.kl_weight = 0.01
    config.budget.steps = 100
    config.optimizer.learning_rate = 3e-4
    config.optimizer.weight_decay = 0.0
    config.evaluate.every_steps = config.checkpoint.every_steps = 20
    config.evaluate.max_batches = 2  # 256 prompts
    config.log.every_steps = 2
    config.sample.prompts = ()  # the report has sample completions with their rewards
    return config
