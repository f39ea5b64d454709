"""Directories of PEFT: outputs against those of peft (experiments/parity), a round trip, and invalid directories."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity import adapter_weights, cases, heads
from lmtrain import adapt, tree
from lmtrain.adapt.peft import adapters
from lmtrain.models import load_pretrained, safetensors

GOLDENS = json.loads((pathlib.Path(__file__).parent / 'goldens.json').read_text())
QUICK = {'xla_backend_optimization_level': 0}
HEADS = ('score', 'classifier', 'qa_outputs')
LLAMA = 'rslora with patterns of llama'


def write(path, tensors):
    safetensors.write_file(path, {key: (x.shape, x.dtype) for key, x in tensors.items()}, tensors.__getitem__)


@functools.cache
def base_tensors(name):
    shapes = next(golden['base_shapes'] for golden in GOLDENS.values() if golden['base'] == name)
    return {key: cases.weights(key, tuple(shape)) for key, shape in shapes.items()}


@functools.cache
def opened(name, folder):
    """(model, params) of a base."""
    directory = folder / name.replace(',', '')
    directory.mkdir()
    config = {key: value for key, value in (cases.DECODERS | heads.CASES)[name].items() if value is not None}
    (directory / 'config.json').write_text(json.dumps(config))
    write(directory / 'model.safetensors', base_tensors(name))
    return load_pretrained(directory)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bases')
    return lambda name: opened(name, folder)


def adapter(folder, name, change=lambda config, tensors: None):
    """The directory of a golden's adapter, changed on the way."""
    golden = GOLDENS[name]
    config = json.loads(json.dumps(golden['config']))
    tensors = {
        key: adapter_weights.weights(key, tuple(shape), base_tensors(golden['base']))
        for key, shape in golden['shapes'].items()
    }
    change(config, tensors)
    folder.mkdir(exist_ok=True)
    (folder / 'adapter_config.json').write_text(json.dumps(config))
    write(folder / 'adapter_model.safetensors', tensors)
    return folder


def batch_of(name):
    batch = cases.batch()
    padding = 1 if name.startswith('roberta') else 0
    tokens = np.where(batch['segment_ids'] > 0, np.maximum(batch['tokens'], 2), padding)
    return batch | {'tokens': tokens.astype(np.int32)}


@functools.partial(jax.jit, static_argnames='model', compiler_options=QUICK)
def apply(model, params, batch):
    return model.apply({'params': params}, batch)


def output(model, params, batch, task=None):
    outputs = apply(model, params, batch)
    return outputs['hidden' if task == 'FEATURE_EXTRACTION' else next((h for h in HEADS if h in outputs), 'logits')]


@pytest.mark.parametrize('name', GOLDENS)
def test_read_adapter_gives_the_outputs_of_peft_and_is_written_back(tmp_path, base, name):
    golden = GOLDENS[name]
    model, bare = base(golden['base'])
    params = adapt.load_adapter(model, bare, adapter(tmp_path / 'in', name))
    batch = batch_of(golden['base'])
    outputs = heads.sampled(output(model, params, batch, golden['task'])).ravel()
    np.testing.assert_allclose(outputs, np.array(golden['outputs'], np.float32), atol=2e-5)

    adapt.save_adapter(tmp_path / 'out', model, params, base='here', task_type=golden['task'])
    again = tree.flatten(adapt.load_adapter(model, bare, tmp_path / 'out'))
    assert again.keys() == tree.flatten(params).keys()
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_allclose(again[path], leaf, rtol=1e-6, err_msg=path)
    theirs, ours = (safetensors.header(tmp_path / side / adapters.WEIGHTS) for side in ('in', 'out'))
    ours, theirs = ({key: x.shape for key, x in side.items() if '.base_layer.' not in key} for side in (ours, theirs))
    assert theirs.items() <= ours.items()
    # The base's own head goes along, also the layer before its projection, which PEFT leaves in the base.
    assert all(key.removeprefix('base_model.') in golden['base_shapes'] for key in ours.keys() - theirs.keys())


def test_abstract_base_gets_the_same_leaves(tmp_path, base):
    model, params = base('llama')
    directory = adapter(tmp_path / 'in', LLAMA)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    expected = tree.flatten(adapt.load_adapter(model, params, directory))
    for path, leaf in tree.flatten(adapt.load_adapter(model, shapes, directory)).items():
        if 'lora' in path:
            np.testing.assert_array_equal(leaf, expected[path])
        else:
            assert isinstance(leaf, jax.ShapeDtypeStruct)


