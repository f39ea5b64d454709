"""Builds a run from a resolved config. Everything that can be wrong is found here, before anything compiles."""

import dataclasses
import functools
import inspect
from typing import NamedTuple

import jax
import ml_collections

from lmtrain import adapt, data, optimizer
from lmtrain.files import local_path, sha256
from lmtrain.inference import rollout
from lmtrain.models import Transformer
from lmtrain.parallel import redistribute, sharding, vocab_padding
from lmtrain.runtime import multihost, preflight
from lmtrain.tasks import TASKS
from lmtrain.tasks.prepare import TaskData, prepare_task
from lmtrain.tasks.task import with_settings
from lmtrain.training import checks, evaluate, reference, rollout_cost, rollouts, samples, sweep
from lmtrain.training.init_from import Base, no_form, with_head
from lmtrain.training.initial import InitialState, initial_params
from lmtrain.training.run import Run


class HeadedModel(NamedTuple):
    """The model with the head of the task.

    Attributes:
      model: with the head, if it is one of the model's own.
      base: without its own head if that is replaced.
      output: name of the output that the loss reads: 'logits', or the name of the task for an added head.
      notes: lines about the head for the header.
    """

    model: Transformer
    base: Base | None
    output: str = 'logits'
    notes: tuple[str, ...] = ()


