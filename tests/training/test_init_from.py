"""A run on a base: its initial parameters, the content of its checkpoints, refused bases, and its export."""

import functools
import importlib
import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import tokenizers

import lmtrain
from configs import tiny
from lmtrain import tree
from lmtrain.checkpoint import manifest
from lmtrain.compare import comparison
from lmtrain.errors import InputError
from lmtrain.models import generation, load_pretrained, pretrained
from lmtrain.training import build, export, init_from, load, resolve, train, workdir

STEPS = 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a small text, a run on it ('first'), and that run's model as a Hugging Face directory ('hf')."""
    folder = tmp_path_factory.mktemp('base')
    words = 'the cat sat on a mat and saw that dog run to his red ball in our park'.split()
    for number in range(40):
        (folder / f'{number}.txt').write_text(' '.join(np.random.default_rng(number).choice(words, 60)))
    train.train(recipe(folder), folder / 'first')
    export.export(folder / 'first', folder / 'hf', 'hf')
    return folder


def recipe(folder, **settings):
    config = tiny.get_config()
    config.data.source = str(folder / '*.txt')
    config.data.cache = str(folder / 'cache')
    config.data.validation = 0.2
    config.model.num_layers = 1
    config.budget.steps = STEPS
    config.log.update(every_steps=1, tensorboard=False)
    config.checkpoint.every_steps = STEPS
    config.evaluate.every_steps = STEPS
    config.sample.prompts = ()
    for name, value in settings.items():
        section, _, field = name.partition('__')
        config[section][field] = value
    return config


def on_base(folder, kind='first', **settings):
    defaults = {'init__base': str(folder / kind), 'data__tokenizer': 'bytes' if kind == 'hf' else 'base'}
    return recipe(folder, **defaults | settings)


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['first', 'hf'])
def test_run_starts_from_the_parameters_of_its_base(folder, kind):
    run = build.build(*resolve.resolve(on_base(folder, kind)))
    assert_equal(flat(run.initial.on_mesh().params), flat(load.load_run(folder / 'first').params))


def test_end_tokens_of_the_base_are_kept(folder, tmp_path):
    """To the run in its folder, to a run on that run, and with the base's other fields to what is exported."""
    base_of = tmp_path / 'base'
    shutil.copytree(folder / 'hf', base_of)
    own = {'eos_token_id': [9, 256], 'pad_token_id': 3, 'temperature': 0.25}
    (base_of / 'generation_config.json').write_text(json.dumps(own), encoding='utf-8')
    assert load.load_directory(str(base_of)).end_ids == [256, 9]
    expected = {'bos_token_id': 256, 'eos_token_id': [256, 9], 'pad_token_id': 3, 'temperature': 0.25}
    config = on_base(folder, 'hf', init__base=str(base_of))
    assert build.build(*resolve.resolve(config)).generation == expected
    train.train(config, tmp_path / 'run')
    assert generation.read(tmp_path / 'run') == expected
    assert load.load_run(tmp_path / 'run').end_ids == [256, 9]
    assert init_from.open_base(str(tmp_path / 'run')).generation == expected
    export.export(tmp_path / 'run', tmp_path / 'hf', 'hf')
    assert generation.read(tmp_path / 'hf') == expected


@pytest.mark.slow
def test_exported_run_loads_unchanged(folder):
    model, params = load_pretrained(folder / 'hf')
    was = load.load_run(folder / 'first')
    tokens = {'tokens': np.arange(24, dtype=np.int32).reshape(2, 12)}
    logits = [m.apply({'params': p}, tokens)['logits'] for m, p in ((model, params), (was.model, was.params))]
    np.testing.assert_allclose(*logits, atol=2e-5)

    end = was.tokenizer.end_id
    files = 'config.json', 'tokenizer_config.json'
    config, about = (json.loads((folder / 'hf' / name).read_bytes()) for name in files)
    assert config['bos_token_id'] == config['eos_token_id'] == end
    assert about['bos_token'] == about['eos_token'] == was.tokenizer.specials[end]
    library = tokenizers.Tokenizer.from_file(str(folder / 'hf' / 'tokenizer.json'))
    assert library.encode('a naïve cat').ids == [end, *was.tokenizer.encode('a naïve cat')]


