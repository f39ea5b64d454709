"""Folders of runs that commit 482a9c5 wrote still load, evaluate, resume and export.

old_runs/saved holds three runs of 4 steps of SGD, on the files of old_runs/data: `text` from scratch, and
`chat` and `classes`, LoRA on it. Their base is named `runs/text`, so a test works in a folder with `runs` in it.
"""

import json
import pathlib
import shutil

import pytest

from launch import cli, recipe
from lmtrain.training import export, load, train, workdir

HERE = pathlib.Path(__file__).parent / 'old_runs'
SMALL = {
    'data.cache': 'cache',
    'data.seq_len': 32,
    'data.batch_size': 8,
    'model.num_layers': 2,
    'model.width': 16,
    'model.num_heads': 2,
    'log.tensorboard': False,
    'checkpoint.keep_last': 1,
    'checkpoint.keep_best': 0,
    'checkpoint.every_steps': 2,
    'evaluate.every_steps': 2,
    'sample.max_tokens': 4,
    'optimizer.name': 'sgd',
    'schedule.name': 'constant',
    'budget.steps': 4,
}
ON_TEXT = {'init.base': 'runs/text', 'adapt.method': 'lora', 'data.validation': 0.2}
COMMANDS = {
    'text': (
        'tiny',
        {
            'data.source': 'text',
            'data.tokenizer': 'bytes',
            'data.vocab_size': 257,
            'model.family': 'llama',
        },
    ),
    'chat': ('instruct', ON_TEXT | {'task.train': "('rows.jsonl',)"}),
    'classes': (
        'classify',
        ON_TEXT
        | {
            'task.train': "('rows.csv',)",
            'task.text': "('text',)",
            'task.label': 'label',
            'objective.pool': 'last',
        },
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    shutil.copytree(HERE / 'data', tmp_path, dirs_exist_ok=True)
    shutil.copytree(HERE / 'saved', tmp_path / 'runs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    return tmp_path


def config_of(name, **changes):
    recipe_name, settings = COMMANDS[name]
    settings = SMALL | settings | changes
    return recipe.load(f'configs/{recipe_name}.py', {key: str(value) for key, value in settings.items()})


def metrics_of(name):
    lines = pathlib.Path('runs', name, 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize('name', COMMANDS)
def test_old_run_loads_and_evaluates_as_before(name):
    before = json.loads(pathlib.Path('runs', name, 'results.json').read_text(encoding='utf-8'))['validation']
    after = load.evaluate_split(pathlib.Path('runs', name), 'validation')
    assert after['loss'] == pytest.approx(before['loss'], rel=1e-5)
    assert after['targets'] == before['targets']
    assert after['loss_stderr'] > 0 and (after['engine'], after['dtype']) == ('lmtrain', 'float32')
    assert (after['attention'], after['batch_size']) == ('xla', 8)
    if 'accuracy' in before:
        p = after['accuracy']
        error = (p * (1 - p) / (after['targets'] - 1)) ** 0.5
        assert after['accuracy_stderr'] == pytest.approx(error, abs=1e-6)
    if 'bits_per_byte' in before:
        assert after['bits_per_byte'] == pytest.approx(before['bits_per_byte'], rel=1e-5)


@pytest.mark.parametrize('name', ['text', pytest.param('chat', marks=pytest.mark.slow), 'classes'])
def test_old_run_resumes(name):
    before = metrics_of(name)
    train.train(config_of(name, **{'budget.steps': 6, 'log.every_steps': 1}), pathlib.Path('runs', name))
    after = metrics_of(name)
    assert after[: len(before)] == before  # nothing is lost, and nothing is taken again
    assert [line['step'] for line in after[len(before) :] if 'loss' in line] == [5, 6]


def test_report_of_an_old_run_has_the_present_names_of_fields(monkeypatch):
    monkeypatch.setattr(workdir, 'bind', lambda *_: [])  # config.json stays as it is if nothing has changed
    train.train(config_of('text'), pathlib.Path('runs/text'))  # it is finished: only the report is written
    assert '"corrupt"' in pathlib.Path('runs/text/config.json').read_text(encoding='utf-8')
    settings = pathlib.Path('runs/text/report.md').read_text(encoding='utf-8').partition('## What was run')[2]
    differences, _, whole = settings.partition('<details>')
    assert '| `model.width` | `16` |' in differences
    for name in ('corrupt', 'mask_rate', 'verify_every', 'learns', 'log.plot'):
        assert name not in differences, name
    assert '"mask_rate": 0.0' in whole and '"corrupt"' not in whole


@pytest.mark.slow
def test_old_run_exports(tmp_path):
    export.export('runs/text', tmp_path / 'hf', 'hf')
    export.export('runs/chat', tmp_path / 'peft', 'peft')
    export.export('runs/chat', tmp_path / 'merged', 'hf', merge=True)
    for file in ('hf/model.safetensors', 'peft/adapter_model.safetensors', 'merged/config.json'):
        assert (tmp_path / file).is_file()


def test_old_run_generates(capfd):
    assert cli.main(['generate', '--workdir=runs/chat', '--prompt=cat on a', '--max_tokens=3', '--temperature=0']) == 0
    assert 'cat on a' in capfd.readouterr().out
