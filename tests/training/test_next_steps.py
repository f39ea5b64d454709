import pathlib
import types

import pytest

from configs import base
from lmtrain.tasks import TASKS
from lmtrain.training import next_steps


def commands(task, *, causal=True, template=None, test_rows=0, prompts=('',), files=('rows.csv',), folder='runs/a'):
    config = base.get_config()
    config.task.train, config.sample.prompts = files, prompts
    run = types.SimpleNamespace(
        task=TASKS[task],
        config=config,
        model=types.SimpleNamespace(causal=causal),
        template=template,
        corpus=types.SimpleNamespace(splits={'test': types.SimpleNamespace(num_rows=test_rows)}),
    )
    return next_steps.commands(run, pathlib.Path(folder)).splitlines()


@pytest.mark.parametrize(
    ('task', 'facts', 'command'),
    [
        ('text', {}, 'generate --workdir=runs/a --prompt=...'),
        ('text', {'prompts': ('\n', 'My lord,')}, "generate --workdir=runs/a --prompt='My lord,'"),
        ('text', {'causal': False}, 'export --workdir=runs/a --to=runs/a-exported'),
        ('chat', {'template': 'chatml'}, 'chat --workdir=runs/a'),
        ('chat', {}, 'generate --workdir=runs/a --prompt=...'),
        ('classify', {'causal': False}, 'predict --workdir=runs/a --rows=new.csv --to=predicted.csv'),
        ('tag', {}, 'predict --workdir=runs/a --rows=new.jsonl --to=predicted.jsonl'),
        ('reward', {'files': ('p.jsonl',)}, 'predict --workdir=runs/a --rows=new.jsonl --to=predicted.jsonl'),
    ],
)
def test_model_is_used_by_the_verb_of_its_task(task, facts, command):
    assert commands(task, **facts) == [f'next: lmtrain {command}']


def test_second_command_measures_the_test_split_if_there_is_one():
    lines = commands('text', causal=False, test_rows=3)
    assert lines == ['next: lmtrain evaluate --workdir=runs/a --split=test']
    lines = commands('classify', test_rows=3)
    assert lines[1:] == ['      lmtrain evaluate --workdir=runs/a --split=test']


def test_commands_are_continued_after_80_columns():
    lines = commands('classify', folder='runs/a folder with a long name')
    assert lines[0] == "next: lmtrain predict --workdir='runs/a folder with a long name' \\"
    assert lines[1] == '          --rows=new.csv --to=predicted.csv'
