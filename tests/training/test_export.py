"""Heads of tasks: reused from a base or new, and exported to Hugging Face and PEFT."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from configs import classify
from lmtrain import adapt, tree
from lmtrain.models import load_pretrained, pretrained, safetensors, save_pretrained
from lmtrain.report import summary
from lmtrain.training import build, export, init_from, load, resolve, train

WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] good fine bad awful number one two three four'.split()
BERT = {'model_type': 'bert', 'vocab_size': len(WORDS), 'hidden_size': 16, 'num_hidden_layers': 2}
BERT |= {'num_attention_heads': 2, 'intermediate_size': 24, 'max_position_embeddings': 32, 'pad_token_id': 0}
LLAMA = {'model_type': 'llama', 'vocab_size': 32, 'hidden_size': 16, 'num_hidden_layers': 1}
LLAMA |= {'num_attention_heads': 2, 'intermediate_size': 16, 'max_position_embeddings': 16}
SENTIMENT = ('positive', 'negative')
TAGS = ('O', 'B-PER', 'I-PER')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Bases: 'masked', a language model, 'classes' and 'tags'; rows.csv and rows.conll, whose names they have."""
    folder = tmp_path_factory.mktemp('export')
    masked = pretrained.model_of(BERT)
    for name, model, labels in (
        ('masked', masked, ()),
        ('classes', pretrained.with_task_head(masked, 'classify', 2), SENTIMENT),
        ('tags', pretrained.with_task_head(masked, 'tag', 3), TAGS),
    ):
        leaves = tree.flatten(pretrained.shapes_of(model))
        random = np.random.default_rng(0)
        params = {path: random.normal(0, 0.2, leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
        save_pretrained(folder / name, model, tree.unflatten(params), labels=labels, like={'pad_token_id': 0})
        (folder / name / 'vocab.txt').write_text('\n'.join(WORDS), encoding='utf-8')
    write(folder / 'rows.csv', {'positive': 'good fine', 'negative': 'bad awful'})
    lines = ['good O', 'one B-PER', 'two I-PER', '', 'bad O', 'three B-PER', '', 'fine O', 'four B-PER', '']
    (folder / 'rows.conll').write_text('\n'.join(lines), encoding='utf-8')
    return folder


def write(path, texts):
    with path.open('w', newline='', encoding='utf-8') as file:
        table = csv.writer(file)
        table.writerow(['text', 'label'])
        table.writerows([f'{text} number {n}', label] for label, text in texts.items() for n in WORDS[10:])


def recipe(folder, on, rows='rows.csv', **settings):
    config = classify.get_config()
    config.data.update(root=str(folder), cache=str(folder / 'cache'), seq_len=16, batch_size=8, test=0.0)
    config.task.update(train=(rows,), validation=(rows,), text=('text',), label='label')
    config.init.base = str(folder / on) if on else ''
    config.budget.steps = 2
    config.checkpoint.every_steps = config.evaluate.every_steps = 2
    config.log.tensorboard = False
    for name, value in settings.items():
        section, _, field = name.partition('__')
        config[section][field] = value
    return config


def tags(folder, on, **settings):
    return recipe(folder, on, 'rows.conll', task__name='tag', task__text=('tokens',), task__label='tags', **settings)


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}


def start(config):
    """(the run, its parameters before the first step)."""
    run = build.build(*resolve.resolve(config))
    return run, flat(run.initial.on_mesh().params)


# --- the head of a base


@pytest.mark.parametrize(('on', 'names'), [('classes', SENTIMENT), ('tags', TAGS)])
def test_head_of_the_base_with_the_same_classes_is_reused(folder, on, names):
    run, params = start((tags if on == 'tags' else recipe)(folder, on))
    assert run.corpus.labels == tuple(run.resolved['task']['labels']) == names
    expected = flat(load_pretrained(folder / on)[1])
    assert params.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)
    assert 'new one' not in summary.header(run) and f'classes: {names[0]}' in summary.header(run)


