"""Encoders and checkpoints with the head of a task equal outputs of transformers (experiments/parity/heads.py)."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments.parity import cases, heads
from lmtrain import tree
from lmtrain.models import load_pretrained, pretrained, safetensors, save_pretrained

GOLDENS = json.loads((pathlib.Path(__file__).parent / 'goldens_heads.json').read_text())
QUICK = {'xla_backend_optimization_level': 0}
every_case = pytest.mark.parametrize('name', heads.KEPT)


def directory(folder: pathlib.Path, name: str, tensors=None, **changes) -> pathlib.Path:
    """The Hugging Face directory of a case; `changes` of its config.json, None removes a field."""
    config = {key: value for key, value in (heads.CASES[name] | changes).items() if value is not None}
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    tensors = tensors or weights(name)
    safetensors.write(folder, {key: (x.shape, x.dtype) for key, x in tensors.items()}, tensors.__getitem__)
    return folder


def weights(name: str) -> dict[str, np.ndarray]:
    return {key: cases.weights(key, tuple(shape)) for key, shape in GOLDENS[name]['shapes'].items()}


@functools.partial(jax.jit, static_argnames='model', compiler_options=QUICK)
def apply(model, params, batch):
    outputs = model.apply({'params': params}, batch)
    return outputs['hidden' if model.head == 'none' else 'logits']


@every_case
def test_outputs_equal_those_of_transformers(tmp_path, name):
    model, params = load_pretrained(directory(tmp_path / 'in', name))
    actual = heads.sampled(apply(dataclasses.replace(model, unroll=1), params, heads.batch(heads.CASES[name])))
    np.testing.assert_allclose(actual, np.array(GOLDENS[name]['logits'], np.float32), atol=2e-5)


@every_case
def test_directories_are_written_as_they_were_read(tmp_path, name):
    """Tensor by tensor, with the names of the labels, and no other tensors."""
    labels = {str(i): f'label {i}' for i in range(heads.CASES[name].get('num_labels', 0))}
    source = directory(tmp_path / 'in', name, **({'id2label': labels} if labels else {}))
    model, params = load_pretrained(source)
    save_pretrained(tmp_path / 'out', model, params, like=pretrained.read_config(source))
    before, after = (safetensors.find(folder) for folder in (source, tmp_path / 'out'))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(tensor.read(), after[key].read())
    config = pretrained.read_config(tmp_path / 'out')
    assert config['architectures'] == heads.CASES[name]['architectures']
    assert config.get('id2label', {}) == labels
    assert pretrained.model_of(config) == model


def test_the_first_layer_of_a_modernbert_is_a_separate_segment(tmp_path):
    model, params = load_pretrained(directory(tmp_path / 'in', 'modernbert, lm'))
    assert tree.segments(params) == ['layers_0', 'layers_1']
    assert 'attention_norm' not in params['layers_0']
    assert params['layers_1']['attention_norm']['scale'].shape == (4, 32)
    first = weights('modernbert, lm')['model.layers.1.attn_norm.weight']
    np.testing.assert_array_equal(params['layers_1']['attention_norm']['scale'][0], first)


def test_a_modernbert_in_more_segments_is_written_as_one_stack(tmp_path):
    source = directory(tmp_path / 'in', 'modernbert, lm')
    model, params = load_pretrained(source)
    rest = tree.cut({'layers': params.pop('layers_1')}, (1, 3))
    save_pretrained(tmp_path / 'out', model, params | {'layers_1': rest['layers_0'], 'layers_2': rest['layers_1']})
    before, after = (safetensors.find(folder) for folder in (source, tmp_path / 'out'))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(tensor.read(), after[key].read())


@pytest.mark.parametrize('name', [pytest.param('bert, lm', marks=pytest.mark.slow), 'roberta, lm', 'modernbert, lm'])
def test_packed_documents_equal_separate_rows(tmp_path, name):
    """Two texts in a row, followed by padding; positions start again, with the offset of the family."""
    model, params = load_pretrained(directory(tmp_path / 'in', name))
    model = dataclasses.replace(model, unroll=1)
    tokens = np.random.RandomState(0).randint(4, cases.VOCAB, (2, 30)).astype(np.int32)
    first, second = tokens[:1, :30], tokens[1:, :21]
    padding = np.zeros((1, 7), np.int32)
    count = lambda n: np.arange(n, dtype=np.int32)[None]  # noqa: E731
    packed = {
        'tokens': np.concatenate([first, second, padding], axis=1),
        'segment_ids': np.concatenate([0 * first + 1, 0 * second + 2, padding], axis=1),
        'positions': np.concatenate([count(30), count(21), padding], axis=1),
    }
    actual = np.asarray(apply(model, params, packed))
    for text, place in ((first, slice(0, 30)), (second, slice(30, 51))):
        alone = apply(model, params, {'tokens': text})
        np.testing.assert_allclose(actual[:, place], alone, atol=1e-5)
    assert np.isfinite(actual).all()


def test_old_names_of_norms_are_read_and_heads_of_pretraining_ignored(tmp_path):
    """bert-base-uncased has gamma and beta, position ids, a pooler and a next-sentence head."""
    tensors = weights('bert, lm')
    old = {
        key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): x
        for key, x in tensors.items()
    }
    old |= {
        'bert.embeddings.position_ids': np.arange(128)[None],
        'bert.pooler.dense.weight': np.zeros((32, 32), np.float32),
        'bert.pooler.dense.bias': np.zeros(32, np.float32),
        'cls.seq_relationship.weight': np.zeros((2, 32), np.float32),
        'cls.seq_relationship.bias': np.zeros(2, np.float32),
        'cls.predictions.decoder.weight': tensors['bert.embeddings.word_embeddings.weight'],
    }
    _, params = load_pretrained(directory(tmp_path / 'new', 'bert, lm'))
    model, actual = load_pretrained(
        directory(tmp_path / 'old', 'bert, lm', tensors=old, architectures=['BertForPreTraining'])
    )
    assert model.head == 'lm'
    jax.tree.map(np.testing.assert_array_equal, params, actual)


@pytest.mark.parametrize(
    ('name', 'changes', 'match'),
    [
        ('bert, lm', {'position_embedding_type': 'relative_key'}, "position_embedding_type='relative_key'"),
        ('bert, lm', {'is_decoder': True}, 'is_decoder=True'),
        ('bert, lm', {'architectures': ['BertForMaskdLM']}, "did you mean 'BertForMaskedLM'"),
        ('bert, classify', {'num_labels': 4}, r'\(5, 32\), but \(4, 32\)'),
        ('roberta, lm', {'hidden_act': 'relu'}, "must be 'gelu'"),
        ('modernbert, lm', {'hidden_activation': 'silu'}, "hidden_activation='silu'"),
        ('modernbert, lm', {'decoder_bias': False}, 'decoder_bias=False'),
        ('modernbert, lm', {'rope_parameters': {'rope_type': 'default'}}, 'not one dict per kind of layer'),
        ('modernbert, lm', {'layer_types': ['full_attention']}, 'are not 5 of'),
    ],
)
def test_unsupported_configs_are_named(tmp_path, name, changes, match):
    with pytest.raises(ValueError, match=match):
        load_pretrained(directory(tmp_path / 'in', name, **changes))


@pytest.mark.parametrize('name', ['bert, lm', 'roberta, classify'])
def test_a_bert_without_token_types_is_written_with_a_table_of_zeros(tmp_path, name):
    """As a run from random parameters trains bert.SIZES. transformers cannot compute a table without rows."""
    model, params = load_pretrained(directory(tmp_path / 'in', name))
    model = dataclasses.replace(model, token_types=0, unroll=1)
    params = {part: leaves for part, leaves in params.items() if part != 'token_types'}
    assert not pretrained.differences(model, pretrained.round_trip(model))
    save_pretrained(tmp_path / 'out', model, params)
    assert pretrained.read_config(tmp_path / 'out')['type_vocab_size'] == 2
    again, leaves = load_pretrained(tmp_path / 'out')
    assert not np.any(leaves['token_types']['embedding'])
    batch = {key: x for key, x in heads.batch(heads.CASES[name]).items() if key != 'token_types'}
    expected = apply(model, params, batch)
    np.testing.assert_array_equal(apply(dataclasses.replace(again, unroll=1), leaves, batch), expected)
    with pytest.raises(ValueError, match='type_vocab_size=0 of a .*bert.* must be at least 1'):
        pretrained.model_of(heads.CASES[name] | {'type_vocab_size': 0})
