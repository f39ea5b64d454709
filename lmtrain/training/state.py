"""The train state: everything that changes from step to step, and that a checkpoint stores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lmtrain import tree


class TrainState(struct.PyTreeNode):
    """Two trees of parameters, and the optimizer state of the trainable one.

    A frozen leaf has no gradient, no gradient accumulator and no optimizer state. The step differentiates with respect
    to `trainable` only (`training.step.make_gradient`).

    Attributes:
      step: int32 scalar, the number of steps taken, skipped updates included.
      trainable: Params that are differentiated, in float32.
      frozen: all other Params.
      opt_state: of the optimizer, for `trainable`.
      rng: uint32 key data; the key of a step is `fold_in(rng, step)`.
      counters: int32 scalars {'skipped', 'skipped_in_a_row'}: updates that were skipped because a value was not finite.
    """

    step: Any
    trainable: tree.Params
    frozen: tree.Params
    opt_state: Any
    rng: Any
    counters: dict[str, Any]

    @functools.cached_property
    def params(self) -> tree.Params:
        """All parameters: the argument of the model."""
        return tree.join(self.frozen, self.trainable)


def create(rng: jax.Array, params: tree.Params, trainable: str, tx) -> TrainState:
    """The state before the first step. The regex `trainable` of paths splits `params`; `tx`: optax transformation."""
    trained, frozen = tree.split(params, trainable)
    # One array for each field: a donated state may not hold the same buffer twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trained,
        frozen=frozen,
        opt_state=tx.init(trained),
        rng=jax.random.key_data(rng),
        counters={'skipped': jnp.zeros((), jnp.int32), 'skipped_in_a_row': jnp.zeros((), jnp.int32)},
    )