def test_excluded_modules_are_no_target(tmp_path, base):
    others = ['k_proj', 'v_proj', 'gate_proj', 'down_proj', 'lm_head']
    change = put(target_modules='all-linear', exclude_modules=others)
    expected = tree.flatten(adapt.load_adapter(*base('llama'), adapter(tmp_path / 'named', LLAMA)))
    params = tree.flatten(adapt.load_adapter(*base('llama'), adapter(tmp_path / 'excluded', LLAMA, change)))
    assert params.keys() == expected.keys()
    with pytest.raises(ValueError, match='k_proj.: there is no tensor of it'):
        adapt.load_adapter(*base('llama'), adapter(tmp_path / 'all', LLAMA, put(target_modules='all-linear')))


def test_different_kernels_of_one_module_are_concatenated(tmp_path, base):
    model, bare = base('gpt_neox')
    params = adapt.load_adapter(model, bare, adapter(tmp_path / 'in', 'lora of gpt_neox'))
    leaves = tree.flatten(params)
    leaves['layers/attention/key/lora_a'] = leaves['layers/attention/key/lora_a'] * 1.5  # as after some training
    leaves['layers/attention/value/lora_scale'] = leaves['layers/attention/value/lora_scale'] * 2.0
    params = tree.unflatten(leaves)
    adapt.save_adapter(tmp_path / 'out', model, params, base='here', task_type='CAUSAL_LM')
    again = adapt.load_adapter(model, bare, tmp_path / 'out')
    assert again['layers']['attention']['query']['lora_a'].shape[-1] == 3 * 4
    batch = batch_of('gpt_neox')
    np.testing.assert_allclose(output(model, again, batch), output(model, params, batch), atol=1e-5)


def test_lora_of_segments_is_written_layer_by_layer(tmp_path, base):
    model, params = base('llama')
    settings = {'rank': [('layers_1/attention/query/kernel', 3)], 'alpha': [('.*', 6.0)], 'cut': (1, 1)}
    method = adapt.method('lora', model, params, **settings)
    extended = method.start(jax.random.key(0), params)
    adapt.save_adapter(tmp_path, model, extended, base='here', task_type='CAUSAL_LM')
    assert list(safetensors.header(tmp_path / adapters.WEIGHTS)) == [
        f'base_model.model.model.layers.1.self_attn.q_proj.lora_{side}.weight' for side in 'AB'
    ]
    assert json.loads((tmp_path / adapters.CONFIG).read_text())['target_modules'] == ['model.layers.1.self_attn.q_proj']


def test_adapter_of_another_base_is_refused(tmp_path, base):
    model, bare = base('llama')
    params = adapt.load_adapter(model, bare, adapter(tmp_path / 'in', LLAMA))
    adapt.save_adapter(tmp_path / 'out', model, params, base='here', task_type='CAUSAL_LM')
    adapt.load_adapter(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), bare), tmp_path / 'out')
    adapt.load_adapter(model, tree.cut(bare, (1, 1)), tmp_path / 'out')
    leaves = tree.flatten(bare)
    leaves['layers/mlp/up/kernel'] = leaves['layers/mlp/up/kernel'] * 1.1
    with pytest.raises(ValueError, match='was made on another base: lmtrain.json says'):
        adapt.load_adapter(model, tree.unflatten(leaves), tmp_path / 'out')
    other, params = base('gpt_neox')
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.up_proj' is no module that an adapter of this base"):
        adapt.load_adapter(other, params, tmp_path / 'in')
    with pytest.raises(ValueError, match="family='' has no Hugging Face form"):
        adapt.load_adapter(dataclasses.replace(model, family=''), bare, tmp_path / 'in')


def test_passes_over_the_tree_do_not_grow_with_the_modules(tmp_path, base, monkeypatch):
    model, bare = base('llama')
    passes, flatten = [], tree.flatten

    def count(leaves, prefix=''):
        if not prefix and 'embed' in leaves:  # the whole tree, not a part of it in the recursion
            passes.append(leaves)
        return flatten(leaves, prefix)

    directory = adapter(tmp_path / 'in', LLAMA)
    monkeypatch.setattr(tree, 'flatten', count)
    params = adapt.load_adapter(model, bare, directory)
    assert 0 < len(passes) < 14  # 14 projections, each with several leaves
    passes.clear()
    adapt.save_adapter(tmp_path / 'out', model, params, base='here', task_type='CAUSAL_LM')
    assert 0 < len(passes) < 14


