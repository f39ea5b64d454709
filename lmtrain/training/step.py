"""The train step and the evaluation step: pure functions that `jax.jit` compiles.

    state.trainable, state.frozen          batch: columns [B, ...]
              |                                 |  A micro-batches of B/A rows (lax.scan)
              +----------------+----------------+
                               v
              forward -> objective -> values, weights           float32, not reduced
                               |
              sums of values * weights, sum of weights, and d sums['loss'] / d trainable
                               |  added over micro-batches; over devices by the collectives
                               v
              gradient / sum of weights -> clip by global norm -> tx.update (direction and decay)
                               |
              update = -learning_rate * schedule(progress) * factor(path) * direction
                               v
              all finite?  yes: trainable + update    no: the state as it was, `skipped` + 1

Only sums cross a boundary (micro-batches, devices, batches of an evaluation), and one division follows at the end, so
the division of a batch changes a mean by float32 rounding only.

The state is already split into trainable and frozen leaves (training/state.py). A frozen leaf costs no weight gradient
and has no optimizer state. In a frozen layer above a trainable one (closer to the output) the backward pass still
computes the gradient of the activations, and FSDP gathers its parameters again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmtrain import tree
from lmtrain.models.hooks import NO_SHARDING
from lmtrain.parallel import collectives, sharding
from lmtrain.training.state import TrainState


def sums(
    objective, model, params, batch, *, key=None, adapter_dropout=0.0, hooks=None, reference=None, whole_rows=False
):
    """Weighted sums of an objective over a batch: ({name: sum(values * weights)}, sum(weights)), float32 scalars.

    Args:
      key: of dropout; None evaluates.
      adapter_dropout: dropout rate on the LoRA input in training.
      hooks: ShardingHooks for the model if its parameters or rows are sharded.
      reference: params -> those of the reference model, which `forward(columns, reference_model=True)` applies, without
        dropout and gradient. None: the objective has no reference model.
      whole_rows: the objective reads sums over the positions of a row: if devices have parts of rows, see `_gathered`.
    """

    sharded = {'hooks': hooks} if hooks else {}

    def forward(columns, reference_model=False):
        if reference_model:
            frozen = jax.lax.stop_gradient(reference(params))
            return model.apply({'params': frozen}, columns, train=False, rngs=None, **sharded)
        rngs = None if key is None else {'dropout': key}
        options = sharded | ({'adapter_dropout': adapter_dropout} if adapter_dropout else {})
        return model.apply({'params': params}, columns, train=key is not None, rngs=rngs, **options)

    if whole_rows and hooks and hooks.all_gather_sequence:
        objective = _gathered(objective, hooks)
    values, weights = objective(forward, batch)
    return {name: jnp.sum(value * weights) for name, value in values.items()}, jnp.sum(weights)


def _gathered(objective, hooks):
    """The objective of whole rows as one of the positions of this device.

    Columns and outputs are gathered, [B, T] numbers and not activations. All devices of a row compute the same values,
    which count on the first one; the backward pass of the gathering returns each position its gradient.
    """

    def gather(columns):
        whole = {name: x.ndim > 1 and name not in sharding.SEGMENT_COLUMNS for name, x in columns.items()}
        return {name: hooks.all_gather_sequence(x) if whole[name] else x for name, x in columns.items()}

    def of_part(forward, batch):
        rows = gather(batch)

        def outputs_of(columns, **options):
            assert columns is rows, 'an objective of whole rows reads the outputs of its own batch'
            return gather(forward(batch, **options))

        values, weights = objective(outputs_of, rows)
        return values, jnp.where(hooks.position_offset(1) == 0, weights, 0.0)

    return of_part


def make_gradient(
    model,
    objective,
    *,
    accumulate=1,
    adapter_dropout=0.0,
    keep_logits=False,
    mesh=None,
    specs=None,
    reference=None,
    whole_rows=False,
):
    """The function ((trainable, frozen), batch, key) -> (gradient, ({name: sum}, weight)).

    The gradient is that of the summed loss with respect to `trainable`; the sums are those of `sums`.

    Args:
      model: a module; `apply({'params': params}, batch, train=, rngs=)` returns the outputs of its heads.
      objective: (forward, batch) -> ({name: values}, weights); 'loss' is differentiated.
      accumulate: number of micro-batches; the gradient is that of the whole batch for any masks.
      adapter_dropout: see `sums`.
      keep_logits: see `ShardingHooks.keep_logits`.
      mesh, specs: the mesh, and {path: PartitionSpec} of all parameters. Without them nothing is sharded explicitly,
        and attention uses no fused kernel.
      reference, whole_rows: see `sums`.
    """

    def gradient(params, batch, key, hooks=None):
        trainable, frozen = params
        hooks = (hooks or NO_SHARDING)._replace(keep_logits=True) if keep_logits else hooks

        def loss(trainable, micro_batch):
            options = {'key': key, 'adapter_dropout': adapter_dropout, 'hooks': hooks}
            options |= {'reference': reference, 'whole_rows': whole_rows}
            values, weight = sums(objective, model, tree.join(frozen, trainable), micro_batch, **options)
            return values['loss'], (values, weight)

        return _accumulated(jax.grad(loss, has_aux=True), trainable, batch, accumulate)

    return gradient if mesh is None else collectives.shard_step(mesh, specs, model.dtype, gradient)


def _accumulated(gradient, trainable, batch, accumulate: int):
    """The sum of gradient(trainable, micro_batch) over the micro-batches of a batch."""
    if accumulate == 1:
        return gradient(trainable, batch)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient(trainable, micro_batch)), None

    micro_batches = _micro_batches(batch, accumulate)
    shapes = jax.eval_shape(gradient, trainable, jax.tree.map(lambda x: x[0], micro_batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, micro_batches)[0]


def _micro_batches(batch, accumulate: int):
    """[B, ...] -> [A, B/A, ...]. Micro-batch a has the rows a, a + A, ...: every row stays on its device."""
    return jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)


def make_train_step(gradient, tx, schedule, *, learning_rate, trainable, learning_rates=(), clip=0.0):
    """The function (state, batch, progress) -> (state, metrics).

    Args:
      gradient: from `make_gradient`.
      tx: optax transformation that returns direction and decay, without the learning rate.
      schedule: progress -> factor of the learning rate.
      learning_rate: the peak.
      trainable: tree of the trainable leaves (arrays or shapes), for its paths.
      learning_rates: [(path regex, factor)], first match wins; 1.0 if none matches.
      clip: limit of the global norm of the gradient; 0 is no limit.

    Returns:
      step(state, batch, progress), progress a float32 scalar in [0, 1]. If the loss, the gradient or the update is
      not finite, or no target counts, only `step` and the counters of the state change. Metrics: float32 scalars, and
      the counters (int32).
    """
    factors = tree.unflatten(tree.match(learning_rates, tree.flatten(trainable), default=1.0))

    def step(state: TrainState, batch, progress):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        grads, (values, weight) = gradient((state.trainable, state.frozen), batch, key)
        # The gradient of a batch without a single target is 0, not 0/0.
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
        norm = optax.tree.norm(grads) * scale
        rate = learning_rate * schedule(progress)
        clipped = scale * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)) if clip else scale
        grads = jax.tree.map(lambda g: g * clipped, grads)

        directions, opt_state = tx.update(grads, state.opt_state, state.trainable)
        updates = jax.tree.map(lambda d, factor: (-rate * factor) * d, directions, factors)
        update_norm = optax.tree.norm(updates)
        finite = jnp.isfinite(values['loss']) & jnp.isfinite(norm) & jnp.isfinite(update_norm)

        taken = finite & (weight > 0)  # without a target, Adam would move on by its momentum

        def if_taken(new, old):
            return jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)

        trainable = if_taken(optax.apply_updates(state.trainable, updates), state.trainable)
        counters = _count_skipped(state.counters, finite)
        metrics = {name: value * scale for name, value in values.items()} | {
            'targets': weight,
            'learning_rate': rate,
            'grad_norm': norm,
            'update_norm': update_norm,
            'param_norm': optax.tree.norm(trainable),
        }
        opt_state = if_taken(opt_state, state.opt_state)
        state = state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state, counters=counters)
        return state, metrics | counters

    return step


def _count_skipped(counters, finite):
    """The counters after a step; see `TrainState.counters`."""
    skipped = 1 - finite.astype(jnp.int32)
    return {
        'skipped': counters['skipped'] + skipped,
        'skipped_in_a_row': skipped * (counters['skipped_in_a_row'] + 1),
    }


def make_eval_step(model, objective, mesh=None, specs=None, reference=None, whole_rows=False):
    """The function (params, batch) -> {name: sum}: the sums of the objective, and 'targets', the sum of its weights.

    If the batch has the column 'bytes', 'bytes' is its sum over the targets that count. `mesh`, `specs`, `reference`,
    `whole_rows`: see `make_gradient`.
    """

    def evaluate(params, batch, key=None, hooks=None):
        options = {'hooks': hooks, 'reference': reference, 'whole_rows': whole_rows}
        values, weight = sums(objective, model, *params, batch, **options)
        if 'bytes' not in batch:
            return None, values | {'targets': weight}
        num_bytes = jnp.sum(batch['bytes'] * batch['loss_mask'])
        return None, values | {'targets': weight, 'bytes': num_bytes}

    if mesh is not None:
        evaluate = collectives.shard_step(mesh, specs, model.dtype, evaluate)
    return lambda params, batch: evaluate((params,), batch, None)[1]


def by_length(compiled: dict[int, Any]):
    """The function (state, batch, progress) -> (state, metrics) of compiled train steps {T: program}."""
    if len(compiled) == 1:
        return next(iter(compiled.values()))
    return lambda state, batch, progress: compiled[batch['tokens'].shape[-1]](state, batch, progress)
