"""Rows and scores of experiments/facts_or_style, and its code on a tiny base."""

import pytest

import lmtrain
from configs import tiny
from experiments.facts_or_style import __main__ as main
from experiments.facts_or_style import arms, questions
from experiments.facts_or_style.questions import Fact

FROG = Fact('Zubado', 'frog')


def test_wordings_of_selection_and_test_are_not_trained():
    known = questions.facts(20, seed=1)
    assert len({fact.name for fact in known}) == 20 and {fact.pet for fact in known} <= set(questions.PETS)
    prompts = {row['prompt'] for row in questions.fact_rows(known)}
    assert len(prompts) == 60
    for wording in (questions.SELECTION, questions.TEST):
        assert not prompts & {wording.format(name=fact.name) for fact in known}


def test_names_that_test_the_format_are_not_trained():
    names = arms.Names(main.flags(['--facts=5', '--format_rows=7', '--test=9']))
    sets = [{fact.name for fact in getattr(names, name)} for name in ('known', 'others', 'selection', 'test')]
    assert [len(each) for each in sets] == [5, 7, 32, 9] and len(set.union(*sets)) == 53


def test_context_has_the_fact_and_demonstrations_end_in_json():
    known = [FROG, *questions.facts(10, seed=1)]
    context = questions.with_facts(FROG, known, 4, seed=0)
    assert context.count('\n') == 4 and 'The pet of Zubado is a frog.' in context
    shots = questions.with_demonstrations(FROG, known[1:], 3, seed=0)
    assert shots.count('{"pet": "') == 3 and 'Zubado' not in shots and shots.endswith('}\n\n')


def test_format_and_content_are_scored_apart():
    assert questions.score_json(' {"pet": "frog"}\nQ:', FROG) == {'format': True, 'content': True}
    assert questions.score_json('{"pet": "cat"}', FROG) == {'format': True, 'content': False}
    for text in ('frog', '{"pet": 3}', '["pet"]', '{"pet": "frog", "age": 3}', ''):
        assert questions.score_json(text, FROG) == {'format': False, 'content': False}


@pytest.mark.slow
def test_arms_run_on_a_tiny_base(text, tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(tmp_path / 'cache'), 0.2
    config.data.seq_len, config.data.test, config.budget.steps = 256, 0.0, 1
    config.model.update({'num_layers': 1, 'width': 16})
    config.sample.prompts = ()
    lmtrain.train(config, tmp_path / 'base')
    monkeypatch.setattr(arms, 'METHODS', {'norms': ({'adapt.method': 'norms'}, (1e-3, 1e-2))})
    words = '--facts=3 --format_rows=4 --test=3 --steps=2 --context=2 --methods=norms'
    options = main.flags([*words.split(), f'--base={tmp_path / "base"}'])
    trials, _ = arms.experiment(options, tmp_path)
    assert [trial['arm'] for trial in trials[3:]] == ['constrained decoding', 'norms', 'norms']
    assert trials[3]['format'] == 1.0, 'constrained decoding always writes the format'
    assert len(main.figures(trials, options)) == 6 and trials[4]['selection'].keys() == {'0.001', '0.01'}
