"""Every change to a config is made by `resolve`, and a base is opened and verified once."""

import collections
import json
import shutil

import pytest

from configs import tiny
from lmtrain.checkpoint import manifest
from lmtrain.parallel import vocab_padding
from lmtrain.runtime import multihost
from lmtrain.training import export, load, train, workdir
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve


def small(text, **changes):
    config = tiny.get_config()
    config.data.update(source=str(text), cache=str(text.parent / 'cache'), validation=0.2)
    config.update_from_flattened_dict({'budget.steps': 2, 'log.tensorboard': False, 'sample.prompts': ()} | changes)
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory, text):
    """Two runs: `base`, and `lora` on it."""
    folder = tmp_path_factory.mktemp('runs')
    train.train(small(text, **{'model.family': 'llama'}), folder / 'base')
    on_base = {'init.base': str(folder / 'base'), 'data.tokenizer': 'base', 'adapt.method': 'lora'}
    train.train(small(text, **on_base), folder / 'lora')
    return folder


@pytest.fixture
def verified(monkeypatch):
    """How often the files of each checkpoint are hashed."""
    counts = collections.Counter()
    digest = manifest._digest

    def counted(path, flush=False):
        if not flush:  # of a read, not of a save
            counts[path] += 1
        return digest(path, flush)

    monkeypatch.setattr(manifest, '_digest', counted)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    'use',
    [
        lambda folder, new: load.load_run(folder / 'lora'),
        lambda folder, new: load.evaluate_split(folder / 'lora', 'validation'),
        lambda folder, new: export.export(folder / 'lora', new / 'peft', 'peft'),
        lambda folder, new: export.export(folder / 'lora', new / 'hf', 'hf', merge=True),
    ],
    ids=['load', 'evaluate', 'export an adapter', 'export a merged model'],
)
def test_every_checkpoint_is_hashed_once(folder, tmp_path, verified, use):
    use(folder, tmp_path)
    runs = {path.relative_to(folder).parts[0] for path in verified}
    assert runs == {'base', 'lora'} and set(verified.values()) == {1}


@pytest.mark.slow
def test_training_and_resuming_hash_every_checkpoint_once(folder, text, tmp_path, verified):
    shutil.copytree(folder / 'lora', tmp_path / 'lora')
    on_base = {'init.base': str(folder / 'base'), 'data.tokenizer': 'base', 'adapt.method': 'lora'}
    train.train(small(text, **on_base), tmp_path / 'new')
    assert verified and set(verified.values()) == {1}
    verified.clear()
    train.train(small(text, **on_base), tmp_path / 'lora')
    runs = {
        path.relative_to(root).parts[0] for path in verified for root in (folder, tmp_path) if path.is_relative_to(root)
    }
    assert runs == {'base', 'lora'} and set(verified.values()) == {1}


def test_build_does_not_change_the_config(folder, text):
    config = small(text, **{'init.base': str(folder / 'base'), 'data.tokenizer': 'base', 'model.num_layers': 7})
    resolved, base = resolve(config)
    assert config.model.num_layers == 7 and resolved.model.num_layers == base.model.num_layers == 2
    before = resolved.to_json()
    run = build(resolved, base)
    assert run.config is resolved and resolved.to_json() == before and resolved.is_locked


def test_process_0_reads_the_saved_config_for_all(folder, text, monkeypatch):
    saved = workdir.read_config(folder / 'base')
    saved['task']['date'] = '2031-02-03'
    monkeypatch.setattr(multihost, 'all_gather_object', lambda value: [(saved, {}), value])
    assert resolve(small(text), folder / 'elsewhere')[0].task.date == '2031-02-03'


def test_vocabulary_padded_by_an_earlier_version_is_kept(folder, text, tmp_path):
    saved = workdir.read_config(folder / 'base')
    saved['mesh']['tensor'] = 4
    saved['model']['vocab_size'] = padded = 257 + vocab_padding.num_padding_rows(257, 4)
    assert padded > 257
    (tmp_path / 'config.json').write_text(json.dumps(saved), encoding='utf-8')
    assert resolve(small(text), tmp_path)[0].model.vocab_size == padded
    saved['model']['vocab_size'] = 300
    (tmp_path / 'config.json').write_text(json.dumps(saved), encoding='utf-8')
    assert resolve(small(text), tmp_path)[0].model.vocab_size == 257
