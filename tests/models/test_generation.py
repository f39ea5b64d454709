"""generation_config.json: the tokens that end a text, from both files, and the fields of a trained model."""

import json

import pytest

from lmtrain.data.tokenizers.base import Bytes
from lmtrain.models import generation


def directory(path, own=None, model=None):
    path.mkdir(exist_ok=True)
    for name, fields in (('generation_config.json', own), ('config.json', model)):
        if fields is not None:
            (path / name).write_text(json.dumps(fields), encoding='utf-8')
    return path


READ = {
    'a list and a number': ({'eos_token_id': [2, 513]}, {'eos_token_id': 1}, {'eos_token_id': [2, 513, 1]}),
    'the same in both': ({'eos_token_id': [7, 2]}, {'eos_token_id': [2, 7]}, {'eos_token_id': [7, 2]}),
    'null, and minus one for none': (
        {'eos_token_id': None, 'pad_token_id': -1}, {'eos_token_id': [-1, 3]}, {'eos_token_id': [3]},
    ),
    'the file alone': ({'bos_token_id': 5, 'eos_token_id': 6}, None, {'bos_token_id': 5, 'eos_token_id': [6]}),
    'its own ids first': (
        {'pad_token_id': 9}, {'pad_token_id': 4, 'bos_token_id': 8}, {'pad_token_id': 9, 'bos_token_id': 8},
    ),
    'other fields are kept': (
        {'temperature': 0.7, 'do_sample': True, '_from_model_config': True}, {'temperature': 9.0},
        {'temperature': 0.7, 'do_sample': True},
    ),
    'neither': (None, None, {}),
}  # fmt: skip


@pytest.mark.parametrize('name', READ)
def test_fields_are_read_from_both_files(tmp_path, name):
    own, model, expected = READ[name]
    assert generation.read(directory(tmp_path, own, model)) == expected


@pytest.mark.parametrize('value', ['</s>', [2, '</s>'], 2.0, True, {'id': 2}], ids=repr)
def test_an_invalid_id_is_named(tmp_path, value):
    with pytest.raises(ValueError, match=r'generation_config.json: eos_token_id is .*; the id of a token is expected'):
        generation.read(directory(tmp_path, {'eos_token_id': value}))
    with pytest.raises(ValueError, match=r'[/\\]config.json: bos_token_id is'):
        generation.read(directory(tmp_path, {}, {'bos_token_id': value if not isinstance(value, list) else 'x'}))


def test_a_file_that_is_not_an_object_is_named(tmp_path):
    (tmp_path / 'generation_config.json').write_text('{"eos', encoding='utf-8')
    with pytest.raises(ValueError, match='generation_config.json: invalid JSON'):
        generation.read(tmp_path)
    (tmp_path / 'generation_config.json').write_text('[2]', encoding='utf-8')
    with pytest.raises(ValueError, match='generation_config.json: expected a JSON object'):
        generation.read(tmp_path)


def test_fields_of_a_model_trained_from_a_base():
    """The tokenizer's end token comes first, then the base's, then the template's; ids without a row are omitted."""
    base = {'eos_token_id': [2, 513, 256], 'bos_token_id': 1, 'temperature': 0.7}
    assert generation.fields_of(base, Bytes(), 300, ends=[260, 2, 301]) == {
        'bos_token_id': 1, 'eos_token_id': [256, 2, 260], 'temperature': 0.7,
    }  # fmt: skip
    assert generation.fields_of({}, Bytes(), 257) == {'bos_token_id': 256, 'eos_token_id': [256]}
    assert generation.fields_of({}, Bytes(), 256) == {'eos_token_id': []}  # END has no row
    padded = Bytes()
    padded.config_json = b'{"pad_token": "<|endoftext|>"}'
    assert generation.fields_of({}, padded, 257)['pad_token_id'] == 256


def test_written_fields_are_read_back(tmp_path):
    fields = {'bos_token_id': 1, 'eos_token_id': [2, 513], 'stop_strings': ['é']}
    generation.write(tmp_path, fields)
    assert generation.read(tmp_path) == fields
    assert [file.name for file in tmp_path.iterdir()] == ['generation_config.json']
