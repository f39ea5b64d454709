"""Settings of LoRA: which leaves are adapted, and wrong values, which are refused naming the field."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import adapt, tree
from lmtrain.models import Transformer
from lmtrain.models.pretrained import shapes_of

MODEL = Transformer(**tiny.get_config().model)
UNTIED = dataclasses.replace(MODEL, tied=False)
KERNELS = (('layers/.*/kernel', 4),)
PAIR = r'is not a pair \(regex, value\)'


def extended(model, **settings):
    """The shapes of the tree with the leaves of a LoRA."""
    shapes = shapes_of(model)
    method = adapt.method('lora', model, shapes, **{'rank': KERNELS, 'alpha': (('.*', 16.0),)} | settings)
    return tree.flatten(jax.eval_shape(method.start, jax.random.key(0), shapes))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'rank': ('.*', 16)}, f"adapt.lora.rank: '.\\*' {PAIR}"),
        ({'rank': ('.*',)}, f"adapt.lora.rank: '.\\*' {PAIR}"),
        ({'rank': (16,)}, f'adapt.lora.rank: 16 {PAIR}'),
        ({'rank': ((16, '.*'),)}, f"adapt.lora.rank: \\(16, '.\\*'\\) {PAIR}"),
        ({'rank': (('.*', 'x'),)}, "adapt.lora.rank of embed/embedding is 'x': it must be a whole number"),
        ({'rank': (('.*', 2.5),)}, 'adapt.lora.rank of embed/embedding is 2.5'),
        ({'rank': (('.*', 0),)}, 'adapt.lora.rank of embed/embedding is 0'),
        ({'rank': (('.*', True),)}, 'adapt.lora.rank of embed/embedding is True'),
        ({'rank': (('.*/kernel', (4, 2, 3)),)}, r'adapt.lora.rank: layers/.* has \[2\] layers, but rank \(4, 2, 3\)'),
        ({'rank': ()}, r'adapt.lora.rank=\(\) adapts no kernel'),
        ({'rank': (('.*', None),)}, 'adapts no kernel'),
        ({'rank': (('head/.*', 4),)}, 'only leaves that no adapter can stand beside, such as head/kernel'),
        ({'rank': (('.*norm/scale', 4),)}, 'only leaves that no adapter can stand beside, such as final_norm/scale'),
        ({'zero': 'c'}, "adapt.lora.zero is 'c': it is 'a' or 'b'"),
        ({'alpha': ('.*', 16.0)}, f"adapt.lora.alpha: '.\\*' {PAIR}"),
        ({'alpha': (('.*', 0.0),)}, 'adapt.lora.alpha of layers/.* is 0.0: it must be a number above 0'),
        ({'alpha': (('.*', 'x'),)}, "adapt.lora.alpha of layers/.* is 'x'"),
        ({'alpha': (('.*/query/kernel', 16.0),)}, 'adapt.lora.alpha: no pattern matches layers/attention/key/kernel'),
        ({'targets': 'layers/nothing'}, "adapt.lora.targets: 'layers/nothing' matches no parameter"),
        ({'targets': 'qv', 'rank': (('a', 1), ('b', 2))}, 'adapt.lora.targets .* 2 patterns in adapt.lora.rank'),
        (
            {'rank': (('.*', 4),), 'dora': True},
            'adapt.lora.dora: embed/embedding .*: let adapt.lora.rank match kernels',
        ),
    ],
)
def test_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        extended(UNTIED, **settings)
    assert '\n' not in str(error.value)


def test_pattern_of_everything_adapts_kernels_and_embeddings_only():
    beside = {path.rpartition('/')[0] for path in extended(UNTIED, rank=(('.*', 16),)) if path.endswith('/lora_a')}
    layers = {f'layers/attention/{name}' for name in ('query', 'key', 'value', 'output')}
    assert beside == layers | {f'layers/mlp/{name}' for name in ('up', 'gate', 'down')} | {'embed'}


@pytest.mark.parametrize(
    ('targets', 'parts'),
    [
        ('qv', ['attention/query', 'attention/value']),
        ('attention', [f'attention/{name}' for name in ('query', 'key', 'value', 'output')]),
        (
            'all-linear',
            [f'attention/{name}' for name in ('query', 'key', 'value', 'output')] + ['mlp/down', 'mlp/gate', 'mlp/up'],
        ),
        ('.*/mlp/up/kernel', ['mlp/up']),
    ],
)
@pytest.mark.parametrize('cut', [(), (1, 1)])
def test_targets_replace_the_pattern_of_rank(targets, parts, cut):
    shapes = shapes_of(UNTIED)
    settings = {'rank': (('nothing/of/this', 5),), 'alpha': (('.*', 16.0),), 'targets': targets, 'cut': cut}
    method = adapt.method('lora', UNTIED, shapes, **settings)
    leaves = tree.flatten(jax.eval_shape(method.start, jax.random.key(0), shapes))
    adapted = {path: leaf.shape[-1] for path, leaf in leaves.items() if path.endswith('/lora_a')}
    stacks = ['layers_0', 'layers_1'] if cut else ['layers']
    assert adapted == {f'{stack}/{part}/lora_a': 5 for stack in stacks for part in parts}


def test_first_matching_pattern_gives_the_rank_of_each_layer():
    leaves = extended(MODEL, rank=(('.*/query/kernel', (2, 5)), ('.*/(query|value)/kernel', 3)))
    shapes = {path: leaf.shape for path, leaf in leaves.items() if path.endswith('/lora_a')}
    width = MODEL.width
    assert shapes == {'layers/attention/query/lora_a': (2, width, 5), 'layers/attention/value/lora_a': (2, width, 3)}
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of(MODEL))
    method = adapt.method('lora', MODEL, params, rank=(('.*/query/kernel', (2, 5)),), alpha=(('.*', 10.0),))
    leaves = method.start(jax.random.key(0), params)['layers']['attention']['query']
    np.testing.assert_allclose(leaves['lora_scale'], [5.0, 2.0])  # alpha / rank
    np.testing.assert_array_equal(np.any(np.asarray(leaves['lora_a'][0]), axis=0), [True, True, False, False, False])


def test_with_a_zero_b_is_drawn_with_the_variance_of_its_rank():
    wide = dataclasses.replace(MODEL, width=256)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(wide))
    ranks = (('.*/query/kernel', (4, 16)), ('embed/embedding', 2))
    method = adapt.method('lora', wide, params, rank=ranks, alpha=(('.*', 16.0),), zero='a')
    drawn = tree.flatten(method.start(jax.random.key(0), params))
    b = np.asarray(drawn['layers/attention/query/lora_b'])
    assert not np.any(drawn['layers/attention/query/lora_a']) and not np.any(drawn['embed/lora_a'])
    np.testing.assert_allclose([b[0, :4].std(), b[1].std()], [1 / 2, 1 / 4], rtol=0.15)
    assert not b[0, 4:].any()


def test_a_is_drawn_as_in_peft():
    """Uniform within 1 / sqrt(in), as kaiming_uniform_(a=sqrt(5)) of PEFT's reset_lora_parameters; B is zero."""
    wide = dataclasses.replace(MODEL, width=256)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(wide))
    method = adapt.method('lora', wide, params, rank=(('.*/query/kernel', 32),), alpha=(('.*', 16.0),))
    drawn = tree.flatten(method.start(jax.random.key(0), params))
    a = np.asarray(drawn['layers/attention/query/lora_a'])
    assert 0.99 / 16 < np.abs(a).max() <= 1 / 16
    np.testing.assert_allclose(a.std(), 1 / 16 / np.sqrt(3), rtol=0.02)
    assert not np.any(drawn['layers/attention/query/lora_b'])
