"""The ledger of an arm: FLOPs against compiled programs, stored bytes, prices, and when training breaks even."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain import adapt, cost, models, tree
from lmtrain.cost import hlo, ledger
from lmtrain.cost.query import Query, cache_bytes, exported, query_flops
from lmtrain.models.virtual_tokens import num_virtual_tokens

ROWS, LENGTH = 2, 64
SMALL = base.get_config().model.to_dict() | {'vocab_size': 256, 'max_len': 256, 'num_layers': 2, 'width': 64}
SMALL |= {'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 16, 'mlp_dim': 256, 'unroll': 2, 'bias': True}
QUERY_VALUE = ((r'.*/attention/(query|value)/kernel', 4),)
METHODS = {
    'full': {},
    'bitfit': {},
    'lora': {'rank': QUERY_VALUE, 'alpha': (('.*', 8.0),)},
    'prompt': {'length': 6},
    'p-tuning': {'length': 6, 'hidden': 96},
    'prefix': {'length': 6},
    'prefix of a network': {'length': 6, 'hidden': 96},
    'head': {'head': {'name': 'topic', 'classes': 5}},
    'layers': {'last': 1},
}
NAMES = {'p-tuning': 'prompt', 'prefix of a network': 'prefix'}


def adapted(name, **changes):
    """(model, method, shapes of its parameters)."""
    model = models.Transformer(**SMALL | changes)
    batch = {'tokens': np.zeros((1, 8), np.int32)}
    base = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)['params'])
    method = adapt.method(NAMES.get(name, name), model, base, **METHODS[name])
    return model, method, jax.eval_shape(method.start, jax.random.key(0), base)


def flops_of(function, *arguments):
    """FLOPs of the compiled function; its shapes are those of the arguments."""
    return hlo.compiled_flops(jax.jit(function).lower(*arguments).compile({'xla_backend_optimization_level': 0}))


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in {'bitfit', 'prompt', 'p-tuning', 'prefix', 'layers'}))
        for name in METHODS
    ],
)
def test_flops_of_a_train_step_are_those_of_the_compiler(no_compilation_cache, name):
    """Frozen parts, virtual tokens and the networks that compute them included."""
    model, method, params = adapted(name)
    batch = {column: np.zeros((ROWS, LENGTH), np.int32) for column in ('tokens', 'targets')}

    def step(trainable, frozen):
        outputs = model.apply({'params': tree.join(trainable, frozen)}, batch)
        return jnp.sum(outputs.get('topic', outputs['logprob']))

    compiled = flops_of(jax.value_and_grad(step), *tree.split(params, method.trainable))
    classes = 5 if name == 'head' else None
    expected = cost.flops_per_step(model, ROWS, LENGTH, method.trainable, params=params, classes=classes)
    np.testing.assert_allclose(expected.executed, compiled, rtol=0.02)


@pytest.mark.parametrize('name', ['full', pytest.param('prompt', marks=pytest.mark.slow), 'prefix of a network'])
def test_flops_of_a_query_are_those_of_the_compiler(no_compilation_cache, name):
    """Read at once; after demonstrations that are in the cache; three choices after it; and generated."""
    model, _, params = adapted(name)
    shared, row, choice, steps = 40, 11, 5, 8
    whole = query_flops(model, params, Query(row, shared))
    chosen = query_flops(model, params, Query(row, shared, choices=(choice + 1,) * 3))
    generated = query_flops(model, params, Query(row, shared, generated=steps + 1))

    def read(rows, tokens, before, outputs):
        """FLOPs of reading tokens after the keys of others."""
        P = num_virtual_tokens(params) if name == 'prompt' else 0
        shape = model.num_layers, rows, model.num_kv_heads, before + P, model.head_dim
        past = {'key': jnp.zeros(shape), 'value': jnp.zeros(shape), 'length': jnp.full(rows, before + P, jnp.int32)}
        batch = {'tokens': np.zeros((rows, tokens), np.int32)}
        batch['select'] = np.zeros((rows, outputs), np.int32)

        def apply(params, past, batch):
            outputs = model.apply({'params': params}, batch, past=(past,) if before else (), store=True)
            return outputs['cache'], outputs['logits']

        return flops_of(apply, exported(params), past, batch)

    context = shared + row
    np.testing.assert_allclose(whole.whole, read(1, context, 0, 1), rtol=0.01)
    np.testing.assert_allclose(whole.row, read(1, row, shared, 1), rtol=0.01)
    of_choices = read(3, choice, context, choice)
    np.testing.assert_allclose(chosen.row - whole.row, of_choices, rtol=0.01)
    np.testing.assert_allclose(generated.decode, steps * read(1, 1, context + steps - 1, 1), rtol=0.01)
    assert whole.cached < whole.whole and whole.decode == 0


def test_flops_of_a_query_that_a_head_answers(no_compilation_cache):
    """The pooled head of an encoder, and an added head, which reads all positions of the row."""
    encoder, _, params = adapted('full', causal=False, head='classify', num_labels=3)
    row = {'tokens': np.zeros((1, 20), np.int32)}

    def apply(model, output):
        return flops_of(lambda params: model.apply({'params': params}, row)[output], params)

    np.testing.assert_allclose(query_flops(encoder, params, Query(20)).whole, apply(encoder, 'logits'), rtol=0.01)
    decoder, _, params = adapted('head')
    flops = query_flops(decoder, params, Query(20, classes=5)).whole
    np.testing.assert_allclose(flops, apply(decoder, 'topic'), rtol=0.001)
    assert flops < query_flops(decoder, params, Query(20)).whole  # the vocabulary is not read


def test_merged_lora_costs_nothing_in_a_query():
    model, _, params = adapted('lora')
    _, _, base_params = adapted('full')
    query = Query(11, 40, choices=(2, 3), generated=4)
    assert query_flops(model, params, query) == query_flops(model, base_params, query)


def trained(name, query, **options):
    model, method, params = adapted(name)
    spent = {'executed_flops': 12e9, 'tokens': 5000, 'seconds': 30.0, 'device_seconds': 60.0, 'peak_memory': 7_000_000}
    return ledger.of_training(model, params, method.trainable, spent, query, **options)


def test_stored_leaves_are_those_of_an_export():
    """A soft prompt [P, D], prefixes 2 [N, P, G, K], LoRA's matrices and scales; all parameters after `full`."""
    query = Query(11)
    prompt, prefix, lora = (trained(name, query) for name in ('p-tuning', 'prefix of a network', 'lora'))
    assert (prompt['stored_parameters'], prompt['stored_bytes']) == (6 * 64, 4 * 6 * 64)
    assert prompt['trainable_parameters'] == 6 * 64 + 64 * 96 + 96 + 96 * 96 + 96 + 96 * 64 + 64
    assert prefix['stored_parameters'] == 2 * 2 * 6 * 2 * 16 < prefix['trainable_parameters']
    assert lora['trainable_parameters'] == 2 * (4 * (64 + 64) + 4 * (64 + 32))
    assert lora['stored_parameters'] == lora['trainable_parameters'] + 2 * 2  # a scale for each matrix of each layer
    assert trained('head', query)['stored_parameters'] == 64 * 5 + 5
    full = trained('full', query)
    assert full['stored_parameters'] == full['trainable_parameters'] == tree.count(adapted('full')[2])


