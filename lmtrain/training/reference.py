"""The reference model of preference optimisation: the base, as it is before the first step.

config.objective.reference selects where its log-probabilities are from:

  cached   the column `ref_logprob`: one pass over all rows before the training, whose result is kept on the disk
  live     a second forward pass in the step with the frozen leaves of the base: one copy of the weights. Only for
           methods that train nothing but added leaves
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmtrain import data, tree
from lmtrain.cost import passes
from lmtrain.data.cache import build, cache_directory, key
from lmtrain.data.splits import SPLITS
from lmtrain.errors import InputError, wrong_choice
from lmtrain.parallel import sharding
from lmtrain.report import terminal
from lmtrain.runtime import multihost, progress
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import has_setting

COLUMN, MODES = 'ref_logprob', ('cached', 'live')
VERSION = 1  # increase it if the same base and rows give other log-probabilities


def mode(config) -> str:
    """'cached' or 'live'; '' if the objective has no reference model. Raises InputError if it is neither."""
    if not has_setting(TASKS[config.task.name].loss(config.objective.name), 'reference'):
        return ''
    chosen = config.objective.reference
    if chosen not in MODES:
        raise wrong_choice('objective.reference', chosen, MODES)
    return chosen


def note(run) -> str:
    """Where the log-probabilities of the reference model are from, for the header of a run that has one."""
    if run.initial.reference_mode == 'live':
        return 'log-probabilities of the base without the adapter, computed in every step'
    once = f'computed once ({terminal.unit(run.reference_flops, "FLOP")})'
    return f'log-probabilities of the base, {once}, kept in {cache_directory(run.config.data.cache)}'


def check(initial) -> None:
    """Raises InputError if the step cannot compute the reference model because the method changes the base."""
    chosen = initial.reference_mode
    if chosen == 'cached' and not initial.base and len({member.seed for member in initial.members}) > 1:
        raise InputError(
            "sweep.seeds with objective.reference = 'cached' and no init.base: every member begins with other "
            'parameters, so that one reference model is not that of all; name a base'
        )
    if chosen != 'live':
        return
    trained = tree.flatten(initial.reference_params(initial.member_shapes.trainable))
    if trained:
        raise InputError(
            f"objective.reference = 'live' with adapt.method = {initial.config.adapt.method!r}: {next(iter(trained))} "
            "of the base is trained, so that the reference model is a second copy; set objective.reference='cached', "
            "or adapt.method='lora'"
        )


def with_column(run, logprob: dict[str, np.ndarray] | None = None):
    """The run with the column `ref_logprob` in its examples, if its objective reads it.

    Args:
      logprob: {split: float32 [N]}, of the tokens of its examples. None: not known yet; the values are NaN, so that a
        step that reads them by mistake is not finite.
    """
    if run.initial.reference_mode != 'cached':
        return run
    examples = {}
    for split, each in run.corpus.examples.items():
        unknown = np.broadcast_to(np.float32(np.nan), len(each.tokens) - 1)
        column = unknown if logprob is None else logprob[split]
        examples[split] = each._replace(flat=each.flat | {COLUMN: column})
    run = dataclasses.replace(run, corpus=dataclasses.replace(run.corpus, examples=examples))
    return dataclasses.replace(run, reference_flops=run.reference_flops or _flops(run))


def _flops(run) -> float:
    """FLOPs of the pass of `_compute`, also if the cache has its results from an earlier run."""
    params = run.initial.reference_params(run.initial.member_shapes.params)
    flops = 0.0
    for split, examples in run.corpus.examples.items():
        if len(examples.source):
            stream = run.stream(split)
            rows = stream.steps_per_epoch * run.config.data.batch_size
            flops += passes.pass_flops(run.model, params, rows, round(stream.mean_length))
    return flops


def complete(run):
    """The run with the log-probabilities of the reference model, read from the cache or computed on its mesh."""
    if run.initial.reference_mode != 'cached':
        return run
    directory = cache_directory(run.config.data.cache) / f'reference-{_key(run)[:32]}'
    # A collective computes it, so all processes must agree; each has it then, also if their caches are separate.
    cached = all(multihost.all_gather_object(directory.exists()))
    columns = None if cached else _compute(run)

    def write(folder: Path) -> None:
        for split, column in (columns or _compute(run)).items():
            np.save(folder / f'{split}.npy', column)

    directory = build(directory, write)
    return with_column(run, {split: np.load(directory / f'{split}.npy', mmap_mode='r') for split in SPLITS})


def _key(run) -> str:
    """Hex sha256 of what the log-probabilities follow from: the rows, and the base or the seed."""
    config, base = run.config, run.initial.base
    start = base.hash if base else [config.seed, config.model.to_dict()]
    dtypes = [config.model.dtype, config.init.frozen_dtype]
    if config.init.frozen_dtype != 'float32':  # the leaves that a method trains are not rounded
        dtypes.append(run.initial.method.trainable)
    return key(VERSION, run.corpus.fingerprint, start, *dtypes)


def _compute(run) -> dict[str, np.ndarray]:
    """{split: float32 [N]}: log p(next token) of the tokens of each split under the base; 0 where there is none."""
    trainable, frozen = run.initial.on_mesh(lambda state: (state.trainable, state.frozen))
    if run.initial.members:  # all of them begin with the base
        trainable = jax.tree.map(lambda leaf: leaf[0], trainable)
    params = run.initial.reference_params(tree.join(frozen, trainable))
    columns = ('tokens', 'segment_ids', 'positions', 'targets')
    place, everywhere = sharding.place(run.mesh), NamedSharding(run.mesh, PartitionSpec())

    @jax.jit
    def logprob(params, batch):
        return jax.lax.with_sharding_constraint(run.model.apply({'params': params}, batch)['logprob'], everywhere)

    results = {}
    for split, examples in run.corpus.examples.items():
        results[split] = values = np.zeros(len(examples.tokens) - 1, np.float32)
        if not len(examples.source):
            continue
        stream = run.stream(split)
        whole = data.PaddedStream(run.corpus, split, run.config.data.batch_size, 0, shuffle=False)  # of all processes
        steps = range(stream.steps_per_epoch)
        for step in progress.each(steps, f'reference log-probabilities, {split}', len(steps)):
            batch = stream.batch(step)
            local = np.asarray(logprob(params, place({name: batch[name] for name in columns})))
            _scatter(values, local, whole, step)
    return results


def _scatter(values: np.ndarray, logprob: np.ndarray, stream, step: int) -> None:
    """Writes the log-probabilities [B, T] of a batch to the places of their tokens in the split."""
    for row, examples in enumerate(stream.examples(step)):
        at = 0
        for example in examples[examples >= 0]:
            begin, end = stream.examples_of.begins[example : example + 2]
            size = end - begin - 1  # no row contains the last token
            values[begin : begin + size] = logprob[row, at : at + size]
            at += size
