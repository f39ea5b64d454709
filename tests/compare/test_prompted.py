"""Trials that prompt: what is chosen, what is charged, and other prompts for the sensitivity."""

import json

import numpy as np
import pytest

from configs import compare
from lmtrain import tree
from lmtrain.compare import choice_scores, measures, planning, predictors, prompted, results, selection, trials, updates
from lmtrain.cost import ledger
from lmtrain.errors import InputError
from lmtrain.inference import prompting

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def trial_of(shared, selected, name, size):
    [trial] = [each for each in trials.listed(shared, selected) if (each.arm.name, each.size) == (name, size)]
    return trial


@pytest.mark.slow
def test_nearest_pays_for_the_embeddings_of_its_pool(small, tmp_path):
    shared, selected = small('nearest', ('nearest', 'bm25'))
    trial = trial_of(shared, selected, 'nearest', 16)
    pool, form = prompted.prompt(shared, trial, {'instruction': '', 'shots': 2, 'select': 'nearest'})
    spent = measures.embedding(shared.model, pool, form)
    tokens = [len(ids) for ids in shared.model.tokenizer.encode_batch([row.fields['prompt'] for row in pool])]
    params = sum(leaf.size for leaf in _kernels(shared.model.params))
    assert spent.tokens == sum(tokens) and spent.flops > 2 * params * sum(tokens)
    assert measures.embedding(shared.model, pool, form._replace(select='bm25')) == ledger.NOTHING
    width = shared.model.model.width
    others = measures.stored_bytes(shared.model, pool, form._replace(select='bm25'))
    assert measures.stored_bytes(shared.model, pool, form) == others + 16 * width * 4
    assert measures.stored_bytes(shared.model, pool, form._replace(select='fixed')) == pytest.approx(others / 8, abs=1)

    own = prompted.run(shared, trial, tmp_path)
    query = measures.query_of_prompt(
        shared, shared.model, *prompted.prompt(shared, trial, own['chosen']), ('contrast',)
    )
    scored = ledger.scoring(shared.model.model, shared.model.params, query, 8)
    assert own['ledger']['selection_flops'] == pytest.approx(scored.flops + spent.flops)
    assert own['ledger']['update_seconds'] > 0  # a new row is embedded
    bm25 = prompted.run(shared, trial_of(shared, selected, 'bm25', 16), tmp_path)
    assert bm25['ledger']['update_seconds'] == 0


def test_the_memory_of_a_prompt_is_that_of_its_batches(small, tmp_path):
    shared, selected = small('peak', ('few_shot',), sizes=(16,))
    own = prompted.run(shared, trial_of(shared, selected, 'few_shot', 16), tmp_path)
    params, peak = tree.size(shared.model.params), own['ledger']['peak_bytes']
    # Rows of 256 tokens: of each, the residual stream of a layer, at least.
    assert peak > params + own['ledger']['cache_bytes'] + 32 * 256 * 4 * shared.model.model.width
    assert planning.plan(shared, selected[0]).memory == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize('select', ['fixed', 'balanced'])
def test_draws_of_balanced_demonstrations_are_balanced(small, monkeypatch, select):
    shared, selected = small('draws', ('few_shot',), draws=6)
    trial = trial_of(shared, selected, 'few_shot', 16)
    pool, form = prompted.prompt(shared, trial, {'instruction': '', 'shots': 4, 'select': select})
    pools = []

    def scores(model, pool, form, rows, names):
        pools.append([row.fields['label'] for row in prompted._shown(pool, form, 4)])
        return even(shared, rows, names)

    monkeypatch.setattr(choice_scores, 'of_rows', scores)
    assert len(prompted.draws(shared, trial, form, {'score': 'sum'})) == len(pools) == 6
    counts = [max(map(own.count, shared.task.classes)) - min(map(own.count, shared.task.classes)) for own in pools]
    assert all(count <= 1 for count in counts) == (select == 'balanced')


def even(shared, rows, names):
    """Scores that are the same for every class."""
    log_p = np.full((len(rows), len(shared.task.classes)), -np.log(3))
    return choice_scores.ChoiceLikelihoods(dict.fromkeys(names, log_p), 4.0, 30.0, 0, 0)


def recorded_prompts(shared, monkeypatch):
    """The demonstrations of the first row in each prompt that is scored, as a list that grows."""
    listed, score_choices = [], prompting.score_choices

    def recorded(model, params, tokenizer, questions, drawn, settings):
        drawn = list(drawn)
        listed.append([shown.context for shown in drawn[0]])
        return score_choices(model, params, tokenizer, questions, drawn, settings)

    monkeypatch.setattr(prompting, 'score_choices', recorded)
    return listed