# The fields of adapter_config.json that each release of PEFT added to LoRA.
FIELDS = {
    '0.2': 'base_model_name_or_path bias fan_in_fan_out inference_mode lora_alpha lora_dropout modules_to_save '
    'peft_type r target_modules task_type',
    '0.3': 'init_lora_weights',
    '0.4': 'auto_mapping layers_pattern layers_to_transform revision',
    '0.6': 'alpha_pattern rank_pattern',
    '0.7': 'loftq_config megatron_config megatron_core',
    '0.8': 'use_rslora',
}
DROPPED = {'0.2': {'enable_lora': None, 'merge_weights': False}}  # which 0.3 removed again


@pytest.mark.parametrize('version', FIELDS)
def test_older_releases_are_read_with_defaults_of_later_fields(tmp_path, base, version):
    golden = GOLDENS['lora of gpt_neox']
    known = {name for release, names in FIELDS.items() if release <= version for name in names.split()}

    def as_written_then(config, tensors):
        for name in config.keys() - known:
            assert name not in ('r', 'lora_alpha', 'target_modules')
            del config[name]
        config.update(DROPPED.get(version, {}))

    model, bare = base('gpt_neox')
    params = adapt.load_adapter(model, bare, adapter(tmp_path / 'in', 'lora of gpt_neox', as_written_then))
    outputs = heads.sampled(output(model, params, batch_of('gpt_neox'), golden['task'])).ravel()
    np.testing.assert_allclose(outputs, np.array(golden['outputs'], np.float32), atol=2e-5)


def test_unknown_fields_that_are_off_or_ignored_are_skipped(tmp_path, base):
    model, bare = base('llama')
    expected = tree.flatten(adapt.load_adapter(model, bare, adapter(tmp_path / 'in', LLAMA)))
    change = put(later_feature=False, another=None, more={}, use_rslora=True, comment='mine')
    leaves = tree.flatten(adapt.load_adapter(model, bare, adapter(tmp_path / 'in', LLAMA, change), ['comment']))
    assert leaves.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(leaves[path], leaf)


@pytest.mark.parametrize('name', ['lora of llama, spans', 'dora of gpt2', 'ia3 of phi3', 'lora of embeddings of llama'])
def test_keys_may_contain_the_adapter_name(tmp_path, base, name):
    """As in state dicts that other trainers save: lora_A.default.weight, qa_outputs.modules_to_save.default.weight."""
    model, bare = base(GOLDENS[name]['base'])
    expected = tree.flatten(adapt.load_adapter(model, bare, adapter(tmp_path / 'in', name)))

    def named(config, tensors):
        for key in list(tensors):
            for part in ('lora_A', 'lora_B', 'lora_embedding_A', 'lora_embedding_B', 'lora_magnitude_vector', 'ia3_l'):
                if f'.{part}' in key:
                    tensors[key.replace(f'.{part}', f'.{part}.default')] = tensors.pop(key)
            if 'qa_outputs.' in key:
                tensors[key.replace('qa_outputs.', 'qa_outputs.modules_to_save.default.')] = tensors.pop(key)

    leaves = tree.flatten(adapt.load_adapter(model, bare, adapter(tmp_path / 'in', name, named)))
    assert leaves.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(leaves[path], leaf)


def put(**fields):
    return lambda config, tensors: config.update(fields)


def lack(field):
    return lambda config, tensors: config.pop(field)


def reshape(end, shape=None):
    """The tensor whose key ends so with zeros of another shape, or left out."""

    def change(config, tensors):
        key = next(key for key in tensors if key.endswith(end))
        del tensors[key]
        if shape:
            tensors[key] = np.zeros(shape, np.float32)

    return change


def rename(old, new):
    def change(config, tensors):
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