@pytest.mark.slow
def test_checkpoint_stores_what_the_base_lacks_and_needs_the_same_base(folder, tmp_path):
    config = on_base(folder, adapt__method='lora', init__frozen_dtype='bfloat16')
    work = folder / 'lora'
    train.train(config, work)
    leaves = json.loads((work / 'checkpoints' / str(STEPS) / 'manifest.json').read_text())['leaves']
    held = {path for path in leaves if path.startswith(('trainable/', 'frozen/'))}
    assert held and all('lora_' in path for path in held)

    loaded, start = flat(load.load_run(work).params), flat(load.load_run(folder / 'first').params)
    assert_equal({path: leaf for path, leaf in loaded.items() if 'lora_' not in path}, start)
    assert any(np.any(leaf) for path, leaf in loaded.items() if path.endswith('lora_b'))

    saved = json.loads((work / 'fingerprints.json').read_text())
    (work / 'fingerprints.json').write_text(json.dumps(saved | {'base': '0' * 64}))
    with pytest.raises(ValueError, match='was trained on another base'):
        load.load_run(work)
    with pytest.raises(ValueError, match='fingerprint of base'):
        train.train(config, work)
    (work / 'fingerprints.json').write_text(json.dumps(saved))

    with pytest.raises(ValueError, match='--merge'):
        export.export(work, tmp_path / 'a', 'hf')
    lines = export.export(work, tmp_path / 'merged', 'hf', merge=True)
    assert any('largest change of an output' in line for line in lines)
    export.export(work, tmp_path / 'peft', 'peft')
    run = build.build(*resolve.resolve(on_base(folder, init__adapter=str(tmp_path / 'peft'))))
    again = flat(run.initial.on_mesh().params)
    for path, leaf in loaded.items():
        np.testing.assert_allclose(again[path], leaf, atol=1e-6, err_msg=path)


def test_frozen_leaves_are_bfloat16_and_have_no_moments(folder):
    run = build.build(*resolve.resolve(on_base(folder, adapt__method='lora', init__frozen_dtype='bfloat16')))
    state = run.initial.on_mesh()
    base_leaves = {path: x for path, x in tree.flatten(state.frozen).items() if 'lora_' not in path}
    assert {str(leaf.dtype) for leaf in base_leaves.values()} == {'bfloat16'}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.trainable)} == {'float32'}
    assert tree.flatten(state.opt_state[0].mu).keys() == tree.flatten(state.trainable).keys()


@pytest.mark.slow
def test_resumed_run_on_a_base_equals_the_uninterrupted_one(folder, tmp_path):
    config = on_base(folder, adapt__method='lora', checkpoint__every_steps=2, schedule__name='constant')
    train.train(config, tmp_path / 'whole')
    config.budget.steps = 2
    train.train(config, tmp_path / 'parts')
    config.budget.steps = STEPS
    train.train(config, tmp_path / 'parts')
    one, other = (flat(load.load_run(tmp_path / name).params) for name in ('whole', 'parts'))
    assert_equal(one, other)


def test_complete_checkpoint_needs_no_base_to_resume(folder, tmp_path, monkeypatch):
    """All of a model learnt: a second state, or the base, beside the restored one would be for nothing."""
    run = build.build(*resolve.resolve(on_base(folder, adapt__method='full')))
    copy = jax.tree.map(jax.numpy.copy, run.initial.on_mesh())
    monkeypatch.setattr(type(run.initial.base), 'load', lambda *_: pytest.fail('the base was loaded'))
    assert run.initial.complete(copy) is copy


@pytest.mark.slow
def test_export_without_matching_family_is_refused(folder, tmp_path):
    config = recipe(folder, data__mask_rate=0.15, model__causal=False, model__vocab_size=258)
    train.train(config, tmp_path / 'masked')
    reason = r'the nearest, llama, has no model.causal=False \(only True\)'
    with pytest.raises(ValueError, match=f'no family of transformers has this model; {reason}'):
        export.export(tmp_path / 'masked', tmp_path / 'hf', 'hf')
    assert re.search(reason, init_from.exportable(config))


def test_model_without_matching_family_is_named(folder, monkeypatch):
    monkeypatch.setattr(pretrained, 'FAMILIES', {})
    with pytest.raises(ValueError, match='no family of transformers has this model: config.json of none can say'):
        init_from.with_hf_family(build.build(*resolve.resolve(recipe(folder))).model)


