"""Adapters that change the embedding of a base whose head is tied to it."""

import json

import jax
import numpy as np
import pytest

from lmtrain import adapt, tree
from lmtrain.models import pretrained, safetensors

PREFIX = 'base_model.model.'
EMBEDDINGS = {'llama': 'model.embed_tokens', 'gpt2': 'transformer.wte'}
QUERIES = {'llama': 'model.layers.0.self_attn.q_proj', 'gpt2': 'transformer.h.0.attn.c_attn'}


def base(kind='llama'):
    """(model, params) of a language model whose head is its embedding."""
    sizes = {
        'llama': {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 16},
        'gpt2': {'n_embd': 16, 'n_layer': 1, 'n_head': 2, 'n_positions': 16},
    }[kind]
    extra = {'max_position_embeddings': 16} if kind == 'llama' else {}
    config = sizes | extra | {'model_type': kind, 'vocab_size': 32, 'tie_word_embeddings': True}
    model, random = pretrained.model_of(config), np.random.default_rng(0)
    leaves = tree.flatten(pretrained.shapes_of(model))
    return model, tree.unflatten(
        {path: random.normal(0, 0.2, x.shape).astype(np.float32) for path, x in leaves.items()}
    )


def lora(kind, columns=16):
    """The tensors of a LoRA of the queries."""
    random = np.random.default_rng(1)
    name = PREFIX + QUERIES[kind]
    a, b = random.normal(size=(2, 16)), random.normal(size=(columns, 2))
    return {f'{name}.lora_A.weight': a.astype(np.float32), f'{name}.lora_B.weight': b.astype(np.float32)}


def write(folder, tensors, **fields):
    about = {'peft_type': 'LORA', 'base_model_name_or_path': 'here', 'r': 2, 'lora_alpha': 2, 'task_type': 'CAUSAL_LM'}
    (folder / 'adapter_config.json').write_text(json.dumps(about | fields))
    shapes = {key: (x.shape, x.dtype) for key, x in tensors.items()}
    safetensors.write_file(folder / 'adapter_model.safetensors', shapes, tensors.__getitem__)
    return folder


TABLE = np.random.default_rng(2).normal(size=(32, 16)).astype(np.float32)


@pytest.mark.parametrize('tying', [False, None])
def test_a_copy_of_the_embedding_beside_a_head_that_keeps_its_table_is_refused(tmp_path, tying):
    tensors = lora('llama') | {f'{PREFIX}model.embed_tokens.weight': TABLE}
    fields = {'target_modules': ['q_proj'], 'modules_to_save': ['embed_tokens'], 'ensure_weight_tying': tying}
    with pytest.raises(ValueError, match='the head keeps the table of the base; train it with ensure_weight_tying=Tr'):
        adapt.load_adapter(*base(), write(tmp_path, tensors, **fields))


def test_tied_weights_are_read_whether_or_not_the_head_is_repeated(tmp_path):
    """PEFT writes both tensors, and both names of the module."""
    tensors = lora('llama') | {f'{PREFIX}model.embed_tokens.weight': TABLE}
    fields = {'target_modules': ['q_proj'], 'ensure_weight_tying': True}
    fields['modules_to_save'] = ['embed_tokens', 'model.embed_tokens']
    for repeated in ({}, {f'{PREFIX}lm_head.weight': TABLE}):
        params = adapt.load_adapter(*base(), write(tmp_path, tensors | repeated, **fields))
        np.testing.assert_array_equal(params['embed']['embedding'], TABLE)
        assert 'head' not in params
    with pytest.raises(ValueError, match="lm_head.weight is not 'model.embed_tokens', though"):
        adapt.load_adapter(*base(), write(tmp_path, tensors | {f'{PREFIX}lm_head.weight': TABLE + 1}, **fields))


