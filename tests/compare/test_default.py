"""The default comparison: a task and a base from the embedded corpus."""

import pytest

from configs import compare, compare_base, compare_docstrings, tiny
from lmtrain.compare import arms, comparison, default
from lmtrain.data import docstring_task, python_docs
from lmtrain.errors import InputError


@pytest.fixture
def corpus(monkeypatch, tmp_path):
    """A small corpus and a tiny base in place of Python's."""

    def documents():
        for i in range(40):
            yield f'json.part{i}', f'value_{i} = {i} * {i}\n' * 5
        for number, (module, *_) in enumerate(docstring_task.PACKAGES.values()):
            lines = [f'def f{i}():\n    """Reads line {i * i} of kind {number} at once."""\n' for i in range(12)]
            yield f'{module}.files', '\n'.join(lines)

    def get_config(original=tiny.get_config):
        config = original()
        config.budget.steps = 2
        return config

    monkeypatch.setattr(python_docs, 'documents', documents)
    monkeypatch.setattr(compare_base, 'get_config', get_config)
    config = compare_docstrings.get_config()
    config.data.cache, config.data.seq_len = str(tmp_path / 'cache'), 32
    config.compare.update({'sizes': (4,), 'selection': 10, 'only': ('zero_shot', 'head')})
    return config


@pytest.mark.slow
def test_task_and_base_are_made_once(corpus, tmp_path, monkeypatch):
    config = default.fill_in(corpus, tmp_path / 'run')
    assert config.init.base == str(tmp_path / 'run' / 'base') and not corpus.init.base
    assert 'package_of' not in (tmp_path / 'run' / 'data' / 'pretraining.jsonl').read_text()
    monkeypatch.setattr(default.training, 'train', lambda *given: pytest.fail('the base is there'))
    assert default.fill_in(corpus, tmp_path / 'run').to_dict() == config.to_dict()
    shared, _ = comparison.assemble(config, tmp_path / 'run', [])
    assert set(shared.task.classes) == set(docstring_task.PACKAGES)
    assert shared.task.train[0].fields['prompt'].startswith('# Reads line')


def test_a_plan_trains_no_base(corpus, tmp_path):
    page = comparison.dry_run(corpus, tmp_path / 'run')
    assert page.startswith('note: a base is pretrained first') and 'zero_shot' in page and 'head' in page
    assert not (tmp_path / 'run').exists()


def test_a_task_without_a_base_is_refused(corpus, tmp_path):
    corpus.task.train = ('rows.csv',)
    with pytest.raises(InputError, match=r'config\.init\.base is empty'):
        comparison.run(corpus, tmp_path / 'run')


def test_the_default_has_every_kind_of_arm_and_at_most_101_trials():
    config = compare_docstrings.get_config()
    selected = arms.read(config.compare)
    without_rows = [arm.name for arm in selected if not arm.uses_rows]
    assert without_rows == ['instructed', 'zero_shot']
    cells = len(config.compare.sizes) * config.compare.seeds
    assert len(without_rows) + (len(selected) - len(without_rows)) * cells <= 101
    assert {dict(arm.settings.get('overrides', ())).get('adapt.method') for arm in selected} == {
        None, 'head', 'layers', 'lora', 'prompt', 'full'
    }  # fmt: skip
    assert {arm.settings['select'] for arm in selected if arm.kind == 'prompt'} >= {'fixed', 'bm25', 'nearest'}


@pytest.mark.parametrize(
    ('recipe', 'factors'),
    [
        (compare, {'head': None, 'last_layer': 20.0, 'lora': 10.0, 'full': 50.0}),
        (compare_docstrings, dict.fromkeys(['head', 'last_layer', 'lora', 'full'])),
    ],
)
def test_heads_of_a_pretrained_base_learn_at_a_higher_rate(recipe, factors):
    sections = recipe.get_config().compare.arms
    rates = {name: dict(sections[name].overrides).get('optimizer.learning_rates') for name in factors}
    assert rates == {name: factor and (('(task_head|heads)/.*', factor),) for name, factor in factors.items()}