@pytest.mark.parametrize('function', ['differences', 'round_trip'])
def test_defect_is_no_reason_against_an_export(monkeypatch, function):
    def broken(*_):
        raise ValueError('a defect')

    monkeypatch.setattr(pretrained, function, broken)
    with pytest.raises(ValueError, match='a defect'):
        init_from.exportable(tiny.get_config())


def test_ignored_fields_are_skipped_by_every_run_on_the_base(folder, tmp_path):
    other = tmp_path / 'base'
    shutil.copytree(folder / 'hf', other)
    fields = json.loads((other / 'config.json').read_text())
    (other / 'config.json').write_text(json.dumps(fields | {'residual_multiplier': 0.5}))
    settings = {'init__base': str(other), 'data__tokenizer': 'bytes', 'adapt__method': 'lora'}
    with pytest.raises(ValueError, match='residual_multiplier=0.5 is unknown'):
        build.build(*resolve.resolve(recipe(folder, **settings)))
    with pytest.raises(ValueError, match="init.ignore has 'vocab_size', which a llama reads"):
        build.build(*resolve.resolve(recipe(folder, init__ignore=('residual_multiplier', 'vocab_size'), **settings)))
    with pytest.raises(ValueError, match="init.ignore has 'residual', which .*config.json do not have"):
        build.build(*resolve.resolve(recipe(folder, init__ignore=('residual_multiplier', 'residual'), **settings)))
    train.train(recipe(folder, init__ignore=('residual_multiplier',), **settings), tmp_path / 'run')
    loaded = load.load_run(tmp_path / 'run')
    np.testing.assert_array_equal(
        loaded.params['embed']['embedding'], load.load_run(folder / 'first').params['embed']['embedding']
    )


@pytest.mark.parametrize(
    ('name', 'answer'),
    [
        ('quickstart', 'yes, as qwen3'),
        ('tiny', 'yes, as llama'),
        ('classify', 'yes, as the base that config.init.base will name'),
        ('ladder', 'yes, as llama'),
        ('pretrain_gpt2', 'yes, as gpt2'),
        ('shakespeare', 'no, because .*the nearest, gpt2, has no model.bias=False .only True.'),
        ('modern', "no, because .*model.activation='relu2' .only 'swiglu'. and no model.logit_softcap=30.0 .only 0.0."),
    ],
)
def test_exportable_is_known_before_the_run(name, answer):
    config = importlib.import_module(f'configs.{name}').get_config()
    assert re.match(answer, init_from.exportable(config))


def test_missing_base_is_not_exportable():
    config = tiny.get_config()
    config.init.base = 'nowhere'
    assert init_from.exportable(config).startswith(
        f'no, because init.base: {pathlib.Path.cwd() / "nowhere"} is neither'
    )


def test_split_is_evaluated_on_as_many_devices_as_divide_a_batch(folder, tmp_path):
    config = recipe(folder, data__batch_size=4, optimizer__accumulate=2)
    config.mesh.data, config.mesh.sequence = 2, 4
    validation = train.train(config, tmp_path / 'run')['validation']
    again = load.evaluate_split(tmp_path / 'run', 'validation')
    assert again['loss'] == pytest.approx(validation['loss'], rel=1e-2)


