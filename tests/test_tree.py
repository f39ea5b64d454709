"""Paths, rules over paths, and segments of layers."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain import tree

NAMES = st.text('abc', min_size=1, max_size=2)
TREES = st.recursive(
    st.integers().map(lambda i: i), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda t: isinstance(t, dict))


@given(TREES)
def test_unflatten_undoes_flatten(nested):
    assert tree.unflatten(tree.flatten(nested)) == nested


@given(TREES, st.sampled_from(['.*a.*', '.*/b', '[abc]+']))
def test_join_undoes_split(nested, pattern):
    try:
        trainable, frozen = tree.split(nested, pattern)
    except ValueError:
        return  # the pattern matches nothing, which is an error of its own
    assert tree.join(frozen, trainable) == nested
    assert not tree.flatten(trainable).keys() & tree.flatten(frozen).keys()


def test_first_match_wins_and_other_paths_get_the_default():
    values = tree.match([('a/.*', 1), ('.*/kernel', 2)], ['a/kernel', 'b/kernel', 'b/bias'], default=0)
    assert values == {'a/kernel': 1, 'b/kernel': 2, 'b/bias': 0}


def test_pattern_matches_the_whole_path():
    assert tree.match([('.*', 1)], ['layers/kernel_norm'])['layers/kernel_norm'] == 1
    with pytest.raises(ValueError, match="'kernel' matches no parameter"):
        tree.match([('kernel', 1)], ['layers/kernel'])
    assert tree.match([('.*/scale', 1)], ['norm/scale', 'norm/scale_offset']) == {
        'norm/scale': 1,
        'norm/scale_offset': None,
    }


def test_rule_shadowed_by_an_earlier_one_is_allowed():
    assert tree.match([('.*', 1), ('a', 2)], ['a']) == {'a': 1}


def test_join_refuses_a_path_in_two_trees():
    with pytest.raises(ValueError, match="'a/b' is in two"):
        tree.join({'a': {'b': 1}}, {'a': {'b': 2}})


def test_count_and_size_of_shapes():
    shapes = jax.eval_shape(lambda: {'a': {'x': jnp.zeros((3, 4), jnp.bfloat16)}, 'b': jnp.zeros(())})
    assert tree.count(shapes) == 13
    assert tree.size(shapes) == 3 * 4 * 2 + 4


def stack_of(layers):
    kernel = jnp.arange(layers * 6.0).reshape(layers, 2, 3)
    return {'embed': jnp.ones(2), 'layers': {'mlp': {'kernel': kernel}, 'norm': {'scale': kernel[:, 0]}}}


def test_cut_makes_consecutive_segments():
    params = stack_of(5)
    pieces = tree.cut(params, (1, 3, 1))
    assert sorted(pieces) == ['embed', 'layers_0', 'layers_1', 'layers_2']
    assert pieces['layers_1']['mlp']['kernel'].tolist() == params['layers']['mlp']['kernel'][1:4].tolist()
    assert tree.segment_sizes(pieces) == {'layers_0': 1, 'layers_1': 3, 'layers_2': 1}
    assert tree.segment_sizes(params) == {'layers': 5}


@pytest.mark.parametrize('sizes', [(2, 2), (5, 0), (6,)])
def test_sizes_must_cover_all_layers_without_an_empty_segment(sizes):
    with pytest.raises(ValueError, match='do not divide the 5 of layers/mlp/kernel'):
        tree.cut(stack_of(5), sizes)


def test_missing_segments_are_refused():
    with pytest.raises(ValueError, match="not .'layers_1'."):
        tree.segments({'layers_1': {}})
    with pytest.raises(ValueError, match='no stack `layers`'):
        tree.cut({'embed': jnp.ones(2)}, (1,))


def test_segments_can_be_cut_further_but_not_joined():
    pieces = tree.cut(stack_of(5), (2, 3))
    del pieces['layers_0']['norm']
    finer = tree.cut(pieces, (1, 1, 2, 1))
    kernels = [finer[f'layers_{i}']['mlp']['kernel'].tolist() for i in range(4)]
    assert sum(kernels, []) == stack_of(5)['layers']['mlp']['kernel'].tolist()
    assert ['norm' in finer[f'layers_{i}'] for i in range(4)] == [False, False, True, True]
    with pytest.raises(ValueError, match='join layers 1 and 2, which differ'):
        tree.cut(pieces, (1, 3, 1))
