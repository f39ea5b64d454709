"""Prompt or train? Every method on a real pretrained encoder: all-MiniLM-L6-v2 on banking77 and sentence polarity.

python -m experiments.prompt_or_train_encoder --base=DIR --root=DIR [--workdir=DIR] [--tasks=NAMES] [--test=ROWS]
"""

from experiments.prompt_or_train import comparison

TASKS = {
    'banking77': {
        'task.train': ('banking77/train.csv',),
        'task.test': ('banking77/test.csv',),
        'task.text': ('text',),
        'task.label': 'category',
        'compare.sizes': (77, 770),
        'compare.selection': 308,
    },
    'polarity': {
        'task.train': (('sentence_polarity/rt-polarity.pos', 'pos'), ('sentence_polarity/rt-polarity.neg', 'neg')),
        'task.text': ('text',),
        'task.label': 'label',
        'data.test': 0.2,
        'compare.sizes': (32, 512),
        'compare.selection': 128,
    },
}
# Learning rates around the usual one of each method: LoRA's is ten times that of full fine-tuning. A new head learns
# faster than what is pretrained: the factor of its rate is the second value.
ARMS = {
    'head': ({}, 1.0, (3e-3, 1e-2, 3e-2)),
    'norms': ({'adapt.method': 'norms'}, 5.0, (1e-3, 3e-3, 1e-2)),
    'last_layer': ({'adapt.method': 'layers', 'adapt.layers.last': 1}, 20.0, (1e-4, 3e-4, 1e-3)),
    'lora': ({'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)}, 10.0, (3e-4, 1e-3, 3e-3)),
    'prefix': ({'adapt.method': 'prefix', 'adapt.prefix.length': 8}, 1.0, (3e-3, 1e-2, 3e-2)),
    'soft_prompt': ({'adapt.method': 'prompt', 'adapt.prompt.length': 8}, 1.0, (3e-3, 1e-2, 3e-2)),
    'full': ({'adapt.method': 'full'}, 50.0, (5e-5, 1e-4, 3e-4)),
    'scratch': ({'adapt.method': 'full', 'init.base': ''}, 10.0, (1e-4, 3e-4, 1e-3)),
}
SHARED = {
    'objective.pool': 'mean',
    'task.buckets': 4,
    'budget.steps': 200,
    'evaluate.every_steps': 50,
    'compare.only': (*ARMS, 'zero_shot'),
}
for arm, (overrides, factor, rates) in ARMS.items():
    own = ({'adapt.method': 'head'} | overrides) | {'optimizer.learning_rates': (('heads/.*', factor),)}
    SHARED |= {f'compare.arms.{arm}.overrides': tuple(own.items()), f'compare.arms.{arm}.learning_rates': rates}
NOT_SHOWN = ('prompting: an encoder has no causal language-model head; the report lists these arms as skipped',)

if __name__ == '__main__':
    comparison.on_tasks('prompt_or_train_encoder', __doc__, TASKS, SHARED, NOT_SHOWN)