def test_a_sweep_and_its_selection_are_charged():
    """Of four members one is the final trial; the other three chose it, and so did 200 rows of evaluation."""
    model, _, params = adapted('lora')
    evaluation = ledger.scoring(model, params, Query(11), rows=200, seconds=15.0)
    assert evaluation.flops == 200 * query_flops(model, params, Query(11)).whole
    record = trained('lora', Query(11), members=4, selection=evaluation, prices=ledger.Prices(3.6, 0.25, 200.0))
    assert record['train_flops'] == 3e9
    assert record['selection_flops'] == 9e9 + evaluation.flops
    assert record['tokens'] == 4 * 5000 + 200 * 11
    assert record['device_seconds'] == 75.0
    assert record['joules'] == 75 * 200
    assert record['price'] == pytest.approx(75 / 3600 * 3.6 + 75 * 200 / 3.6e6 * 0.25)
    assert record['update_seconds'] == 30.0
    unpriced = trained('lora', Query(11))
    assert unpriced['joules'] is unpriced['price'] is None


def test_shared_demonstrations_are_charged_once_if_they_are_cached():
    model, _, params = adapted('full')
    query = Query(11, shared=40, choices=(3, 3))
    search = ledger.scoring(model, params, query, rows=50)
    flops = query_flops(model, params, query)
    assert search.flops == flops.shared + 50 * flops.cached < 50 * flops.whole
    assert search.tokens == 40 + 50 * (11 + 6)
    record = ledger.of_prompt(model, params, query, text_bytes=123, selection=search)
    assert record['query_flops'] > 3 * record['query_flops_cached']
    assert record['cache_bytes'] == cache_bytes(model, 40) == 2 * 2 * 40 * 2 * 16 * 4
    assert (record['stored_bytes'], record['train_flops'], record['update_seconds']) == (123, 0, 0)
    assert set(record) == set(trained('full', query))


def test_break_even_by_hand():
    """A prompt that costs nothing to write and 50 per query, 20 if cached; training for 6,000 at 5 per query."""
    prompt = {'train_flops': 0.0, 'selection_flops': 0.0, 'query_flops': 50.0, 'query_flops_cached': 20.0}
    lora = {'train_flops': 4000.0, 'selection_flops': 2000.0, 'query_flops': 5.0, 'query_flops_cached': 5.0}
    queries = ledger.break_even(prompt, lora)
    assert queries == pytest.approx(6000 / 45)
    assert 6000 + queries * 5 == pytest.approx(queries * 50)
    assert ledger.break_even(prompt, lora, cached=True) == pytest.approx(400)
    assert ledger.break_even(prompt, lora, cached=True, ratio=0.1) == pytest.approx(40)
    assert ledger.curve(prompt, lora, ratios=(0.5, 2.0)) == [
        [0.5, pytest.approx(200 / 3)],
        [2.0, pytest.approx(800 / 3)],
    ]
    searched = prompt | {'selection_flops': 9000.0}
    assert ledger.break_even(searched, lora) == 0.0
    soft_prompt = lora | {'query_flops': 50.0}
    assert ledger.break_even(prompt, soft_prompt) is None


def test_arm_that_is_cheaper_to_create_and_equal_in_queries_breaks_even_at_once():
    searched = {'train_flops': 0.0, 'selection_flops': 9000.0, 'query_flops': 5.0, 'query_flops_cached': 5.0}
    head = {'train_flops': 4000.0, 'selection_flops': 2000.0, 'query_flops': 5.0, 'query_flops_cached': 5.0}
    assert ledger.break_even(searched, head) == ledger.break_even(searched, head, cached=True) == 0.0
    assert ledger.break_even(head, searched) is None and ledger.break_even(head, head) is None
    assert ledger.break_even(searched, head | {'query_flops': 6.0}) is None  # for the first 3000 queries only
