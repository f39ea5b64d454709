"""Checks of settings that no constructor makes, and of the sections of a config against each other."""

from typing import Any

import numpy as np

from lmtrain import optimizer, tree
from lmtrain.adapt import leaves
from lmtrain.cost import budget
from lmtrain.data.example_store import ROUND
from lmtrain.errors import InputError, wrong_choice
from lmtrain.models import virtual_tokens
from lmtrain.parallel import collectives
from lmtrain.report import trackers
from lmtrain.tasks import TASKS
from lmtrain.tasks.advantages import KL_ESTIMATORS, SCALES
from lmtrain.tasks.policy import AGGREGATIONS, RATIOS
from lmtrain.tasks.pooling import POOLS
from lmtrain.tasks.task import has_setting
from lmtrain.training import sweep

TRUNCATED = ('keep', 'mask', 'penalty')  # values of config.policy.truncated


def check_settings(config) -> None:
    """Raises InputError if a number is out of range or a name is unknown. Needs no base, data or device."""
    budget.total_steps(config.budget, np.inf, np.inf)  # first: other numbers may follow from it
    optimizer.schedule(**config.schedule, budget=config.budget)
    optimizer.optimizer(**config.optimizer)
    least = {'log.every_steps': 1, 'evaluate.every_steps': 1, 'evaluate.max_batches': 0, 'evaluate.patience': 0}
    least |= {f'objective.{name}': 0 for name in ('centring', 'desirable', 'undesirable')}
    least |= {'checkpoint.every_steps': 1, 'checkpoint.keep_last': 1, 'checkpoint.keep_best': 0}
    least |= {f'watchdog.{phase}': 0 for phase in config.watchdog}
    for field, low in (least | {'objective.z_loss': 0}).items():
        section, name = field.split('.')
        if not config[section][name] >= low:
            raise InputError(f'{field} = {config[section][name]}: it must be at least {low}')
    if config.log.trackers:
        trackers.check(config.log.trackers)
    if config.sdc_check_every < 0:
        raise InputError(f'sdc_check_every = {config.sdc_check_every}: it must be at least 0, which is never')
    if not 0 <= config.seed < 2**32:
        raise InputError(f'seed = {config.seed}: it must lie in [0, 2^32)')
    if not 0 <= config.adapt.dropout < 1:
        raise InputError(f'adapt.dropout = {config.adapt.dropout}: it must lie in [0, 1)')
    if (dtype := config.init.frozen_dtype) not in ('float32', 'bfloat16'):
        raise InputError(f"init.frozen_dtype = {dtype!r}: it is 'float32' or 'bfloat16'")
    if config.task.name not in TASKS:
        raise wrong_choice('task.name', config.task.name, TASKS)
    TASKS[config.task.name].loss(config.objective.name)  # raises if it is unknown
    if not config.objective.beta > 0:
        raise InputError(f'objective.beta = {config.objective.beta}: it must be above 0')
    if not 0 <= (smoothing := config.objective.label_smoothing) < 0.5:
        raise InputError(f'objective.label_smoothing = {smoothing}: it must lie in [0, 0.5), the share of wrong labels')
    check_policy(config)
    if (pool := config.objective.pool) not in ('auto', *POOLS):
        raise wrong_choice('objective.pool', pool, ('auto', *POOLS))


def unread(config) -> dict[str, Any]:
    """{field: its default} of the settings of objectives that have another value and that this objective does not read.

    config.objective.pool is none of them: it also decides the form of a new head. Nor is objective.max_tokens, which
    follows policy.max_tokens.
    """
    from configs import base  # late: only what begins needs the defaults

    defaults, task = base.get_config(), TASKS[config.task.name]
    fields = [('objective', name) for name in defaults.objective if name not in ('name', 'pool', 'max_tokens')]
    if task.on_policy:
        of_estimators = set().union(*(each.settings(name) for each in TASKS.values() for name in each.estimators))
        fields += [('policy', name) for name in defaults.policy if name in of_estimators - set(defaults.objective)]
    read = task.settings(config.objective.name)
    return {
        f'{section}.{name}': defaults[section][name]
        for section, name in fields
        if name not in read and config[section][name] != defaults[section][name]
    }


def check_read(config) -> None:
    """Raises InputError if a new run has a setting that its objective does not read, see `unread`.

    A run that exists goes on as it began.
    """
    for field, default in unread(config).items():
        section, name = field.split('.')
        readers = [(task, [each for each in task.losses if name in task.settings(each)]) for task in TASKS.values()]
        named = [f'{", ".join(losses)} of {task.name}' for task, losses in readers if losses]
        raise InputError(
            f'{field} = {config[section][name]!r} with objective.name = {config.objective.name!r} of task.name = '
            f'{config.task.name!r}, which does not read it: set it to {default!r}, its default; it is read by '
            f'{" and ".join(named)}'
        )