@pytest.mark.parametrize('select', ['fixed', 'balanced'])
def test_orders_are_other_orders_of_the_same_demonstrations(small, monkeypatch, select):
    shared, selected = small('draws', ('few_shot',), draws=5)
    trial = trial_of(shared, selected, 'few_shot', 16)
    chosen = {'instruction': '', 'shots': 3, 'select': select, 'score': 'sum'}
    _, form = prompted.prompt(shared, trial, chosen)
    prompts = recorded_prompts(shared, monkeypatch)
    if select == 'fixed':
        prompted.predictor(shared, trial, chosen | {'bias': [], 'temperature': 1.0})(shared.task.selection)
    else:  # each row of the trial has demonstrations of its own
        prompted.draws(shared, trial, form, chosen)
    first = prompts[0]
    prompts.clear()
    assert len(prompted.orders(shared, trial, form, chosen, 3)) == 5 == len(prompts)
    assert all(sorted(each) == sorted(first) and each != first for each in prompts)
    assert len({tuple(each) for each in prompts}) == 5  # all other orders of 3
    assert prompted.num_orders(shared, trial, form, 2) == 1 and prompted.orders(shared, trial, form, chosen, 1) == []


def test_as_many_demonstrations_as_fit_are_drawn_and_ordered_too(small):
    shared, selected = small('many_draws', ('many_shot',), sizes=(64,), test=8)
    trial = trial_of(shared, selected, 'many_shot', 64)
    own = trials.run(shared, trial, prompted.run)
    _, form = prompted.prompt(shared, trial, own['chosen'])
    assert 1 < prompted.held(trial, form, own['selection']) < 64 == prompted.held(trial, form)
    assert len(own['draws']) == len(own['orders']) == 2 and not updates.outdated(shared, trial, own)
    shared.config.compare.update({'draws': 1, 'templates': ()})
    flops = planning.plan(shared, selected[0]).flops
    shared.config.compare.update({'draws': 0, 'templates': ('{text} is {label}', '{text}: {label}')})
    assert planning.plan(shared, selected[0]).flops == flops  # a set and an order read as many rows as two templates


def test_draws_have_the_bias_of_their_own_demonstrations(small):
    shared, selected = small('draws', ('few_shot',))
    trial = trial_of(shared, selected, 'few_shot', 16)
    _, form = prompted.prompt(shared, trial, {'instruction': '', 'shots': 4, 'select': 'fixed'})
    chosen = {'score': 'batch', 'bias': [100.0, 0.0, 0.0], 'temperature': 1.0}
    others = chosen | {'bias': [0.0, 0.0, 100.0]}
    assert prompted.draws(shared, trial, form, chosen) == prompted.draws(shared, trial, form, others)


def with_a_long_row(shared):
    first, *others = shared.task.selection
    text = 'mice sat ' * 100
    long = first._replace(fields=first.fields | {'text': text, 'prompt': text + first.fields['prompt']})
    return shared._replace(task=shared.task._replace(selection=[long, *others]))


@pytest.mark.parametrize('name', ['few_shot', 'nearest', 'search'])
def test_a_selection_row_that_is_longer_than_the_context_is_cut_and_counted(small, name):
    shared, selected = small(f'long_row_{name}', (name,), templates=('{text} is {label}',))
    trial = trial_of(shared, selected, name, 16)
    own = trials.run(with_a_long_row(shared), trial, prompted.run)
    assert own['status'] == 'done' and own['selection']['cut'] == 1, own['reason']
    assert own['templates'] == [own['selection']['accuracy'], pytest.approx(0.5, abs=0.5)]
    if name == 'search':  # the row that is cut keeps no demonstration, and the others may have some
        assert own['selection']['dropped'] == len(own['chosen']['places']) > 0
    shared.config.task.too_long = 'error'
    refused = trials.run(with_a_long_row(shared), trial, prompted.run)
    assert refused['permanent'] and 'even without demonstrations' in refused['reason']


def test_a_template_that_makes_rows_too_long_has_no_accuracy(small):
    shared, selected = small('long_template', ('zero_shot',), templates=('mice sat ' * 100 + '{text} is {label}',))
    trial = trial_of(shared, selected, 'zero_shot', 0)
    chosen = {'instruction': '', 'shots': 0, 'select': 'fixed', 'score': 'sum'}
    assert prompted.templates(shared, trial, chosen, {'accuracy': 0.5, 'cut': 0}) == [0.5, None]
    assert prompted.templates(shared, trial, chosen, {'accuracy': 0.5}) == [0.5, None]  # of earlier versions


