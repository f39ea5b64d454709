"""The train state: what a run is at one moment, and all that a checkpoint of it must hold."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lmtrain import tree


class TrainState(struct.PyTreeNode):
    """Two trees of parameters and what moves them. Frozen leaves have no gradient, moment or float32 copy.

    Attributes:
      step: int32 scalar, updates asked for so far (skipped ones included).
      trainable: Params that are differentiated.
      frozen: Params that are not.
      opt_state: the optimizer's state over `trainable`.
      rng: uint32 key data; the key of a step is `fold_in(rng, step)`.
      counters: int32 scalars {'skipped', 'skipped_in_a_row'}: updates dropped for a non-finite loss or gradient.
    """

    step: Any
    trainable: tree.Params
    frozen: tree.Params
    opt_state: Any
    rng: Any
    counters: dict[str, Any]

    @property
    def params(self) -> tree.Params:
        """All parameters, as the model takes them."""
        return tree.join(self.frozen, self.trainable)


def create(rng: jax.Array, params: tree.Params, trainable: str, tx) -> TrainState:
    """The state before the first step. `trainable` is the regex of trainable paths; `tx` an optax transformation."""
    trained, frozen = tree.split(params, trainable)
    # One buffer each: a donated state may not hold the same array twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trained,
        frozen=frozen,
        opt_state=tx.init(trained),
        rng=jax.random.key_data(rng),
        counters={'skipped': jnp.zeros((), jnp.int32), 'skipped_in_a_row': jnp.zeros((), jnp.int32)},
    )