def test_head_for_other_classes_is_new_and_the_header_says_so(folder):
    write(folder / 'other.csv', {'good': 'good fine', 'bad': 'bad awful'})
    run, params = start(recipe(folder, 'classes', 'other.csv'))
    assert run.corpus.labels == ('bad', 'good')
    assert 'the classes of the base differ: its head is replaced by a new one' in ' '.join(summary.header(run).split())
    for path, leaf in flat(load_pretrained(folder / 'classes')[1]).items():
        assert np.array_equal(params[path], leaf) != path.startswith('task_head/out/'), path
    assert np.any(params['task_head/out/kernel'])


def test_several_labels_for_a_row_are_refused_unless_the_field_is_ignored(folder):
    shutil.copytree(folder / 'classes', folder / 'labels')
    config = json.loads((folder / 'labels' / 'config.json').read_bytes())
    config['problem_type'] = 'multi_label_classification'
    (folder / 'labels' / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    write(folder / 'others.csv', {'good': 'good fine', 'bad': 'bad awful'})
    with pytest.raises(ValueError, match="problem_type='multi_label_classification' of a head with 2 outputs"):
        start(recipe(folder, 'labels', 'others.csv'))
    run, params = start(recipe(folder, 'labels', 'others.csv', init__ignore=('problem_type',)))
    assert run.corpus.labels == ('bad', 'good')
    body = flat(load_pretrained(folder / 'classes')[1])
    np.testing.assert_array_equal(params['embed/embedding'], body['embed/embedding'])
    run, params = start(recipe(folder, 'labels', init__ignore=('problem_type',)))
    np.testing.assert_array_equal(params['task_head/out/kernel'], body['task_head/out/kernel'])


def test_language_model_gets_the_head_of_transformers_class(folder):
    run, params = start(recipe(folder, 'masked', adapt__method='head'))
    assert (run.model.head, run.model.num_labels, run.model.head_activation) == ('classify', 2, 'tanh')
    body = flat(load_pretrained(folder / 'masked')[1])
    drawn = {path for path in params if path.startswith('task_head/')}
    assert params.keys() - drawn == {path for path in body if not path.startswith('mlm_head/')}
    assert tree.flatten(run.shapes.trainable).keys() == drawn
    assert run.objective.keywords == {'head': 'logits', 'pool': 'auto'}
    run = build.build(*resolve.resolve(recipe(folder, 'masked', adapt__method='ia3')))
    assert not any('ia3' in path for path in tree.flatten(run.shapes.params['task_head']))
    config = recipe(folder, 'masked', adapt__method='lora')
    config.adapt.lora.rank = (('.*/kernel', 4),)
    added = [
        path for path in tree.flatten(build.build(*resolve.resolve(config)).shapes.params) if path.endswith('lora_a')
    ]
    assert added and not any(path.startswith('task_head/') for path in added)  # which learns as it is


def test_pooling_without_transformers_class_is_reported_before_training(folder):
    config = recipe(folder, 'masked', objective__pool='mean')
    run = build.build(*resolve.resolve(config))
    assert "objective.pool='mean' has no form in transformers" in ' '.join(summary.header(run).split())
    assert init_from.exportable(config).startswith(
        "no, because objective.pool='mean' has no form in transformers; 'auto' gives"
    )
    assert init_from.exportable(recipe(folder, 'masked')) == 'yes, as bert'
    assert 'heads' in run.shapes.params and 'task_head' not in run.shapes.params


# --- what is exported


def outputs(model, params, name='logits'):
    batch = {'tokens': np.array([[2, 5, 9, 3, 0, 0], [2, 7, 8, 10, 11, 3]], np.int32)}
    batch['segment_ids'] = (batch['tokens'] > 0).astype(np.int32)
    return np.asarray(jax.jit(model.apply)({'params': params}, batch)[name])


@pytest.mark.slow
def test_classifier_is_exported_and_trained_further(folder, tmp_path, monkeypatch):
    """The directory has the class names; a run on it, or on the folder of the run, trains the head further."""
    config = recipe(folder, 'masked', optimizer__learning_rate=1e-2)
    train.train(config, tmp_path / 'run')
    was = load.load_run(tmp_path / 'run')
    with monkeypatch.context() as patch:  # an export that ends before its last file leaves nothing at the final place
        patch.setattr(export, '_tokenizer', lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export.export(tmp_path / 'run', tmp_path / 'hf', 'hf')
    assert [path.name for path in (tmp_path / 'hf').iterdir()] == [export.PARTIAL]
    export.export(tmp_path / 'run', tmp_path / 'hf', 'hf')
    with pytest.raises(FileExistsError, match='is not empty'):
        export.export(tmp_path / 'run', tmp_path / 'hf', 'hf')
    assert not (tmp_path / 'hf' / export.PARTIAL).exists()
    written = pretrained.read_config(tmp_path / 'hf')
    assert written['architectures'] == ['BertForSequenceClassification']
    assert written['id2label'] == {'0': 'negative', '1': 'positive'}
    assert written['label2id'] == {'negative': 0, 'positive': 1}
    model, params = load_pretrained(tmp_path / 'hf')
    np.testing.assert_allclose(outputs(model, params), outputs(was.model, was.params), atol=1e-6)
    for on in ('run', 'hf'):
        run, params = start(recipe(folder, tmp_path / on))
        assert run.corpus.labels == ('negative', 'positive') and 'new one' not in summary.header(run)
        for path, leaf in flat(was.params).items():
            np.testing.assert_array_equal(params[path], leaf, err_msg=path)
    run, params = start(tags(folder, tmp_path / 'run'))  # another task takes the body alone
    assert params['task_head/out/kernel'].shape == (16, 3) and 'task_head/dense/kernel' not in params
    np.testing.assert_array_equal(params['embed/embedding'], flat(was.params)['embed/embedding'])
    assert 0 <= load.evaluate_split(tmp_path / 'run', 'validation')['macro_f1'] <= 1


@pytest.mark.slow
def test_lora_classifier_is_exported_for_peft_if_transformers_pools_alike(folder, tmp_path):
    config = recipe(folder, 'masked', adapt__method='lora')
    train.train(config, tmp_path / 'run')
    export.export(tmp_path / 'run', tmp_path / 'peft', 'peft')
    about = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_bytes())
    assert about['task_type'] == 'SEQ_CLS' and about['modules_to_save'] == ['classifier', 'pooler']
    export.export(tmp_path / 'run', tmp_path / 'hf', 'hf', merge=True)
    was = load.load_run(tmp_path / 'run')
    run, params = start(recipe(folder, 'masked', init__adapter=str(tmp_path / 'peft')))
    assert run.corpus.labels == ('negative', 'positive') and run.corpus.labels_of_base
    for path, leaf in flat(was.params).items():
        np.testing.assert_allclose(params[path], leaf, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(outputs(*load_pretrained(tmp_path / 'hf')), outputs(was.model, was.params), atol=1e-5)


def test_adapter_with_incomplete_head_is_named(folder, tmp_path):
    model, params = load_pretrained(folder / 'masked')
    head = pretrained.with_task_head(model, 'classify', 2)
    random = np.random.default_rng(0)
    params = adapt.extend(
        adapt.lora.adapter(rank=(('.*query/kernel', 2),), alpha=(('.*', 2.0),)), jax.random.key(0), params
    )
    params['task_head'] = {'out': {'kernel': random.normal(size=(16, 2)), 'bias': np.zeros(2)}}
    params['task_head']['dense'] = {'kernel': random.normal(size=(16, 16)), 'bias': np.zeros(16)}
    params = {name: leaves for name, leaves in params.items() if name != 'mlm_head'}
    adapt.save_adapter(tmp_path, head, params, base='base', task_type='SEQ_CLS')
    path = tmp_path / 'adapter_model.safetensors'
    tensors = {key: x.read() for key, x in safetensors.header(path).items() if 'pooler' not in key}
    safetensors.write_file(path, {key: (x.shape, x.dtype) for key, x in tensors.items()}, tensors.__getitem__)
    about = json.loads((tmp_path / 'adapter_config.json').read_bytes())
    (tmp_path / 'adapter_config.json').write_text(json.dumps(about | {'modules_to_save': ['classifier']}))
    with pytest.raises(ValueError, match='lacks task_head/dense/bias of the head for its task_type, and so does its'):
        init_from.open_base(str(folder / 'masked'), str(tmp_path))


@pytest.mark.slow
def test_peft_holds_no_leaves_of_the_base_that_were_trained_beside_an_adapter(folder, tmp_path):
    model, params = load_pretrained(folder / 'classes')
    lora = adapt.lora.adapter(rank=(('.*query/kernel', 2),), alpha=(('.*', 2.0),))
    params = adapt.extend(lora, jax.random.key(0), params)
    first = str(tmp_path / 'first')
    adapt.save_adapter(first, model, params, base=str(folder / 'classes'), task_type='SEQ_CLS', labels=SENTIMENT)
    train.train(recipe(folder, 'classes', init__adapter=first, adapt__method='bitfit'), tmp_path / 'bitfit')
    with pytest.raises(ValueError, match=r'bitfit changed embed_norm/bias and \d+ others .*: take --format=hf --merge'):
        export.export(tmp_path / 'bitfit', tmp_path / 'peft', 'peft')
    export.export(tmp_path / 'bitfit', tmp_path / 'hf', 'hf', merge=True)
    was = load.load_run(tmp_path / 'bitfit')
    np.testing.assert_allclose(outputs(*load_pretrained(tmp_path / 'hf')), outputs(was.model, was.params), atol=1e-5)
    # The adapter and the head alone are what PEFT holds.
    only = recipe(folder, 'classes', init__adapter=first, adapt__method='layers')
    only.adapt.layers.trainable = '.*/lora_.*'
    for name, config in (
        ('layers', only),
        ('head', recipe(folder, 'classes', init__adapter=first, adapt__method='head')),
    ):
        train.train(config, tmp_path / name)
        export.export(tmp_path / name, tmp_path / f'{name}.peft', 'peft')
        was = load.load_run(tmp_path / name)
        again = init_from.open_base(str(folder / 'classes'), str(tmp_path / f'{name}.peft'))
        params = again.load(lambda path, leaf: leaf)
        np.testing.assert_allclose(outputs(again.model, params), outputs(was.model, was.params), atol=1e-5)


def test_layers_that_an_adapter_replaces_differ_from_the_base(tmp_path):
    model = pretrained.model_of(LLAMA)
    leaves = tree.flatten(pretrained.shapes_of(model))
    params = tree.unflatten({path: np.ones(leaf.shape, np.float32) for path, leaf in leaves.items()})
    save_pretrained(tmp_path / 'base', model, params)
    lora = adapt.lora.adapter(rank=(('.*query/kernel', 2),), alpha=(('.*', 2.0),))
    params = adapt.extend(lora, jax.random.key(0), params)
    saved = {'base': 'base', 'task_type': 'CAUSAL_LM', 'modules_to_save': ['lm_head']}
    adapt.save_adapter(tmp_path / 'adapter', model, params, **saved)
    base = init_from.open_base(str(tmp_path / 'base'), str(tmp_path / 'adapter'))
    added = {f'layers/attention/query/lora_{name}' for name in ('a', 'b', 'scale')}
    assert base.changed == {'head/kernel'} | added
    assert not init_from.open_base(str(tmp_path / 'base')).changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'leaf'), [('prompt', 'prompt/embedding'), ('prefix', 'layers/attention/prefix_key')]
)
def test_virtual_tokens_cannot_be_merged_and_the_message_says_so(folder, tmp_path, method, leaf):
    train.train(recipe(folder, 'classes', adapt__method=method), tmp_path / 'run')
    with pytest.raises(ValueError, match=f'{leaf} is virtual tokens .* --merge cannot fold .* take --format=peft'):
        export.export(tmp_path / 'run', tmp_path / 'hf', 'hf', merge=True)
    export.export(tmp_path / 'run', tmp_path / 'peft', 'peft')


