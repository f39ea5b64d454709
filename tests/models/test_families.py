"""The published sizes have the published numbers of parameters; nothing is allocated."""

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain import tree
from lmtrain.models import Transformer, pretrained
from lmtrain.models.families import bert, gemma, gpt2, gpt_neox, llama, mistral, modernbert, olmo2, phi3, qwen, roberta

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
def test_published_sizes_have_the_published_numbers_of_parameters(settings, parameters):
    assert tree.count(shapes(settings)) == parameters


@pytest.mark.parametrize('module', [gpt2, llama, mistral, qwen, gemma, phi3, olmo2, gpt_neox], ids=lambda m: m.__name__)
def test_published_sizes_can_be_exported(module):
    for name, settings in module.SIZES.items():
        model = build(settings)
        assert pretrained.config_of(model)['model_type'] in module.ARCHITECTURES, name
        paths = [path for entry in module.entries(model) for path in entry.paths]
        assert sorted(paths) == sorted(tree.flatten(shapes(settings))), name


@pytest.mark.parametrize('name', llama.LADDER)
def test_names_of_the_ladder_are_numbers_of_parameters(name):
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
GPT2 = {
    **{'model_type': 'gpt2', 'activation_function': 'gelu_new', 'architectures': ['GPT2LMHeadModel']},
    **{'attn_pdrop': 0.1, 'bos_token_id': 50_256, 'embd_pdrop': 0.1, 'eos_token_id': 50_256, 'resid_pdrop': 0.1},
    **{'initializer_range': 0.02, 'layer_norm_epsilon': 1e-5, 'n_ctx': 1024, 'n_positions': 1024},
    **{'summary_activation': None, 'summary_first_dropout': 0.1, 'summary_proj_to_labels': True},
    **{'summary_type': 'cls_index', 'summary_use_proj': True, 'vocab_size': 50_257},
    'task_specific_params': {'text-generation': {'do_sample': True, 'max_length': 50}},
}
LARGER = GPT2 | {'n_special': 0, 'predict_special_tokens': True}
BERT = {
    **{'model_type': 'bert', 'architectures': ['BertForMaskedLM'], 'attention_probs_dropout_prob': 0.1},
    **{'directionality': 'bidi', 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.1, 'hidden_size': 768},
    **{'initializer_range': 0.02, 'intermediate_size': 3072, 'layer_norm_eps': 1e-12, 'pad_token_id': 0},
    **{'max_position_embeddings': 512, 'num_attention_heads': 12, 'num_hidden_layers': 12, 'type_vocab_size': 2},
    **{'pooler_fc_size': 768, 'pooler_num_attention_heads': 12, 'pooler_num_fc_layers': 3},
    **{'pooler_size_per_head': 128, 'pooler_type': 'first_token_transform', 'vocab_size': 21_128},
}
LLAMA1 = {
    **{'model_type': 'llama', 'architectures': ['LLaMAForCausalLM'], 'bos_token_id': 0, 'eos_token_id': 1},
    **{'hidden_act': 'silu', 'hidden_size': 4096, 'intermediate_size': 11_008, 'initializer_range': 0.02},
    **{'max_sequence_length': 2048, 'num_attention_heads': 32, 'num_hidden_layers': 32, 'pad_token_id': -1},
    **{'rms_norm_eps': 1e-6, 'torch_dtype': 'float16', 'transformers_version': '4.27.0.dev0', 'use_cache': True},
    'vocab_size': 32_000,
}
SEVEN = llama.LLAMA | {
    **{'vocab_size': 32_000, 'max_len': 2048, 'num_layers': 32, 'width': 4096, 'num_heads': 32},
    **{'mlp_dim': 11_008, 'norm_eps': 1e-6, 'rope_theta': 10_000.0},
}
YARN = {'factor': 16.0, 'original_max_position_embeddings': 4096, 'type': 'yarn', 'finetuned': True}
FILES += [
    (LARGER | {'n_embd': 1024, 'n_head': 16, 'n_layer': 24}, gpt2.SIZES['355M']),
    (LARGER | {'n_embd': 1280, 'n_head': 20, 'n_layer': 36}, gpt2.SIZES['774M']),
    (LARGER | {'n_embd': 1600, 'n_head': 25, 'n_layer': 48, 'output_past': True}, gpt2.SIZES['1558M']),
    (
        GPT2
        | {'n_embd': 768, 'n_head': 12, 'n_layer': 6, '_num_labels': 1}
        | {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}},
        gpt2.SIZES['124M'] | {'num_layers': 6},
    ),
    (BERT, bert.SIZES['base'] | {'family': 'bert', 'vocab_size': 21_128, 'token_types': 2}),
    (
        BERT | {'vocab_size': 119_547, 'layer_norm_eps': 1e-12, 'output_past': True},
        bert.SIZES['base'] | {'family': 'bert', 'vocab_size': 119_547, 'token_types': 2},
    ),
    (LLAMA1, SEVEN),
    (LLAMA1 | {'architectures': ['LlamaForCausalLM'], 'max_position_embeddings': 2048}, SEVEN),
    (
        LLAMA1
        | {'architectures': ['LlamaForCausalLM'], 'max_position_embeddings': 65_536, 'rope_scaling': YARN}
        | {'attn_implementation': 'flash_attention_2', 'do_sample': True, 'temperature': 0.9, 'top_p': 0.6},
        SEVEN
        | {'max_len': 65_536}
        | {'rope_scaling': (('factor', 16.0), ('original_max_position_embeddings', 4096), ('rope_type', 'yarn'))},
    ),
    (
        {
            **{'model_type': 'mistral', 'architectures': ['MistralForCausalLM'], 'attention_dropout': 0.0},
            **{'hidden_act': 'silu', 'hidden_size': 4096, 'intermediate_size': 14_336, 'rms_norm_eps': 1e-5},
            **{'max_position_embeddings': 32_768, 'num_attention_heads': 32, 'num_hidden_layers': 32},
            **{'num_key_value_heads': 8, 'pad_token_id': 770, 'rope_theta': 1_000_000.0, 'sliding_window': None},
            **{'tie_word_embeddings': False, 'vocab_size': 32_768, 'unsloth_fixed': True},
            **{'unsloth_version': '2024.9', 'torch_dtype': 'bfloat16', 'use_cache': True},
        },
        mistral.SIZES['7B v0.3'],
    ),
    (  # without `sliding_window`, whose default is a window
        {
            **{'model_type': 'mistral', 'hidden_act': 'silu', 'hidden_size': 4096, 'intermediate_size': 14_336},
            **{'max_position_embeddings': 32_768, 'num_attention_heads': 32, 'num_hidden_layers': 32},
            **{'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'rope_theta': 10_000.0, 'vocab_size': 32_000},
        },
        mistral.SIZES['7B v0.1'],
    ),
]


@pytest.mark.parametrize(
    ('config', 'settings'), FILES, ids=[f'{i} {file[0]["model_type"]}' for i, file in enumerate(FILES)]
)
def test_published_config_files_equal_the_published_sizes(config, settings):
    assert pretrained.model_of(config) == build(settings)
