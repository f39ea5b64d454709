"""Bytes of a device: exact but for activations, which are compared with a compiled step."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain import cost, models, tree
from lmtrain.cost import hlo, memory
from lmtrain.cost.query import Query
from lmtrain.inference import batches, likelihood

ROWS, LENGTH = 2, 256
SMALL = {'vocab_size': 256, 'max_len': 256, 'num_layers': 2, 'width': 64, 'num_heads': 4, 'unroll': 1}
GPT2 = base.get_config().model.to_dict() | SMALL | {'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu'}


def state(trainable, frozen=None, opt_state=None):
    return types.SimpleNamespace(trainable=trainable, frozen=frozen or {}, opt_state=opt_state or {})


def test_bytes_are_exact_except_activations(compiled):
    program, trainable, frozen, model = compiled(GPT2 | {'unroll': 1}, 'layers/.*')
    moments = {'mu': trainable, 'nu': trainable}
    sizes = cost.bytes_per_device(state(trainable, frozen, moments), model, ROWS, LENGTH)
    assert sizes['parameters'] == tree.size(trainable) + tree.size(frozen)
    assert sizes['gradients'] == tree.size(trainable)
    assert sizes['moments'] == 2 * tree.size(trainable)
    assert sizes['total'] == sum(size for name, size in sizes.items() if name != 'total')
    temporary = program.memory_analysis().temp_size_in_bytes
    assert 0.4 < sizes['activations'] / temporary < 2.5


@pytest.mark.parametrize('activation', ['gelu', 'swiglu'])
def test_scanned_layers_need_what_the_arithmetic_says(compiled, activation):
    """A scan keeps what the layers' own backward passes ask for: elementwise results are not among it."""
    program, trainable, frozen, model = compiled(GPT2 | {'num_layers': 4, 'activation': activation}, '.*')
    sizes = cost.bytes_per_device(state(trainable, frozen), model, ROWS, LENGTH)
    assert 0.85 < sizes['total'] / hlo.compiled_bytes(program) < 1.15


def test_remat_and_frozen_layers_keep_less():
    def layers(name, count):
        kernel = jax.ShapeDtypeStruct((count, 4, 4), jnp.float32)
        return {name: {'mlp': {'up': {'kernel': kernel}, 'down': {'kernel': kernel}}}}

    shapes, model = layers('layers', 2), models.Transformer(**GPT2)

    def activations(trainable=shapes, frozen=None, **changes):
        changed = dataclasses.replace(model, **changes)
        return cost.bytes_per_device(state(trainable, frozen), changed, 8, 256)['activations']

    assert activations(remat='full') < activations(remat='dots') < activations(remat='none')
    assert activations(dtype='bfloat16') < activations()
    biases = {'layers': {'mlp': {'up': {'bias': jax.ShapeDtypeStruct((2, 4), jnp.float32)}}}}
    assert activations(biases, shapes) < activations()
    last = activations(layers('layers_1', 1), layers('layers_0', 1))
    assert last < activations(biases, shapes) and activations(layers('layers_0', 1), layers('layers_1', 1)) > last
    only_head = {'head': {'kernel': jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    assert cost.bytes_per_device(state(only_head, shapes), model, 8, 256)['activations'] < activations(remat='full')


WIDE = {'vocab_size': 8192, 'max_len': 4096, 'width': 128, 'num_kv_heads': 2, 'head_dim': 32, 'mlp_dim': 384}


@pytest.mark.parametrize(
    ('query', 'shape', 'shared'),
    [
        (Query(58, choices=(2, 2, 2)), (32, 256, 24), 0),  # short prompts, four in a row
        (Query(40, 500, (8,) * 20), (32, 256, 192), 512),  # shared demonstrations and many answers
        (Query(2000, choices=(2, 2)), (4, 2048, 4), 0),  # demonstrations of each row
        (Query(4000, choices=(2, 2)), (2, 4096, 4), 0),
    ],
)
def test_bytes_of_scored_prompts(no_compilation_cache, query, shape, shared):
    """The batch is one that `likelihood` makes of such queries (`batches.pack`)."""
    model, (B, T, M) = models.Transformer(**base.get_config().model.to_dict() | SMALL | WIDE), shape
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params'])
    columns = ('tokens', 'segment_ids', 'positions', 'branches')
    batch = {name: jax.ShapeDtypeStruct((B, T), jnp.int32) for name in columns}
    batch |= {name: jax.ShapeDtypeStruct((B, M), jnp.int32) for name in ('select', 'targets')}
    past = ()
    if shared:
        beginning = {name: jax.ShapeDtypeStruct((1, shared), jnp.int32) for name in ('tokens', 'segment_ids')}
        past = (jax.eval_shape(lambda *arguments: likelihood._encode(model, *arguments), params, beginning),)
    program = likelihood._nats.lower(model, params, batch, past, False).compile()
    estimate = memory.bytes_of_scoring(params, model, query, tokens=batches.MAX_TOKENS, length=batches.ROW)
    assert 0.75 < estimate / hlo.compiled_bytes(program) < 1.25


def test_bytes_follow_the_sharding():
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
    leaf = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=cut)
    sizes = cost.bytes_per_device(
        state({'layers': {'kernel': leaf}}, {}, {'count': jnp.zeros((), jnp.int32)}), models.Transformer(**GPT2), 1, 8
    )
    assert sizes['parameters'] == 4 * math.prod(leaf.shape) // 8
    assert sizes['moments'] == 4


@pytest.mark.parametrize(
    ('elements', 'keep', 'size'),
    [
        (2**22, False, 6 * 2**22),
        (2**22, True, 6 * 2**22),
        (2**24, False, 6 * 2**22),
        (2**26, False, 6 * 2**23),
        (2**26, True, 4 * 2**26),
    ],
)
def test_bytes_of_logits(elements, keep, size):
    assert memory.logits_bytes(elements, 2, keep) == size