@pytest.mark.slow
def test_an_adapter_of_a_run_says_how_peft_gets_its_base(folder, tmp_path):
    train.train(recipe(folder, 'classes'), tmp_path / 'first')
    train.train(recipe(folder, tmp_path / 'first', adapt__method='ia3'), tmp_path / 'run')
    lines = export.export(tmp_path / 'run', tmp_path / 'peft', 'peft')
    (line,) = [line for line in lines if 'PEFT cannot open the base' in line]
    assert f'{tmp_path / "first"}, a run: export it with --format=hf' in line
    assert 'PeftModel' not in (tmp_path / 'peft' / 'README.md').read_text(encoding='utf-8')
    # The way out: the exported base is the one that the adapter was made on.
    export.export(tmp_path / 'first', tmp_path / 'hf', 'hf')
    again = init_from.open_base(str(tmp_path / 'hf'), str(tmp_path / 'peft'))
    params, was = again.load(lambda path, leaf: leaf), load.load_run(tmp_path / 'run')
    np.testing.assert_allclose(outputs(again.model, params), outputs(was.model, was.params), atol=1e-5)


@pytest.mark.slow
def test_classifier_with_another_pooling_is_not_exported_but_trains_further(folder, tmp_path):
    train.train(recipe(folder, 'masked', adapt__method='lora', objective__pool='mean'), tmp_path / 'run')
    for form in ('peft', 'hf'):
        with pytest.raises(
            ValueError, match="objective.pool='mean' has no form .*; 'auto' gives .*SEQ_CLS of a bert reads rows"
        ):
            export.export(tmp_path / 'run', tmp_path / form, form, merge=form == 'hf')
    run, params = start(recipe(folder, tmp_path / 'run', objective__pool='mean', adapt__method='head'))
    was = flat(load.load_run(tmp_path / 'run').params)
    np.testing.assert_array_equal(params['heads/classify/kernel'], was['heads/classify/kernel'])
    assert tree.flatten(run.shapes.trainable).keys() == {'heads/classify/kernel', 'heads/classify/bias'}


