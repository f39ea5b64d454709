"""An added head: one projection of the final hidden states."""

import jax
import jax.numpy as jnp

from lmtrain.adapt.adapter import Adapter, key_of
from lmtrain.errors import InputError
from lmtrain.models.linear import stddev

TRAINABLE = r'heads/.*'


def adapter(*, name: str, classes: int, bias: bool = True) -> Adapter:
    """`heads/<name>` {kernel [D, C], bias [C]}, which computes outputs[name] float32 [B, T, C], C = `classes`.

    Raises InputError if the name is not an identifier or `classes` is below 1.
    """
    if not name.isidentifier() or classes < 1:
        raise InputError(f'head.name={name!r} must be an identifier, and head.classes={classes} at least 1')

    def new_leaves(rng, params):
        width = params['embed']['embedding'].shape[1]
        kernel = stddev(width) * jax.random.normal(key_of(rng, f'heads/{name}'), (width, classes))
        leaves = {'kernel': kernel, 'bias': jnp.zeros(classes)} if bias else {'kernel': kernel}
        return {'heads': {name: leaves}}

    return new_leaves
