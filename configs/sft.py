"""Supervised fine-tuning on generated rows whose answers are verifiable: the base of policies and preferences.

Command: lmtrain train --config=configs/sft.py --workdir=runs/sft
         lmtrain pipeline --name=sft_grpo  (with the policy that starts from it)
Cost:    a minute on two CPU cores
Score:   experiments/rewards: held-out prompts that the greedy completion answers, before and after each objective
"""

from configs import base

ROWS = 'generated:sort'


def get_config():
    config = base.get_config()
    config.data.tokenizer = 'bytes'
    config.data.vocab_size = 257
    config.data.seq_len = 32
    config.data.batch_size = 64
    config.task.name = 'chat'
    # Three quarters of the answers are in reverse: the base can sort, and does so in a quarter of its answers.
    config.task.train = (f'{ROWS},rows=20000,wrong=0.75',)
    config.task.validation = config.task.test = (ROWS,)
    config.task.text = ('prompt',)
    config.task.label = 'completion'
    config.task.template = 'none'
    config.model.num_layers = 2  # small: a policy that starts from it samples thousands of completions
    config.model.width = 128
    config.model.num_heads = 4
    config.model.mlp_dim = config.model.get_oneway_ref('width') * 8 // 3
    config.model.qk_norm = True
    config.budget.steps = 500
    config.evaluate.every_steps = config.checkpoint.every_steps = 250
    config.optimizer.learning_rate = 2e-3
    config.log.tensorboard = False
    config.reward.verifier = 'exact'  # the held-out measure of a pipeline
    config.sample.max_tokens = 16
    return config
