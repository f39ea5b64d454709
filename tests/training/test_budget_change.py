"""A larger budget in the same folder: the schedule continues, or a new one begins if the user asks for it."""

import copy
import json

import numpy as np
import pytest

from configs import base, tiny
from lmtrain import optimizer
from lmtrain.report import metrics
from lmtrain.report.run_config import WrongRun
from lmtrain.training import budget_change, train, workdir

CONFIG = json.loads(json.dumps(base.get_config().to_dict()))
PRINTS = {'data': 'aa', 'tokenizer': 'bb'}


def with_budget(schedule, unit='steps', value=100, **fields):
    """A nested config with this schedule and budget."""
    config = copy.deepcopy(CONFIG)
    config['schedule'] |= {'name': schedule} | fields
    config['budget'][unit] = value
    return config


@pytest.mark.parametrize(
    ('saved', 'current', 'kind'),
    [
        (with_budget('constant'), with_budget('constant', value=200), 'free'),
        (with_budget('wsd'), with_budget('wsd', value=200), 'continued'),
        (with_budget('wsd'), with_budget('wsd', value=50), 'continued'),
        (with_budget('wsd'), with_budget('wsd', 'tokens', 1e6), 'fixed'),
        (with_budget('constant', warmup=0.0), with_budget('constant', 'tokens', 1e6, warmup=0.0), 'free'),
        (with_budget('constant'), with_budget('constant', 'tokens', 1e6), 'fixed'),
        (with_budget('cosine'), with_budget('cosine', value=200), 'fixed'),
        (with_budget('cosine'), with_budget('constant', value=200), 'fixed'),
        (with_budget('cosine'), with_budget('cosine', value=200, begin=100.0), 'extended'),
    ],
)
def test_budget_may_change_if_the_schedule_defines_the_longer_run(saved, current, kind):
    differences = workdir.compare(saved, current)
    assert {each.kind for each in differences if each.field.startswith('budget.')} == {kind}


def test_refused_budget_offers_to_extend(tmp_path):
    workdir.bind(tmp_path, with_budget('cosine'), PRINTS)
    with pytest.raises(WrongRun, match='budget.steps: saved 100, now 200(.|\n)*Take\n--extend to go on'):
        workdir.bind(tmp_path, with_budget('cosine', value=200), PRINTS)
    with pytest.raises(WrongRun) as caught:  # to extend would not help
        workdir.bind(tmp_path, with_budget('cosine', value=200) | {'seed': 5}, PRINTS)
    assert '--extend' not in str(caught.value)


def factors(section, budget, steps):
    """The learning rate's factor after each of `steps` of a budget of `budget` steps."""
    factor = optimizer.schedule(**section, budget={'steps': budget})
    return [float(factor(np.float32(step / budget))) for step in steps]


def test_new_schedule_begins_where_the_old_one_ended():
    section = CONFIG['schedule'] | {'name': 'cosine', 'warmup': 0.25}
    new = factors(section | {'begin': 40.0}, 60, range(41, 61))
    np.testing.assert_allclose(new, factors(section, 20, range(1, 21)), rtol=1e-5)
    assert [new[4], new[-1]] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize('name', ['constant', 'wsd'])
def test_warmup_stays_that_of_the_first_budget(name):
    section = CONFIG['schedule'] | {'name': name, 'warmup': 0.1}
    assert factors(section | {'warmup_budget': 50.0}, 500, (1, 4, 5, 6)) == pytest.approx([0.2, 0.8, 1.0, 1.0])
    assert factors(section, 50, (1, 4, 5, 6)) == pytest.approx([0.2, 0.8, 1.0, 1.0])
    assert factors(section, 500, (6,)) == pytest.approx([0.12])


def test_schedule_must_begin_before_the_budget_ends():
    with pytest.raises(ValueError, match=r'schedule.begin = 60.0: it must lie in \[0, 60\)'):
        factors(CONFIG['schedule'] | {'begin': 60.0}, 60, ())


@pytest.fixture
def config(text, tmp_path):
    config = tiny.get_config()
    config.data.source, config.data.cache = str(text), str(text.parent / 'cache')
    config.data.validation = 0.2
    config.model.num_layers = 1
    config.log.every_steps, config.log.tensorboard = 1, False
    config.evaluate.every_steps, config.checkpoint.every_steps, config.checkpoint.keep_last = 5, 6, 1
    config.sample.max_tokens = 4
    config.schedule.warmup = 0.0
    config.budget.steps = 10
    return config


