"""Direct preference optimisation of a base on pairs; --config.objective.name selects hinge, ipo, dpo_norm, simpo, orpo.

Command: lmtrain train --config=configs/sft.py --workdir=runs/sft
         lmtrain train --config=configs/dpo.py --config.init.base=runs/sft --workdir=runs/dpo
         with --config.task.train=pairs.jsonl --config.objective.beta=0.1 on a file of your own (formats:
         configs/reward_model.py)
         with --config.adapt.method=lora --config.objective.reference=live without a pass before the training
         with --config.task.name=unpaired for rows with a label (KTO), of which task.group = 4 and their mismatched
         completions share a row
Beta:    the usual config.objective.beta is 0.1 for dpo, hinge, ipo, orpo and KTO, 2 for simpo, 5 for dpo_norm; dpo and
         dpo_norm also read config.objective.label_smoothing, such as 0.1 for pairs of which a tenth is in wrong order
Cost:    two minutes on two CPU cores for generated rows
Score:   experiments/rewards: held-out prompts that the greedy completion answers, before and after
"""

from configs import sft


def get_config():
    config = sft.get_config()
    config.data.tokenizer = 'base'
    config.data.seq_len = 2048  # of a row, which holds both sides; batches are padded to their own rows, not to it
    config.data.validation = 0.1  # of the rows of a file; generated rows have a split of their own
    config.task.name = 'preference'
    config.task.train = (sft.ROWS,)
    config.task.text, config.task.label, config.task.template = (), '', 'auto'
    config.task.too_long = 'cut'
    # Right and wrong answers are disjoint here, so that the margin grows without bound, and at a rate of 1e-4 and beta
    # 0.1 the model unlearns both.
    config.objective.beta = 0.3
    config.budget.steps = 150
    config.optimizer.learning_rate = 3e-5
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = 0.1
    return config
