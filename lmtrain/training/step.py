"""One train step: bind, differentiate what learns, reduce, update; and its counterpart without the update."""

import jax
import jax.numpy as jnp
import optax

from lmtrain import tree
from lmtrain.models.hooks import NO_SHARDING
from lmtrain.parallel import collectives
from lmtrain.training.state import TrainState


def sums(objective, model, params, batch, *, key=None, adapter_dropout=0.0, share=None):
    """Weighted sums of an objective over a batch: ({name: sum(values * weights)}, sum(weights)), float32 scalars.

    Sums and not means cross every boundary (micro-batches, devices, evaluation batches), so that how a batch was cut
    cannot change a mean taken at the end. `key` binds dropout; without it the model evaluates. `share` goes to the
    model where its leaves or rows lie in pieces.
    """

    def forward(columns):
        rngs = None if key is None else {'dropout': key}
        options = {'adapter_dropout': adapter_dropout} if adapter_dropout else {}
        options |= {'share': share} if share else {}
        return model.apply({'params': params}, columns, train=key is not None, rngs=rngs, **options)

    values, weights = objective(forward, batch)
    return {name: jnp.sum(value * weights) for name, value in values.items()}, jnp.sum(weights)


def _micro_batches(batch, accumulate: int):
    """[B, ...] -> [A, B/A, ...], each micro-batch taking every A-th row, so rows stay on the device that holds them."""
    return jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)


def make_train_step(
    model,
    objective,
    tx,
    schedule,
    *,
    learning_rate,
    learning_rates=(),
    clip=0.0,
    accumulate=1,
    trainable,
    adapter_dropout=0.0,
    keep_logits=False,
    mesh=None,
    specs=None,
):
    """The function (state, batch, progress) -> (state, metrics) that `jax.jit` compiles.

    Args:
      model: a module whose `apply({'params': p}, batch, train=, rngs=)` gives the heads.
      objective: (forward, batch) -> ({name: values}, weights); `loss` is differentiated.
      tx: optax transformation giving direction and decay, without the learning rate.
      schedule: progress -> factor of the learning rate.
      learning_rate: at the peak. learning_rates: [(path regex, factor)], first match wins, 1.0 elsewhere.
      clip: limit of the gradient's global norm; 0 is none.
      accumulate: micro-batches; the gradient is that of the whole batch whatever the masks.
      trainable: tree of what learns (arrays or shapes), for its paths.
      adapter_dropout: share of its input that a low-rank path loses in training.
      keep_logits: see `Share.keep_logits`.
      mesh, specs: the mesh, and {path: PartitionSpec} of all parameters; without them nothing is divided by hand, and
        attention has no kernel.

    Returns:
      step(state, batch, progress float32 scalar in [0, 1]). Where the loss, the gradient or the update is not finite
      the state stays as it was but for `step` and the counters. Metrics: float32 scalars.
    """
    factors = tree.match(learning_rates, tree.flatten(trainable), default=1.0)
    factors = tree.unflatten(factors)

    def gradient(params, batch, key, share=None):
        trainable, frozen = params
        share = (share or NO_SHARDING)._replace(keep_logits=True) if keep_logits else share
        options = {'key': key, 'adapter_dropout': adapter_dropout, 'share': share}

        def total(trainable, micro):
            values, weight = sums(objective, model, tree.join(frozen, trainable), micro, **options)
            return values['loss'], (values, weight)

        grad = jax.grad(total, has_aux=True)
        if accumulate == 1:
            return grad(trainable, batch)

        def add(carry, micro):
            return jax.tree.map(jnp.add, carry, grad(trainable, micro)), None

        micro_batches = _micro_batches(batch, accumulate)
        shapes = jax.eval_shape(grad, trainable, jax.tree.map(lambda x: x[0], micro_batches))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, micro_batches)[0]

    if mesh is not None:
        gradient = collectives.shard_step(mesh, specs, model.dtype, gradient)

    def step(state: TrainState, batch, progress):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        grads, (values, weight) = gradient((state.trainable, state.frozen), batch, key)
        # A batch without one learning token has the gradient zero, not 0/0.
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
        norm = optax.tree.norm(grads) * scale
        rate = learning_rate * schedule(progress)
        clipped = scale * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)) if clip else scale
        grads = jax.tree.map(lambda g: g * clipped, grads)

        directions, opt_state = tx.update(grads, state.opt_state, state.trainable)
        updates = jax.tree.map(lambda d, factor: (-rate * factor) * d, directions, factors)
        update_norm = optax.tree.norm(updates)
        finite = jnp.isfinite(values['loss']) & jnp.isfinite(norm) & jnp.isfinite(update_norm)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        trainable = keep(optax.apply_updates(state.trainable, updates), state.trainable)
        bad = 1 - finite.astype(jnp.int32)
        counters = {
            'skipped': state.counters['skipped'] + bad,
            'skipped_in_a_row': bad * (state.counters['skipped_in_a_row'] + 1),
        }
        metrics = {name: value * scale for name, value in values.items()} | {
            'targets': weight,
            'learning_rate': rate,
            'grad_norm': norm,
            'update_norm': update_norm,
            'param_norm': optax.tree.norm(trainable),
        }
        state = state.replace(
            step=state.step + 1, trainable=trainable, opt_state=keep(opt_state, state.opt_state), counters=counters
        )
        return state, metrics | counters

    return step


def make_eval_step(model, objective, mesh=None, specs=None):
    """The function (params, batch) -> sums: those of the objective, `targets` (their weight), and of a language model
    `bytes`, the column of the batch at the targets that count. `mesh`, `specs`: as in training.
    """

    def total(params, batch, key=None, share=None):
        values, weight = sums(objective, model, *params, batch, share=share)
        if 'targets' not in batch:  # a task of labels
            return None, values | {'targets': weight}
        spelled = jnp.sum(batch['bytes'] * batch['loss_mask'])
        return None, values | {'targets': weight, 'bytes': spelled}

    if mesh is not None:
        total = collectives.shard_step(mesh, specs, model.dtype, total)
    return lambda params, batch: total((params,), batch, None)[1]
