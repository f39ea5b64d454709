"""Soft prompts and prefixes equal their definitions in NumPy."""

import jax.numpy as jnp
import numpy as np

from lmtrain.models import virtual_tokens

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_ptuning_has_relus_only_between_its_layers():
    """arXiv 2103.10385, same as PEFT's PromptEncoder: Linear, ReLU, Linear, ReLU, Linear."""
    layers = {f'mlp_{i}': {'kernel': draw(a, b), 'bias': draw(b)} for i, (a, b) in enumerate([(4, 6), (6, 5), (5, 3)])}
    embedding = draw(7, 4)
    x = embedding
    for i in range(3):
        x = np.maximum(x, 0) @ layers[f'mlp_{i}']['kernel'] if i else x @ layers['mlp_0']['kernel']
        x = x + layers[f'mlp_{i}']['bias']
    actual = virtual_tokens.materialise({'prompt': {'embedding': embedding} | layers, 'other': {}})
    np.testing.assert_allclose(actual['prompt']['embedding'], x, rtol=1e-5, atol=1e-5)
    assert actual['prompt'].keys() == {'embedding'} and 'other' in actual


def test_the_network_of_prefix_tuning_computes_keys_and_values_in_order():
    """arXiv 2101.00190: P = MLP(P'), with a tanh; layers in two segments of 1 and 2."""
    P, D, F, N, G, K = 5, 4, 6, 3, 2, 8
    network = {'embedding': draw(P, D), 'up': {'kernel': draw(D, F), 'bias': draw(F)}}
    network['down'] = {'kernel': draw(F, N, 2, G, K), 'bias': draw(N, 2, G, K)}
    segments = {'layers_0': {'attention': {'x': draw(1, 2)}}, 'layers_1': {'attention': {'x': draw(2, 2)}}}
    hidden = np.tanh(network['embedding'] @ network['up']['kernel'] + network['up']['bias'])
    expected = np.einsum('pf,fncgk->ncpgk', hidden, network['down']['kernel']) + network['down']['bias'][:, :, None]
    actual = virtual_tokens.materialise(segments | {'prefix': network})
    for name, layers in (('layers_0', slice(0, 1)), ('layers_1', slice(1, 3))):
        for index, leaf in enumerate(('prefix_key', 'prefix_value')):
            values = actual[name]['attention'][leaf]
            np.testing.assert_allclose(values, expected[layers, index], rtol=1e-5, atol=1e-5)
    assert virtual_tokens.prefix(actual) == P == virtual_tokens.num_virtual_tokens(actual) and 'prefix' not in actual


def test_a_soft_prompt_belongs_to_the_first_document_and_shifts_positions_once():
    params = {'prompt': {'embedding': jnp.ones((2, 4))}, 'layers': {'attention': {'x': jnp.ones((1, 2))}}}
    batch = {'tokens': jnp.array([[5, 6, 7]]), 'segment_ids': jnp.array([[3, 3, 0]])}
    batch |= {'positions': jnp.array([[0, 1, 0]])}
    entered, actual, shift = virtual_tokens.prepend(params, batch)
    assert entered['tokens'].tolist() == [[0, 0, 5, 6, 7]] and entered['segment_ids'].tolist() == [[3, 3, 3, 3, 0]]
    assert entered['positions'].tolist() == [[0, 1, 2, 3, 2]] and actual.shape == (2, 4) and shift == 0
    again, none, _ = virtual_tokens.prepend(params, batch, past=({'length': 5},))
    assert none is None and again['tokens'].shape == (1, 3)