def check_policy(config) -> None:
    """Raises InputError if the settings of the sampled completions, or of the objectives on them, are out of range."""
    policy, objective = config.policy, config.objective
    choices = {'policy.truncated': TRUNCATED, 'policy.scale': SCALES, 'objective.kl_estimator': KL_ESTIMATORS}
    choices |= {'objective.aggregation': AGGREGATIONS, 'objective.ratio': RATIOS}
    for field, names in choices.items():
        section, name = field.split('.')
        if (value := config[section][name]) not in names:
            raise wrong_choice(field, value, names)
    least = {'prompts': 1, 'samples': 1, 'max_tokens': 1, 'epochs': 1, 'show_every': 0, 'penalty': 0}
    least |= {'gamma': 0, 'gae_lambda': 0, 'kl_target': 0, 'evaluate_temperature': 0}
    for name, low in least.items():
        if not policy[name] >= low:
            raise InputError(f'policy.{name} = {policy[name]}: it must be at least {low}')
    for name in ('clip_low', 'clip_high', 'value_clip', 'value_weight', 'kl_weight'):
        if not objective[name] >= 0:
            raise InputError(f'objective.{name} = {objective[name]}: it must be at least 0')
    if not policy.temperature > 0:
        raise InputError(f'policy.temperature = {policy.temperature}: greedy completions of a prompt are all the same')


def check_rollout(config) -> None:
    """Raises InputError if a policy run cannot divide its completions, has dropout, no base, or is a sweep."""
    task, policy = TASKS[config.task.name], config.policy
    completions, batch_size = policy.prompts * policy.samples, config.data.batch_size
    if completions % batch_size:
        raise InputError(
            f'policy.prompts = {policy.prompts} x policy.samples = {policy.samples} are {completions} completions, '
            f'which data.batch_size = {batch_size} does not divide'
        )
    if config.model.dropout or config.adapt.dropout:
        raise InputError(
            f'model.dropout = {config.model.dropout} and adapt.dropout = {config.adapt.dropout} with a policy: '
            'completions are sampled without dropout, so that the ratio of a step to them would be noise; set both to 0'
        )
    if policy.max_tokens > config.data.seq_len:
        raise InputError(
            f'policy.max_tokens = {policy.max_tokens} with data.seq_len = {config.data.seq_len}: a row of a batch '
            'holds a prompt and its completion'
        )
    if not task.added_head and policy.samples < 2:
        raise InputError('policy.samples = 1: without a value head, advantages are relative to other completions')
    if policy.kl_target and has_setting(task.loss(config.objective.name), 'kl_weight'):
        raise InputError(
            f'policy.kl_target = {policy.kl_target}: this objective has the divergence in its loss, with a fixed '
            "weight; it is adapted where it is a part of the reward (task.name = 'ppo', objective.name = 'rloo')"
        )
    if policy.kl_target and not config.objective.kl_weight:
        raise InputError(f'policy.kl_target = {policy.kl_target} with objective.kl_weight = 0, which it multiplies')
    if not config.init.base:
        raise InputError('init.base is empty: a policy starts from a model that writes answers, so name one')
    if sweep.of(config):
        raise InputError('config.sweep with a policy: its members would sample different completions; train them apart')


def check_task(config) -> None:
    """Raises InputError if task, data and model contradict each other."""
    mask_rate, causal, task = config.data.mask_rate, config.model.causal, TASKS[config.task.name]
    for split in ('train', 'validation', 'test'):
        if config.task[split] and not task.reads_rows:
            raise InputError(
                f'task.{split} = {config.task[split]} with task.name = {task.name!r}, which reads data.source and no '
                "rows: name the task of the rows, such as 'chat' or 'classify'"
            )
    if not task.reads_rows and causal == bool(mask_rate):
        raise InputError(
            f'data.mask_rate = {mask_rate} with model.causal = {causal}: a causal model predicts the next token of '
            'unmasked text (data.mask_rate=0), an encoder (model.causal=False) the masked tokens (data.mask_rate=0.15)'
        )
    if task.reads_rows and mask_rate:
        raise InputError(f"data.mask_rate = {mask_rate} with task.name = {task.name!r}: only 'text' masks tokens")
    if task.conversations and task.predicts_tokens and not causal:
        raise InputError(f'task.name = {task.name!r} with model.causal = False: answers are written by a causal model')
    if config.evaluate.sources and task.reads_rows:
        raise InputError(f"evaluate.sources with task.name = {task.name!r}: other texts are measured in 'text' alone")
    new_head = config.model.head != task.head and task.pools_rows
    if new_head and causal and config.objective.pool == 'first':
        raise InputError(
            "objective.pool = 'first' with model.causal = True: the first token of a row has read nothing of it. Take "
            "'auto', 'last' or 'mean'"
        )
    if task.on_policy:
        check_rollout(config)
    if task.predicts_tokens and config.model.head != task.head:
        raise InputError(
            f'task.name = {task.name!r}, but the base has the head {config.model.head!r} and no vocabulary'
        )