def lines(folder, name='metrics.jsonl'):
    return [json.loads(line) for line in (folder / name).read_text(encoding='utf-8').splitlines()]


def rates(folder):
    return [line['learning_rate'] for line in lines(folder) if 'loss' in line]


@pytest.mark.slow
def test_longer_wsd_equals_the_run_of_that_length(config, tmp_path, capsys):
    config.schedule.name = 'wsd'
    train.train(config, tmp_path / 'run')
    assert sorted(path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()) == ['10', '7']  # the branch
    config.budget.steps = 20
    capsys.readouterr()
    train.train(config, tmp_path / 'run')
    printed = capsys.readouterr().out
    assert 'resumed    after step 7' in printed
    assert 'budget.steps: saved 10, now 20 (the schedule continues from before its decay)' in ' '.join(printed.split())
    train.train(config, tmp_path / 'whole')
    assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
    assert (tmp_path / 'run' / 'checkpoints' / '10.decayed').is_dir()
    last = lines(tmp_path / 'run', 'lineage.jsonl')[-1]
    assert last['resumed_from'] == 7
    assert last['changed'] == [{'field': 'budget.steps', 'saved': 10, 'current': 20, 'kind': 'continued'}]
    assert json.loads((tmp_path / 'run' / 'results.10.json').read_text())['cost']['steps'] == 10


@pytest.mark.slow
def test_longer_wsd_with_a_budget_in_tokens_continues_from_the_branch(config, tmp_path, capsys):
    """9.1 steps of tokens are 10 steps: the 7 before the decay are more than 75 % of the tokens."""
    tokens = config.data.batch_size * config.data.seq_len
    config.schedule.name, config.schedule.decay, config.checkpoint.every_steps = 'wsd', 0.25, 100
    config.budget.steps, config.budget.tokens = None, 9.1 * tokens
    train.train(config, tmp_path / 'run')
    config.budget.tokens = 20.0 * tokens
    capsys.readouterr()
    train.train(config, tmp_path / 'run')
    assert 'resumed    after step 7' in capsys.readouterr().out


@pytest.mark.slow
def test_longer_wsd_with_a_budget_in_hours_equals_the_run_of_that_length(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics.Clock, 'spent', lambda clock, step: min(step / clock.hours, 1.0))  # a step is an hour
    config.schedule.name, config.budget.steps, config.budget.hours = 'wsd', None, 10.0
    config.checkpoint.every_steps = 100
    train.train(config, tmp_path / 'run')
    assert sorted(path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()) == ['10', '7']
    config.budget.hours = 20.0
    capsys.readouterr()
    train.train(config, tmp_path / 'run')
    assert 'resumed    after step 7' in capsys.readouterr().out
    train.train(config, tmp_path / 'whole')
    assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()


@pytest.mark.slow
def test_checkpoint_before_the_decay_outlives_a_later_start(config, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.Clock, 'spent', lambda clock, step: min(step / clock.hours, 1.0))
    config.schedule.name, config.budget.steps, config.budget.hours = 'wsd', None, 10.0
    config.checkpoint.every_steps, config.checkpoint.keep_last = 9, 2
    folder = tmp_path / 'run' / 'checkpoints'
    train.train(config, tmp_path / 'run')
    assert sorted(path.name for path in folder.iterdir()) == ['10', '7', '9']
    (folder / '10' / 'manifest.json').write_text('damaged', encoding='utf-8')
    config.checkpoint.keep_last = 1
    train.train(config, tmp_path / 'run')  # from step 9, in the decay
    assert sorted(path.name for path in folder.iterdir()) == ['10', '10.corrupt', '7']


def test_without_a_checkpoint_before_the_decay_the_way_out_is_named(config, tmp_path):
    config.schedule.name = 'wsd'
    train.train(config, tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '7').rename(tmp_path / 'elsewhere')
    for steps, way_out in ((20, 'Take --extend'), (9, 'Use another --workdir')):
        config.budget.steps = steps
        with pytest.raises(WrongRun, match=f'saved 10, now budget.steps: {steps}\n(.|\n)*{way_out}'):
            train.train(config, tmp_path / 'run')
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['budget']['steps'] == 10


@pytest.mark.slow
def test_longer_constant_run_keeps_its_warmup(config, tmp_path):
    config.schedule.name, config.schedule.warmup = 'constant', 0.4
    train.train(config, tmp_path / 'run')
    for budget in (14, 20):
        config.budget.steps = budget
        train.train(config, tmp_path / 'run')
    assert np.allclose(rates(tmp_path / 'run'), [0.25e-3, 0.5e-3, 0.75e-3] + [1e-3] * 17)


