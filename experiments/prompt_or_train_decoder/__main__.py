"""Prompt or train? Prompting and training on a real instruct model: SmolLM2-135M on banking77 and sentence polarity.

python -m experiments.prompt_or_train_decoder --base=DIR --root=DIR [--workdir=DIR] [--tasks=NAMES] [--test=ROWS]
"""

from configs.compare import INSTRUCTIONS
from experiments.prompt_or_train import comparison

TASKS = {
    'banking77': {
        'task.train': ('banking77/train.csv',),
        'task.test': ('banking77/test.csv',),
        'task.text': ('text',),
        'task.label': 'category',
        'compare.sizes': (770,),
        'compare.selection': 77,
        'compare.arms.search.budget': 320_000,
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
        'compare.sizes': (256,),
        'compare.selection': 64,
        'compare.arms.search.budget': 60_000,
        'budget.steps': 64,
        'evaluate.every_steps': 32,
        'compare.template': 'Review: {text}\nSentiment: {label}',
    },
}

PROMPTED = ('zero_shot', 'zero_shot_chat', 'few_shot', 'bm25', 'nearest', 'many_shot', 'search')
INSTRUCTED = ('zero_shot', 'zero_shot_chat', 'instructed', 'instructed_chat', 'few_shot', 'search')
TRAINED = ('last_layer', 'lora', 'prefix', 'soft_prompt', 'full')
SHARED = {
    'model.dtype': 'float32',  # XLA:CPU multiplies many rows faster in float32
    'model.unroll': 1,  # a quarter of the time to compile, and as fast
    'budget.steps': 100,
    'evaluate.every_steps': 50,
    'task.buckets': 4,
    'compare.draws': 0,  # how much the sets and orders of demonstrations matter is in polarity_prompts
    'compare.arms.search.instructions': (),  # one that names 77 labels takes an eighth of the budget
    'compare.templates': (),
    'compare.only': PROMPTED + TRAINED,
    # Without 'contrast', which scores the 77 answers of every row twice.
    **{f'compare.arms.{arm}.scores': ('sum', 'per_byte', 'batch') for arm in dict.fromkeys(PROMPTED + INSTRUCTED)},
}
# What instructions, sets and orders change on a base that follows them: no arm of this task trains.
TASKS['polarity_prompts'] = TASKS['polarity'] | {
    'compare.only': INSTRUCTED,
    'compare.draws': 6,
    'compare.arms.search.instructions': ('', *INSTRUCTIONS),
}

if __name__ == '__main__':
    comparison.on_tasks('prompt_or_train_decoder', __doc__, TASKS, SHARED, ())
