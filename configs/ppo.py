"""PPO: a model that answers learns from the rewards of its answers, with a value head that estimates them per token.

Command: lmtrain train --config=configs/ppo.py --config.init.base=runs/sft --workdir=runs/ppo
Cost:    minutes on two CPU cores for the default task, digits to sort, and the base of configs/sft.py
Score:   experiments/rewards: the held-out reward before and after, three seeds
"""

from configs import grpo


def get_config():
    config = grpo.get_config()
    config.task.name = 'ppo'
    config.policy.prompts = 64
    config.policy.samples = 4
    config.policy.epochs = 2  # four steps for each rollout
    config.objective.kl_estimator = 'k1'
    config.budget.steps = 240
    config.log.every_steps = 4
    return config
