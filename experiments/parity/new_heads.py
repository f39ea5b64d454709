"""Bases whose head is replaced by that of a task, as `from_pretrained` of transformers' class does. Needs numpy alone.

What the class finds in the files of another head is taken from there (the pooler of BERT, the prediction head of
ModernBERT); what it misses is drawn anew: here by name, as all weights of cases.py are.
"""

import numpy as np

from experiments.parity import cases, heads
from lmtrain import tree
from lmtrain.models import hf, pretrained

NAMES = tuple(f'class {i}' for i in range(heads.LABELS))
PRETRAINING = {'architectures': ['BertForPreTraining']}  # its files have a pooler beside the language model's head
# {case: (config.json of the base, the task)}
CASES = {
    'bert with a pooler, classify': (heads.CASES['bert, lm'] | PRETRAINING, 'classify'),
    'bert without a pooler, classify': (heads.CASES['bert, lm'], 'classify'),
    'bert without a head, classify': (heads.CASES['bert, none'], 'classify'),
    'bert for classes, span': (heads.CASES['bert, classify'], 'span'),
    'roberta, classify': (heads.CASES['roberta, lm'], 'classify'),
    'roberta, tag': (heads.CASES['roberta, lm'], 'tag'),
    'modernbert, classify': (heads.CASES['modernbert, lm'], 'classify'),
    'modernbert, mean, classify': (heads.CASES['modernbert with biases, mean, lm'], 'classify'),
    'modernbert, span': (heads.CASES['modernbert, lm'], 'span'),
    'gpt2, classify': ({'pad_token_id': 0} | cases.DECODERS['gpt2'], 'classify'),
    'gpt2, tag': ({'pad_token_id': 0} | cases.DECODERS['gpt2'], 'tag'),
    'llama, classify': ({'pad_token_id': 0} | cases.DECODERS['llama'], 'classify'),
    'gemma2, classify': ({'pad_token_id': 0} | cases.DECODERS['gemma2'], 'classify'),
}
KEPT = (
    *('bert with a pooler, classify', 'bert without a pooler, classify', 'roberta, classify', 'modernbert, span'),
    *('modernbert, mean, classify', 'gpt2, classify', 'llama, classify', 'bert for classes, span'),
)


def outputs_of(task: str) -> int:
    return 2 if task == 'span' else heads.LABELS


def filled(model, params) -> tuple[dict, list[str]]:
    """(params with the leaves that they lack, drawn by name, the keys of those)."""
    held, shapes, missing = tree.flatten(params), tree.flatten(pretrained.shapes_of(model)), []
    for entry in pretrained.entries_of(model):
        if entry.paths[0] in held or '{layer}' in entry.key:
            continue
        missing.append(entry.key)
        leaf_shapes = [shapes[path].shape for path in entry.paths]
        tensor = cases.weights(entry.key, hf.joined_shape(entry, leaf_shapes))
        parts = hf.split(entry, tensor, [shape[-1] for shape in leaf_shapes])
        held |= {path: np.ascontiguousarray(part) for path, part in zip(entry.paths, parts, strict=True)}
    return tree.unflatten(held), sorted(missing)
