"""A head beside the model's own: one projection of the final hidden states."""

import jax
import jax.numpy as jnp

from lmtrain.adapt.adapter import Adapter, key_of
from lmtrain.errors import InputError
from lmtrain.models.linear import stddev

TRAINABLE = r'heads/.*'


def adapter(*, name: str, classes: int, bias: bool = True) -> Adapter:
    """`heads/<name>` {kernel [D, C], bias [C]}, which gives outputs[name] float32 [B, T, C], C = `classes`.

    It has no closed form to fold into. Raises ValueError where the name is no word or there is no class.
    """
    if not name.isidentifier() or classes < 1:
        raise InputError(f'head.name={name!r} must be a word, and head.classes={classes} at least 1')

    def extend(rng, params):
        width = params['embed']['embedding'].shape[1]
        kernel = stddev(width) * jax.random.normal(key_of(rng, f'heads/{name}'), (width, classes))
        return {'heads': {name: {'kernel': kernel} | ({'bias': jnp.zeros(classes)} if bias else {})}}

    return Adapter(extend, dict)
