"""Prompt or train? All arms on one task, one base, the same rows and seeds.

Command: lmtrain compare --config=configs/compare.py --config.init.base=DIR --config.task.train=train.csv \\
         --config.task.text=text --config.task.label=category --workdir=runs/compare
Cost:    `--dry_run` prints FLOPs, memory and time of every trial
Score:   results.json and report.html of the folder: accuracy with intervals, cost, break-even
"""

from typing import Any

import ml_collections

from configs import classify

SCORES = ('sum', 'per_byte', 'batch', 'contrast')
# {labels} is replaced by the names of the classes.
INSTRUCTIONS = (
    'Choose the label that fits the text.',
    'Choose the label that fits the text. The labels are: {labels}.',
)
# Not by default: arms that need a longer context than the default base has, and variants of others.
DEFAULT = ('zero_shot', 'instructed', 'few_shot', 'bm25', 'nearest', 'search')
DEFAULT += ('head', 'last_layer', 'lora', 'soft_prompt', 'full', 'scratch', 'continued')


def arm(
    overrides: dict[str, Any],
    *,
    learning_rates: tuple[float, ...],
    description: str,
    head_factor: float = 1.0,
    shots: int = 0,
    select: str = 'random',
    scores: tuple[str, ...] = SCORES,
    vectorised: bool = True,
) -> ml_collections.ConfigDict:
    """An arm that trains.

    Args:
      overrides: {'section.field': value} of the recipe.
      learning_rates: the grid. The rate is chosen on the selection rows, in every trial anew.
      head_factor: multiplies the rate of a new head, which starts from random values.
      shots, select, scores: of an arm that answers as text, see `prompt`.
      vectorised: the rates are members of one program; False trains them one after another, with less memory.
    """
    if head_factor != 1:
        overrides = overrides | {'optimizer.learning_rates': (('(task_head|heads)/.*', head_factor),)}
    own: dict[str, Any] = {'kind': 'train', 'description': description, 'overrides': tuple(overrides.items())}
    own |= {'learning_rates': learning_rates, 'vectorised': vectorised}
    own |= {'shots': shots, 'select': select, 'scores': scores}
    return ml_collections.ConfigDict(own)


def prompt(
    *,
    shots: int,
    description: str,
    select: str = 'random',
    scores: tuple[str, ...] = SCORES,
    instructions: tuple[str, ...] = (),
    search: str = '',
    budget: int = 0,
    chat_template: str = '',
) -> ml_collections.ConfigDict:
    """An arm that writes a prompt and trains nothing.

    Args:
      shots: demonstrations before each row, at most the rows of the trial; -1 is as many as fit into the context.
      select: how they are selected from the rows of the trial: 'random' (drawn for each query) | 'fixed' (drawn once
        for all queries) | 'balanced' | 'first' | 'bm25' | 'nearest'.
      scores: how answers are compared, of which one is chosen on the selection rows: 'sum' (nats of the answer) |
        'per_byte' | 'batch' (less their mean over the selection rows) | 'contrast' (less the nats without
        demonstrations) | 'content_free' (calibrated by inputs without content).
      instructions: texts before the demonstrations, of which one is chosen on the selection rows; () is none.
        `{labels}` in them is replaced by the names of the classes, joined by ', '; '{{' and '}}' are braces.
      search: 'greedy' | 'random': instruction, demonstrations and their order are searched on the selection rows.
      budget: tokens of the search.
      chat_template: the row is a turn of the user and its answer one of the assistant, after demonstrations as turns
        and the instruction as system message: 'auto' (the base's own template), a name of another one or a Jinja file,
        as `config.task.template`; '' is text as it stands.
    """
    own: dict[str, Any] = {'kind': 'prompt', 'description': description, 'shots': shots, 'select': select}
    own |= {'scores': scores, 'instructions': instructions, 'search': search, 'budget': budget}
    own |= {'chat_template': chat_template}
    return ml_collections.ConfigDict(own)