def test_a_search_costs_what_its_candidates_cost(small, tmp_path):
    def change(config):
        config.compare.arms.search.update({'budget': 4000, 'shots': 2, 'scores': ('sum',)})

    shared, selected = small('search_cost', ('search',), change)
    trial = trial_of(shared, selected, 'search', 16)
    own = prompted.run(shared, trial, tmp_path)
    tried, (model, params) = own['selection']['candidates'], (shared.model.model, shared.model.params)
    assert {len(each['places']) for each in tried} >= {0, 1}
    expected = 0.0
    for each in tried:
        pool, form = prompted.prompt(shared, trial, each)
        assert [row.fields['place'] for row in pool] == each['places'] and form.shots == len(each['places'])
        query = measures.query_of_prompt(shared, shared.model, pool, form, ['sum'])
        expected += ledger.scoring(model, params, query, len(shared.task.selection)).flops
    pool, form = prompted.prompt(shared, trial, own['chosen'])
    tokens = own['selection']['prompt_tokens']
    last = measures.query_of_prompt(shared, shared.model, pool, form, ['sum'], tokens)
    expected += ledger.scoring(model, params, last, len(shared.task.selection)).flops
    assert own['ledger']['selection_flops'] == pytest.approx(expected)


def _kernels(params):
    from lmtrain import tree

    return [leaf for path, leaf in tree.flatten(params).items() if path.startswith('layers') and leaf.ndim == 3]


def test_a_written_instruction_is_chosen_and_names_the_classes(small, tmp_path):
    shared, selected = small('instructed', ('instructed',), templates=())
    trial = trial_of(shared, selected, 'instructed', 0)
    own = prompted.run(shared, trial, tmp_path)
    tried = [each['instruction'] for each in own['selection']['candidates']]
    assert [*dict.fromkeys(tried)] == [text.format(labels='cats, dogs, mice') for text in compare.INSTRUCTIONS]
    assert own['chosen']['instruction'] in tried and own['chosen']['shots'] == own['selection']['cut'] == 0
    _, form = prompted.prompt(shared, trial, own['chosen'])
    read = measures.query_of_prompt(shared, shared.model, [], form, ['sum'], own['selection']['prompt_tokens'])
    assert read.shared == 1 + len(shared.model.tokenizer.encode(own['chosen']['instruction'] + form.separator))
    assert own['ledger']['stored_bytes'] == len(own['chosen']['instruction'])


def test_an_instruction_that_is_longer_than_the_context_is_cut_and_counted(small, tmp_path):
    def change(config):
        config.compare.arms.instructed.instructions = ('Cats or dogs? ' * 40,)

    shared, selected = small('long_instruction', ('instructed',), change, templates=())
    trial = trial_of(shared, selected, 'instructed', 0)
    own = prompted.run(shared, trial, tmp_path)
    assert own['selection']['cut'] == own['selection']['rows'] == 8
    for tokens in (None, own['selection']['prompt_tokens']):
        form = prompted.prompt(shared, trial, own['chosen'])[1]
        query = measures.query_of_prompt(shared, shared.model, [], form, ['sum'], tokens)
        assert query.shared >= 1 and query.row > 1 and query.shared + query.row <= shared.model.model.max_len
    shared.config.task.too_long = 'error'
    with pytest.raises(InputError, match='even without demonstrations'):
        prompted.run(shared, trial, tmp_path)


def test_a_search_tries_instructions_and_none(small, tmp_path):
    shared, selected = small('searched', ('search',), sizes=(4,), templates=())
    own = prompted.run(shared, trial_of(shared, selected, 'search', 4), tmp_path)
    tried = {each['instruction'] for each in own['selection']['candidates']}
    assert tried == {'', *(text.format(labels='cats, dogs, mice') for text in compare.INSTRUCTIONS)}