def test_every_source_is_evaluated_before_and_after(folder, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    for number in range(40):
        (other / f'{number}.txt').write_text(f'{number} ' * 100)
    mixed = {'data__mix': ((str(other), 1.0),), 'evaluate__sources': (str(other),)}
    results = train.train(on_base(folder, 'hf', **mixed), tmp_path / 'run')
    alone, beside = results['domains'].values()
    assert list(results['domains']) == [str(folder / '*.txt'), str(other)]
    split = load.evaluate_split(folder / 'first', 'validation')
    assert alone['before'] == {name: split[name] for name in alone['before']}  # it has errors and the engine too
    assert alone['before']['bytes'] != beside['before']['bytes']
    for each in (alone, beside):
        assert each['after']['loss'] != each['before']['loss']
    assert 'Gained and forgotten' in (tmp_path / 'run' / 'report.md').read_text()


@pytest.mark.parametrize('start', [recipe, functools.partial(on_base, adapt__method='lora')])
def test_sources_of_a_later_start_are_measured_before_the_first_step(folder, tmp_path, start):
    texts = str(folder / '1*.txt'), str(folder / '2*.txt')
    train.train(start(folder), tmp_path / 'run')
    first = train.train(start(folder, evaluate__sources=texts[:1]), tmp_path / 'run')['domains']
    second = train.train(start(folder, evaluate__sources=texts), tmp_path / 'run')['domains']
    fresh = train.train(start(folder, evaluate__sources=texts), tmp_path / 'fresh')['domains']
    assert second == fresh and first == {name: fresh[name] for name in first} and len(fresh) == 3
    assert all(each['before']['loss'] != each['after']['loss'] for each in fresh.values())


def test_sweep_is_no_base(folder, tmp_path, monkeypatch):
    """A run by an earlier version, which took member 0, goes on."""
    config, refused = on_base(folder, init__base=str(tmp_path / 'sweep')), 'is a sweep of 2 members'
    train.train(recipe(folder, sweep__seeds=(0, 1)), tmp_path / 'sweep')
    with pytest.raises(InputError, match=f'^init.base = .*/sweep {refused}.*--member=N --to=DIR'):
        train.train(config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'config.json').exists()
    with pytest.raises(InputError, match=f'^reward.model = .*/sweep {refused}'):
        resolve.resolve(recipe(folder, reward__model=str(tmp_path / 'sweep')))
    with pytest.raises(InputError, match=f'^config.init.base = .*/sweep {refused}'):
        comparison.assemble(config, tmp_path, [])
    with pytest.raises(InputError, match=f'^init.base = .*/sweep {refused}'):
        lmtrain.load(tmp_path / 'sweep', adapter='some')
    with monkeypatch.context() as patch:
        patch.setattr(resolve, 'check_is_one_model', lambda *_: None)
        results = train.train(config, tmp_path / 'run')
    assert train.train(config, tmp_path / 'run') == results
    export.export(tmp_path / 'sweep', tmp_path / 'one', 'hf', member=1)
    run = build.build(*resolve.resolve(on_base(folder, init__base=str(tmp_path / 'one'))))
    assert_equal(flat(run.initial.on_mesh().params), flat(load.load_run(tmp_path / 'sweep', member=1).params))


def test_space_on_disk_is_that_of_the_leaves_that_are_saved(folder, tmp_path, monkeypatch):
    """Without the frozen base, which no checkpoint has."""
    asked, check = [], workdir.check
    monkeypatch.setattr(workdir, 'check', lambda path, size, keep: asked.append(size) or check(path, size, keep))
    config = on_base(folder, adapt__method='lora')
    train.train(config, tmp_path / 'run')
    saved = manifest.read(tmp_path / 'run' / 'checkpoints' / str(STEPS))['leaves'].values()
    sizes = [math.prod(leaf['shape']) * np.dtype(leaf['dtype']).itemsize for leaf in saved]
    assert asked == [sum(sizes)] and sum(sizes) < tree.size(build.build(*resolve.resolve(config)).shapes)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'init__adapter': 'x'}, "init.adapter = 'x' without init.base"),
        ({'init__ignore': ('x',)}, r"init.ignore = \('x',\) without init.base"),
        ({'init__frozen_dtype': 'bfloat16'}, "init.frozen_dtype = 'bfloat16' without init.base"),
        ({'data__tokenizer': 'base'}, "data.tokenizer = 'base' without init.base.* --config.data.tokenizer=bpe"),
        (
            {'data__tokenizer': 'base', 'task__name': 'preference'},
            "data.tokenizer = 'base' without init.base.* --config=configs/instruct.py on conversations$",
        ),
        ({'init__base': 'nowhere'}, 'nowhere is neither the folder of a run nor a Hugging Face directory'),
        ({'adapt__method': 'lorra'}, "adapt.method = 'lorra' is none of .*, did you mean 'lora'"),
        ({'adapt__method': 'prompt'}, "adapt.method = 'prompt' with several documents in a row"),
        ({'task__name': 'taging'}, "task.name = 'taging' is none of .*, did you mean 'tag'"),
        ({'adapt__dropout': 1.0}, r'adapt.dropout = 1.0: it must lie in \[0, 1\)'),
        ({'evaluate__sources': ('python',), 'task__name': 'tag'}, "evaluate.sources with task.name = 'tag'"),
    ],
)
def test_contradictions_with_the_base_are_named_before_compilation(folder, settings, message):
    with pytest.raises((ValueError, OSError), match=message):
        build.build(*resolve.resolve(recipe(folder, **settings)))


def test_folder_that_is_no_base_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='neither the folder of a run nor a Hugging Face directory'):
        init_from.open_base(str(tmp_path))
