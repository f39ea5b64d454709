"""The rows of the docstring task, and the whole experiment at a tiny size."""

import json

import pytest

from experiments.cramming import __main__ as main
from experiments.cramming import docstrings

SOURCES = [
    ('pydoc_data.topics', 'def f():\n    """' + 'a topic of the language, not a module' * 2 + '"""'),
    ('json.decoder', 'class A:\n    """' + 'decodes documents of one kind or another' + '"""\n'),
    ('json', 'def g():\n    """short"""\n\ndef h():\n    """' + 'writes documents of one kind or another' + '"""'),
    ('zlib', 'not ( python'),
    ('re', 'async def k():\n    """' + 'matches a pattern from the first character' + '"""'),
    ('ast', 'def k():\n    """' + 'matches a pattern from the first character' + '"""'),
]


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setattr(docstrings, 'MIN_CHARACTERS', 30)
    monkeypatch.setattr(docstrings.python_docs, 'documents', lambda: iter(SOURCES))


def test_docstrings_belong_to_their_top_level_package(library):
    assert [package for package, _ in docstrings.docstrings()] == ['json', 'json', 're', 'ast']


def test_a_docstring_of_two_packages_is_left_out(library):
    drawn = docstrings.rows(classes=5, per_class=9, seed=0)
    assert sorted(row['text'].split()[0] for row in drawn) == ['decodes', 'writes']
    assert len(docstrings.rows(classes=5, per_class=1, seed=0)) == 1


@pytest.fixture
def large_library(monkeypatch):
    """Three packages with 25 docstrings each."""
    line = 'def f{0}():\n    """Describes function number {0} of the package {1}."""\n'
    sources = [(name, ''.join(line.format(i, name) for i in range(25))) for name in ('json', 'email', 'ast')]
    monkeypatch.setattr(docstrings.python_docs, 'documents', lambda: iter(sources))


def test_test_rows_are_not_training_rows(tmp_path, large_library):
    task = docstrings.write(tmp_path, classes=3, per_class=20, test=24, seed=0)
    train, test = (
        [json.loads(line) for line in (tmp_path / f'{name}.jsonl').read_text(encoding='utf-8').splitlines()]
        for name in ('train', 'test')
    )
    assert (len(train), len(test), task['train'], len(task['classes'])) == (36, 24, 36, 3)
    assert not {row['text'] for row in train} & {row['text'] for row in test}


def test_arms_differ_in_the_recipe_and_share_budget_and_size():
    options = main.flags(['--flops=1e9', '--layers=2', '--width=64'])
    crammed, plain = (main.pretraining(options, arm, 0.5) for arm in main.ARMS)
    assert crammed['budget.flops'] == plain['budget.flops'] == 5e8 and crammed['budget.hours'] is None
    assert plain['model.norm_place'] == 'post' and plain['model.mlp_dim'] == 256 and 'model.norm_place' not in crammed
    assert main.pretraining(main.flags(['--hours=2']), 'bert', 0.5)['budget.hours'] == 1.0
    published = main.pretraining(main.flags(['--layers=0']), 'bert', 1.0)
    assert published['model.num_layers'] == 12 and 'model.num_layers' not in main.pretraining(
        main.flags(['--layers=0']), 'crammed', 1.0
    )


@pytest.mark.slow
def test_an_arm_runs_at_a_tiny_size(text, tmp_path, large_library):
    words = f'--flops=1e6 --source={text} --cache={tmp_path / "cache"} --tokenizer=bytes --vocab=258 --length=16'
    words += ' --layers=1 --width=16 --batch_size=8 --classes=2 --per_class=24 --test=16 --epochs=1 --seeds=2'
    options = main.flags([*words.split(), '--rates=1e-3,2e-3', '--finetune_rates=1e-3,2e-3'])
    (trial,), task = main.experiment(options, tmp_path, arms=['bert'])
    assert trial['pretraining']['learning_rate'] in (1e-3, 2e-3) and len(trial['finetuning']['members']) == 2
    trials = [trial | {'arm': arm} for arm in (*main.ARMS, 'untrained')]
    rows = main.figures(trials, task)
    assert len(rows) == 2 * 3 + 1 + 2 and rows[-2]['figure'] == '+0.0 points' and rows[-2]['reached'] is False