def build(
    config: ml_collections.ConfigDict, base: Base | None = None, devices=None, device_memory: int | None = None
) -> Run:
    """The run of a resolved config: mesh, data, model, method, objective and shapes. Does not change the config.

    Args:
      config, base: from `resolve`, which has checked the settings of each section alone.
      devices: of the mesh; None is those of this machine.
      device_memory: bytes of each of `devices`; None asks them.

    Raises InputError or OSError naming the field or file, what was expected and the way out.
    """
    mesh = sharding.mesh(**config.mesh, devices=devices)
    sharding.check_batch(config.data.batch_size, config.optimizer.accumulate, mesh)
    fill = vocab_padding.num_padding_rows(config.model.vocab_size, mesh.shape['tensor'])
    model = Transformer(**config.model, vocab_fill=fill)
    preflight.check_sizes(model, config.data.batch_size // jax.process_count(), config.data.seq_len)
    checks.check_task(config)
    if mesh.size > 1:
        checks.check_mesh(config, mesh)
    if device_memory is None:
        device_memory = min(multihost.all_gather_object(preflight.device_memory(mesh.local_devices[0])))

    # A large text takes long to tokenise. If no part depends on it, the parts are built and checked before.
    needs_data = TASKS[config.task.name].reads_rows or config.adapt.prompt.text
    corpus = _read_data(config, base) if needs_data else None
    run = _with_parts(config, mesh, model, base, corpus, device_memory)
    if not needs_data:
        run = dataclasses.replace(run, corpus=_read_data(config, base))
    checks.check_positions(config, run.model, run.longest, run.initial.member_shapes.params)
    if run.initial.reference_mode:
        run = reference.with_column(run)
        _ = run.total_steps  # raises if nothing is left of the budget for steps
    if run.task.predicts_tokens:
        samples.check(run)
    if run.task.on_policy:
        rollouts.check(run)
        count = rollout.padded(config.policy.prompts, mesh)
        reward_model = rollout_cost.open_reward_model(config)
        flops = rollout_cost.at_most(config, run.model, rollout_cost.scored_params(run), count, reward_model)
        run = dataclasses.replace(
            run,
            rollout_flops=flops,
            rollout_bytes=rollout_cost.bytes_per_device(run),
            reward_hash=_reward_hash(config, reward_model),
        )
    _ = run.steps_per_epoch, run.stream('validation')  # raise if the split is empty
    if config.evaluate.sources:
        evaluate.domains(run)
    return run


def _with_parts(config, mesh, model, base, corpus, device_memory) -> Run:
    """The run with the head of its task, its method and its objective, all shapes checked."""
    head = _task_head(config, model, base, corpus) if corpus else HeadedModel(model, base)
    each = redistribute.for_each_matrix(mesh) if mesh.size > 1 else None
    tx = optimizer.optimizer(**config.optimizer, each=each)
    method, members = _method(config, head, corpus), sweep.of(config)
    initial = InitialState(config, mesh, head.model, head.base, method, tx, members, reference.mode(config))
    checks.check_paths(config, initial.shapes.trainable, initial.shapes.params)
    params = initial.member_shapes.params
    checks.check_leaves(config, head.model, params, mesh)
    if initial.reference_mode:
        reference.check(initial)
    if mesh.size > 1:
        sharding.replicated(params, mesh)  # raises if a rule does not cover a leaf
    run = Run(
        config=config,
        task=TASKS[config.task.name],
        mesh=mesh,
        model=head.model,
        schedule=optimizer.schedule(**config.schedule, budget=config.budget),
        initial=initial,
        objective=_objective(config, head.output),
        corpus=corpus,
        device_memory=device_memory,
        output=head.output,
        notes=head.notes,
    )
    _ = run.total_steps  # raises if the budget makes too many steps
    return run


def _reward_hash(config, reward_model: Base | None) -> str:
    """What identifies the file and the model that reward completions; '' if there is neither."""
    hashes = [reward_model.hash] if reward_model else []
    if config.reward.file:
        hashes.append(sha256(local_path(config.reward.file, 'config.reward.file', config.data.root)))
    return ' '.join(hashes)


def _read_data(config, base: Base | None) -> data.Corpus | TaskData:
    """The data of the task."""
    settings = config.data.to_dict()
    if settings['tokenizer'] == 'base':
        settings['tokenizer'] = str(base.tokenizer.absolute())
    task = TASKS[config.task.name]
    if not task.reads_rows:
        return data.prepare(**settings, vocab_limit=config.model.vocab_size)
    has_head = base and (base.model.head == task.head or task.name in base.shapes.get('heads', ()))
    labels = base.labels if has_head else ()
    options = {'vocab_limit': config.model.vocab_size, 'base_labels': labels}
    corpus = prepare_task(settings, **config.task, **options)
    if task.on_policy and config.task.too_long != 'error' and not rollouts.has_room(config, corpus):
        # Only then: the limit of the rows is part of the fingerprint of the data.
        settings['seq_len'] = rollouts.longest_allowed(config)
        corpus = prepare_task(settings, **config.task.to_dict() | {'lengths': ()}, **options)
    return corpus


def _task_head(config, model: Transformer, base: Base | None, corpus) -> HeadedModel:
    """The head of the task: that of the base, or a new one with the form of transformers' class for the task.

    If config.objective.pool is not 'auto', `_method` adds a projection, and the model keeps its own head.
    """
    task = TASKS[config.task.name]
    if task.predicts_tokens:
        return HeadedModel(model, base)
    from lmtrain.models import pretrained  # late: a run of text does not need it

    count, pool = task.output_size(corpus.labels), config.objective.pool
    same_outputs = corpus.labels_of_base or not task.has_classes
    if base and same_outputs and (model.head, model.num_labels) == (task.head, count):
        return HeadedModel(model, base, notes=pretrained.missing_class_note(model))
    if pool != 'auto':
        base = with_head(base, base.model) if base and 'heads' in base.shapes and not same_outputs else base
        notes = () if pretrained.with_linear_head(model, task.head, count, pool) else (no_form(pool),)
        return HeadedModel(model, base, task.name, notes)
    headed = pretrained.with_task_head(model, task.head, count)
    base = with_head(base, dataclasses.replace(headed, vocab_fill=0)) if base else None
    return HeadedModel(headed, base, notes=pretrained.missing_class_note(headed))


def _method(config, head: HeadedModel, corpus) -> adapt.Method:
    """The method of config.adapt, with the head that it adds; config.trainable replaces its trainable paths."""
    task, added = TASKS[config.task.name], None
    if task.added_head:
        added = {'name': task.added_head, 'classes': 1}
    elif head.output != 'logits':
        bias = not head.model.causal or not task.pools_rows  # as in transformers' classes of decoders
        added = {'name': task.name, 'classes': task.output_size(corpus.labels), 'bias': bias}
    name = config.adapt.method
    settings = config.adapt[name].to_dict() if name in config.adapt else {}
    if 'text' in settings:
        text = settings.pop('text')
        settings['ids'] = corpus.tokenizer.encode(text) if text else ()
    params = jax.eval_shape(
        lambda key, base_params: initial_params(head.model, key, base_params, config.data.seq_len),
        jax.random.key(0),
        head.base.shapes if head.base else None,
    )
    method = adapt.method(name, head.model, params, head=added, cut=config.adapt.cut, **settings)
    return method._replace(trainable=config.trainable or method.trainable)


def _objective(config, output: str) -> functools.partial:
    """The loss that config.objective selects, which reads `output`.

    Raises TypeError for a setting of the loss that config.objective lacks.
    """
    loss = TASKS[config.task.name].loss(config.objective.name)
    settings = config.objective.to_dict() | {'head': output}
    if unset := [name for name in inspect.signature(loss).parameters if name not in ('forward', 'batch', *settings)]:
        name = config.objective.name or config.task.name
        raise TypeError(f'loss {name!r} has the setting {unset[0]!r}: add it to config.objective in configs/base.py')
    return with_settings(loss, settings)
