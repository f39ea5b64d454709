"""Sweeps: runs that differ in seed, learning rate or order of the data, trained together in one program.

The state of a sweep is a TrainState in which `trainable`, `opt_state`, `rng` and `counters` have a leading axis [W]
over its W members. The frozen base and `step` are shared. A step is `jax.vmap` of the step of one run over that axis:
the base is read once for all members, and each member has the losses that it would have alone.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmtrain import tree
from lmtrain.errors import InputError
from lmtrain.evaluation.statistics import t_interval
from lmtrain.parallel import sharding
from lmtrain.report import evaluations
from lmtrain.training.state import TrainState

AXES = TrainState(step=None, trainable=0, frozen=None, opt_state=0, rng=0, counters=0)
SUFFIX = '_members'  # of the names of lists beside their means


class Member(NamedTuple):
    """The settings of one member. As a run of its own it would have them as config.seed and learning_rate."""

    seed: int  # of the trainable leaves and of dropout
    learning_rate: float  # at the peak
    order: int  # seed of the order of the data


def members(
    seeds: Sequence[int],
    learning_rates: Sequence[float],
    orders: Sequence[int],
    zipped: bool = False,
    *,
    seed,
    learning_rate,
):
    """The members of `config.sweep`; () if all its lists are empty.

    Every learning rate is trained with every repetition: a seed and the order of its data. With `zipped` the lists are
    zipped instead: each has one entry per member. Of a list with one entry, that is for all; if a list is empty, all
    members have the `seed` or `learning_rate` of the run, and read the data in the order of their own seed.

    Raises InputError if lists differ in length, a value is out of range, or two members are equal.

    >>> [one[:2] for one in members((0, 1), (1e-3, 1e-2), (), seed=0, learning_rate=1e-3)]
    [(0, 0.001), (1, 0.001), (0, 0.01), (1, 0.01)]
    """
    lists = {'seeds': tuple(seeds), 'learning_rates': tuple(learning_rates), 'orders': tuple(orders)}
    if not any(lists.values()):
        return ()
    for name in ('seeds', 'orders'):
        for value in lists[name]:
            if type(value) is not int or not 0 <= value < 2**32:
                raise InputError(f'sweep.{name} has {value!r}: it must be a whole number in [0, 2^32)')
    for value in lists['learning_rates']:
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise InputError(f'sweep.learning_rates has {value!r}: it must be a number in [0, inf)')
    together = [name for name in lists if lists[name] and (zipped or name != 'learning_rates')]
    count = max((len(lists[name]) for name in together), default=1)
    if any(len(lists[name]) not in (1, count) for name in together):
        lengths = ', '.join(f'sweep.{name} has {len(lists[name])}' for name in together)
        per = 'member' if zipped else 'seed'
        raise InputError(f'{lengths}: these lists are zipped, so each has one entry per {per}, or one for all')
    own = {name: values * count if name in together and len(values) == 1 else values for name, values in lists.items()}
    own['seeds'] = own['seeds'] or (seed,) * count
    own['learning_rates'] = own['learning_rates'] or (learning_rate,) * (count if zipped else 1)
    repeated = list(zip(own['seeds'], own['orders'] or own['seeds'], strict=True))
    pairs = zip(own['learning_rates'], repeated) if zipped else itertools.product(own['learning_rates'], repeated)
    result = tuple(Member(seed, rate, order) for rate, (seed, order) in pairs)
    if len(result) == 1:
        raise InputError(f'config.sweep has one member, {result[0]}: set config.seed, config.optimizer.learning_rate')
    if equal := [member for member in result if result.count(member) > 1]:
        raise InputError(f'config.sweep has {equal[0]} twice: the interval would be too narrow')
    return result


def of(config) -> tuple[Member, ...]:
    """The members of a whole config."""
    return members(**config.sweep, seed=config.seed, learning_rate=config.optimizer.learning_rate)


def create(create: Callable[[jax.Array], TrainState], base: jax.Array, members: jax.Array) -> TrainState:
    """The state of all members before the first step.

    Args:
      create: key -> the state of one run.
      base: the key of the frozen leaves.
      members: [W], the keys of the members.
    """
    one, all_members = create(base), jax.vmap(create)(members)
    return all_members.replace(step=one.step, frozen=one.frozen)


def member(state: TrainState, index: int) -> TrainState:
    """One member as the state of a run."""

    def pick(axis, part):
        return part if axis is None else jax.tree.map(lambda leaf: leaf[index], part)

    return _by_axis(pick, state)


def stacked(shapes: tree.Params, members: Sequence[Member]) -> tree.Params:
    """The shapes of the trainable leaves of one run, with the axis over members."""
    lead = (len(members),) if members else ()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), shapes)


def alone(shapes: TrainState) -> TrainState:
    """The shapes of the state of one member from those of all."""

    def first(axis, part):
        return part if axis is None else jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), part)

    return _by_axis(first, shapes)


def shardings(shapes: TrainState, mesh) -> TrainState:
    """`sharding.shardings`: every member is sharded as it would be alone; the axis over members is not sharded."""

    def lead(axis, part):
        add = lambda on: NamedSharding(mesh, PartitionSpec(None, *on.spec))  # noqa: E731
        return part if axis is None else jax.tree.map(add, part)

    return _by_axis(lead, sharding.shardings(alone(shapes), mesh))


def _by_axis(function, state: TrainState) -> TrainState:
    """function(axis, field) of every field of a state."""
    return jax.tree.map(function, AXES, state, is_leaf=lambda axis: axis is None)


def train_step(make: Callable[..., Callable], members: Sequence[Member], learning_rate: float) -> Callable:
    """The function (state, batch, progress) -> (state, metrics) over all members; without any, that of one run.

    Args:
      make: `step.make_train_step` without its argument `learning_rate`.
      learning_rate: of a run without members.
      members: W of them. If their orders differ, columns of the batch are [B, W, ...], see `Streams`; else [B, ...].

    Returns:
      The step. Metrics: means over the members, and beside each the list `<name>_members` [W]. 'skipped' is the sum,
      and 'skipped_in_a_row' the minimum: a sweep continues while one member does.
    """
    if not members:
        return make(learning_rate=learning_rate)
    rates = np.array([member.learning_rate for member in members], np.float32)
    rows = 1 if len(orders(members)) > 1 else None

    def step(state, batch, progress):
        def one(state, batch, rate):
            return make(learning_rate=rate)(state, batch, progress)

        state, measured = jax.vmap(one, in_axes=(AXES, rows, 0), out_axes=(AXES, 0))(state, batch, rates)
        reduced = {name: jnp.mean(values) for name, values in measured.items()}
        reduced['skipped'] = jnp.sum(measured['skipped'])
        reduced['skipped_in_a_row'] = jnp.min(measured['skipped_in_a_row'])
        return state, reduced | {name + SUFFIX: values for name, values in measured.items()}

    return step


def eval_step(alone: Callable, trainable: tree.Params) -> Callable:
    """The function (params, batch) -> sums [W] from that of one run. The paths of `trainable` have the axis [W]."""
    learning = tree.flatten(trainable)

    def step(params, batch):
        axes = tree.unflatten({path: 0 if path in learning else None for path in tree.flatten(params)})
        return jax.vmap(alone, in_axes=(axes, None))(params, batch)

    return step


def orders(members: Sequence[Member]) -> list[int]:
    """The seeds of the orders in which members read the data: one each, or a single one if they are equal."""
    seeds = [member.order for member in members]
    return seeds if len(set(seeds)) > 1 else seeds[:1]


class Streams:
    """The shuffled streams of all members as one: columns [B, W, ...]; rows come first, since the mesh divides them."""

    shuffle = True

    def __init__(self, streams: Sequence[Any]):
        self.streams = tuple(streams)

    def steps_of_lengths(self) -> dict[int, int]:
        """{T: the first step with batches of that length}, the same for all members."""
        return self.streams[0].steps_of_lengths()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The members' batches of `step`, side by side."""
        batches = [stream.batch(step) for stream in self.streams]
        return {name: np.stack([batch[name] for batch in batches], axis=1) for name in batches[0]}


