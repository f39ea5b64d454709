"""Directories of the decoder families equal outputs of transformers (experiments/parity); invalid directories."""

import dataclasses
import functools
import json
import pathlib
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments.parity import cases
from lmtrain import tree
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.inference import sample
from lmtrain.models import load_pretrained, pretrained, safetensors, save_pretrained
from lmtrain.parallel import sharding

GOLDENS = json.loads((pathlib.Path(__file__).parent / 'goldens.json').read_text())
QUICK = {'xla_backend_optimization_level': 0}


def directory(folder: pathlib.Path, name: str, **changes) -> pathlib.Path:
    """The Hugging Face directory of a case; `changes` of its config.json, None removes a field."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in (cases.DECODERS[name] | changes).items() if value is not None}
    (folder / 'config.json').write_text(json.dumps(config))
    write(folder, {key: cases.weights(key, tuple(shape)) for key, shape in GOLDENS[name]['shapes'].items()})
    return folder


def write(folder, arrays, **options):
    safetensors.write(folder, {key: (x.shape, x.dtype) for key, x in arrays.items()}, arrays.__getitem__, **options)


def read(folder) -> dict[str, np.ndarray]:
    return {key: tensor.read() for key, tensor in safetensors.find(folder).items()}


@functools.partial(jax.jit, static_argnames='model', compiler_options=QUICK)
def logits(model, params, batch):
    return model.apply({'params': params}, batch)['logits']


@pytest.mark.parametrize('name', cases.DECODERS)
def test_logits_and_written_directories_equal_those_of_transformers(tmp_path, name):
    model, params = load_pretrained(directory(tmp_path / 'in', name))
    actual = cases.sampled(logits(dataclasses.replace(model, unroll=1), params, cases.batch()))
    wanted = np.array(GOLDENS[name]['logits'], np.float32).reshape(actual.shape)
    np.testing.assert_allclose(actual, wanted, atol=2e-5)

    # What is written is what was read, whether or not the stack is cut.
    like = cases.DECODERS[name] | {'bos_token_id': 7, 'dtype': 'float16'}
    save_pretrained(tmp_path / 'out', model, tree.cut(params, (1, model.num_layers - 1)), like=like)
    before = {
        key.replace('lm_head', 'embed_out') if 'neox' in name else key: x for key, x in read(tmp_path / 'in').items()
    }
    after = read(tmp_path / 'out')
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    config = pretrained.read_config(tmp_path / 'out')
    assert config['architectures'] == cases.DECODERS[name]['architectures']
    assert config['bos_token_id'] == 7 and config['eos_token_id'] is None
    assert config['dtype'] == config['torch_dtype'] == 'float32'
    assert load_pretrained(tmp_path / 'out')[0] == model


def test_every_family_has_a_case():
    covered = {config['model_type'] for config in cases.DECODERS.values()}
    assert covered == {kind for kind in pretrained.FAMILIES if 'bert' not in kind}


def test_stories_continue_as_published(shared):
    """The text of reference_stories260K.md, from the begin token, character for character."""
    folder = shared / 'models' / 'stories260K'
    if not folder.is_dir():
        pytest.skip(f'no {folder}')
    model, params = load_pretrained(folder / 'hf')
    tokenizer = open_tokenizer(folder / 'hf' / 'tokenizer.json', mask=False)
    greedy = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0}
    greedy |= {'end_ids': [tokenizer.end_id], 'vocab_size': tokenizer.vocab_size}
    model = dataclasses.replace(model, unroll=1)
    ((ids, _),) = sample.generate(model, params, [[tokenizer.begin_id]], max_tokens=256, **greedy)
    published = (folder / 'reference_stories260K.md').read_text().split('-t 0.0\n')[1].split('\n```')[0]
    assert tokenizer.decode(ids) == published


def test_leaves_are_placed_one_by_one_in_the_requested_dtype(tmp_path):
    folder = directory(tmp_path / 'in', 'llama')
    write(folder, {key: x.astype(ml_dtypes.bfloat16) for key, x in read(folder).items()})
    seen = []

    def place(path, array):
        seen.append(path)
        return jnp.asarray(array)

    model, params = load_pretrained(folder, place)
    assert sorted(seen) == sorted(tree.flatten(params))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {'bfloat16'}
    whole, _ = load_pretrained(folder, dtype='float32'), None
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.float32(a), b), params, whole[1])
    # Kept in bfloat16 and computed in float32, they give what their float32 copies give.
    batch, model = cases.batch(), dataclasses.replace(model, unroll=1)
    np.testing.assert_array_equal(logits(model, params, batch), logits(model, whole[1], batch))
    save_pretrained(tmp_path / 'out', model, params, dtype='float16')
    assert {str(x.dtype) for x in read(tmp_path / 'out').values()} == {'float16'}
    assert pretrained.read_config(tmp_path / 'out')['torch_dtype'] == 'float16'


def test_leaves_are_placed_directly_on_a_mesh(tmp_path):
    folder = directory(tmp_path / 'in', 'llama')
    mesh = sharding.mesh(data=1, fsdp=4, tensor=1, sequence=1, devices=jax.devices()[:4])

    def place(path, array):
        (where,) = tree.flatten(sharding.shardings(tree.unflatten({path: array}), mesh)).values()
        return jax.device_put(array, where)

    model, params = load_pretrained(folder, place)
    kernel = params['layers']['mlp']['up']['kernel']
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 48)}
    actual = cases.sampled(logits(dataclasses.replace(model, unroll=1), params, cases.batch()))
    wanted = np.array(GOLDENS['llama']['logits'], np.float32).reshape(actual.shape)
    np.testing.assert_allclose(actual, wanted, atol=2e-5)
    save_pretrained(tmp_path / 'out', model, params)
    for key, array in read(folder).items():
        np.testing.assert_array_equal(read(tmp_path / 'out')[key], array, err_msg=key)


def test_weights_in_several_files(tmp_path):
    folder = directory(tmp_path, 'gpt2')
    whole = read(folder)
    _, expected = load_pretrained(folder)
    write(folder, whole, max_size=20_000)
    names = sorted(path.name for path in folder.glob('*.safetensors*'))
    assert names[0] == f'model-00001-of-{len(names) - 1:05}.safetensors' and len(names) > 3, names
    assert all((folder / name).stat().st_size < 30_000 for name in names)
    assert not (folder / 'model.safetensors').exists()
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], expected)

    index = folder / 'model.safetensors.index.json'
    content = json.loads(index.read_text())
    files_by_key = content['weight_map']
    key = next(iter(files_by_key))
    for change, message in (
        ({key: f'../{names[0]}'}, 'is not a .safetensors file in'),
        ({key: names[-2]}, f"assigns '{key}' to {names[-2]}, which does not contain it"),
        ({'lost': names[0]}, "assigns 'lost' to"),
    ):
        index.write_text(json.dumps({'weight_map': files_by_key | change}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_pretrained(folder)
    write(folder, whole)
    assert [path.name for path in folder.glob('*.safetensors*')] == ['model.safetensors']


def test_keys_may_lack_the_prefix(tmp_path):
    """The same as the files of openai-community/gpt2, which also contain the masks."""
    folder = directory(tmp_path, 'gpt2')
    _, expected = load_pretrained(folder)
    masks = {'h.0.attn.bias': np.ones((1, 1, 96, 96), np.float32)}
    write(folder, {key.removeprefix('transformer.'): x for key, x in read(folder).items()} | masks)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], expected)


def test_a_tied_head_in_the_file_must_equal_the_embedding(tmp_path):
    folder = directory(tmp_path, 'gpt2')
    whole = read(folder)
    write(folder, whole | {'lm_head.weight': whole['transformer.wte.weight']})
    load_pretrained(folder)
    write(folder, whole | {'lm_head.weight': 2 * whole['transformer.wte.weight']})
    with pytest.raises(ValueError, match='config.json ties them: set tie_word_embeddings'):
        load_pretrained(folder)


CONFIGS = [
    ({'model_type': 'llamma'}, "model_type='llamma' is none of .*did you mean 'llama'"),
    ({'architectures': ['LlamaForSomething']}, 'LlamaForSomething'),
    ({'hidden_size': '32'}, "hidden_size='32' of a llama is not a positive integer"),
    ({'num_attention_heads': 0}, 'num_attention_heads=0 of a llama is not a positive integer'),
    ({'rms_norm_eps': '1e-5'}, "rms_norm_eps='1e-5' of a llama must have the type of 1e-06"),
    ({'tie_word_embeddings': 'no'}, "tie_word_embeddings='no' of a llama must have the type of False"),
    ({'num_key_value_heads': '2'}, 'a llama has a value of a wrong type'),
    ({'hidden_size': None}, 'a llama lacks hidden_size'),
    ({'hidden_act': 'gelu_quick'}, "hidden_act='gelu_quick' of a llama is none of"),
    ({'rope_scaling': {'rope_type': 'proportional', 'factor': 2.0}}, "rope_type = 'proportional' is none of"),
    ({'rope_scaling': {'rope_type': 'linear'}}, "rope_type='linear' has the fields .*must have .'factor'"),
    ({'rope_scaling': {'rope_type': 'linear', 'factor': 2.0, 'factr': 1}}, "'factr'"),
    ({'rope_scaling': {'rope_type': 'linear', 'type': 'dynamic', 'factor': 2.0}}, 'differ'),
    ({'rope_scaling': {'factor': 2.0}}, 'rope_type default have the field factor'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5 is not supported'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config=.* is unknown for a llama'),
    ({'residual_multiplier': 0.2}, r'residual_multiplier=0.2 is unknown.*init.ignore="\(\'residual_multiplier\',\)"'),
    ({'max_position_embeddings': 0}, 'model.max_len=0 must be at least 1'),
]


@pytest.mark.parametrize(('change', 'message'), CONFIGS, ids=[str(change)[:60] for change, _ in CONFIGS])
def test_an_unsupported_field_is_named(change, message):
    config = {name: value for name, value in (cases.DECODERS['llama'] | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        pretrained.model_of(config)


def test_contradictory_windows_are_rejected():
    with pytest.raises(ValueError, match='layer_types=.* are not 2 of'):
        pretrained.model_of(cases.DECODERS['qwen2'] | {'layer_types': ['full_attention']})
    with pytest.raises(ValueError, match='sliding_attention of a gemma3_text has a scaling'):
        scaling = {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}
        pretrained.model_of(cases.DECODERS['gemma3'] | {'rope_parameters': scaling})


def test_fields_that_are_off_and_names_of_other_programs_are_skipped():
    more = {
        'output_scores': False,
        'pruned_heads': {},
        'temperature': 1.0,
        'torch_dtype': 'bfloat16',
        'use_cache': True,
    }
    assert pretrained.model_of(cases.DECODERS['llama'] | more) == pretrained.model_of(cases.DECODERS['llama'])


def test_ignored_fields_are_skipped_unless_the_family_reads_them():
    config = cases.DECODERS['llama'] | {'residual_multiplier': 0.2, 'comment': 'mine'}
    expected = pretrained.model_of(cases.DECODERS['llama'])
    assert pretrained.model_of(config, ignore=('residual_multiplier', 'comment')) == expected
    with pytest.raises(ValueError, match="comment='mine' is unknown"):
        pretrained.model_of(config, ignore=('residual_multiplier',))
    with pytest.raises(ValueError, match="init.ignore has 'rope_theta', which a llama reads"):
        pretrained.model_of(cases.DECODERS['llama'], ignore=('rope_theta',))


def test_a_stack_has_the_widest_dtype_of_its_layers(tmp_path):
    folder = directory(tmp_path, 'llama')
    whole = read(folder)
    half, brain = NORM, NORM.replace('layers.1', 'layers.0')
    down = 'model.layers.0.mlp.down_proj.weight'
    narrow = {half: whole[half].astype(np.float16), brain: whole[brain].astype(ml_dtypes.bfloat16)}
    narrow[down] = whole[down].astype(ml_dtypes.bfloat16)
    write(folder, whole | narrow)
    _, params = load_pretrained(folder)
    scales, kernels = params['layers']['attention_norm']['scale'], params['layers']['mlp']['down']['kernel']
    assert scales.dtype == kernels.dtype == np.float32  # which holds what float16 and bfloat16 hold
    np.testing.assert_array_equal(scales, np.stack([np.float32(narrow[brain]), np.float32(narrow[half])]))
    np.testing.assert_array_equal(kernels[0], np.float32(narrow[down]).T)
    np.testing.assert_array_equal(kernels[1], whole[down.replace('layers.0', 'layers.1')].T)


def test_a_trained_segment_is_written_in_its_own_dtype(tmp_path):
    """As in a run with init.frozen_dtype: layer 0 is frozen in bfloat16, layer 1 was trained in float32."""
    model, params = load_pretrained(directory(tmp_path / 'in', 'llama'))
    half = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))
    params = {name: x if name == 'layers_1' else half(x) for name, x in tree.cut(params, (1, 1)).items()}
    save_pretrained(tmp_path / 'out', model, params)
    tensors = read(tmp_path / 'out')
    assert tensors['model.embed_tokens.weight'].dtype == ml_dtypes.bfloat16
    _, again = load_pretrained(tmp_path / 'out')
    for path, leaf in tree.flatten(again['layers']).items():
        for i in (0, 1):
            np.testing.assert_array_equal(leaf[i], tree.flatten(params[f'layers_{i}'])[path][0], err_msg=path)
    assert pretrained.read_config(tmp_path / 'out')['torch_dtype'] == 'float32'


BUFFERS = {
    'gpt2': ['transformer.h.0.attn.bias', 'transformer.h.1.attn.masked_bias', 'h.0.attn.bias'],
    'llama': ['model.rotary_emb.inv_freq', 'model.layers.0.self_attn.rotary_emb.inv_freq'],
    'gemma3': ['model.rotary_emb_local.inv_freq'],
    'gpt_neox': ['gpt_neox.layers.1.attention.bias', 'gpt_neox.layers.0.attention.rotary_emb.inv_freq'],
    'phi3': ['model.layers.0.self_attn.rotary_emb.inv_freq', 'rotary_emb.cos_cached'],
}


@pytest.mark.parametrize('name', BUFFERS)
def test_buffers_of_older_files_are_skipped(tmp_path, name):
    folder = directory(tmp_path, name)
    _, expected = load_pretrained(folder)
    write(folder, read(folder) | {key: np.full(3, 7.0, np.float32) for key in BUFFERS[name]})
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], expected)


@pytest.mark.parametrize('name', ['llama', 'gpt_neox'])
def test_several_files_may_lack_the_prefix(tmp_path, name):
    folder = directory(tmp_path, name)
    prefix = pretrained.FAMILIES[cases.DECODERS[name]['model_type']].PREFIX
    _, expected = load_pretrained(folder)
    write(folder, {key.removeprefix(prefix): x for key, x in read(folder).items()}, max_size=8000)
    assert len(list(folder.glob('model-*.safetensors'))) > 2
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], expected)


NORM = 'model.layers.1.input_layernorm.weight'
TENSORS = [
    (lambda x: x.pop(NORM), f"lack '{NORM}', .32,.*, did you mean"),
    (lambda x: x.update({NORM: x[NORM][:31]}), f"'{NORM}' is .31,., but .32,. by config.json"),
    (
        lambda x: x.update({'model.layers.2.mlp.up_proj.weight': x[NORM]}),
        "'model.layers.2.mlp.up_proj.weight' .32,. is not part of",
    ),
    (lambda x: x.update({NORM: x[NORM].astype(np.int8)}), f"'{NORM}' is int8: quantized weights are not supported"),
]


@pytest.mark.parametrize(('change', 'message'), TENSORS, ids=['missing', 'misshapen', 'extra', 'quantized'])
def test_a_tensor_that_differs_from_the_model_is_named(tmp_path, change, message):
    folder = directory(tmp_path, 'llama')
    arrays = read(folder)
    change(arrays)
    write(folder, arrays)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def header(**entries) -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack('<Q', len(raw)) + raw


def tensor(start, stop, shape=(2,), dtype='F32', **more):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, stop]} | more


FILES = {
    'empty': (b'', 'truncated or not a safetensors file: 0 bytes'),
    'no header': (struct.pack('<Q', 100) + b'{}', 'but a header of 100'),
    'huge header': (b'\xff' * 16, 'but a header of'),
    'no json': (struct.pack('<Q', 4) + b'{]}}', 'invalid JSON'),
    'a list': (struct.pack('<Q', 2) + b'[]', 'expected a JSON object'),
    'twice': (struct.pack('<Q', 13) + b'{"a":1,"a":2}', 'twice'),
    'truncated data': (header(a=tensor(0, 8)) + b'\0' * 4, '4 bytes of data, but 8 in the header'),
    'more data': (header(a=tensor(0, 8)) + b'\0' * 12, '12 bytes of data, but 8 in the header'),
    'a hole': (header(a=tensor(0, 8), b=tensor(12, 20)) + b'\0' * 20, "'b' begins at byte 12 .* ends at 8"),
    'overlap': (header(a=tensor(0, 8), b=tensor(4, 12)) + b'\0' * 12, "'b' begins at byte 4 .* ends at 8"),
    'wrong size': (
        header(a=tensor(0, 8, (3,))) + b'\0' * 8,
        "'a' has data_offsets .0, 8., but .3. of float32 are 12 bytes",
    ),
    'negative': (header(a=tensor(-8, 0)), "'a' has shape"),
    'true': (header(a=tensor(0, 4, (True,))) + b'\0' * 4, "'a' has shape"),
    'unknown dtype': (header(a=tensor(0, 8, dtype='F8_E4M3')) + b'\0' * 8, "'a' has dtype 'F8_E4M3'"),
    'no shape': (header(a={'dtype': 'F32', 'data_offsets': [0, 8]}) + b'\0' * 8, "'a' has the entry"),
    'superfluous field': (header(a=tensor(0, 8, strides=[4])) + b'\0' * 8, "'a' has the entry"),
}


@pytest.mark.parametrize('name', FILES)
def test_a_malformed_header_is_rejected(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / 'model.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        safetensors.find(tmp_path)
    assert 'model.safetensors' in str(error.value)


def test_pickles_and_empty_directories_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no config.json'):
        load_pretrained(tmp_path)
    folder = directory(tmp_path, 'llama')
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='pytorch_model.bin is a pickle'):
        load_pretrained(folder)
    (folder / 'pytorch_model.bin').unlink()
    with pytest.raises(FileNotFoundError, match='neither model.safetensors nor'):
        load_pretrained(folder)
    (folder / 'config.json').write_text('[1]')
    with pytest.raises(ValueError, match='has no model_type'):
        load_pretrained(folder)


def test_models_without_a_hugging_face_form_are_not_written(tmp_path):
    model, params = load_pretrained(directory(tmp_path / 'in', 'llama'))
    out = tmp_path / 'out'
    with pytest.raises(ValueError, match=r"config.json of a llama has no model.norm='layernorm' \(only 'rmsnorm'\)"):
        save_pretrained(out, dataclasses.replace(model, norm='layernorm'), params)
    with pytest.raises(ValueError, match="model.family='' is none of"):
        save_pretrained(out, dataclasses.replace(model, family=''), params)
    with pytest.raises(ValueError, match='prompt/embedding is not in the files of its family.*fold adapters first'):
        save_pretrained(out, model, params | {'prompt': {'embedding': jnp.ones((2, 32))}})
    with pytest.raises(ValueError, match=r'head/kernel is \(32, 60\), but \(32, 61\)'):
        save_pretrained(out, model, params | {'head': {'kernel': jnp.ones((32, 60))}})
    with pytest.raises(ValueError, match='head/kernel is missing'):
        save_pretrained(out, model, {name: leaf for name, leaf in params.items() if name != 'head'})
    assert not out.exists()
