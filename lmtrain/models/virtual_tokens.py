"""What stands ahead of a row's text: a soft prompt's embeddings, and prefixes of keys and values in every layer.

Both shift the positions of the text by their length, as PEFT has it. A prompt's P embeddings take places in the row
(and in the cache) before the first token; a prefix takes none: its keys are not rotated, and precede every document.
"""

import jax
import jax.numpy as jnp

from lmtrain import tree
from lmtrain.errors import InputError


def materialise(params):
    """Parameters whose prompt and prefixes are leaves of their own, no longer the output of a network.

    Found: `prompt/mlp_0`, `prompt/mlp_1`, ... {kernel, bias}, through which `prompt/embedding` [P, D] goes with a ReLU
    between (P-tuning, arXiv 2103.10385); and at the root `prefix` {embedding [P, D], up {kernel [D, F], bias}, down
    {kernel [F, N, 2, G, K], bias}}, a tanh between, which gives keys and values of every layer (arXiv 2101.00190).
    """
    params = dict(params)
    if 'mlp_0' in params.get('prompt', {}):
        network = params['prompt']
        x_PD = network['embedding']
        for i in range(len(network) - 1):
            layer = network[f'mlp_{i}']
            x_PD = (jax.nn.relu(x_PD) if i else x_PD) @ layer['kernel'] + layer['bias'][None]
        params['prompt'] = {'embedding': x_PD}
    if 'prefix' in params:
        network = params.pop('prefix')
        x_PF = jnp.tanh(network['embedding'] @ network['up']['kernel'] + network['up']['bias'][None])
        flat_PNGK = jnp.tensordot(x_PF, network['down']['kernel'], 1) + network['down']['bias'][None]
        first = 0
        for name in tree.segments(params):
            n = jax.tree.leaves(params[name])[0].shape[0]
            key, value = (flat_PNGK[:, first : first + n, i].swapaxes(0, 1) for i in range(2))
            attention = params[name]['attention'] | {'prefix_key': key, 'prefix_value': value}
            params[name] = params[name] | {'attention': attention}
            first += n
    return params


def prompt(params):
    """The soft prompt [P, D] among parameters, or None."""
    return params.get('prompt', {}).get('embedding')


def prefix(params) -> int:
    """Positions that the prefixes of the layers [n, P, G, K] take.

    Raises ValueError where layers have prefixes of several lengths, or some have none.
    """
    layers = [params[name].get('attention', {}).get('prefix_key') for name in tree.segments(params)]
    lengths = {0 if leaf is None else leaf.shape[1] for leaf in layers}
    if len(lengths) > 1:
        raise InputError(f'the prefixes of the layers have the lengths {sorted(lengths)}, where one is wanted')
    return lengths.pop()


def num_virtual_tokens(params) -> int:
    """Positions before the first token of a text: those of a soft prompt and of prefixes."""
    found = [prompt(params), params.get('prefix', {}).get('embedding')]
    return prefix(params) + sum(len(leaf) for leaf in found if leaf is not None)


def prepend(params, batch, cache):
    """(batch, cache, the prompt [P, D] to put before every row or None, positions of the prefixes).

    The columns that say where tokens stand get P more in front, of the row's first document. A cache grows by as many,
    and says under 'prompted' from then on that the prompt is in it.
    """
    found, shift = prompt(params), prefix(params)
    if found is None:
        return batch, cache, None, shift
    if 'positions' in batch:
        batch = batch | {'positions': batch['positions'] + found.shape[0]}
    if cache is not None and 'prompted' in cache:
        return batch, cache, None, shift
    return *_lengthen(batch, cache, found.shape[0]), found, shift


def _lengthen(batch, cache, size: int):
    if cache is not None:
        room = [(0, 0), (0, 0), (0, size), (0, 0), (0, 0)]
        grown = {name: jnp.pad(cache[name], room) for name in ('key', 'value')}
        cache = cache | grown | {'prompted': jnp.int32(size)}
    front = [(0, 0), (size, 0)]
    longer = {'tokens': jnp.pad(batch['tokens'], front)}
    if 'segment_ids' in batch:
        longer['segment_ids'] = jnp.pad(batch['segment_ids'], front, mode='edge')
    if 'positions' in batch:
        longer['positions'] = jnp.pad(batch['positions'], front).at[:, :size].set(jnp.arange(size)[None])
    return batch | longer, cache