def summary(evaluations: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The means over one evaluation of each member, and beside each the list `<name>_members`."""
    columns = {name: [each[name] for each in evaluations] for name in evaluations[0]}
    return {name: float(np.mean(values)) for name, values in columns.items()} | {
        name + SUFFIX: values for name, values in columns.items()
    }


def without_diverged(values: dict[str, Any], skipped_in_a_row: Sequence[int], limit: int) -> dict[str, Any]:
    """A `summary` with nan for every measure of the members that skipped `limit` updates in a row, and for its mean.

    Alone such a member would have ended: it keeps its parameters, whose loss is that of the last update.

    Args:
      skipped_in_a_row: [W].
    """
    diverged = [index for index, count in enumerate(skipped_in_a_row) if count >= limit]
    if not diverged:
        return values

    def mark(values):
        names = {name for name in values if name + SUFFIX in values} - {'targets', 'bytes'}
        each = {name: [*values[name + SUFFIX]] for name in names}
        for own, index in itertools.product(each.values(), diverged):
            own[index] = math.nan
        return values | dict.fromkeys(names, math.nan) | {name + SUFFIX: own for name, own in each.items()}

    sources = {name: mark(own) for name, own in values.get('sources', {}).items()}
    return mark(values) | ({'sources': sources} if sources else {})


def rates(members: Sequence[Member]) -> dict[float, list[int]]:
    """{learning rate: indices of its members}."""
    return evaluations.by_rate([member.learning_rate for member in members])


def best_member(members: Sequence[Member], losses: Sequence[float]) -> int:
    """`evaluations.best_member`: the lowest loss, of the learning rate with the lowest mean loss."""
    return evaluations.best_member([member.learning_rate for member in members], losses)


def of_best_rate(members: Sequence[Member], values: dict[str, Any]) -> dict[str, Any]:
    """`values` whose means are over the members of one learning rate, that of `best_member`, not over all.

    Args:
      values: metrics of a step or a `summary`: {name: mean over all members, '<name>_members': list}, and 'sources'
        with one such dict for each source of a mixture. Sums and minima stay as they are.
    """
    groups = rates(members)
    if len(groups) == 1:
        return values
    chosen = groups[members[best_member(members, values['loss' + SUFFIX])].learning_rate]

    def mean(values):
        known = {name for name in values if name + SUFFIX in values and not name.startswith('skipped')}
        return values | {name: float(np.mean([values[name + SUFFIX][index] for index in chosen])) for name in known}

    sources = {name: mean(own) for name, own in values.get('sources', {}).items()}
    return mean(values) | ({'sources': sources} if sources else {})


def line(members: Sequence[Member], evaluation: dict[str, Any]) -> str:
    """The mean loss of each learning rate in a line; `evaluation`: a `summary`."""
    losses = evaluation['loss' + SUFFIX]
    each = rates(members).items()
    return '; '.join(f'rate {rate:g}: mean loss {np.mean([losses[i] for i in of]):.4f}' for rate, of in each)


def results(members: Sequence[Member], evaluation: dict[str, Any]) -> dict[str, Any]:
    """The part of results.json on a sweep, from a `summary`.

    Returns:
      {'sweep': {'members': [{'seed', 'learning_rate', 'order', 'loss', ...}], 'intervals': [{'learning_rate', 'members'
      (how many), 'loss': [mean, low, high], ...}]}}, for every number of the evaluation. Members
      with one learning rate are repetitions of one experiment, so each learning rate has its own interval.
    """
    names = [name for name in evaluation if name + SUFFIX in evaluation]
    rows = [
        member._asdict() | {name: evaluation[name + SUFFIX][index] for name in names}
        for index, member in enumerate(members)
    ]
    intervals = []
    for rate, indices in rates(members).items():
        alike = [rows[index] for index in indices]
        estimates = {name: t_interval([row[name] for row in alike]) for name in names}
        spans = {name: (estimate.mean, estimate.low, estimate.high) for name, estimate in estimates.items()}
        intervals.append({'learning_rate': rate, 'members': len(alike)} | spans)
    return {
        'sweep': {'members': rows, 'intervals': intervals, 'best': best_member(members, evaluation['loss_members'])}
    }
