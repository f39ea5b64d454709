"""From a config to the parts of a run; all that can be wrong with it is found here, before anything compiles."""

import dataclasses
import functools
import pathlib

import jax
import ml_collections
import numpy as np

from lmtrain import adapt, cost, data, optimizer, tree
from lmtrain.adapt import leaves
from lmtrain.errors import InputError
from lmtrain.models import Transformer
from lmtrain.parallel import collectives, redistribute, sharding, vocab_padding
from lmtrain.runtime import multihost, preflight
from lmtrain.tasks import TASKS
from lmtrain.tasks.pooling import POOLS
from lmtrain.tasks.prepare import TaskData, prepare_task
from lmtrain.tasks.task import has_setting, with_settings
from lmtrain.training import samples, sweep
from lmtrain.training.init_from import Base, no_form, open_base, settings, with_head
from lmtrain.training.run import Run


def build(config: ml_collections.ConfigDict, devices=None, device_memory: int | None = None) -> Run:
    """Config -> the parts of a run, every check made that needs no compiler.

    Args:
      devices: of the mesh; None is those of this machine.
      device_memory: bytes of each of `devices`; None asks them.

    Raises ValueError or OSError naming the field or file, what was expected and the way out.
    """
    _check_settings(config)
    mesh = sharding.mesh(**config.mesh, devices=devices)
    sharding.check_batch(config.data.batch_size, config.optimizer.accumulate, mesh)
    schedule = optimizer.schedule(**config.schedule)
    tx = optimizer.optimizer(**config.optimizer, each=redistribute.for_each_matrix(mesh))
    config, base = _on_base(config)
    model = Transformer(**config.model)
    model = dataclasses.replace(model, vocab_fill=vocab_padding.missing(model.vocab_size, mesh.shape['tensor']))
    preflight.check_sizes(model, config.data.batch_size // jax.process_count(), config.data.seq_len)
    _check_task(config)
    _check_mesh(config, mesh)
    if device_memory is None:
        device_memory = min(multihost.all_gather_object(preflight.device_memory(mesh.local_devices[0])))
    run = Run(config, mesh, model, tx, schedule, base, device_memory=device_memory)
    # A large text takes long to cut into tokens: where nothing of it is needed, the rest is checked first.
    early = not run.task.reads_rows and not config.adapt.prompt.text
    run = _planned(run) if early else run
    run = _settled(run._replace(corpus=_corpus(config, base)))
    config = run.config
    run = run if early else _planned(_headed(run))
    if run.task.predicts_tokens:
        samples.check(run)
    for split in ('train', 'validation'):
        run.stream(split)  # raises where the split is empty
    run.domains()
    return run


def stand_in(config, folder: pathlib.Path) -> ml_collections.ConfigDict:
    """The config with a text of its own in `folder`, cut into bytes, in the place of its data: only shapes count.

    For a task of text; the rows of others decide what is compiled.
    """
    config = config.copy_and_resolve_references()
    text = folder / 'text.txt'
    text.write_text('a text of no matter ' * (1 + config.data.seq_len // 2), encoding='utf-8')
    own = {'source': str(text), 'mix': (), 'document': 'file', 'split': 'tail', 'tokenizer': 'bytes'}
    config.data.update(own | {'cache': str(folder), 'validation': 0.2, 'test': 0.2})
    config.evaluate.sources, config.sample.prompts = (), ()
    return config.lock()


def _on_base(config) -> tuple[ml_collections.ConfigDict, Base | None]:
    """The config with the model section of its base, and that base."""
    if not config.init.base:
        wanted = [name for name in ('adapter', 'ignore') if config.init[name]]
        wanted += ['frozen_dtype'] * (config.init.frozen_dtype != 'float32')
        if wanted or config.data.tokenizer == 'base':
            field = f'init.{wanted[0]} = {config.init[wanted[0]]!r}' if wanted else "data.tokenizer = 'base'"
            raise InputError(f'{field} without init.base: name the folder of a run or a Hugging Face directory')
        return config, None
    base = open_base(config.init.base, config.init.adapter, config.init.ignore)
    config = config.copy_and_resolve_references()
    config.model = ml_collections.ConfigDict(settings(config, base.model))
    return config.lock(), base


def _corpus(config, base: Base | None) -> data.Corpus | TaskData:
    """The data of the task."""
    wanted = config.data.to_dict()
    if wanted['tokenizer'] == 'base':
        wanted['tokenizer'] = str(base.tokenizer.absolute())
    task = TASKS[config.task.name]
    if not task.reads_rows:
        return data.prepare(**wanted, vocab_limit=config.model.vocab_size)
    has_head = base and (base.model.head == task.head or task.name in base.shapes.get('heads', ()))
    known = base.labels if has_head else ()
    return prepare_task(wanted, **config.task, vocab_limit=config.model.vocab_size, base_labels=known)


def _headed(run: Run) -> Run:
    """The run with the head of its task: the base's own, or a new one of the form that transformers' class has.

    If config.objective.pool is not 'auto', `_planned` adds a projection that is read there.
    """
    config, model, base, task = run.config, run.model, run.base, run.task
    if task.predicts_tokens:
        return run
    from lmtrain.models import pretrained  # late: a run of text has no need of it

    count, pool = task.output_size(run.corpus.labels), config.objective.pool
    same_outputs = run.corpus.base_labels or not task.has_classes
    config = config.copy_and_resolve_references()
    config.task.labels = run.corpus.labels
    if base and same_outputs and (model.head, model.num_labels) == (task.head, count):
        return run._replace(config=config.lock(), notes=pretrained.no_class(model))
    if pool != 'auto':
        base = with_head(base, base.model) if base and 'heads' in base.shapes and not same_outputs else base
        notes = () if pretrained.as_class(model, task.head, count, pool) else (no_form(pool),)
        return run._replace(config=config.lock(), base=base, output=task.name, notes=notes)
    wanted = pretrained.headed(model, task.head, count)
    config.model.update({name: value for name, value in dataclasses.asdict(wanted).items() if name in config.model})
    base = with_head(base, dataclasses.replace(wanted, vocab_fill=0)) if base else None
    return run._replace(config=config.lock(), model=wanted, base=base, notes=pretrained.no_class(wanted))


def _settled(run: Run) -> Run:
    """The run with a config that says which template wrote its conversations, and on which date.

    So what the run is continued with, or asked, is written in the same way on another day.
    """
    if not run.task.conversations:
        return run
    config = run.config.copy_and_resolve_references()
    template = run.corpus.template
    config.task.template = config.task.template if template else 'none'
    config.task.date = template.date if template else ''
    return run._replace(config=config.lock())


def _planned(run: Run) -> Run:
    """The run with its method, objective, shapes and arithmetic."""
    config, model, task = run.config, run.model, run.task
    key = jax.random.key(0)
    params = jax.eval_shape(run.whole, key, run.base.shapes if run.base else None)
    own = run.output == 'logits'
    bias = not model.causal or not task.pools_rows  # as in transformers' classes of decoders
    head = None if own else {'name': task.name, 'classes': task.output_size(run.corpus.labels), 'bias': bias}
    name, wanted = config.adapt.method, config.adapt.get(config.adapt.method)
    wanted = wanted.to_dict() if wanted else {}
    if name == 'prompt':
        text = wanted.pop('text')
        wanted['ids'] = run.corpus.tokenizer.encode(text) if text else ()
    run = run._replace(
        method=adapt.method(name, model, params, head=head, cut=config.adapt.cut, **wanted),
        objective=_objective(config, run.output),
    )
    start = [key, *([run.base.shapes] if run.base else [])]
    shapes = jax.eval_shape(run.create, *start)
    on = sweep.shardings(shapes, run.mesh, run.members)
    sharding.replicated(sweep.alone(shapes, run.members).params, run.mesh)
    if model.vocab_fill:
        plain = run._replace(model=dataclasses.replace(model, vocab_fill=0))
        run = run._replace(plain=vocab_padding.laid(jax.eval_shape(plain.create, *start), on))
    shapes = jax.tree.map(lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on), shapes, on)
    try:
        tree.match(config.optimizer.learning_rates, tree.flatten(shapes.trainable))
    except ValueError as error:
        raise InputError(f'optimizer.learning_rates: {error}') from None
    if config.optimizer.weight_decay:  # of all paths: that a method moves none which decays is no mistake
        try:
            tree.match([(config.optimizer.decayed, True)], tree.flatten(shapes.params))
        except ValueError as error:
            raise InputError(f'optimizer.decayed: {error}; optimizer.weight_decay = 0 decays nothing') from None
    run = run._replace(shapes=shapes)
    _check_leaves(run)
    flops = flops_per_step(run)
    return run._replace(
        flops_per_step=flops,
        total_steps=cost.total_steps(config.budget, run.tokens_per_step, flops.total),
    )


def flops_per_step(run: Run) -> cost.Flops:
    """Of a step of all members, over all devices, from the parts of a run."""
    config, shapes = run.config, run.shapes
    flops = cost.flops_per_step(
        run.model,
        config.data.batch_size,
        run.tokens_per_step // config.data.batch_size,
        run.trainable,
        params=tree.join(sweep.alone(shapes, run.members).trainable, shapes.frozen),
        classes=None if run.output == 'logits' else run.task.output_size(run.corpus.labels),
        predicted=run.predicted,
        shares=run.mesh.size * config.optimizer.accumulate,
        keep_logits=run.keep_logits,
    )
    matrices = optimizer.matrices(config.optimizer.name, tree.flatten(shapes.trainable))
    groups = redistribute.matrix_groups(matrices, run.specs(), run.mesh)
    # Devices that differ only in rows, or compute the same matrices, execute the same operations.
    update = run.mesh.size * sum(g.per_device * optimizer.newton_schulz_flops(g.rows, g.columns) for g in groups)
    return cost.Flops(*(max(len(run.members), 1) * part for part in flops._replace(update=update)))


def _objective(config, head: str) -> functools.partial:
    """The loss that config.objective selects, which reads the output `head`."""
    loss, z_loss = TASKS[config.task.name].loss(config.objective.name), config.objective.z_loss
    if z_loss and not has_setting(loss, 'z_loss'):
        raise InputError(
            f'objective.z_loss = {z_loss} with task.name = {config.task.name!r}: its loss has no vocabulary'
        )
    return with_settings(loss, config.objective.to_dict() | {'head': head})


def _check_mesh(config, mesh) -> None:
    """Raises ValueError where heads or positions do not divide over the mesh, or a method cannot be divided so."""
    model, tensor, sequence = config.model, mesh.shape['tensor'], mesh.shape['sequence']
    for field in ('num_heads', 'num_kv_heads'):
        if model[field] % tensor:
            raise InputError(
                f'model.{field} = {model[field]} does not divide over mesh.tensor = {tensor}: each device takes whole '
                'heads; lower mesh.tensor'
            )
    if sequence == 1:
        return
    found = f'mesh.sequence = {sequence} with '
    if config.data.seq_len % sequence:
        raise InputError(f'{found}data.seq_len = {config.data.seq_len}: it must be a multiple of {sequence}')
    if TASKS[config.task.name].reads_rows or config.data.mask_rate:
        raise InputError(
            f'{found}task.name = {config.task.name!r}, data.mask_rate = {config.data.mask_rate}: only whole text '
            "(task.name='text', data.mask_rate=0) is cut along its positions; set mesh.sequence=1"
        )
    if model.dropout or config.adapt.dropout or len(sweep.orders(sweep.of(config))) > 1:
        raise InputError(
            f'{found}model.dropout = {model.dropout}, adapt.dropout = {config.adapt.dropout}, sweep.orders = '
            f'{tuple(config.sweep.orders)}: set them to 0, 0 and one order, or mesh.sequence=1'
        )


def _check_leaves(run: Run) -> None:
    """Raises InputError if the mesh, the rows or the attention kernel of the config exclude a leaf of the adapter."""
    config, model, mesh = run.config, run.model, run.mesh
    params, method = sweep.alone(run.shapes, run.members).params, f'adapt.method = {config.adapt.method!r}'
    for axis, size in mesh.shape.items():
        if size > 1 and (path := leaves.excluding_axis(params, axis)):
            raise InputError(
                f'mesh.{axis} = {size} with {method}: {path} cannot be divided over this axis; set mesh.{axis}=1'
            )
    rows = TASKS[config.task.name].reads_rows
    packed = config.task.pack if rows else config.data.isolate and not config.data.mask_rate
    if packed and leaves.virtual_tokens(params):
        raise InputError(
            f"{method} with several documents in a row: virtual tokens precede a row's first document alone. "
            'Set data.isolate=False (and task.pack=False), or use another method'
        )
    if model.attention not in ('auto', 'xla') and (
        why := collectives.unsupported_reason(model.attention, config.data.seq_len, model, params, mesh)
    ):
        raise InputError(f"model.attention='{model.attention}' {why}; choose model.attention='auto' or 'xla'")


def _check_settings(config) -> None:
    """Raises ValueError where a number that no room checks is out of range."""
    cost.total_steps(config.budget, np.inf, np.inf)  # first: other numbers may follow from it
    least = {'log.every_steps': 1, 'evaluate.every_steps': 1, 'evaluate.max_batches': 0}
    least |= {'checkpoint.every_steps': 1, 'checkpoint.keep_last': 1, 'checkpoint.keep_best': 0}
    least |= {f'watchdog.{phase}': 0 for phase in config.watchdog}
    for field, low in (least | {'objective.z_loss': 0}).items():
        section, name = field.split('.')
        if not config[section][name] >= low:
            raise InputError(f'{field} = {config[section][name]}: it must be at least {low}')
    if config.sdc_check_every < 0:
        raise InputError(f'sdc_check_every = {config.sdc_check_every}: it must be at least 0, which is never')
    if not 0 <= config.seed < 2**32:
        raise InputError(f'seed = {config.seed}: it must lie in [0, 2^32)')
    if not 0 <= config.adapt.dropout < 1:
        raise InputError(f'adapt.dropout = {config.adapt.dropout}: it must lie in [0, 1)')
    if (dtype := config.init.frozen_dtype) not in ('float32', 'bfloat16'):
        raise InputError(f"init.frozen_dtype = {dtype!r}: it is 'float32' or 'bfloat16'")
    if config.task.name not in TASKS:
        raise InputError(f'task.name = {config.task.name!r} is none of {", ".join(TASKS)}')
    TASKS[config.task.name].loss(config.objective.name)  # raises if it is unknown


def _check_task(config) -> None:
    """Raises ValueError where task, data and model are at odds."""
    mask_rate, causal, task = config.data.mask_rate, config.model.causal, TASKS[config.task.name]
    if not task.reads_rows and causal == bool(mask_rate):
        raise InputError(
            f'data.mask_rate = {mask_rate} with model.causal = {causal}: a causal model predicts the next token of '
            'unmasked text (data.mask_rate=0), an encoder (model.causal=False) the masked tokens (data.mask_rate=0.15)'
        )
    if task.reads_rows and mask_rate:
        raise InputError(f"data.mask_rate = {mask_rate} with task.name = {task.name!r}: only 'text' masks tokens")
    if task.conversations and not causal:
        raise InputError(f'task.name = {task.name!r} with model.causal = False: answers are written by a causal model')
    if config.evaluate.sources and task.reads_rows:
        raise InputError(f"evaluate.sources with task.name = {task.name!r}: other texts are measured in 'text' alone")
    if config.objective.pool not in ('auto', *POOLS):
        raise InputError(f'objective.pool = {config.objective.pool!r} is none of auto, {", ".join(POOLS)}')
    new_head = task.pools_rows and config.model.head != task.head
    if new_head and causal and config.objective.pool == 'first':
        raise InputError(
            "objective.pool = 'first' with model.causal = True: the first token of a row has read nothing of it. Take "
            "'auto', 'last' or 'mean'"
        )
    if task.predicts_tokens and config.model.head != task.head:
        raise InputError(
            f'task.name = {task.name!r}, but the base has the head {config.model.head!r} and no vocabulary'
        )
