"""What is made of whole matrices does not depend on how they lie in pieces."""

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
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    leaves = zip(shapes.items(), keys, strict=True)
    made = {f'layers/{name}/kernel': jax.random.normal(key, (layers, *shape)) for (name, shape), key in leaves}
    return tree.unflatten(made)


def close(found, expected):
    for path, leaf in tree.flatten(expected).items():
        np.testing.assert_allclose(tree.flatten(found)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize('layers', [1, 2, 5])
@pytest.mark.parametrize('mesh', [(1, 8, 1, 1), (1, 1, 8, 1), (1, 4, 2, 1), (2, 2, 2, 1), (1, 2, 2, 2)], ids=str)
def test_each_matrix_is_made_whole_and_lies_as_it_did(layers, mesh):
    mesh, given = sharding.mesh(*mesh), stacks(layers)
    expected = jax.tree.map(jax.vmap(optimizer.orthogonalise), given)
    on = sharding.shardings(given, mesh)
    made = jax.jit(lambda given: redistribute.for_each_matrix(mesh)(optimizer.orthogonalise, given))(
        jax.device_put(given, on)
    )
    close(made, expected)
    for path, leaf in tree.flatten(made).items():
        assert leaf.sharding.is_equivalent_to(tree.flatten(on)[path], 3), path


@pytest.mark.parametrize('layers', [1, 3])
def test_members_of_a_sweep_are_dealt_out_side_by_side(layers):
    mesh, members = sharding.mesh(1, 4, 2, 1), [stacks(layers, seed) for seed in (0, 1, 2)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    made = jax.jit(jax.vmap(lambda given: redistribute.for_each_matrix(mesh)(optimizer.orthogonalise, given)))(together)
    for i, member in enumerate(members):
        close(jax.tree.map(lambda leaf: leaf[i], made), jax.tree.map(jax.vmap(optimizer.orthogonalise), member))  # noqa: B023


@pytest.mark.parametrize('mesh', [(1, 1, 1, 1), (8, 1, 1, 1), (2, 1, 1, 4)], ids=str)
def test_where_no_matrix_lies_in_pieces_nothing_is_dealt_out(mesh):
    assert redistribute.for_each_matrix(sharding.mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])) is None


@pytest.mark.parametrize(
    ('mesh', 'layers', 'dealt', 'each'),
    [
        ((1, 8, 1, 1), 16, ('fsdp',), 2),
        ((1, 8, 1, 1), 17, ('fsdp',), 3),
        ((1, 8, 1, 1), 2, ('fsdp',), 1),  # as much as to gather both everywhere
        ((1, 8, 1, 1), 1, (), 1),  # gathered: nothing has to come back
        ((1, 4, 2, 1), 8, ('fsdp', 'tensor'), 1),
        ((1, 4, 2, 1), 4, ('fsdp',), 1),  # two devices have the same matrix
        ((1, 4, 2, 1), 2, ('tensor',), 1),  # four have
    ],
)
def test_few_matrices_go_to_no_more_devices_than_they_are(mesh, layers, dealt, each):
    mesh, stack = sharding.mesh(*mesh), {'kernel': jax.ShapeDtypeStruct((layers, 16, 24), jnp.float32)}
    specs = {'kernel': P(None, *(axis if mesh.shape[axis] > 1 else None for axis in redistribute.SHARD_AXES))}
    (hand,) = redistribute.matrix_groups(stack, specs, mesh)
    assert (hand.dealt, hand.each, hand.matrices) == (dealt, each, layers)


def test_matrices_that_lie_alike_are_dealt_out_together():
    mesh, given = sharding.mesh(1, 4, 2, 1), stacks(3)
    specs = {path: on.spec for path, on in tree.flatten(sharding.shardings(given, mesh)).items()}
    found = {hand.paths: hand for hand in redistribute.matrix_groups(tree.flatten(given), specs, mesh)}
    assert [len(paths) for paths in found] == [1, 4, 1]
    together = next(hand for paths, hand in found.items() if len(paths) == 4)
    assert (together.matrices, together.rows, together.columns, together.each) == (12, 16, 24, 2)
    assert found['layers/mlp/router/kernel',].cut == ()
