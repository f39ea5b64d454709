"""Direct preference optimisation of a base on pairs; --config.objective.name selects hinge, ipo, dpo_norm, simpo, orpo.

Command: lmtrain train --config=configs/sft.py --workdir=runs/sft
         lmtrain train --config=configs/dpo.py --config.init.base=runs/sft --workdir=runs/dpo
         with --config.task.train=pairs.jsonl --config.objective.beta=0.1 --config.objective.label_smoothing=0.0 on a
         file of your own (formats: configs/reward_model.py)
         with --config.adapt.method=lora --config.objective.reference=live without a pass before the training
         with --config.task.name=unpaired for rows with a label (KTO), of which task.group = 4 and their mismatched
         completions share a row
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
    # Right and wrong answers are disjoint here: without label smoothing the margin grows without bound, and the model
    # unlearns both. With it, the best margin is log(0.9 / 0.1) / beta = 7 nats. For other pairs begin with 0.1 and 0.
    config.objective.beta, config.objective.label_smoothing = 0.3, 0.1
    config.budget.steps = 150
    config.optimizer.learning_rate = 3e-5
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = 0.1
    return config
