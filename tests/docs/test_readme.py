"""README.md: its examples run, its diffs apply and work, and its links lead somewhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    """The code blocks of README.md in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)


def apply(diff: str, root: pathlib.Path) -> None:
    """Applies a diff whose hunks have no line numbers: kept and removed lines of a hunk occur exactly once.

    The last line of a hunk may be the beginning of a longer line.
    """
    for part in re.split(r'^--- ', diff, flags=re.MULTILINE)[1:]:
        header, *hunks = part.split('\n@@\n')
        old, new = re.fullmatch(r'(\S+)\n\+\+\+ b/(\S+)', header).groups()
        path = root / new
        text = '' if old == '/dev/null' else path.read_text(encoding='utf-8')
        for hunk in hunks:
            lines = hunk.rstrip('\n').split('\n')
            before = '\n'.join(line[1:] for line in lines if not line.startswith('+'))
            after = '\n'.join(line[1:] for line in lines if not line.startswith('-'))
            assert text.count(before) == 1 or not text, f'{new}: these lines must occur once:\n{before}'
            text = text.replace(before, after) if text else f'{after}\n'
        path.write_text(text, encoding='utf-8')


# In a copy of the repository with every diff applied; `paths` of files are relative to the current directory.
USE = """
import json, pathlib
import jax, numpy as np
from lmtrain import adapt, tree
from lmtrain.data.source import open_source
from lmtrain.models import pretrained
from lmtrain.tasks import TASKS

# The task and the objective, trained on rows that a new method adapts.
import lmtrain
from configs import tiny
rows = [{'text': 'good ' * (i % 3 + 1), 'stars': i % 3 + 1} for i in range(64)]
pathlib.Path('rows.jsonl').write_text('\\n'.join(map(json.dumps, rows)), encoding='utf-8')
config = tiny.get_config()
config.task.name, config.task.train, config.task.text, config.task.label = 'rating', ('rows.jsonl',), ('text',), 'stars'
config.objective.name, config.objective.pool = 'absolute_error', 'mean'
config.data.cache, config.data.validation, config.budget.steps = 'cache', 0.2, 2
config.adapt.method = 'embeddings'
lmtrain.train(config, 'runs/rating')
result = lmtrain.evaluate('runs/rating')
assert 0 <= result['exact'] <= 1 and result['loss'] == result['absolute_error'], result
batch = {'labels': np.zeros(2, np.float32), 'label_weights': np.ones(2, np.float32)}
values, _ = TASKS['rating'].loss('absolute_error')(lambda batch: {'logits': np.array([[3.0], [-2.0]])}, batch)
assert values['loss'].tolist() == [3.0, 2.0]

# The family: settings, and back.
fields = {'model_type': 'aquila', 'architectures': ['AquilaForCausalLM'], 'vocab_size': 64, 'hidden_size': 16}
fields |= {'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 32, 'max_position_embeddings': 32}
model = pretrained.model_of(fields)
assert (model.family, model.num_layers) == ('aquila', 2)
assert pretrained.config_of(model)['architectures'] == ['AquilaForCausalLM']
params = model.init(jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)})['params']
trainable, frozen = tree.split(params, adapt.method('embeddings', model, params).trainable)
assert list(tree.flatten(trainable)) == ['embed/embedding'] and 'layers' in frozen

# The format.
pathlib.Path('a.srt').write_text('1\\n00:00:01,000 --> 00:00:02,000\\nHello.\\n', encoding='utf-8')
source = open_source('a.srt', '', pathlib.Path('cache'), 'text', 'file')
assert [document.text for document in source.documents()] == ['Hello.']
print('used')
"""


@pytest.fixture(scope='module')
def extended(tmp_path_factory):
    """A copy of the packages with the diffs of README.md applied."""
    root = tmp_path_factory.mktemp('extended')
    for name in ('lmtrain', 'configs', 'launch'):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
    diffs = blocks('diff')
    assert len(diffs) == 5, 'a task, an objective, a method, a family and a format'
    for diff in diffs:
        apply(diff, root)
    return root


@pytest.mark.slow
def test_diffs_apply_and_work(extended, tmp_path):
    environment = os.environ | {'PYTHONPATH': str(extended)}
    command = [sys.executable, '-P', '-c', USE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding='utf-8')
    assert done.returncode == 0 and done.stdout.endswith('used\n'), done.stdout + done.stderr


def test_a_diff_that_does_not_fit_is_an_error(tmp_path):
    (tmp_path / 'a.py').write_text('x = 1\nx = 1\n', encoding='utf-8')
    with pytest.raises(AssertionError, match='a.py: these lines must occur once'):
        apply('--- a/a.py\n+++ b/a.py\n@@\n-x = 1\n+x = 2\n', tmp_path)


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch, capsys, small_recipe):
    """All of them, in order, as one program; each has at most five lines."""
    examples = blocks('python')
    assert all(len(example.strip().splitlines()) <= 5 for example in examples)
    names = {'load', 'generate', 'evaluate', 'train', 'export', 'load_adapter'}
    assert names == {name for example in examples for name in re.findall(r'lmtrain\.(\w+)\(', example)}
    monkeypatch.chdir(tmp_path)
    exec(compile('\n'.join(examples), 'README.md', 'exec'), {})
    assert (tmp_path / 'adapter' / 'adapter_config.json').is_file()
    assert 'report and samples: runs/lora' in capsys.readouterr().out


def test_commands_are_verbs_with_flags_that_exist():
    from launch import cli

    lines = re.sub(r'\\\n', ' ', '\n'.join(blocks(''))).splitlines()
    commands = [line.split() for line in lines if line.startswith('lmtrain ') and not line.startswith('lmtrain/')]
    assert len(commands) >= 5
    for _, verb, *words in commands:
        module = __import__(f'launch.{verb}', fromlist=['FLAGS'])
        flags = {word.lstrip('-').partition('=')[0] for word in words if word.startswith('--')}
        assert verb in cli.VERBS and {flag for flag in flags if not flag.startswith('config.')} <= set(module.FLAGS)


def test_links_lead_to_files():
    for file in [ROOT / 'README.md', *ROOT.glob('docs/*.md'), ROOT / 'experiments' / 'README.md']:
        for link in re.findall(r'\]\(([^)#]+)\)', file.read_text(encoding='utf-8')):
            assert link.startswith('https://') or (file.parent / link).exists(), f'{file}: {link}'
