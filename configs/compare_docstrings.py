"""The default comparison: which package does a docstring belong to, on a base pretrained on the embedded corpus.

Command: lmtrain compare --workdir=runs/compare (reads configs/compare_docstrings.py)
Cost:    under 20 minutes on two CPU cores, with the base (configs/compare_base.py); nothing to download
Score:   experiments/prompt_or_train: accuracy, cost and the recommended arm
"""

from configs import compare

# A base of a million parameters learns at higher rates than large ones, and its head at the same rate.
LEARNING_RATES = {
    'head': (3e-3, 1e-2, 3e-2),
    'norms': (3e-3, 1e-2, 3e-2),
    'last_layer': (1e-3, 3e-3, 1e-2),
    'lora': (1e-3, 3e-3, 1e-2),
    'prefix': (3e-3, 1e-2, 3e-2),
    'soft_prompt': (3e-3, 1e-2, 3e-2),
    'full': (3e-4, 1e-3, 3e-3),
    'scratch': (3e-4, 1e-3, 3e-3),
    'lora_text': (1e-3, 3e-3, 1e-2),
    'full_text': (3e-4, 1e-3, 3e-3),
    'dpo': (3e-4, 1e-3, 3e-3),
    'grpo': (1e-3, 3e-3),
    'rloo': (1e-3, 3e-3),
    'ppo': (1e-3, 3e-3),
    'continued': (3e-5, 1e-4, 3e-4),
}


def get_config():
    config = compare.get_config()
    for name, rates in LEARNING_RATES.items():
        arm = config.compare.arms[name]
        arm.learning_rates = rates
        arm.overrides = tuple(pair for pair in arm.overrides if pair[0] != 'optimizer.learning_rates')
    return config