def arms() -> ml_collections.ConfigDict:
    """The arms, of which `only` selects some. The grids lie around each method's usual rate on a pretrained base.

    That of LoRA is ten times that of full fine-tuning.
    """
    as_text = {'task.name': 'chat'}
    sampled: dict[str, Any] = {'task.name': 'policy', 'reward.verifier': 'exact', 'data.batch_size': 32}
    sampled |= {'policy.prompts': 8, 'policy.samples': 8}  # of at most the tokens of the longest class
    sampled |= {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)}
    prompts = {
        'zero_shot': prompt(shots=0, scores=SCORES[:3], description='no demonstration'),
        'instructed': prompt(
            shots=0, scores=SCORES[:3], instructions=INSTRUCTIONS, description='a written instruction, no demonstration'
        ),
        'few_shot': prompt(shots=8, select='fixed', description='8 random demonstrations, the same for all rows'),
        'uncalibrated': prompt(
            shots=8, select='fixed', scores=('sum',), description='few_shot, likelihoods as they are'
        ),
        'content_free': prompt(
            shots=8, select='fixed', scores=('content_free',), description='few_shot, content-free calibration'
        ),
        'balanced': prompt(shots=8, select='balanced', description='8 demonstrations, balanced over the classes'),
        'bm25': prompt(shots=8, select='bm25', description='8 demonstrations retrieved by BM25'),
        'nearest': prompt(shots=8, select='nearest', description="8 demonstrations nearest by the base's embeddings"),
        'many_shot': prompt(shots=-1, select='fixed', description='as many random demonstrations as fit'),
        'search': prompt(
            shots=8,
            instructions=('', *INSTRUCTIONS),
            search='greedy',
            budget=120_000,
            description='searched instruction and demonstrations',
        ),
        'zero_shot_chat': prompt(
            shots=0,
            scores=SCORES[:3],
            chat_template='auto',
            description="zero_shot in the base's chat template",
        ),
        'instructed_chat': prompt(
            shots=0,
            scores=SCORES[:3],
            instructions=INSTRUCTIONS,
            chat_template='auto',
            description="instructed in the base's chat template",
        ),
        'few_shot_chat': prompt(
            shots=8, select='fixed', chat_template='auto', description="few_shot in the base's chat template"
        ),
        'bm25_chat': prompt(
            shots=8, select='bm25', chat_template='auto', description="bm25 in the base's chat template"
        ),
    }
    trained = {
        'head': arm(
            {'adapt.method': 'head'},
            learning_rates=(3e-3, 1e-2, 3e-2),
            description='a linear layer on the last hidden state',
        ),
        'norms': arm(
            {'adapt.method': 'norms'},
            learning_rates=(1e-3, 3e-3, 1e-2),
            head_factor=5.0,
            description='the scales of all norms, and a head',
        ),
        'last_layer': arm(
            {'adapt.method': 'layers', 'adapt.layers.last': 1},
            learning_rates=(1e-4, 3e-4, 1e-3),
            head_factor=20.0,
            description='the last layer, and a head',
        ),
        'lora': arm(
            {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)},
            learning_rates=(3e-4, 1e-3, 3e-3),
            head_factor=10.0,
            description='LoRA of rank 8 on all matrices, and a head',
        ),
        'prefix': arm(
            {'adapt.method': 'prefix', 'adapt.prefix.length': 8},
            learning_rates=(3e-3, 1e-2, 3e-2),
            description='8 trained keys and values in every layer, and a head',
        ),
        'soft_prompt': arm(
            {'adapt.method': 'prompt', 'adapt.prompt.length': 8},
            learning_rates=(3e-3, 1e-2, 3e-2),
            description='8 trained embeddings before each row, and a head',
        ),
        'full': arm(
            {'adapt.method': 'full'},
            learning_rates=(5e-5, 1e-4, 3e-4),
            head_factor=50.0,
            description='all parameters, and a head',
        ),
        'scratch': arm(
            {'adapt.method': 'full', 'init.base': ''},
            learning_rates=(1e-4, 3e-4, 1e-3),
            head_factor=10.0,
            description='the same model without pretraining',
        ),
        'lora_text': arm(
            as_text | {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)},
            learning_rates=(3e-4, 1e-3, 3e-3),
            description='LoRA of rank 8; the answer is learned as text',
        ),
        'full_text': arm(
            as_text | {'adapt.method': 'full'},
            learning_rates=(5e-5, 1e-4, 3e-4),
            description='all parameters; the answer is learned as text',
        ),
        'dpo': arm(
            {'task.name': 'preference', 'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)},
            learning_rates=(3e-4, 1e-3),
            description='LoRA of rank 8 by DPO: the right answer against another class',
        ),
        'grpo': arm(
            sampled,
            learning_rates=(1e-3,),
            vectorised=False,
            description='LoRA of rank 8 by GRPO: answers that the model samples, rewarded if they are right',
        ),
        'rloo': arm(
            sampled | {'objective.name': 'rloo', 'objective.kl_estimator': 'k1'},
            learning_rates=(1e-3,),
            vectorised=False,
            description='LoRA of rank 8 by REINFORCE leave-one-out, with the rewards of grpo',
        ),
        'ppo': arm(
            sampled | {'task.name': 'ppo'},
            learning_rates=(1e-3,),
            vectorised=False,
            description='LoRA of rank 8 and a value head by PPO, with the rewards of grpo',
        ),
        'continued': arm(
            {'task.name': 'text', 'adapt.method': 'full', 'data.seq_len': 64},
            learning_rates=(3e-5, 1e-4, 3e-4),
            shots=8,
            select='bm25',
            description="pretraining continued on the rows' texts, then 8 demonstrations by BM25",
        ),
    }
    return ml_collections.ConfigDict(prompts | trained)


