"""A comparison: its protocol, from the rows to results.json."""

import dataclasses
import io
import json
import os
import re
import signal

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmtrain
from configs import compare, tiny
from lmtrain import checkpoint
from lmtrain.compare import (
    arms,
    choice_scores,
    comparison,
    measures,
    new_rows,
    planning,
    predictors,
    progress,
    selection,
    testing,
    trained,
    trials,
)
from lmtrain.cost import ledger
from lmtrain.errors import InputError
from lmtrain.files import read_json, read_json_lines
from lmtrain.runtime import lifecycle
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

CLASSES = ('cats', 'dogs', 'mice')
ARMS = ('zero_shot', 'few_shot', 'head')
TIMES = {
    'interrupted',
    'device_seconds',
    'query_seconds',
    'query_seconds_cached',
    'update_seconds',
    'peak_bytes',
    'joules',
    'price',
}  # measured, not computed


@pytest.fixture(scope='module')
def base(text):
    """A tiny causal base, and beside it the rows of a task."""
    config = tiny.get_config()
    config.data.source, config.data.cache = str(text), str(text.parent / 'cache')
    config.data.validation = config.data.test = 0.2
    config.model.num_layers = 1
    lmtrain.train(config, text.parent / 'base')
    lines = [{'note': f'{i * i} {CLASSES[i % 3]} sat', 'animal': CLASSES[i % 3]} for i in range(120)]
    (text.parent / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    return text.parent / 'base'


def make_config(base, only=ARMS, **settings):
    """The config of a small comparison."""
    config = compare.get_config()
    config.init.base, config.data.cache = str(base), str(base.parent / 'cache')
    config.task.train, config.task.text, config.task.label = (str(base.parent / 'rows.jsonl'),), ('note',), 'animal'
    config.data.seq_len, config.data.batch_size, config.data.test = 32, 8, 0.3
    config.budget.steps, config.evaluate.every_steps = 4, 2
    own = {'sizes': (4, 16), 'seeds': 2, 'selection': 8, 'only': only, 'draws': 2} | settings
    config.compare.update(own)
    return config


@pytest.fixture(scope='module')
def finished(base):
    """(folder, content of results.json) of a finished comparison."""
    return base.parent / 'run', comparison.run(make_config(base), base.parent / 'run')


@pytest.fixture(scope='module')
def prompted(base):
    """(folder, content of results.json) of a finished comparison of two arms that train nothing."""
    config = make_config(base, only=ARMS[:2])
    return base.parent / 'prompted', comparison.run(config, base.parent / 'prompted')


def without_times(value):
    """A JSON value without what is measured on a clock or of a process."""
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_every_arm_is_tested_at_every_size(finished):
    folder, results = finished
    assert {arm['status'] for arm in results['arms'].values()} == {'done'}
    cells = {(line['arm'], line['size']): line['seeds'] for line in results['summary']}
    assert cells == {('zero_shot', 0): 1} | {(arm, size): 2 for arm in ARMS[1:] for size in (4, 16)}
    for trial in results['trials']:
        lines = read_json_lines(folder / trial['folder'] / 'predictions.jsonl')
        assert len(lines) == results['task']['rows']['test']
        assert sum(line['right'] for line in lines) / len(lines) == pytest.approx(trial['test']['accuracy'])
        assert sum(line['nats'] for line in lines) / len(lines) == pytest.approx(trial['test']['loss'])
    assert len(results['pairs']) == 3 * 2 and set(results['description_length']) == set(ARMS)
    assert (folder / 'report.html').exists() and read_json(folder / 'results.json') == json.loads(json.dumps(results))


@pytest.mark.slow
def test_trained_trials_are_runs_that_know_no_test_rows(finished):
    folder, results = finished
    for trial in results['trials']:
        if trial['kind'] != 'train':
            continue
        config = read_json(folder / trial['folder'] / 'config.json')
        assert config['task']['test'] == [] and 'test.jsonl' not in json.dumps(config)
        assert config['task']['validation'] == [str((folder / 'rows' / 'selection.jsonl').absolute())]
        assert config['seed'] == trial['seed']
        chosen, tried = trial['chosen'], trial['selection']['candidates']
        assert [each['loss'] for each in tried if each['step'] == chosen['step']][chosen['member']] == min(
            each['loss'] for each in tried
        )
        assert {each['step'] for each in tried} == {2, 4} and len(tried) == 6  # two steps of three rates
        assert checkpoint.steps(folder / trial['folder'] / 'checkpoints') == [chosen['step']]
        # Chosen by the loss with the temperature that is fitted on the selection rows, not by that of the run.
        lines = [
            line for line in read_json_lines(folder / trial['folder'] / 'metrics.jsonl') if 'validation_loss' in line
        ]
        raw = {
            (line['step'], member): loss
            for line in lines
            for member, loss in enumerate(line['validation_loss_members'])
        }
        assert all(each['loss'] < raw[each['step'], each['member']] and each['temperature'] != 1 for each in tried)
        best = min(tried, key=lambda each: each['loss'])
        assert {name: trial['selection'][name] for name in ('loss', 'accuracy')} == {
            name: best[name] for name in ('loss', 'accuracy')
        }
        assert chosen == {name: value for name, value in best.items() if name not in selection.MEASURED}
        assert lmtrain.load(folder / trial['folder'], step=chosen['step'], member=chosen['member']).params


def test_only_the_test_stage_reads_the_test_rows_once(base, monkeypatch):
    folder, reads = base.parent / 'untested', []
    config = make_config(base, only=('few_shot', 'head'), sizes=(4,), seeds=1)
    comparison.assemble(config, folder, [])
    test = folder / 'rows' / 'test.jsonl'
    hidden = test.rename(folder / 'hidden.jsonl')
    with pytest.raises(FileNotFoundError, match=r'test\.jsonl'):
        comparison.run(config, folder)
    trials = {path.parent: path.read_bytes() for path in folder.glob('trials/*/*/trial.json')}
    assert len(trials) == 2 and not list(folder.glob('trials/*/*/test.json'))

    hidden.rename(test)
    read = testing.rows.read
    monkeypatch.setattr(testing.rows, 'read', lambda path: reads.append(path.name) or read(path))
    monkeypatch.setattr(comparison, 'EXECUTE', {})  # a trial that ran again would fail
    results = comparison.run(config, folder)
    assert {path.parent: path.read_bytes() for path in folder.glob('trials/*/*/trial.json')} == trials
    assert reads.count('test.jsonl') == 1 and all(trial['test'] for trial in results['trials'])

    test.unlink()  # every trial is tested: the file is not opened again
    assert comparison.run(config, folder) == results


def test_arms_that_cannot_run_or_fail_leave_the_others_alone(base, monkeypatch):
    config = make_config(base, only=('few_shot', 'zero_shot', 'broken', 'unable'), sizes=(4,), seeds=1)
    config.compare.arms.unable = compare.arm({'adapt.method': 'layers'}, learning_rates=(1.0,), description='')
    config.compare.arms.broken = compare.prompt(shots=2, description='')
    run = comparison.EXECUTE['prompt']
    calls = []

    def execute(shared, trial, folder):
        calls.append(trial.arm.name)
        if trial.arm.name == 'broken':
            raise RuntimeError('no luck')
        return run(shared, trial, folder)

    monkeypatch.setitem(comparison.EXECUTE, 'prompt', execute)
    arms = comparison.run(config, base.parent / 'partial')['arms']
    assert {name: arm['status'] for name, arm in arms.items()} == {
        'zero_shot': 'done',
        'few_shot': 'done',
        'broken': 'failed',
        'unable': 'skipped',
    }
    assert arms['broken']['reason'] == 'RuntimeError: no luck' and 'layers.last=0' in arms['unable']['reason']
    calls.clear()
    monkeypatch.setitem(comparison.EXECUTE, 'prompt', lambda *given: calls.append('again') or run(*given))
    arms = comparison.run(config, base.parent / 'partial')['arms']
    assert calls == ['again'] and arms['broken']['status'] == 'done'  # only what failed, which was no InputError


def test_input_errors_are_not_tried_again(base, monkeypatch):
    config, calls = make_config(base, only=('few_shot',), sizes=(4,), seeds=1), []

    def execute(*given):
        calls.append(given)
        raise InputError('wrong rows')

    monkeypatch.setitem(comparison.EXECUTE, 'prompt', execute)
    for _ in range(2):
        assert comparison.run(config, base.parent / 'wrong')['arms']['few_shot']['reason'] == 'wrong rows'
    assert len(calls) == 1


def test_a_signal_ends_the_comparison_and_not_a_trial(base, monkeypatch):
    def execute(*given):
        raise lifecycle.RunEnded(lifecycle.REQUEUE, 'SIGTERM')

    monkeypatch.setitem(comparison.EXECUTE, 'prompt', execute)
    with pytest.raises(lifecycle.RunEnded, match='SIGTERM'):
        comparison.run(make_config(base, only=('few_shot',)), base.parent / 'stopped')
    assert not list((base.parent / 'stopped').glob('trials/*/*/trial.json'))


def test_a_signal_in_a_library_is_no_error_of_a_trial(base, monkeypatch):
    def execute(*given):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:  # as around a tokenizer, which raises bare exceptions
            raise InputError('cannot encode') from error

    monkeypatch.setitem(comparison.EXECUTE, 'prompt', execute)
    with pytest.raises(lifecycle.RunEnded, match='SIGTERM: finished trials are saved') as ended:
        comparison.run(make_config(base, only=('few_shot',)), base.parent / 'signalled')
    assert ended.value.code == lifecycle.REQUEUE
    assert not list((base.parent / 'signalled').glob('trials/*/*/trial.json'))


@pytest.mark.slow
def test_a_comparison_that_was_killed_has_the_results_of_an_uninterrupted_one(finished, base, monkeypatch):
    """The kill is a BaseException, which nothing handles, after two training steps and after some trials and tests."""
    whole, folder = finished[1], base.parent / 'killed'

    class Killed(BaseException):
        pass

    def after(function, count):
        calls = []

        def wrapped(*args, **settings):
            calls.append(args)
            if len(calls) > count:
                raise Killed
            return function(*args, **settings)

        return wrapped

    executed = []
    for target, name, count in (
        (lmtrain.training.loop.Loop, 'save', 1),  # a checkpoint of the first trained trial exists
        (comparison.trials, 'write_json', 4),  # the fifth trial has run and is not recorded
        (testing, 'write_json', 2),  # the third trial has predictions and no test.json
        (comparison, 'write_json', 1),  # everything but results.json
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(target, name, after(getattr(target, name), count))
            comparison.run(make_config(base), folder)
        executed.append({path: path.read_bytes() for path in folder.glob('trials/*/*/trial.json')})
    results = comparison.run(make_config(base), folder)
    assert without_times(results['summary']) == without_times(whole['summary'])
    strip = lambda trials: [trial | {'digest': ''} for trial in without_times(trials)]  # noqa: E731
    assert strip(results['trials']) == strip(whole['trials'])
    assert 0 < len(executed[0]) < len(executed[1]) < len(executed[2]) == len(whole['trials'])
    for before, later in zip(executed, executed[1:]):
        assert all(later[path] == content for path, content in before.items())  # no trial was run twice


def test_other_settings_are_refused_before_a_trial_runs(base, monkeypatch):
    folder, config = base.parent / 'changed', make_config(base, only=('head',), sizes=(4,), seeds=1)
    comparison.run(config, folder)
    monkeypatch.setattr(comparison, 'EXECUTE', {})  # a trial that ran would be a KeyError
    config.compare.only, config.compare.arms.head.learning_rates = ('zero_shot', 'head'), (1e-2,)
    with pytest.raises(InputError, match='other settings of this arm'):
        comparison.run(config, folder)
    assert not (folder / 'trials' / 'zero_shot').exists()
    config = make_config(base, only=('head',), sizes=(4,), seeds=1)
    config.budget.steps = 5
    with pytest.raises(InputError, match='other settings of this arm'):
        comparison.run(config, folder)
    with pytest.raises(InputError, match=r"only has 'heat', which is no arm.*did you mean 'head'"):
        comparison.run(make_config(base, only=('heat',)), folder)


def test_a_trial_that_cannot_answer_the_test_rows_stops_no_other(base, monkeypatch):
    of_rows, test_rows = choice_scores.of_rows, 3

    def refuse_test_rows(loaded, pool, form, rows, *arguments):
        if len(rows) == test_rows:
            raise InputError('a row cannot be answered')
        return of_rows(loaded, pool, form, rows, *arguments)

    monkeypatch.setattr(choice_scores, 'of_rows', refuse_test_rows)  # of a prompted arm
    config = make_config(base, only=('zero_shot', 'head'), sizes=(4,), seeds=1)
    lines = [
        {'note': 'sat ' * 200, 'animal': 'dogs'},
        {'note': 'cats ' * 4, 'animal': 'cats'},
        {'note': '7 cats', 'animal': 'cats'},
    ]
    long = base.parent / 'long.jsonl'
    long.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config.task.test = (str(long),)
    arms = comparison.run(config, base.parent / 'long')['arms']
    head = read_json(base.parent / 'long' / 'trials' / 'head' / 'n4-seed1' / 'test.json')
    assert head['cut'] == 1  # of 32 tokens, and its rows of the training are shorter
    assert arms['head']['status'] == 'done' and arms['zero_shot']['status'] == 'failed'
    assert arms['zero_shot']['reason'] == 'on the test rows: a row cannot be answered'


def test_a_second_call_has_the_blocks_of_its_sizes_and_its_prices(base):
    folder = base.parent / 'more'
    config = make_config(base, only=('zero_shot', 'few_shot'), sizes=(4, 8), seeds=1)
    first = comparison.run(config, folder)
    config.compare.seeds, config.compare.device_hour = 2, 3.0
    again = comparison.run(config, folder)
    assert [each['description_length']['zero_shot']['seeds'] for each in (first, again)] == [1, 2]
    assert all(trial['ledger']['price'] is None for trial in first['trials'])
    for trial in again['trials']:
        assert trial['ledger']['price'] == pytest.approx(trial['ledger']['device_seconds'] / 1200)
        assert trial['test']


def test_a_refused_call_leaves_the_finished_trials_usable(base):
    folder, config = base.parent / 'refused', make_config(base, only=('few_shot',), sizes=(4,), seeds=1)
    comparison.run(config, folder)
    before = (folder / 'config.json').read_bytes()
    config.compare.arms.few_shot.shots = 2
    with pytest.raises(InputError, match='other settings of this arm'):
        comparison.run(config, folder)
    assert (folder / 'config.json').read_bytes() == before
    assert new_rows.open_trial(folder / 'trials' / 'few_shot' / 'n4-seed1').trial.arm.settings['shots'] == 8


@pytest.mark.slow
def test_a_size_is_added_to_finished_trials(base, monkeypatch):
    """Blocks, draws and forgetting are as in a comparison that had all sizes from the start; no trial runs again."""
    only, folder, executed = ('few_shot', 'head'), base.parent / 'added', []
    first = comparison.run(make_config(base, only=only, sizes=(4,), seeds=1), folder)
    kinds = dict(comparison.EXECUTE)
    for kind, execute in kinds.items():

        def count(shared, trial, path, execute=execute):
            executed.append(trial.size)
            return execute(shared, trial, path)

        monkeypatch.setitem(comparison.EXECUTE, kind, count)
    again = comparison.run(make_config(base, only=only, sizes=(4, 16), seeds=1), folder)
    assert executed == [16, 16] and not first['description_length']
    whole = comparison.run(make_config(base, only=only, sizes=(4, 16), seeds=1), base.parent / 'at_once')
    for name in ('description_length', 'sensitivity', 'forgetting', 'summary'):
        assert json.dumps(again[name], sort_keys=True) == json.dumps(whole[name], sort_keys=True)
    assert set(again['description_length']) == set(only) and again['sensitivity'].keys() == {'few_shot'}


def test_other_draws_are_drawn_again(base, monkeypatch):
    config = make_config(base, only=('few_shot',), sizes=(4,), seeds=1, draws=2)
    comparison.run(config, base.parent / 'drawn')
    monkeypatch.setattr(comparison, 'EXECUTE', {})  # the trial itself does not run again
    config.compare.draws, config.compare.templates = 3, ('{text} is {label}',)
    [trial] = comparison.run(config, base.parent / 'drawn')['trials']
    assert len(trial['templates']) == 2 and trial['templates'][0] == trial['selection']['accuracy']
    assert len(trial['draws']) == 3 == len(read_json(base.parent / 'drawn' / trial['folder'] / 'trial.json')['draws'])


@pytest.mark.slow
def test_other_settings_cure_a_failed_trial(base, monkeypatch):
    folder, config = base.parent / 'cured', make_config(base, only=('head',), sizes=(4,), seeds=1)
    train = comparison.EXECUTE['train']

    def execute(*given):
        train(*given)  # its run is in the folder, with settings that the next call does not have
        raise InputError('a wrong rate')

    with monkeypatch.context() as patch:
        patch.setitem(comparison.EXECUTE, 'train', execute)
        assert comparison.run(config, folder)['arms']['head']['status'] == 'failed'
    assert comparison.run(config, folder)['arms']['head']['reason'] == 'a wrong rate'  # the same settings
    config.compare.arms.head.learning_rates = (1e-3, 2e-3, 1e-2)
    arm = comparison.run(config, folder)['arms']['head']
    assert (arm['status'], arm['reason']) == ('done', '')


@pytest.mark.slow
def test_rows_whose_answer_is_cut_off_are_not_counted_as_training_rows(base):
    config = make_config(base, only=('text',), sizes=(16,), seeds=1)
    lines = [{'note': f'{i} ' * (1 if i % 2 else 5), 'animal': CLASSES[i % 3]} for i in range(10, 50)]
    path = base.parent / 'halves.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config.task.train, config.task.too_long, config.data.seq_len = (str(path),), 'cut', 20
    config.compare.arms.text = compare.arm(
        {'task.name': 'chat', 'adapt.method': 'full'}, learning_rates=(1e-3,), scores=('sum',), description=''
    )
    shared, _ = comparison.assemble(config, base.parent / 'halves', arms.read(config.compare))
    [trial] = trials.listed(shared, arms.read(config.compare))
    rows = shared.subset(16, 1)
    short = sum(len(row.fields['text']) < 5 for row in rows)
    assert 0 < short < 16 and trained.rows_used(shared, trial, trained.recipe(shared, trial)) == short
    [record] = (results := comparison.run(config, base.parent / 'halves'))['trials']
    assert record['rows_used'] == short
    assert (
        f'text: of 16 training rows, {short} are used: the others are longer than data.seq_len'
        in results['task']['notes']
    )


def test_arms_of_earlier_calls_stay_in_the_results(base):
    folder, config = base.parent / 'calls', make_config(base, only=('few_shot',), sizes=(4,), seeds=1)
    comparison.run(config, folder)
    config.compare.only = ('zero_shot',)
    results = comparison.run(config, folder)
    assert set(results['arms']) == {'zero_shot', 'few_shot'} and len(results['pairs']) == 1
    before = (folder / 'config.json').read_bytes()
    config.compare.arms.few_shot.shots = 2  # which this call does not run; its trials could not be used any more
    with pytest.raises(InputError, match='few_shot.* is a trial of other settings'):
        comparison.run(config, folder)
    assert (folder / 'config.json').read_bytes() == before


@pytest.mark.parametrize('vectorised', [True, False])
def test_each_rate_has_the_whole_budget_of_flops(base, vectorised):
    config = make_config(base, only=('head',), sizes=(4,), seeds=1)
    config.budget.steps, config.budget.flops = None, 1e9
    config.compare.arms.head.vectorised = vectorised
    shared, _ = comparison.assemble(config, base.parent / f'flops-{vectorised}', arms.read(config.compare))
    [trial] = trials.listed(shared, arms.read(config.compare))
    runs = trained.runs(shared, trial, trained.recipe(shared, trial))
    config.compare.arms.head.learning_rates = (1e-3,)
    alone = trials.listed(shared, arms.read(config.compare))[0]
    expected = build(*resolve(trained.recipe(shared, alone), base=shared.base)).total_steps
    assert len(runs) == (1 if vectorised else 3) and expected > 1
    assert {build(*resolve(own, base=shared.base)).total_steps for _, own in runs} == {expected}


@pytest.mark.parametrize('field', ['compare.seeds', 'evaluate.every_steps'])
def test_a_comparison_has_seeds_and_evaluations(base, field):
    config = make_config(base)
    config.update_from_flattened_dict({field: 0})
    with pytest.raises(InputError, match=f'{field} = 0: it must be at least 1'):
        comparison.assemble(config, base.parent / 'short', [])


def test_the_margin_is_a_difference_of_accuracies(base):
    with pytest.raises(InputError, match=r'compare.margin = 3.0: a difference of accuracies between 0 and 1'):
        comparison.assemble(make_config(base, margin=3.0), base.parent / 'short', [])


@pytest.mark.parametrize(
    ('template', 'problem'),
    [
        ('{note}\nCategory: {label}', 'has the field {note}'),
        ('{text}\nCategory: {animal}', 'must end in {label}'),
        ('{label}: {text} {label}', 'contain it only once'),
        ('{text} is {label}.', 'ends in text'),
        ('{text is {label}', 'has no other brace'),
        ('', 'ends in text'),
    ],
)
def test_other_templates_are_checked_before_anything_runs(base, template, problem):
    config = make_config(base, templates=('{text} {label}', template))
    with pytest.raises(InputError, match=re.escape(problem)) as refused:
        comparison.assemble(config, base.parent / 'templates', [])
    assert str(refused.value).startswith(f'config.compare.templates: template {template!r}')
    assert not (base.parent / 'templates').exists()


@pytest.mark.parametrize('template', ['{note}\nLabel: {label}', '{note} {animal}.'])
def test_template_of_the_comparison_is_named_if_it_does_not_end_in_the_label(base, template):
    with pytest.raises(InputError, match='^config.compare.template: template ') as refused:
        comparison.assemble(make_config(base, template=template), base.parent / 'template', [])
    assert repr(template) in str(refused.value)


def test_the_cost_of_a_prompt_is_of_its_score_and_that_of_its_choice_of_all_scores(base):
    shared, _ = comparison.assemble(make_config(base, sizes=(16,)), base.parent / 'costs', [])
    form = predictors.settings(shared.task, shots=4, select='random')
    pool = shared.subset(16, 1)

    def query(*scores, **options):
        return measures.query_of_prompt(shared, shared.model, pool, form._replace(**options), scores)

    alone, several = query('sum'), len(shared.task.classes)
    row = query('sum', shots=0).row
    assert alone.row > row + 5 and len(alone.choices) == several
    assert query('sum', 'per_byte', 'batch') == alone
    both = query('sum', 'contrast')
    assert (both.row, len(both.choices)) == (pytest.approx(alone.row + row), 2 * several)
    every = query('sum', 'contrast', 'content_free')  # the demonstrations before 3 inputs without content
    assert every.row == pytest.approx(both.row + 3 * (alone.row - row)) and len(every.choices) == 5 * several
    assert query('sum', select='nearest').row == pytest.approx(alone.row + row)
    assert query('sum', select='first').row == pytest.approx(row)
    assert query('sum', select='fixed') == query('sum', select='first')


def test_demonstrations_that_all_queries_share_are_cached(base):
    shared, _ = comparison.assemble(make_config(base, sizes=(16,)), base.parent / 'cached', [])
    sections = compare.get_config().compare
    arm = next(arm for arm in arms.read(sections) if arm.name == 'few_shot')
    form = predictors.settings(shared.task, shots=8, select=arm.settings['select'])
    longer = shared.model._replace(model=dataclasses.replace(shared.model.model, max_len=1024))

    def flops(form):
        query = measures.query_of_prompt(shared, longer, shared.subset(16, 1), form, ['sum'])
        own = ledger.of_prompt(longer.model, longer.params, query, text_bytes=0)
        return own['query_flops'], own['query_flops_cached']

    whole, cached = flops(form)
    assert cached < whole / 3
    whole_again, retrieved = flops(form._replace(select='random'))
    assert whole_again == pytest.approx(whole) and retrieved > 0.95 * whole


def test_draws_of_other_demonstrations_are_those_of_the_largest_size(prompted):
    own = [trial for trial in prompted[1]['trials'] if trial['arm'] == 'few_shot']
    assert all(each['ledger']['query_flops_cached'] < each['ledger']['query_flops'] for each in own)
    draws = {(each['size'], each['seed']): len(each['draws']) for each in own}
    assert draws == {(4, 1): 0, (4, 2): 0, (16, 1): 2, (16, 2): 2}


def test_completions_with_equal_tokens_are_not_prompted(base):
    shared, listed = comparison.assemble(make_config(base), base.parent / 'equal', [])
    arm = next(arm for arm in arms.read(shared.config.compare) if arm.name == 'few_shot')
    assert not planning.plan(shared, arm).reason
    completions = shared.task.completions
    shared.task.facts['completions'] = [completions[0], *completions[:-1]]
    assert 'have the same tokens' in planning.plan(shared, arm).reason


@pytest.mark.slow
def test_other_seeds_compile_nothing(base, tmp_path):
    folder = tmp_path / 'compiled'
    folder.mkdir()
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', str(folder))
    compilation_cache.reset_cache()
    try:
        config = make_config(base, only=('head',), sizes=(4,), seeds=1)
        comparison.run(config, tmp_path / 'run')
        programs = set(folder.iterdir())
        config.compare.seeds = 3
        results = comparison.run(config, tmp_path / 'run')
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
        compilation_cache.reset_cache()
    assert len(results['trials']) == 3 and programs
    new = [path.name for path in set(folder.iterdir()) - programs if not path.name.endswith('-atime')]
    assert not new


def test_a_dry_run_prints_what_every_arm_needs(base):
    config = make_config(base, only=('zero_shot', 'few_shot', 'head', 'lora', 'unable'), seeds=2)
    config.compare.arms.unable = compare.arm({'adapt.method': 'layers'}, learning_rates=(1.0,), description='')
    config.compare.device_hour, config.compare.currency = 3600.0, 'EUR'  # a second costs 1
    page = comparison.dry_run(config, base.parent / 'dry')
    cells = {line.split()[0]: line.split() for line in page.splitlines()[2:7]}
    counts = {name: cells[name][1] for name in config.compare.only}
    assert counts == {'zero_shot': '1', 'few_shot': '4', 'head': '4', 'lora': '4', 'unable': 'skipped'}
    assert all(cells[name][-1] == 'EUR' for name in ('few_shot', 'head')) and 'layers.last=0' in page
    assert max(map(len, page.splitlines())) <= 80
    assert not (base.parent / 'dry' / 'trials').exists()


def test_rows_whose_text_occurs_before_are_counted_before_anything_runs(base, tmp_path):
    config = make_config(base, only=('zero_shot',))
    again = tmp_path / 'again.jsonl'
    again.write_text((base.parent / 'rows.jsonl').read_text(encoding='utf-8') * 2, encoding='utf-8')
    config.task.train = (str(again),)
    page = ' '.join(comparison.dry_run(config, tmp_path / 'dry').split())
    counts = re.findall(r'note: (\d+) (?:test|training) rows are left out: their text occurs before', page)
    assert sum(map(int, counts)) == 120
    _, notes = comparison.assemble(config, tmp_path / 'dry', [])
    assert sum('occurs before' in note for note in notes) == len(counts)  # once each


def test_a_terminal_shows_arms_trials_and_accuracies(prompted, base):
    folder, results = prompted
    config = make_config(base, only=ARMS[:2])

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    selected = arms.read(config.compare)
    shared, _ = comparison.assemble(config, folder, selected)
    listed = trials.listed(shared, selected)
    display = progress.Display(shared, selected, len(listed), [], stream)
    for trial in listed:
        display.begin(trial)
        display.end(trial, read_json(folder / trial.folder / 'trial.json'))
    last = stream.getvalue().rpartition('\x1b[J')[2]
    lines = last.splitlines()
    assert max(map(len, stream.getvalue().splitlines())) <= 80 + len('\x1b[9F\x1b[J')
    assert [line.split()[:2] for line in lines[2:4]] == [['few_shot', '4/4'], ['zero_shot', '1/1']]
    expected = [
        100 * sum(own) / len(own)
        for own in (
            [
                each['selection']['accuracy']
                for each in results['trials']
                if (each['arm'], each['size']) == ('few_shot', size)
            ]
            for size in (4, 16)
        )
    ]
    assert [float(cell) for cell in lines[2].split()[2:]] == [round(value, 1) for value in expected]
    [zero_shot] = (each['selection']['accuracy'] for each in results['trials'] if not each['size'])
    best = max(expected[1], 100 * zero_shot)
    assert lines[4].startswith('5 of 5 trials, best: ') and f' {best:.1f} % on selection rows' in lines[4]