def check_mesh(config, mesh) -> None:
    """Raises InputError if heads or positions do not divide over the mesh, or dropout or orders exclude an axis."""
    model, tensor, sequence = config.model, mesh.shape['tensor'], mesh.shape['sequence']
    for field in ('num_heads', 'num_kv_heads'):
        if model[field] % tensor:
            raise InputError(
                f'model.{field} = {model[field]} does not divide over mesh.tensor = {tensor}: each device takes whole '
                'heads; lower mesh.tensor'
            )
    if sequence == 1:
        return
    prefix = f'mesh.sequence = {sequence} with '
    if config.data.seq_len % sequence:
        raise InputError(f'{prefix}data.seq_len = {config.data.seq_len}: it must be a multiple of {sequence}')
    task = TASKS[config.task.name]
    if not task.predicts_tokens or config.data.mask_rate:
        raise InputError(
            f'{prefix}task.name = {config.task.name!r}, data.mask_rate = {config.data.mask_rate}: only rows whose next '
            'tokens are predicted are cut along their positions; set mesh.sequence=1'
        )
    if task.reads_rows and not task.on_policy:
        if any(length % sequence for length in config.task.lengths):
            raise InputError(f'{prefix}task.lengths = {config.task.lengths}: they must be multiples of {sequence}')
        if config.task.buckets > 1 and not config.task.lengths and ROUND % sequence:
            raise InputError(
                f'{prefix}task.buckets = {config.task.buckets}: lengths of batches are multiples of {ROUND}; set '
                'task.buckets=1'
            )
    if model.dropout or config.adapt.dropout or len(sweep.orders(sweep.of(config))) > 1:
        raise InputError(
            f'{prefix}model.dropout = {model.dropout}, adapt.dropout = {config.adapt.dropout}, sweep.orders = '
            f'{tuple(config.sweep.orders)}: set them to 0, 0 and one order, or mesh.sequence=1'
        )


def check_leaves(config, model, params: tree.Params, mesh) -> None:
    """Raises InputError if the mesh, the rows or the attention kernel of the config exclude a leaf of the adapter."""
    method = f'adapt.method = {config.adapt.method!r}'
    for axis, size in mesh.shape.items():
        if size > 1 and (path := leaves.excluding_axis(params, axis)):
            raise InputError(
                f'mesh.{axis} = {size} with {method}: {path} cannot be divided over this axis; set mesh.{axis}=1'
            )
    task = TASKS[config.task.name]
    packed = (
        config.task.pack or task.scores_segments
        if task.reads_rows
        else config.data.isolate and not config.data.mask_rate
    )
    if packed and leaves.virtual_tokens(tree.flatten(params)):
        way_out = f'Set {"task.pack" if task.reads_rows else "data.isolate"}=False'
        if task.scores_segments:
            way_out = f"task.name = {config.task.name!r} always compares texts in one row: use adapt.method='lora'"
        raise InputError(
            f"{method} with several documents in a row: virtual tokens precede a row's first document alone. "
            f'{way_out}, or another method'
        )
    if model.attention not in ('auto', 'xla') and (
        reason := collectives.unsupported_reason(
            model.attention, config.data.seq_len, model, params, mesh, members=len(sweep.of(config))
        )
    ):
        raise InputError(f"model.attention='{model.attention}' {reason}; choose model.attention='auto' or 'xla'")


def check_positions(config, model, longest: int, params: tree.Params) -> None:
    """Raises InputError if the longest rows of a task have more tokens than the model has learned positions."""
    if model.positions == 'learned' and longest > (room := virtual_tokens.room(model, params)):
        raise InputError(
            f'data.seq_len = {config.data.seq_len}: there are rows of {longest} tokens, and the model has {room} '
            f'learned positions: set data.seq_len={room}, and task.too_long for what is longer'
        )


def check_paths(config, trainable: tree.Params, params: tree.Params) -> None:
    """Raises InputError if a pattern of the optimizer section matches no parameter.

    Patterns of weight decay may match frozen parameters alone: that a method decays nothing is no mistake.
    """
    try:
        tree.match(config.optimizer.learning_rates, tree.flatten(trainable))
    except ValueError as error:
        raise InputError(f'optimizer.learning_rates: {error}') from None
    if config.optimizer.weight_decay:
        try:
            tree.match([(config.optimizer.decayed, True)], tree.flatten(params))
        except ValueError as error:
            raise InputError(f'optimizer.decayed: {error}; optimizer.weight_decay = 0 decays nothing') from None
