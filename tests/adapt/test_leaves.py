"""The table of leaf kinds: every leaf that a method adds has a row, and a new kind is one row and its layer."""

import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import tiny
from lmtrain import adapt, cost, tree
from lmtrain.adapt import leaves
from lmtrain.models import Transformer
from lmtrain.models.pretrained import shapes_of
from lmtrain.parallel import collectives, sharding

MODEL = Transformer(**tiny.get_config().model)
LORA = {'rank': [('.*', 2)], 'alpha': [('.*', 4.0)]}
METHODS = {
    'lora': ('lora', LORA),
    'dora': ('lora', LORA | {'rank': [('.*/kernel', 2)], 'dora': True}),
    'ia3': ('ia3', {}),
    'prompt': ('prompt', {'length': 2}),
    'p-tuning': ('prompt', {'length': 2, 'init': 'random', 'hidden': 4}),
    'prefix': ('prefix', {'length': 3}),
    'prefix by a network': ('prefix', {'length': 3, 'hidden': 4}),
    'head': ('head', {'head': {'name': 'probe', 'classes': 5}}),
}


def extended(name):
    """Shapes of the model's leaves and of those that a method adds."""
    method, settings = METHODS[name]
    shapes = shapes_of(MODEL)
    return jax.eval_shape(adapt.method(method, MODEL, shapes, **settings).start, jax.random.key(0), shapes)


@pytest.mark.parametrize('name', METHODS)
def test_every_added_leaf_has_one_row_and_no_leaf_of_the_model_has_one(name):
    base = tree.flatten(shapes_of(MODEL))
    paths = tree.flatten(extended(name))
    for path in paths:
        rows = [kind.pattern for kind in leaves.KINDS if re.fullmatch(kind.pattern, path)]
        assert len(rows) == (path not in base), (path, rows)
    assert tree.flatten(adapt.split_adapter(extended(name))[1]).keys() == paths.keys() - base.keys()


def test_virtual_tokens_and_extra_keys_are_read_from_the_shapes():
    flat = {name: tree.flatten(extended(name)) for name in METHODS}
    counts = {name: (leaves.virtual_tokens(flat[name]), leaves.extra_keys(flat[name])) for name in METHODS}
    assert {name: count for name, count in counts.items() if count != (0, 0)} == {
        'prompt': (2, 0),
        'p-tuning': (2, 0),
        'prefix': (0, 3),
        'prefix by a network': (0, 3),
    }


@pytest.mark.parametrize('kernel', sharding.PLATFORM_KERNELS.values())
def test_what_a_kernel_or_an_axis_excludes_is_named(kernel):
    prefix = 'layers/attention/prefix_key'
    blocked = {name: leaves.excluding_kernel(extended(name), kernel) for name in METHODS}
    assert {name: path for name, path in blocked.items() if path} == {
        'prefix': prefix,
        'prefix by a network': 'prefix/embedding',
    }
    undivided = {name: leaves.excluding_axis(extended(name), 'sequence') for name in METHODS}
    assert {name: path for name, path in undivided.items() if path} == {
        'prompt': 'prompt/embedding',
        'p-tuning': 'prompt/embedding',
        'prefix': prefix,
        'prefix by a network': 'prefix/embedding',
    }
    assert not any(leaves.excluding_axis(extended(name), 'fsdp') for name in METHODS)


# A new kind: a second matrix next to a kernel. Its row, and the layer that reads it, are all that it takes.
SIDE = leaves.LeafKind(
    r'.*/side',
    beside=('kernel',),
    neutral=0.0,
    rules=((r'layers[^/]*/mlp/up/side', (None, 'fsdp', None)),),
    kernels=('splash',),
    mesh_axes=('sequence',),
    is_matmul=True,
)


class SideModel(nn.Module):
    """[B, T, D] column x -> outputs['hidden'] = x . kernel + x . side."""

    @nn.compact
    def __call__(self, batch):
        return {'hidden': SideLinear(name='up')(batch['x'])}


class SideLinear(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param('kernel', nn.initializers.normal(), (x.shape[-1], 3))
        side = self.get_variable('params', 'side')
        return x @ kernel if side is None else x @ kernel + x @ side


@pytest.fixture
def with_side(monkeypatch):
    monkeypatch.setattr(leaves, 'KINDS', (*leaves.KINDS, SIDE))
    monkeypatch.setattr(leaves, 'PARTITION_RULES', [*leaves.PARTITION_RULES, *SIDE.rules])  # made of the table


def side_adapter(side):
    return lambda rng, params: {'up': {'side': side}}


def test_a_leaf_without_a_row_is_refused():
    with pytest.raises(ValueError, match='up/side: no layer reads a leaf of this name'):
        adapt.extend(side_adapter(np.ones((2, 3))), jax.random.key(0), {'up': {'kernel': np.ones((2, 3))}})


def test_a_new_kind_is_checked_split_stacked_and_mixed(with_side):
    model, batch = SideModel(), {'x': np.arange(12, dtype=np.float32).reshape(2, 3, 2)}
    base = model.init(jax.random.key(0), batch)['params']
    adapted = adapt.extend(side_adapter(jnp.ones((2, 3))), jax.random.key(0), base)
    with pytest.raises(ValueError, match='down/side: no layer reads'):  # there is no kernel next to it
        adapt.check(base, {'down': {'side': 0}})
    plain, own = adapt.split_adapter(adapted)
    assert tree.flatten(plain).keys() == {'up/kernel'} and tree.flatten(own).keys() == {'up/side'}
    stacked = adapt.stack([own, {}])
    mixed = adapt.mix(model, base, stacked, batch | {'adapter': np.array([1, 0], np.int32)})['hidden']
    alone = [model.apply({'params': params}, batch)['hidden'] for params in (base, adapted)]
    np.testing.assert_allclose(mixed, [alone[0][0], alone[1][1]], rtol=1e-6)
    assert not np.allclose(mixed[1], alone[0][1])


def test_a_new_kind_is_sharded_counted_and_excluded(with_side):
    base = shapes_of(MODEL)
    kernel = base['layers']['mlp']['up']['kernel']
    params = tree.join(base, {'layers': {'mlp': {'up': {'side': kernel}}}})
    mesh = sharding.mesh(2, 4, 1, 1)
    on = sharding.shardings(params, mesh)['layers']['mlp']['up']
    assert on['side'].spec == PartitionSpec(None, 'fsdp', None)

    plain, wide = (cost.flops_per_step(MODEL, 2, 8, params=p) for p in (base, params))
    product = 2 * 2 * 8 * np.prod(kernel.shape)
    assert wide.forward - plain.forward == product
    assert wide.backward - plain.backward == 2 * product  # gradients of the leaf and of its input
    frozen = cost.flops_per_step(MODEL, 2, 8, '.*/down/kernel', params=params)
    assert frozen.backward < wide.backward

    assert leaves.excluding_axis(params, 'sequence') == 'layers/mlp/up/side'
    model = types.SimpleNamespace(unsupported_reason=lambda *_: '')
    reasons = [collectives.unsupported_on(kernel, 128, model, params, mesh, ()) for kernel in ('splash', 'cudnn')]
    assert reasons == ['cannot read layers/mlp/up/side, a leaf of the adapter', '']


def test_only_low_rank_leaves_of_the_token_embedding_have_a_vocabulary_dimension():
    axes = {path: leaves.vocab_axis(path) for name in METHODS for path in tree.flatten(extended(name))}
    assert {path: axis for path, axis in axes.items() if axis is not None} == {'embed/lora_a': 0}
