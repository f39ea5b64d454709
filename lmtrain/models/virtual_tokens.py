"""Virtual tokens before the text: a soft prompt's embeddings, and prefixes of keys and values in every layer.

Both shift the positions of the text by their length, same as PEFT. The P embeddings of a soft prompt are in the row
(and in the cache) before its first token. A prefix is not in the row: its keys are not rotated, and precede every
document.

    soft prompt   embeddings       p0 p1 │ t0 t1 t2        positions 0 1 │ 2 3 4
    prefix        keys, values     k0 k1 │ t0 t1 t2        positions     │ 2 3 4
"""

import jax
import jax.numpy as jnp

from lmtrain import tree
from lmtrain.errors import InputError

NETWORKS = {'prompt', 'prefix'}  # subtrees at the root that `materialise` reads


def materialise(params):
    """Parameters with `prompt/embedding` and `prefix_key`, `prefix_value` instead of the networks that compute them.

    The network of P-tuning (arXiv 2103.10385): `prompt/mlp_0`, `prompt/mlp_1`, ... {kernel, bias}, applied to
    `prompt/embedding` [P, D] with a ReLU between two of them. The network of prefix tuning (arXiv 2101.00190): `prefix`
    {embedding [P, D], up {kernel [D, F], bias}, down {kernel [F, N, 2, G, K], bias}} at the root, with a tanh between,
    computes keys and values of every layer.
    """
    params = dict(params)
    if 'mlp_0' in params.get('prompt', {}):
        network = params['prompt']
        x_PD = network['embedding']
        for i in range(len(network) - 1):
            layer = network[f'mlp_{i}']
            x_PD = (jax.nn.relu(x_PD) if i else x_PD) @ layer['kernel'] + layer['bias'][None]
        params['prompt'] = {'embedding': x_PD}
    if network := params.pop('prefix', None):
        x_PF = jnp.tanh(network['embedding'] @ network['up']['kernel'] + network['up']['bias'][None])
        flat_PNGK = jnp.tensordot(x_PF, network['down']['kernel'], 1) + network['down']['bias'][None]
        first = 0
        for name, n in tree.segment_sizes(params).items():
            key, value = (flat_PNGK[:, first : first + n, i].swapaxes(0, 1) for i in range(2))
            attention = params[name]['attention'] | {'prefix_key': key, 'prefix_value': value}
            params[name] = params[name] | {'attention': attention}
            first += n
    return params


def prompt(params):
    """The soft prompt [P, D] among parameters, or None."""
    return params.get('prompt', {}).get('embedding')


def prefix(params) -> int:
    """Length P of the prefixes [n, P, G, K] of the layers; 0 without prefixes.

    InputError: the lengths differ, or only some layers have a prefix.
    """
    stacks = (leaves for name, leaves in params.items() if name.startswith(tree.STACK))
    layers = [leaves.get('attention', {}).get('prefix_key') for leaves in stacks]
    lengths = {0 if leaf is None else leaf.shape[1] for leaf in layers}
    if len(lengths) > 1:
        raise InputError(f'the prefixes of the layers have different lengths: {sorted(lengths)}')
    return max(lengths, default=0)


def num_virtual_tokens(params) -> int:
    """Number of positions before the first token of a text: those of a soft prompt and of prefixes."""
    leaves = [prompt(params), params.get('prefix', {}).get('embedding')]
    return prefix(params) + sum(len(leaf) for leaf in leaves if leaf is not None)


def room(model, params) -> int:
    """Tokens of the longest text that the model reads: positions begin after virtual tokens, and after an offset."""
    return model.max_len - model.position_offset - num_virtual_tokens(params)


def prepend(params, batch, past=()):
    """(batch, the prompt [P, D] to prepend to every row or None, number of positions of the prefixes).

    The columns of the batch get P positions in front, which belong to the row's first document. A text before the rows,
    `past`, contains the prompt.
    """
    own, shift = prompt(params), prefix(params)
    if own is None or past:
        return batch, None, shift
    if 'positions' in batch:
        batch = batch | {'positions': batch['positions'] + own.shape[0]}
    return _lengthen(batch, own.shape[0]), own, shift


def _lengthen(batch, size: int):
    front = [(0, 0), (size, 0)]
    longer = {'tokens': jnp.pad(batch['tokens'], front)}
    if 'segment_ids' in batch:
        longer['segment_ids'] = jnp.pad(batch['segment_ids'], front, mode='edge')
    if 'branches' in batch:
        longer['branches'] = jnp.pad(batch['branches'], front)
    if 'positions' in batch:
        longer['positions'] = jnp.pad(batch['positions'], front).at[:, :size].set(jnp.arange(size)[None])
    return batch | longer