def get_config():
    config = classify.get_config()
    config.data.batch_size = 8  # few rows: small batches
    config.task.buckets = 2  # row lengths; each compiles a program of every arm
    config.data.test = 0.3  # of the rows, without task.test
    config.budget.steps = 160  # five epochs of 256 rows
    config.evaluate.every_steps = 80
    config.log.tensorboard = config.log.plot = False  # of the runs of trials
    with config.unlocked():
        # Comparison: lmtrain.compare.comparison.run
        config.compare = ml_collections.ConfigDict()
        config.compare.sizes = (16, 64, 256)  # training rows; sizes above the available rows are left out; 0 is all
        config.compare.seeds = 3  # trials per arm and size; each seed has other rows
        config.compare.selection = 96  # rows held out of the training rows, on which rate, step and prompt are chosen
        config.compare.test = 256  # rows of the test split; 0 is all
        config.compare.margin = 0.03  # difference of accuracies up to which arms count as equivalent, in [0, 1]
        # Other sets of demonstrations, and other orders of one set, per seed of the largest size; 0 is none.
        config.compare.draws = 6
        config.compare.template = ''  # a row as text, ending in {label}; '' is '{text}\\nLabel: {label}'
        # Other templates, of {text} and {label}, with which prompts are repeated at the largest size; () is none.
        config.compare.templates = ('{text}\nCategory: {label}', 'Text: {text}\nAnswer: {label}')
        # File or folder with text like that of the base, for forgetting; '' is the text of the run that pretrained it.
        config.compare.base_text = ''
        config.compare.only = DEFAULT  # names of the arms to run; () is all
        config.compare.currency = 'EUR'  # currency of the prices below
        config.compare.device_hour = 0.0  # price of one device for an hour
        config.compare.kwh = 0.0  # price of a kilowatt-hour
        config.compare.watts = 0.0  # power of one device
        # Arms: configs.compare.arm(...) or prompt(...) for each name
        config.compare.arms = arms()
    config.lock()
    config.compare.arms.unlock()  # a recipe may add arms
    return config
