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
        'compare.selection': 154,
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
ARMS = ('head', 'norms', 'last_layer', 'lora', 'prefix', 'soft_prompt', 'full', 'scratch', 'zero_shot')
SHARED = {
    'objective.pool': 'mean',
    'budget.steps': 100,
    'evaluate.every_steps': 50,
    'task.buckets': 4,  # a third fewer padded tokens than with 2, for programs that many trials share
    'compare.only': ARMS,
}
NOT_SHOWN = ('prompting: an encoder has no causal language-model head; the report lists these arms as skipped',)

if __name__ == '__main__':
    comparison.on_tasks('prompt_or_train_encoder', __doc__, TASKS, SHARED, NOT_SHOWN)
