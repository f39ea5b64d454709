"""Prefix tuning (arXiv 2101.00190): P learned keys and values before the text's, in every layer."""

import jax

from lmtrain import tree
from lmtrain.adapt.adapter import Adapter, key_of
from lmtrain.errors import InputError
from lmtrain.models.virtual_tokens import materialise

TRAINABLE = r'(.*/prefix_(key|value)|prefix/.*)'


def adapter(*, length: int, num_kv_heads: int, head_dim: int, stddev: float = 0.02, hidden: int = 0) -> Adapter:
    """`prefix_key`, `prefix_value` float32 [N, P, G, K] in the attention of every layer, P = `length`.

    Keys are read as they are, after the rotation of the text's. They precede every document, which begins at position
    P, and count towards its window (attend.attend).

    Args:
      num_kv_heads, head_dim: G and K, the model's.
      stddev: of the initial values, normal; 1 is PEFT's.
      hidden: width of the network that makes them from `prefix/embedding` [P, D], a tanh deep, which `fold` replaces by
        its output; 0 is none.

    Raises ValueError where a number is out of range.
    """
    if length < 1 or hidden < 0 or not stddev >= 0:
        raise InputError(
            f'prefix.length={length} must be at least 1, prefix.hidden={hidden} and prefix.stddev={stddev} at least 0'
        )

    def extend(rng, params):
        names = tree.segments(params)
        sizes = {name: jax.tree.leaves(params[name])[0].shape[0] for name in names}
        if hidden:
            return {'prefix': network(rng, params['embed']['embedding'].shape[1], sum(sizes.values()))}

        def one(name):
            shape = sizes[name], length, num_kv_heads, head_dim
            leaves = (f'prefix_{kind}' for kind in ('key', 'value'))
            return {leaf: stddev * jax.random.normal(key_of(rng, f'{name}/{leaf}'), shape) for leaf in leaves}

        return {name: {'attention': one(name)} for name in names}

    def network(rng, width, layers):
        shapes = {
            'embedding': ((length, width), 1.0),
            'up/kernel': ((width, hidden), width**-0.5),
            'up/bias': ((hidden,), 0.0),
            'down/kernel': ((hidden, layers, 2, num_kv_heads, head_dim), stddev * hidden**-0.5),
            'down/bias': ((layers, 2, num_kv_heads, head_dim), 0.0),
        }
        return tree.unflatten(
            {path: std * jax.random.normal(key_of(rng, path), shape) for path, (shape, std) in shapes.items()}
        )

    return Adapter(extend, materialise)