@pytest.mark.slow
def test_extend_begins_a_new_schedule_and_the_same_command_resumes_it(config, tmp_path, monkeypatch, capsys):
    config.schedule.warmup = 0.25
    folder = tmp_path / 'run'
    train.train(config, folder)
    config.budget.steps = 18
    with pytest.raises(WrongRun, match='--extend to go on'):
        train.train(config, folder)
    results = train.train(config, folder, extend=True)
    assert results['cost']['steps'] == 18
    expected = factors(dict(config.schedule), 10, range(1, 11)) + factors(dict(config.schedule), 8, range(1, 9))
    assert np.allclose(rates(folder), 1e-3 * np.array(expected))
    last = lines(folder, 'lineage.jsonl')[-1]
    assert {each['field']: each['kind'] for each in last['changed']} == {
        'budget.steps': 'extended',
        'schedule.begin': 'extended',
    }
    # The same command, with --extend or without, finds the run finished, and computes nothing.
    monkeypatch.setattr(train, 'Loop', None)
    capsys.readouterr()
    for extend in (True, False):
        assert train.train(config, folder, extend=extend) == results
        assert 'finished   the budget is spent after step 18: nothing' in capsys.readouterr().out


def test_extend_needs_a_larger_budget(config, tmp_path):
    folder = tmp_path / 'run'
    train.train(config, folder)
    for steps, message in (
        (10, 'budget.steps = 10 is the budget of .*; raise it'),
        (8, '10 steps are spent already, and budget.steps = 8'),
    ):
        config.budget.steps = steps
        with pytest.raises(ValueError, match=f'--extend: {message}'):
            train.train(config, folder, extend=True)


def test_extend_needs_a_run(config, tmp_path):
    with pytest.raises(ValueError, match='--extend: .* holds no run'):
        train.train(config, tmp_path / 'run', extend=True)


def test_spent_budget_in_every_unit():
    extra = {'step': 5, 'tokens': 640, 'flops': 1e6, 'elapsed': 7200.0}
    budgets = {'steps': 10, 'tokens': 1280.0, 'flops': 4e6, 'hours': 3.0}
    spent = {unit: budget_change.spent(extra, budget_change.Amount(unit, value)) for unit, value in budgets.items()}
    assert spent == {'steps': 5, 'tokens': 640, 'flops': 1e6, 'hours': 2.0}


@pytest.mark.parametrize(
    ('extra', 'budget', 'share'),
    [
        ({'tokens': 98 * 8192}, ('tokens', 1e6), 98 / 123),  # a budget is divided into whole steps
        ({'flops': 500.0 + 98 * 10.0, 'reference_flops': 500.0}, ('flops', 1730.0), 98 / 123),  # not before the first
        ({'flops': 980.0, 'rollout_flops': 600.0}, ('flops', 1230.0), 980 / 1230),  # steps of no known number
    ],
)
def test_spent_budget_is_the_progress_of_the_schedule(extra, budget, share):
    budget = budget_change.Amount(*budget)
    extra = {'step': 98, 'tokens': 0, 'flops': 0.0, 'elapsed': 0.0} | extra
    assert budget_change.spent(extra, budget) == pytest.approx(share * budget.value, rel=1e-12)


def test_run_ends_early_and_patience_may_be_raised(config, tmp_path, capsys):
    """A large rate makes the loss rise, so the first evaluation stays the best."""
    config.optimizer.learning_rate, config.optimizer.name, config.schedule.name = 3.0, 'sgd', 'constant'
    config.evaluate.every_steps, config.evaluate.patience, config.budget.steps = 1, 2, 40
    results = train.train(config, tmp_path / 'run')
    ended = results['cost']['steps']
    assert results['stopped_early'] and ended < 40
    validation = {
        line['step']: line['validation_loss'] for line in lines(tmp_path / 'run') if 'validation_loss' in line
    }
    assert min(validation, key=validation.get) == ended - 2
    printed = capsys.readouterr().out
    assert 'ends       early: 2 evaluations in a row' in printed and f'best       step {ended - 2}:' in printed
    report = (tmp_path / 'run' / 'report.md').read_text(encoding='utf-8')
    assert f'* ended: early, after step {ended}, by evaluate.patience' in report
    assert train.train(config, tmp_path / 'run') == results
    assert f'finished   evaluate.patience ended the run after step {ended}' in capsys.readouterr().out
    config.evaluate.patience = 3
    assert train.train(config, tmp_path / 'run')['cost']['steps'] > ended
