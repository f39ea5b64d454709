"""The published sizes have the published numbers of parameters; nothing is allocated."""

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import (
    Transformer,
    bert,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    modernbert,
    olmo2,
    phi3,
    pretrained,
    qwen,
    roberta,
)

PUBLISHED = [
    (gpt2.SIZES['124M'], 124_439_808),
    (gpt2.SIZES['355M'], 354_823_168),
    (gpt2.SIZES['774M'], 774_030_080),
    (gpt2.SIZES['1558M'], 1_557_611_200),
    (llama.SIZES['1B'], 1_235_814_400),
    (llama.SIZES['3B'], 3_212_749_824),
    (llama.SIZES['8B'], 8_030_261_248),
    (llama.SIZES['70B'], 70_553_706_496),
    (mistral.SIZES['7B v0.1'], 7_241_732_096),
    (mistral.SIZES['7B v0.3'], 7_248_023_552),
    (qwen.SIZES['2.5 0.5B'], 494_032_768),
    (qwen.SIZES['2.5 1.5B'], 1_543_714_304),
    (qwen.SIZES['3 0.6B'], 596_049_920),
    (qwen.SIZES['3 1.7B'], 1_720_574_976),
    (qwen.SIZES['3 8B'], 8_190_735_360),
    (gemma.SIZES['2B'], 2_506_172_416),
    (gemma.SIZES['7B'], 8_537_680_896),
    (gemma.SIZES['2 2B'], 2_614_341_888),
    (gemma.SIZES['2 9B'], 9_241_705_984),
    (gemma.SIZES['3 270M'], 268_098_176),
    (gemma.SIZES['3 1B'], 999_885_952),
    (phi3.SIZES['mini'], 3_821_079_552),
    (olmo2.SIZES['1B'], 1_484_916_736),
    (olmo2.SIZES['7B'], 7_298_617_344),
    (gpt_neox.SIZES['70M'], 70_426_624),
    (gpt_neox.SIZES['160M'], 162_322_944),
    (gpt_neox.SIZES['410M'], 405_334_016),
    (gpt_neox.SIZES['1.4B'], 1_414_647_808),
    (bert.SIZES['base'], 109_514_298 - 2 * 768),  # but for the embedding of sentence types
    (bert.SIZES['large'], 335_174_458 - 2 * 1024),
    (bert.SIZES['crammed'], 119_563_776),
    (roberta.SIZES['base'], 124_697_433),
    (modernbert.SIZES['base'], 149_655_232),
]


def build(settings):
    config = base.get_config()
    config.model.update(settings)
    return Transformer(**config.model)


def shapes(settings):
    model = build(settings)
    batch = {'tokens': jax.ShapeDtypeStruct((1, 8), jnp.int32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)['params']


@pytest.mark.parametrize(('settings', 'parameters'), PUBLISHED, ids=[f'{n:,}' for _, n in PUBLISHED])
def test_published_sizes_count(settings, parameters):
    assert tree.count(shapes(settings)) == parameters


@pytest.mark.parametrize('module', [gpt2, llama, mistral, qwen, gemma, phi3, olmo2, gpt_neox], ids=lambda m: m.__name__)
def test_published_sizes_can_be_exported(module):
    for name, settings in module.SIZES.items():
        model = build(settings)
        assert pretrained.config_of(model)['model_type'] in module.ARCHITECTURES, name
        paths = [path for entry in module.entries(model) for path in entry.paths]
        assert sorted(paths) == sorted(tree.flatten(shapes(settings))), name


@pytest.mark.parametrize('name', llama.LADDER)
def test_ladder_counts_what_its_names_say(name):
    named = float(name.removesuffix('M')) * 1e6
    assert tree.count(shapes(llama.LADDER[name])['layers']) == pytest.approx(named, rel=0.4)


# As published, but for names, token ids and the like.
FILES = [
    (
        {
            **{'model_type': 'qwen2', 'hidden_act': 'silu', 'hidden_size': 896, 'intermediate_size': 4864},
            **{'max_position_embeddings': 32_768, 'max_window_layers': 21, 'num_attention_heads': 14},
            **{'num_hidden_layers': 24, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-6, 'rope_theta': 1_000_000.0},
            **{'sliding_window': 32_768, 'tie_word_embeddings': True, 'use_sliding_window': False},
            **{'vocab_size': 151_936, 'use_mrope': False, 'torch_dtype': 'bfloat16', 'use_cache': True},
        },
        qwen.SIZES['2.5 0.5B'],
    ),
    (
        {
            **{'model_type': 'gemma3_text', '_sliding_window_pattern': 6, 'attention_bias': False, 'head_dim': 256},
            **{'attn_logit_softcapping': None, 'final_logit_softcapping': None, 'hidden_size': 640},
            **{'hidden_activation': 'gelu_pytorch_tanh', 'intermediate_size': 2048, 'num_attention_heads': 4},
            **{'layer_types': (['sliding_attention'] * 5 + ['full_attention']) * 3, 'num_hidden_layers': 18},
            **{'max_position_embeddings': 32_768, 'num_key_value_heads': 1, 'query_pre_attn_scalar': 256},
            **{'rms_norm_eps': 1e-6, 'rope_local_base_freq': 10_000.0, 'rope_scaling': None, 'sliding_window': 512},
            **{'rope_theta': 1_000_000.0, 'use_bidirectional_attention': False, 'vocab_size': 262_144},
        },
        gemma.SIZES['3 270M'],
    ),
    (
        {
            **{'model_type': 'gpt_neox', 'hidden_act': 'gelu', 'hidden_size': 512, 'intermediate_size': 2048},
            **{'layer_norm_eps': 1e-5, 'max_position_embeddings': 2048, 'num_attention_heads': 8},
            **{'num_hidden_layers': 6, 'rotary_emb_base': 10_000, 'rotary_pct': 0.25, 'vocab_size': 50_304},
            **{'tie_word_embeddings': False, 'use_parallel_residual': True, 'torch_dtype': 'float16'},
        },
        gpt_neox.SIZES['70M'],
    ),
]


@pytest.mark.parametrize(('config', 'settings'), FILES, ids=[config['model_type'] for config, _ in FILES])
def test_published_files_are_the_published_sizes(config, settings):
    assert pretrained.model_of(config) == build(settings)