@pytest.mark.slow
def test_the_instruction_is_chosen_by_the_loss_with_its_temperature(small, tmp_path):
    def change(config):
        config.compare.arms.few_shot.instructions = ('Cats or dogs?', 'x x x x x')

    shared, selected = small('instructions', ('few_shot',), change)
    own = prompted.run(shared, trial_of(shared, selected, 'few_shot', 4), tmp_path)
    tried = own['selection']['candidates']
    assert {each['instruction'] for each in tried} == {'Cats or dogs?', 'x x x x x'} and len(tried) == 8
    best = min(tried, key=lambda each: each['loss'])
    assert own['chosen'] == {name: value for name, value in best.items() if name not in selection.MEASURED}
    predict = prompted.predictor(shared, trial_of(shared, selected, 'few_shot', 4), own['chosen'])
    scores = predictors.choice_scores.score(predict(shared.task.selection), shared.task.selection, shared.task.classes)
    assert scores.loss == pytest.approx(best['loss'], abs=1e-5) and scores.accuracy == best['accuracy']


def test_templates_are_other_texts_of_the_same_rows(small, tmp_path, monkeypatch):
    others = ('{text} is {label}', '{label}')
    shared, selected = small('templates', ('few_shot', 'zero_shot'), templates=others[:1])
    small_one, largest, none = (
        trial_of(shared, selected, *cell) for cell in (('few_shot', 4), ('few_shot', 16), ('zero_shot', 0))
    )
    listed = [prompted.template_texts(shared, each) for each in (small_one, largest, none)]
    assert listed == [[], ['{note}\nLabel: {animal}', '{text} is {label}'], listed[1]]
    own = prompted.run(shared, largest, tmp_path)
    assert own['templates'][0] == own['selection']['accuracy'] and len(own['templates']) == 2
    texts = []
    score = prompting.score

    def recorded(model, params, tokenizer, asked, form, **options):
        if shown := options['demonstrations']:  # none for what the demonstrations add
            texts.append((asked[0].fields['prompt'], shown[0].fields['prompt'], form.choices))
        return score(model, params, tokenizer, asked, form, **options)

    monkeypatch.setattr(prompting, 'score', recorded)
    assert prompted.templates(shared, largest, own['chosen'], own['selection']) == own['templates']
    assert all(prompt.endswith(' is') for prompt in texts[0][:2])
    assert texts[0][2] == [f' {name}' for name in shared.task.classes]
    lacking = own | {'templates': [], 'blocks': [], 'draws': own['draws'], 'kind': 'prompt'}
    assert updates.outdated(shared, largest, lacking)
    assert updates.measure(shared, largest, lacking)['templates'] == own['templates']


def test_an_arm_is_prompted_in_the_chat_template_of_the_base(small, tmp_path, monkeypatch):
    shared, selected = small('chat', ('zero_shot_chat', 'few_shot_chat', 'zero_shot'))
    assert 'no chat template' in planning.plan(shared, selected[0]).reason
    config = json.dumps({'chat_template': TEMPLATE}).encode()
    monkeypatch.setattr(shared.model.tokenizer, 'config_json', config)
    for arm in selected:
        assert not planning.plan(shared, arm).reason
    prompts = []
    fit = prompting._fit

    def recorded(*arguments):
        fitted = fit(*arguments)
        prompts.extend(fitted[0])
        return fitted

    monkeypatch.setattr(prompting, '_fit', recorded)
    own = prompted.run(shared, trial_of(shared, selected, 'few_shot_chat', 4), tmp_path)
    assert own['selection']['accuracy'] >= 0
    text = shared.model.tokenizer.decode(prompts[0].context_ids.tolist())
    assert text.count('<user>') == text.count('<assistant>') == 5 and text.endswith('<assistant>')
    assert 'Label:<assistant>' in text


def test_a_template_that_writes_the_date_needs_one(small, monkeypatch):
    shared, selected = small('dated', ('zero_shot_chat',))
    config = json.dumps({'chat_template': '{{ strftime_now("%Y") }}' + TEMPLATE}).encode()
    monkeypatch.setattr(shared.model.tokenizer, 'config_json', config)
    assert 'set config.task.date' in planning.plan(shared, selected[0]).reason


def test_dropped_demonstrations_are_recorded_and_shown(small, tmp_path):
    shared, selected = small('many', ('many_shot',), sizes=(64,), test=8)
    trial = trial_of(shared, selected, 'many_shot', 64)
    own = trials.run(shared, trial, prompted.run)
    selected_rows = own['selection']
    assert own['status'] == 'done' and selected_rows['dropped'] > 0
    assert selected_rows['shots_mean'] + selected_rows['dropped'] / 8 == pytest.approx(64)
    [note] = results._dropped([own])
    held = selected_rows['shots_mean']
    expected = f'many_shot: with 64 training rows, a prompt holds {held:.1f} of 64.0 demonstrations; '
    assert note.startswith(expected)
    assert results._dropped([own | {'selection': selected_rows | {'dropped': 0}}]) == []
