"""Prompt or train? Prompting and training on a real instruct model: SmolLM2-135M on banking77 and sentence polarity.

python -m experiments.prompt_or_train_decoder --base=DIR --root=DIR [--workdir=DIR] [--tasks=NAMES] [--test=ROWS]
"""

from experiments.prompt_or_train import comparison

TASKS = {
    'banking77': {
        'task.train': ('banking77/train.csv',),
        'task.test': ('banking77/test.csv',),
        'task.text': ('text',),
        'task.label': 'category',
        'compare.sizes': (77, 308),
        'compare.selection': 154,
        'compare.template': 'Query: {text}\nIntent: {category}',
    },
    'polarity': {
        'task.train': (
            ('sentence_polarity/rt-polarity.pos', 'positive'),
            ('sentence_polarity/rt-polarity.neg', 'negative'),
        ),
        'task.text': ('text',),
        'task.label': 'label',
        'data.test': 0.2,
        'compare.sizes': (8, 32, 128),
        'compare.selection': 64,
        'compare.template': 'Review: {text}\nSentiment: {label}',
    },
}

if __name__ == '__main__':
    comparison.on_tasks('prompt_or_train_decoder', __doc__, TASKS, {}, ())
