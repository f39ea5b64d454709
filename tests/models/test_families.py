"""The published sizes have the published numbers of parameters; nothing is allocated."""

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer, bert, gpt2, llama

PUBLISHED = [
    (gpt2.SIZES['124M'], 124_439_808),
    (gpt2.SIZES['355M'], 354_823_168),
    (gpt2.SIZES['774M'], 774_030_080),
    (gpt2.SIZES['1558M'], 1_557_611_200),
    (llama.SIZES['1B'], 1_235_814_400),
    (llama.SIZES['3B'], 3_212_749_824),
    (llama.SIZES['8B'], 8_030_261_248),
    (llama.SIZES['70B'], 70_553_706_496),
    (bert.SIZES['base'], 109_514_298 - 2 * 768),  # but for the embedding of sentence types
    (bert.SIZES['large'], 335_174_458 - 2 * 1024),
    (bert.SIZES['crammed'], 119_563_776),
]


def shapes(settings):
    config = base.get_config()
    config.model.update(settings)
    model = Transformer(**config.model)
    batch = {'tokens': jax.ShapeDtypeStruct((1, 8), jnp.int32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)['params']


@pytest.mark.parametrize(('settings', 'parameters'), PUBLISHED, ids=[f'{n:,}' for _, n in PUBLISHED])
def test_published_sizes_count(settings, parameters):
    assert tree.count(shapes(settings)) == parameters


@pytest.mark.parametrize('name', llama.LADDER)
def test_ladder_counts_what_its_names_say(name):
    named = float(name.removesuffix('M')) * 1e6
    assert tree.count(shapes(llama.LADDER[name])['layers']) == pytest.approx(named, rel=0.4)
