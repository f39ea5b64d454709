import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from configs import pretrain_gpt2
from lmtrain.parallel import sharding
from lmtrain.training import build, resolve

SHAPES = {
    'embed': {'embedding': jax.ShapeDtypeStruct((64, 16), jnp.float32)},
    'layers': {
        'attention': {'query': {'kernel': jax.ShapeDtypeStruct((2, 16, 16), jnp.float32)}},
        'attention_norm': {'scale': jax.ShapeDtypeStruct((2, 16), jnp.float32)},
    },
}


@pytest.mark.parametrize(
    ('sizes', 'shape'),
    [
        ((-1, 1, 1, 1), (8, 1, 1, 1)),
        ((2, 2, 2, 1), (2, 2, 2, 1)),
        ((1, -1, 2, 1), (1, 4, 2, 1)),
    ],
)
def test_one_axis_has_the_remaining_devices(sizes, shape):
    assert tuple(sharding.mesh(*sizes).shape.values()) == shape


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ((3, 1, 1, 1), '3 devices, but there are 8'),
        ((16, 1, 1, 1), '16 devices, but there are 8'),
        ((-1, 3, 1, 1), '3 devices or a multiple, but there are 8'),
        ((-1, -1, 1, 1), 'mesh.data and mesh.fsdp are -1'),
        ((-1, -1, -1, 1), 'mesh.data and mesh.fsdp and mesh.tensor are -1'),
        ((0, 1, 1, 1), 'mesh.data = 0'),
        ((1, 1, 1, 3), '3 devices, but there are 8'),
    ],
)
def test_a_mesh_of_another_size_is_rejected_with_both_numbers(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.mesh(*sizes)


def test_moments_have_the_shardings_of_their_parameters():
    mesh = sharding.mesh(2, 2, 2, 1)
    params = sharding.shardings(SHAPES, mesh)
    state = sharding.shardings(jax.eval_shape(optax.adam(1e-3).init, SHAPES), mesh)
    assert params['layers']['attention']['query']['kernel'].spec == P(None, 'fsdp', 'tensor')
    assert params['layers']['attention_norm']['scale'].spec == P()
    assert state[0].mu == params
    assert state[0].nu == params
    assert state[0].count.spec == P()


def test_a_dimension_that_does_not_divide_is_named_by_path():
    shapes = {'embed': {'embedding': jax.ShapeDtypeStruct((65, 16), jnp.float32)}}
    with pytest.raises(ValueError, match='embed/embedding: a dimension of 65 does not divide over mesh.tensor = 2'):
        sharding.shardings(shapes, sharding.mesh(2, 2, 2, 1))


@pytest.mark.parametrize(
    ('batch', 'accumulate', 'ok'), [(8, 1, True), (16, 2, True), (12, 1, False), (8, 2, False), (0, 1, False)]
)
def test_a_batch_must_divide_over_micro_batches_and_devices(batch, accumulate, ok):
    mesh = sharding.mesh(4, 2, 1, 1)
    if ok:
        sharding.check_batch(batch, accumulate, mesh)
    else:
        with pytest.raises(ValueError, match=f'data.batch_size = {batch}'):
            sharding.check_batch(batch, accumulate, mesh)


def test_rows_of_a_batch_are_sharded_over_data_and_fsdp():
    rows = np.arange(16, dtype=np.int32).reshape(8, 2)
    placed = sharding.place(sharding.mesh(2, 2, 2, 1))({'tokens': rows})['tokens']
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, rows)


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a device that a mesh reads."""

    id: int
    slice_index: int
    platform: str = 'cpu'
    device_kind: str = 'chip'
    process_index: int = 0


def test_only_data_goes_across_slices():
    chips = [Chip(i, slice_index=i % 2) for i in range(8)]
    grid = sharding.mesh(2, 4, 1, 1, devices=chips).devices
    assert [{chip.slice_index for chip in row.flat} for row in grid] == [{0}, {1}]
    with pytest.raises(ValueError, match='mesh.data = 1 does not divide over 2 slices'):
        sharding.mesh(1, 8, 1, 1, devices=chips)


def test_every_axis_may_go_across_machines_of_gpus():
    chips = [Chip(i, slice_index=i // 4, platform='gpu') for i in range(8)]
    assert sharding.mesh(1, 8, 1, 1, devices=chips).shape['fsdp'] == 8
    grid = sharding.mesh(2, 4, 1, 1, devices=chips).devices
    assert [{chip.slice_index for chip in row.flat} for row in grid] == [{0}, {1}]


def test_a_rank_that_the_mesh_does_not_divide_is_sharded_by_the_next_rule():
    mesh = sharding.mesh(1, 4, 2, 1)
    for rank, spec in ((8, P(None, 'fsdp', 'tensor')), (6, P(None, None, 'tensor'))):
        leaf = {'layers': {'mlp': {'up': {'lora_b': jax.ShapeDtypeStruct((2, rank, 16), jnp.float32)}}}}
        assert sharding.shardings(leaf, mesh)['layers']['mlp']['up']['lora_b'].spec == spec


@pytest.mark.parametrize(
    'adapter',
    [
        {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/attention/(query|key|value|output)/kernel', 256),)},
        {'adapt.method': 'lora', 'adapt.lora.rank': (('embed/embedding', 64),)},
        {'adapt.method': 'prefix', 'adapt.prefix.hidden': 512, 'model.max_len': 1044},
        {'adapt.method': 'prompt', 'adapt.prompt.hidden': 768, 'data.isolate': False, 'model.max_len': 1044},
    ],
    ids=['lora', 'embedding', 'prefix', 'prompt'],
)
def test_adapters_of_a_model_of_common_size_are_sharded(adapter, tmp_path):
    (tmp_path / 'text.txt').write_text('a text of no matter ' * 999)
    config = pretrain_gpt2.get_config()
    config.data.update({'source': str(tmp_path / 'text.txt'), 'cache': str(tmp_path), 'tokenizer': 'bytes'})
    config.data.update({'document': 'file', 'split': 'tail', 'validation': 0.2, 'test': 0.2})
    config.update_from_flattened_dict({'mesh.data': 1, 'mesh.fsdp': 8, 'sample.prompts': ()} | adapter)
    run = build.build(*resolve.resolve(config))
    assert float(re.search(r'([\d.]+)%', sharding.replicated(run.shapes.params, run.mesh))[1]) < 2


def test_replicated_leaves_are_reported_and_limited():
    mesh = sharding.mesh(2, 2, 2, 1)
    message = sharding.replicated(SHAPES, mesh)
    assert message.startswith('1 leaves are replicated, 2.')
    assert 'layers/attention_norm/scale' in message
    assert sharding.replicated(SHAPES, sharding.mesh(8, 1, 1, 1)) == ''
    large = SHAPES | {'unknown': {'kernel': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}}
    with pytest.raises(ValueError, match=r'unknown/kernel.*parallel.sharding.py'):
        sharding.replicated(large, mesh)
    narrow = SHAPES | {'positions': {'embedding': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}}
    with pytest.raises(ValueError, match=r'or only over axes of 1 device: positions/embedding'):
        sharding.replicated(narrow, sharding.mesh(4, 1, 2, 1))


def test_the_capability_is_the_lowest_of_the_devices():
    def of(*capabilities):
        devices = [types.SimpleNamespace(compute_capability=x) if x else types.SimpleNamespace() for x in capabilities]
        return sharding.capability(types.SimpleNamespace(devices=np.array(devices, object)))

    assert of('9.0', '8.6') == (8, 6)
    assert of('10.0', '9.0') == (9, 0)
    assert of('gfx942') == of('9.0', None) == of(None) == ()
    assert sharding.capability(sharding.mesh(1, 1, 1, 1, devices=jax.devices()[:1])) == ()


def test_columns_are_divided_by_rows_and_positions():
    mesh = sharding.mesh(1, 2, 1, 2, devices=jax.devices()[:4])
    assert sharding.column(mesh, 1).spec == P(('data', 'fsdp'))
    assert sharding.column(mesh, 2).spec == P(('data', 'fsdp'), 'sequence')
    assert sharding.column(mesh, 3).spec == P(('data', 'fsdp'), None, 'sequence')
    assert sharding.column(sharding.mesh(2, 2, 2, 1), 2).spec == P(('data', 'fsdp'))