def test_an_embedding_that_peft_does_not_tie_is_refused_in_both_directions(tmp_path):
    """ensure_weight_tying finds modules called embed_tokens or lm_head, and no other adapter than LoRA has it."""
    tensors = lora('gpt2', columns=48) | {f'{PREFIX}transformer.wte.weight': TABLE}
    fields = {'target_modules': ['c_attn'], 'modules_to_save': ['wte'], 'ensure_weight_tying': True}
    with pytest.raises(ValueError, match='the head keeps the table of the base; merge it in PEFT'):
        adapt.load_adapter(*base('gpt2'), write(tmp_path, tensors, **fields))
    rank = {'rank': (('.*query/kernel', 2),), 'alpha': (('.*', 2.0),)}
    for kind, method, settings, name in (('gpt2', 'lora', rank, 'wte'), ('llama', 'ia3', {}, 'embed_tokens')):
        model, params = base(kind)
        params = adapt.method(method, model, params, **settings).start(jax.random.key(0), params)
        with pytest.raises(ValueError, match='PEFT ties them only for LoRA and only if the embedding is called embed'):
            adapt.save_adapter(tmp_path, model, params, base='here', task_type='CAUSAL_LM', modules_to_save=[name])


def test_a_saved_embedding_is_written_as_tied(tmp_path):
    model, bare = base()
    method = adapt.method('lora', model, bare, rank=(('.*query/kernel', 2),), alpha=(('.*', 2.0),))
    params = method.start(jax.random.key(0), bare)
    adapt.save_adapter(tmp_path / 'none', model, params, base='here', task_type='CAUSAL_LM')
    assert 'ensure_weight_tying' not in json.loads((tmp_path / 'none' / 'adapter_config.json').read_bytes())
    for name in ('embed_tokens', 'model.embed_tokens'):
        new = dict(params, embed={'embedding': TABLE})
        folder = tmp_path / name
        adapt.save_adapter(folder, model, new, base='here', task_type='CAUSAL_LM', modules_to_save=[name])
        assert json.loads((folder / 'adapter_config.json').read_bytes())['ensure_weight_tying'] is True
        tensors = safetensors.header(folder / 'adapter_model.safetensors')  # PEFT looks for both
        for key in ('model.embed_tokens', 'lm_head'):
            np.testing.assert_array_equal(tensors[f'{PREFIX}{key}.weight'].read(), TABLE)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), bare)
        np.testing.assert_array_equal(adapt.load_adapter(model, shapes, folder)['embed']['embedding'], TABLE)


def test_a_saved_embedding_of_the_bare_model_is_that_of_the_base(tmp_path):
    """Its name lacks `model.`; before, it was read as an added head of 32 outputs."""
    model, bare = base()
    method = adapt.method('lora', model, bare, rank=(('.*query/kernel', 2),), alpha=(('.*', 2.0),))
    params = dict(method.start(jax.random.key(0), bare), embed={'embedding': TABLE})
    about = {'task_type': 'FEATURE_EXTRACTION', 'modules_to_save': ['embed_tokens']}
    adapt.save_adapter(tmp_path, model, params, base='here', **about)
    assert f'{PREFIX}embed_tokens.weight' in safetensors.header(tmp_path / 'adapter_model.safetensors')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), bare)
    read = adapt.load_adapter(model, shapes, tmp_path)
    np.testing.assert_array_equal(read['embed']['embedding'], TABLE)
    assert read.keys() == params.keys() and 'heads' not in read


def test_a_lora_of_the_embedding_that_peft_puts_on_the_tied_head_is_refused(tmp_path):
    name = f'{PREFIX}model.embed_tokens.lora_embedding_'
    tensors = lora('llama') | {f'{name}A': np.ones((2, 32), np.float32), f'{name}B': np.ones((16, 2), np.float32)}
    fields = {'target_modules': ['q_proj', 'embed_tokens']}
    adapt.load_adapter(*base(), write(tmp_path, tensors, **fields, ensure_weight_tying=False))
    with pytest.raises(ValueError, match="'model.embed_tokens' has a LoRA, and ensure_weight_tying=True puts it on"):
        adapt.load_adapter(*base(), write(tmp_path, tensors, **fields, ensure_weight_tying=True))
