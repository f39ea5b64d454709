"""IA3 (arXiv 2205.05638): trained factors of keys, values and the input of the feed-forward's last product."""

from collections.abc import Mapping

import jax.numpy as jnp

from lmtrain import tree
from lmtrain.adapt.adapter import Adapter, sites

TRAINABLE = r'.*/ia3_(in|out)'
OUTPUTS = r'.*/attention/(key|value)/kernel'
INPUTS = r'.*/mlp/down/kernel'


def adapter(*, outputs: str = OUTPUTS, inputs: str = INPUTS) -> Adapter:
    """Factors next to kernels [in, out], 1 at first: ia3_out [out] if `outputs` matches, ia3_in [in] if `inputs` does.

    '' matches none. The adapter raises InputError if a regex matches nothing.
    """

    def new_leaves(rng, params):
        new, leaves = {}, tree.flatten(params)
        for regex, name, axis in ((outputs, 'out', -1), (inputs, 'in', -2)):
            for path in sites(params, [(regex, True)], f'ia3.{name}puts') if regex else ():
                shape = leaves[path].shape
                new[f'{path.rpartition("/")[0]}/ia3_{name}'] = jnp.ones((*shape[:-2], shape[axis]))
        return tree.unflatten(new)

    return new_leaves


def fold(params: Mapping) -> tree.Params:
    """`params` with every factor merged into its kernel and bias: products in float32, dtypes unchanged."""
    leaves = tree.flatten(params)
    for path in [path for path in leaves if path.endswith(('/ia3_in', '/ia3_out'))]:
        parent, _, name = path.rpartition('/')
        factor = leaves.pop(path).astype(jnp.float32)
        factors = {'kernel': factor[..., None, :] if name == 'ia3_out' else factor[..., None]}
        if name == 'ia3_out' and f'{parent}/bias' in leaves:
            factors['bias'] = factor
        for target, factor in factors.items():
            leaf = leaves[f'{parent}/{target}']
            leaves[f'{parent}/{target}'] = (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)
    return tree.unflatten(leaves)
