"""Pairs and labelled completions as ids, and settings of objectives, that TRL and lmtrain train on. Needs numpy alone.

preferences.py beside this file runs them in TRL and writes what came out; the tests run them in lmtrain.
"""

import numpy as np

from experiments.parity import cases

CONFIG = cases.llama(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=24)
REWARD_CONFIG = CONFIG | {'architectures': ['LlamaForSequenceClassification'], 'num_labels': 1, 'pad_token_id': 0}
STEPS, BATCH, PAIRS = 6, 4, 12
RATE, B1, B2, EPS = 1e-3, 0.9, 0.95, 1e-8  # of Adam, without weight decay

# {name: (objective of lmtrain, its settings, loss_type of TRL)}; cDPO is the AOT loss of TRL for batches of one pair.
PREFERENCES = {
    'dpo': ('dpo', {'beta': 0.1}, 'sigmoid'),
    'dpo, beta 0.5': ('dpo', {'beta': 0.5}, 'sigmoid'),
    'hinge': ('hinge', {'beta': 0.1}, 'hinge'),
    'ipo': ('ipo', {'beta': 0.1}, 'ipo'),
    'length-normalised': ('dpo_norm', {'beta': 5.0}, 'sigmoid_norm'),
}
REFERENCE_FREE = {'simpo': {'beta': 2.0, 'target_margin': 0.5}, 'orpo': {'beta': 0.1}}
REWARDS = {
    'plain': {'margin': False, 'centring': 0.0},
    'margin and centring': {'margin': True, 'centring': 0.01},
}
KTO = {'kto': {'beta': 0.1, 'desirable': 1.0, 'undesirable': 1.0}}
KTO |= {'kto, weighted': {'beta': 0.5, 'desirable': 1.0, 'undesirable': 1.5}}


def pairs() -> list[tuple[list[int], list[int], list[int], float]]:
    """(prompt, chosen, rejected, margin) of PAIRS pairs; a completion ends with the id 2, and 0 is not among them."""
    random = np.random.RandomState(0)

    def ids(low: int, high: int) -> list[int]:
        return random.randint(3, cases.VOCAB, random.randint(low, high)).tolist()

    return [([1, *ids(2, 7)], [*ids(1, 9), 2], [*ids(1, 9), 2], float(random.randint(0, 4)) / 2) for _ in range(PAIRS)]


def labelled() -> list[tuple[list[int], list[int], bool]]:
    """(prompt, completion, whether it is desirable): the chosen and rejected sides in turn."""
    return [(prompt, (chosen, rejected)[n % 2], n % 3 != 0) for n, (prompt, chosen, rejected, _) in enumerate(pairs())]


def log_probs() -> dict[str, np.ndarray]:
    """Sums of log-probabilities of eight pairs under a policy and a reference, and the numbers of tokens."""
    random = np.random.RandomState(1)
    names = ('chosen', 'rejected', 'reference chosen', 'reference rejected')
    sums = {name: -random.gamma(3.0, 10.0, 8).astype(np.float32) for name in names}
    return sums | {f'{name} tokens': random.randint(1, 40, 8) for name in ('chosen', 'rejected')}
