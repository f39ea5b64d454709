"""Prefix tuning (arXiv 2101.00190): P trained keys and values before the text's, in every layer."""

import jax

from lmtrain import tree
from lmtrain.adapt.adapter import Adapter, key_of
from lmtrain.errors import InputError
from lmtrain.models.virtual_tokens import materialise

TRAINABLE = r'(.*/prefix_(key|value)|prefix/.*)'
LEAVES = ('prefix_key', 'prefix_value')

fold = materialise  # a network is replaced by its output


def adapter(*, length: int, num_kv_heads: int, head_dim: int, stddev: float = 0.02, hidden: int = 0) -> Adapter:
    """`prefix_key`, `prefix_value` float32 [N, P, G, K] in the attention of every layer, P = `length`.

    The keys are not rotated. They precede every document, which begins at position P, and count towards its window
    (`models.attention_kernels.AttentionMask`).

    Args:
      num_kv_heads, head_dim: G and K of the model.
      stddev: of the initial values, which are normal; PEFT's is 1.
      hidden: width of the network with one tanh layer that computes them from `prefix/embedding` [P, D]; `fold`
        replaces it by its output. 0: no network.

    Raises InputError if a number is out of range.
    """
    if length < 1 or hidden < 0 or not stddev >= 0:
        raise InputError(
            f'adapt.prefix.length={length} must be at least 1, adapt.prefix.hidden={hidden} and '
            f'adapt.prefix.stddev={stddev} at least 0'
        )

    def new_leaves(rng, params):
        sizes = tree.segment_sizes(params)
        if hidden:
            return {'prefix': network(rng, params['embed']['embedding'].shape[1], sum(sizes.values()))}

        def leaf(path, layers):
            return stddev * jax.random.normal(key_of(rng, path), (layers, length, num_kv_heads, head_dim))

        return {
            name: {'attention': {leaf_name: leaf(f'{name}/{leaf_name}', layers) for leaf_name in LEAVES}}
            for name, layers in sizes.items()
        }

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

    return new_leaves
