"""Arms: every arm of the default comparison runs, and wrong ones are refused by name."""

import json

import pytest

import lmtrain
from configs import compare, tiny
from lmtrain.compare import arms, comparison
from lmtrain.errors import InputError
from lmtrain.files import read_json
from lmtrain.training import export


@pytest.fixture(scope='module')
def config(text):
    """The config of a comparison on a tiny base, of one size and one seed."""
    base = tiny.get_config()
    base.data.source, base.data.cache = str(text), str(text.parent / 'cache')
    base.data.validation = base.data.test = 0.2
    lmtrain.train(base, text.parent / 'base')
    lines = [{'note': f'{i * i} {"abc"[i % 3]} on', 'animal': 'abc'[i % 3]} for i in range(60)]
    (text.parent / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config = compare.get_config()
    config.init.base, config.data.cache = str(text.parent / 'base'), str(text.parent / 'cache')
    config.task.train, config.task.text, config.task.label = (str(text.parent / 'rows.jsonl'),), ('note',), 'animal'
    config.data.seq_len, config.budget.steps, config.evaluate.every_steps = 16, 2, 2
    config.compare.update({'sizes': (12,), 'seeds': 1, 'selection': 8, 'draws': 1})
    config.compare.arms.search.budget, config.compare.only = 3000, ()
    config.compare.arms.prefix.overrides = (('adapt.method', 'prefix'), ('adapt.prefix.length', 2))
    config.compare.arms.soft_prompt.overrides = (('adapt.method', 'prompt'), ('adapt.prompt.length', 2))
    return config


@pytest.mark.slow
def test_every_default_arm_runs(config, text):
    results = comparison.run(config, text.parent / 'run')
    chats = ('zero_shot_chat', 'instructed_chat', 'few_shot_chat', 'bm25_chat')  # the base has no chat template
    statuses = {name: 'skipped' if name in chats else 'done' for name in config.compare.arms}
    assert {name: arm['status'] for name, arm in results['arms'].items()} == statuses
    assert all(results['arms'][name]['reason'].endswith('of the base has no chat template') for name in chats)
    by_name = {trial['arm']: trial for trial in results['trials']}
    for name, trial in by_name.items():
        ledger = trial['ledger']
        assert ledger['query_flops'] > 0 and ledger['selection_flops'] > 0, name
        assert bool(ledger['trainable_parameters']) == bool(ledger['train_flops']) == (trial['kind'] == 'train'), name
        assert (name in results['forgetting']) == (trial['kind'] == 'train'), name
    forgotten = {name: own['kl'] for name, own in results['forgetting'].items()}
    # A head leaves the base as it is, and so does a policy whose completions all have the same reward.
    assert {'head'} <= {name for name, kl in forgotten.items() if kl == 0} <= {'head', 'grpo', 'rloo'}
    smaller = ['head', 'soft_prompt', 'norms', 'prefix', 'lora', 'last_layer', 'full']
    counts = [by_name[name]['ledger']['trainable_parameters'] for name in smaller]
    assert counts == sorted(counts)
    assert by_name['full']['ledger']['stored_parameters'] == by_name['scratch']['ledger']['stored_parameters']
    assert read_json(text.parent / 'run' / by_name['scratch']['folder'] / 'config.json')['init']['base'] == ''


@pytest.mark.slow
def test_rates_one_after_another_give_what_members_of_a_sweep_give(config, text):
    own = compare.get_config()
    own.update(config.copy_and_resolve_references())
    rates = config.compare.arms.head.learning_rates
    for name, vectorised in (('together', True), ('apart', False)):
        each = compare.arm({'adapt.method': 'head'}, learning_rates=rates, description='', vectorised=vectorised)
        own.compare.arms[name] = each
    own.compare.only = ('together', 'apart')
    by_name = {trial['arm']: trial for trial in comparison.run(own, text.parent / 'rates')['trials']}
    together, apart = (by_name[name]['selection']['candidates'] for name in own.compare.only)
    assert [each['learning_rate'] for each in apart] == [each['learning_rate'] for each in together] == list(rates)
    assert [each['loss'] for each in apart] == pytest.approx([each['loss'] for each in together], abs=1e-5)
    assert [each['run'] for each in apart] == ['rate0', 'rate1', 'rate2']
    flops = [[by_name[name]['ledger'][field] for field in ('train_flops', 'selection_flops')] for name in by_name]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)
    assert by_name['apart']['test']['loss'] == pytest.approx(by_name['together']['test']['loss'], abs=1e-5)