@pytest.mark.slow
def test_added_head_of_another_task_is_not_exported(folder, tmp_path):
    train.train(recipe(folder, 'masked', adapt__method='head', objective__pool='mean'), tmp_path / 'classes')
    text = {'task__name': 'text', 'task__train': (), 'data__source': 'rows.csv', 'data__split': 'tail'}
    text |= {'data__mask_rate': 0.15, 'task__validation': ()}
    train.train(recipe(folder, tmp_path / 'classes', **text), tmp_path / 'run')
    assert 'heads' in load.load_run(tmp_path / 'run').params
    lines = export.export(tmp_path / 'run', tmp_path / 'hf', 'hf')
    assert "left out: the head 'classify' of the base, which is of another task" in lines
    was = load.load_run(tmp_path / 'run')
    np.testing.assert_allclose(outputs(*load_pretrained(tmp_path / 'hf')), outputs(was.model, was.params), atol=1e-6)
    with pytest.raises(ValueError, match="run has no adapter, since adapt.method='full' .* take --format=hf"):
        export.export(tmp_path / 'run', tmp_path / 'peft', 'peft')


@pytest.mark.slow
@pytest.mark.parametrize('pool', ['auto', 'last'])
def test_classifier_from_scratch_is_exported_as_decoder_with_last_token_pooling(folder, tmp_path, pool):
    config = recipe(folder, '', data__tokenizer='bytes', data__seq_len=32, objective__pool=pool)
    config.model.update(vocab_size=257, num_layers=1, width=16, num_heads=2, max_len=32)
    train.train(config, tmp_path / 'run')
    lines = export.export(tmp_path / 'run', tmp_path / 'hf', 'hf')
    written = pretrained.read_config(tmp_path / 'hf')
    assert written['architectures'] == ['LlamaForSequenceClassification'] and written['pad_token_id'] is None
    assert any('no token is left for padding' in line for line in lines)  # the only special token ends every row
    model, params = load_pretrained(tmp_path / 'hf')
    assert (model.head_pool, model.head_bias) == ('last', False)
    was = load.load_run(tmp_path / 'run')
    original = outputs(was.model, was.params, 'logits' if pool == 'auto' else 'classify')
    np.testing.assert_allclose(
        outputs(model, params), original if pool == 'auto' else original[[0, 1], [3, 5]], atol=1e-5
    )