Q = '0.self_attn.q_proj.lora_A.weight'
BAD = [
    (LLAMA, put(lora_alhpa=8), "the field 'lora_alhpa' is unknown.*init.ignore.*did you mean 'lora_alpha'"),
    (LLAMA, lack('lora_alpha'), "lacks the field 'lora_alpha'"),
    (LLAMA, put(enable_lora=[True, False, True]), "the field 'enable_lora' is unknown"),
    (LLAMA, put(use_qalora=True), 'use_qalora=True is not implemented'),
    (LLAMA, put(bias='all'), "bias='all' is not implemented"),
    (LLAMA, put(init_lora_weights='pissa'), "init_lora_weights='pissa' is not implemented"),
    (LLAMA, put(peft_type='LOHA'), "peft_type='LOHA' is none of LORA"),
    (LLAMA, put(r='4'), "r='4' is of the wrong type"),
    (LLAMA, put(r=5), r'has A \(4, 32\) and B \(.*\), but \(5, 32\)'),
    (LLAMA, put(use_dora=True), "'lora_magnitude_vector'.* are expected"),
    (LLAMA, put(target_modules=['q_proj', 'o_proj', 'up_proj', 'k_proj']), 'k_proj.: there is no tensor of it'),
    (LLAMA, put(target_modules=['q_proj', 'o_proj']), 'up_proj.: the tensors have it'),
    (LLAMA, reshape(Q), r"'model.layers.0.self_attn.q_proj' has the tensors \['lora_B'\]"),
    (LLAMA, reshape(Q, shape=(4, 31)), r'has A \(4, 31\)'),
    (LLAMA, rename('0.self_attn.q_proj', '0.self_attn.p_proj'), "'model.layers.0.self_attn.p_proj' is no module"),
    (LLAMA, rename('layers.1.self_attn.q_proj.lora_A', 'layers.1.norm'), r"q_proj' has the tensors \['lora_B'\]"),
    (LLAMA, put(modules_to_save=['lm_head']), "modules_to_save has 'lm_head', but there is no tensor of it"),
    ('lora of llama, spans', put(modules_to_save=None), 'is neither of the adapter nor of modules_to_save'),
    ('lora of llama, spans', reshape('qa_outputs.weight', shape=(2, 31)), 'reads vectors of 31'),
    ('lora of embeddings of llama', reshape('base_layer.weight', shape=(61, 32)), "is not the base's embedding"),
    ('ia3 of phi3', reshape('ia3_l', shape=(7, 1)), r'ia3_l \(.*\) is expected'),
    ('prompt of gemma', put(token_dim=64), 'token_dim=64, but the base has 32'),
    ('prompt of gemma', put(num_virtual_tokens=6), r'prompt_embeddings is \(5, 32\), but \(6, 32\) is expected'),
    ('prompt of gemma', reshape('prompt_embeddings'), 'lacks the tensor prompt_embeddings'),
    ('prefix of llama', put(num_attention_heads=4), 'num_attention_heads=4, but the base has 2'),
]


@pytest.mark.parametrize(('name', 'change', 'message'), BAD, ids=range(len(BAD)))
def test_invalid_directory_is_refused(tmp_path, base, name, change, message):
    with pytest.raises(ValueError, match=message):
        adapt.load_adapter(*base(GOLDENS[name]['base']), adapter(tmp_path / 'in', name, change))


def test_directory_without_an_adapter_is_refused(tmp_path, base):
    model, params = base('llama')
    with pytest.raises(FileNotFoundError, match='holds no adapter_config.json'):
        adapt.load_adapter(model, params, tmp_path)
    directory = adapter(tmp_path / 'in', LLAMA)
    (directory / adapters.WEIGHTS).unlink()
    (directory / 'adapter_model.bin').touch()
    with pytest.raises(FileNotFoundError, match='pickled weights are not read'):
        adapt.load_adapter(model, params, directory)
    with pytest.raises(ValueError, match='hold no adapter: the methods full, '):
        adapt.save_adapter(tmp_path / 'out', model, params, base='here', task_type='CAUSAL_LM')
    both = [adapt.method(name, model, params) for name in ('ia3',)]
    params = both[0].start(jax.random.key(0), params) | {'prompt': {'embedding': jnp.zeros((2, 32))}}
    with pytest.raises(ValueError, match='IA3 and PROMPT_TUNING at once'):
        adapt.save_adapter(tmp_path / 'out', model, params, base='here', task_type='CAUSAL_LM')
    assert not (tmp_path / 'out').exists()