@pytest.mark.slow
def test_a_base_without_language_head_is_not_prompted(config, text):
    own = compare.get_config()
    own.update(config.copy_and_resolve_references())
    own.compare.only = ('zero_shot', 'lora_text', 'head')
    trial, exported = text.parent / 'run' / 'trials' / 'full' / 'n12-seed1', text.parent / 'exported'
    own.init.base = str(trial)
    with pytest.raises(InputError, match=r'config\.init\.base = .* is a sweep of 3 members'):
        comparison.run(own, text.parent / 'headed')
    export.export(trial, exported, 'hf')  # it has a head for classes
    own.init.base = str(exported)
    results = comparison.run(own, text.parent / 'headed')
    statuses = {name: arm['status'] for name, arm in results['arms'].items()}
    assert statuses == {'zero_shot': 'skipped', 'lora_text': 'skipped', 'head': 'done'}
    assert all("head 'classify'" in results['arms'][name]['reason'] for name in ('zero_shot', 'lora_text'))
    assert results['forgetting'] == {}
    assert any('forgetting is not measured' in note for note in results['task']['notes'])


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('few_shot.select', 'closest', r"select = 'closest' is none of random"),
        ('few_shot.shots', -2, 'at least 0, or -1'),
        ('few_shot.scores', ('loudest',), r'scores = .*one or more of sum, per_byte'),
        ('zero_shot.scores', ('contrast',), r"scores = \('contrast',\) with shots = 0.*add 'sum', or set shots"),
        ('search.search', 'best', r"search = 'best' is none of '', greedy, random"),
        ('few_shot.instructions', ('', 'One of {names}.'), r"'One of {names}.' has .* placeholder {names}: '{labels}'"),
        ('search.instructions', ('{labels!r}',), r"placeholder {labels!r}: '{labels}' is replaced by the classes"),
        ('few_shot.instructions', ('As {json.',), r"instructions: 'As {json.': .*braces .* are doubled, '{{' and '}}'"),
        ('head.learning_rates', (), 'give at least one rate'),
        ('head.overrides', (('adapt.metod', 'lora'),), r"unknown field 'adapt.metod', did you mean 'adapt.method'"),
        ('head.overrides', (('budget.steps', 'many'),), r"budget.steps = 'many'"),
    ],
)
def test_wrong_arms_are_named(field, value, message):
    config = compare.get_config()
    name, part = field.split('.')
    config.compare.arms[name][part] = value
    with pytest.raises(InputError, match=rf'config\.compare\.arms\.{name}.*{message}'):
        for arm in arms.read(config.compare):
            arms.recipe(config, arm)


def test_instructions_name_the_classes_and_are_part_of_the_default():
    assert 'instructed' in compare.DEFAULT and 'instructed_chat' not in compare.DEFAULT
    selected = {arm.name: arm for arm in arms.read(compare.get_config().compare, ['instructed_chat'])}
    listed = {name: arms.instructions(selected[name], ('a', 'b{c}')) for name in ('few_shot', 'instructed', 'search')}
    without, with_names = listed['instructed']
    assert with_names.startswith(without.rstrip('.')) and with_names.endswith(': a, b{c}.') and 'a, ' not in without
    assert listed['few_shot'] == ('',) and listed['search'] == ('', without, with_names)
    chat = selected['instructed_chat']
    assert arms.instructions(chat, ('a', 'b{c}')) == listed['instructed'] and chat.settings['chat_template'] == 'auto'


def test_an_arm_is_one_line_of_a_config():
    config = compare.get_config()
    config.compare.arms.wide = compare.arm({'adapt.method': 'lora'}, learning_rates=(1e-3,), description='LoRA')
    config.compare.only = ('wide',)
    (arm,) = arms.read(config.compare)
    recipe = arms.recipe(config, arm)
    assert recipe.adapt.method == 'lora' and 'compare' not in recipe and 'compare' in config
