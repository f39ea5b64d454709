"""Trials: what is run, what is refused, what is recorded of a start that was killed."""

import json

import pytest

from lmtrain.compare import trained, trials
from lmtrain.errors import InputError
from lmtrain.runtime import lifecycle


@pytest.fixture
def one(small):
    """(comparison, its only trial) in a folder without files of the trial."""
    shared, selected = small('trials', ('few_shot',), sizes=(4,))
    [trial] = trials.listed(shared, selected)
    path = shared.folder / trial.folder
    for file in path.glob('*') if path.exists() else ():
        file.unlink()
    return shared, trial


def done(shared, trial, folder):
    print('a line')
    return {'chosen': 1}


@pytest.mark.slow
def test_small_sizes_come_first_and_an_arm_without_rows_has_one_trial(small):
    shared, selected = small('listed', ('zero_shot', 'few_shot', 'head'), seeds=2)
    cells = [(each.arm.name, each.size, each.seed, each.next_size) for each in trials.listed(shared, selected)]
    expected = [('zero_shot', 0, 1, 4)]
    for size, larger in ((4, 16), (16, 0)):
        expected += [(arm, size, seed, larger) for seed in (1, 2) for arm in ('few_shot', 'head')]
    assert cells == expected
    assert shared.spans(trials.listed(shared, selected)[0]) == [(1, 4, 16), (2, 4, 16)]
    assert [shared.spans(each) for each in trials.listed(shared, selected)[1::4]] == [[(1, 4, 16)], []]


@pytest.mark.slow
def test_a_finished_trial_is_not_run_again_and_other_settings_are_refused(one):
    shared, trial = one
    assert trials.finished(shared, trial) is None
    record = trials.run(shared, trial, done)
    assert trials.finished(shared, trial) == record and record['status'] == 'done'
    assert (shared.folder / trial.folder / 'log.txt').read_text() == 'a line\n'
    other = trial._replace(arm=trial.arm._replace(settings=trial.arm.settings | {'shots': 3}))
    with pytest.raises(InputError, match='other settings of this arm(.*) delete .*/few_shot to run the arm'):
        trials.finished(shared, other)
    with pytest.raises(InputError, match='other settings of this arm'):
        trials.earlier(shared, [other.arm])  # config.json is that of all trials
    assert trials.earlier(shared, [trial.arm]) == [(trial, record)]


def test_settings_that_change_no_result_are_no_other_settings(one):
    shared, trial = one
    record = trials.run(shared, trial, done)
    config = shared.config.copy_and_resolve_references().unlock()
    config.compare.margin, config.log.every_steps, config.data.cache = 0.2, 99, '/elsewhere'
    assert trials.is_of(shared._replace(config=config), trial, record)
    config.budget.steps += 1
    assert not trials.is_of(shared._replace(config=config), trial, record)


@pytest.mark.parametrize(
    ('error', 'again'),
    [
        (InputError('too long'), False),
        (lifecycle.RunEnded(lifecycle.NON_FINITE, 'diverged'), False),
        (RuntimeError('a device'), True),
    ],
)
def test_only_failures_that_may_pass_are_run_again(one, error, again):
    shared, trial = one

    def broken(*arguments):
        raise error

    record = trials.run(shared, trial, broken)
    assert record['status'] == 'failed' and record['permanent'] != again
    assert (trials.finished(shared, trial) is None) == again
    assert str(error) in (shared.folder / trial.folder / 'error.txt').read_text()


@pytest.mark.parametrize('error', [OSError('disk full'), lifecycle.RunEnded(lifecycle.REQUEUE, 'SIGTERM')])
def test_what_ends_the_comparison_is_raised(one, error):
    shared, trial = one

    def broken(*arguments):
        raise error

    with pytest.raises(type(error)):
        trials.run(shared, trial, broken)
    assert trials.finished(shared, trial) is None
    record = trials.run(shared, trial, done)
    assert record['interrupted']  # some of its seconds are those of a start that ended
    assert json.loads((shared.folder / trial.folder / 'trial.json').read_text())['interrupted']


def test_a_trial_that_ran_through_was_not_interrupted(one):
    assert not trials.run(*one, done)['interrupted']


@pytest.mark.parametrize('shots', [8, 3])
def test_files_of_an_interrupted_trial_are_kept_for_the_same_settings_only(one, shots):
    shared, trial = one
    trial = trial._replace(arm=trial.arm._replace(settings=trial.arm.settings | {'shots': 8}))
    path = shared.folder / trial.folder / 'config.json'

    def stopped(shared, trial, folder):
        path.write_text('{}', encoding='utf-8')
        raise lifecycle.RunEnded(lifecycle.REQUEUE, 'SIGTERM')

    with pytest.raises(lifecycle.RunEnded):
        trials.run(shared, trial, stopped)
    present = []
    other = trial._replace(arm=trial.arm._replace(settings=trial.arm.settings | {'shots': shots}))
    record = trials.run(shared, other, lambda *arguments: present.append(path.exists()) or {})
    assert present == [shots == 8] and record['interrupted'] == (shots == 8)


def test_an_interrupted_training_with_other_rates_is_trained_again(small):
    shared, [arm] = small('interrupted', ('head',), sizes=(4,))
    [trial] = trials.listed(shared, [arm])

    def stopped(*arguments):
        trained.run(*arguments)
        raise lifecycle.RunEnded(lifecycle.REQUEUE, 'SIGTERM')

    with pytest.raises(lifecycle.RunEnded):
        trials.run(shared, trial, stopped)
    other = trial._replace(arm=arm._replace(settings=arm.settings | {'learning_rates': (2e-3, 3e-3, 1e-2)}))
    record = trials.run(shared, other, trained.run)
    assert record['status'] == 'done' and record['selection']['candidates'][0]['learning_rate'] == 2e-3
