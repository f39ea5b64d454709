"""Results of a function of whole matrices do not depend on their sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lmtrain import optimizer, tree
from lmtrain.parallel import redistribute, sharding


def stacks(layers, seed=0):
    shapes = {'attention/query': (16, 24), 'attention/output': (24, 16), 'attention/key': (16, 8), 'mlp/up': (16, 24)}
    shapes |= {'mlp/down': (24, 16), 'mlp/router': (16, 3)}  # no rule covers the last
    random = np.random.default_rng(seed)
    leaves = {name: random.normal(size=(layers, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return tree.unflatten({f'layers/{name}/kernel': leaf for name, leaf in leaves.items()})


def assert_close(actual, expected):
    for path, leaf in tree.flatten(expected).items():
        np.testing.assert_allclose(tree.flatten(actual)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


MESHES = [(1, 8, 1, 1), (1, 1, 8, 1), (1, 4, 2, 1), (2, 2, 2, 1), (1, 2, 2, 2)]
# Each number of layers on each mesh, and one mesh and one number at a time are not slow.
CASES = [
    pytest.param(mesh, layers, marks=[pytest.mark.slow] * ((i + j) % 3 != 2), id=f'{mesh}-{layers}')
    for i, mesh in enumerate(MESHES)
    for j, layers in enumerate((1, 2, 5))
]


@jax.jit
def on_one_device(leaves):
    return jax.tree.map(jax.vmap(optimizer.orthogonalise), leaves)


@pytest.mark.parametrize(('mesh', 'layers'), CASES)
def test_results_and_their_shardings_are_those_of_one_device(layers, mesh):
    mesh, leaves = sharding.mesh(*mesh), stacks(layers)
    expected = on_one_device(leaves)
    on = sharding.shardings(leaves, mesh)
    apply = jax.jit(lambda stacks: redistribute.for_each_matrix(mesh)(optimizer.orthogonalise, stacks))
    actual = apply(jax.device_put(leaves, on))
    assert_close(actual, expected)
    for path, leaf in tree.flatten(actual).items():
        assert leaf.sharding.is_equivalent_to(tree.flatten(on)[path], 3), path


@pytest.mark.parametrize('layers', [1, 3])
def test_members_of_a_sweep_are_redistributed_independently(layers):
    mesh, members = sharding.mesh(1, 4, 2, 1), [stacks(layers, seed) for seed in (0, 1, 2)]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    apply = jax.vmap(lambda stacks: redistribute.for_each_matrix(mesh)(optimizer.orthogonalise, stacks))
    actual = jax.device_get(jax.jit(apply)(together))
    for i, member in enumerate(members):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], actual), on_one_device(member))


@pytest.mark.parametrize('mesh', [(1, 1, 1, 1), (8, 1, 1, 1), (2, 1, 1, 4)], ids=str)
def test_a_mesh_that_shards_no_matrix_needs_no_redistribution(mesh):
    assert redistribute.for_each_matrix(sharding.mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])) is None


@pytest.mark.parametrize(
    ('mesh', 'layers', 'spread_axes', 'per_device'),
    [
        ((1, 8, 1, 1), 16, ('fsdp',), 2),
        ((1, 8, 1, 1), 17, ('fsdp',), 3),
        ((1, 8, 1, 1), 2, ('fsdp',), 1),  # as much as an all-gather of both
        ((1, 8, 1, 1), 1, (), 1),  # all-gathered: no results are sent back
        ((1, 4, 2, 1), 8, ('fsdp', 'tensor'), 1),
        ((1, 4, 2, 1), 4, ('fsdp',), 1),  # two devices compute the same matrix
        ((1, 4, 2, 1), 2, ('tensor',), 1),  # four devices do
    ],
)
def test_few_matrices_are_spread_over_few_devices(mesh, layers, spread_axes, per_device):
    mesh, stack = sharding.mesh(*mesh), {'kernel': jax.ShapeDtypeStruct((layers, 16, 24), jnp.float32)}
    specs = {'kernel': P(None, *(axis if mesh.shape[axis] > 1 else None for axis in redistribute.SHARD_AXES))}
    (group,) = redistribute.matrix_groups(stack, specs, mesh)
    assert (group.spread_axes, group.per_device, group.matrices) == (spread_axes, per_device, layers)


def test_matrices_with_equal_shapes_and_shardings_are_one_group():
    mesh, leaves = sharding.mesh(1, 4, 2, 1), stacks(3)
    specs = {path: on.spec for path, on in tree.flatten(sharding.shardings(leaves, mesh)).items()}
    groups = {group.paths: group for group in redistribute.matrix_groups(tree.flatten(leaves), specs, mesh)}
    assert [len(paths) for paths in groups] == [1, 4, 1]
    largest = next(group for paths, group in groups.items() if len(paths) == 4)
    assert (largest.matrices, largest.rows, largest.columns, largest.per_device) == (12, 16, 24, 2)
    assert groups['layers/mlp/router/kernel',].shard_axes == ()
