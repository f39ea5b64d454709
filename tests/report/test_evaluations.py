"""The best step of a run, early stopping, and the signs of overfitting."""

import json
import math

import pytest

from lmtrain.report import evaluations


def lines(training, validation):
    """Lines of metrics.jsonl: {step: loss} of both kinds."""
    steps = [{'step': step, 'loss': loss} for step, loss in training.items()]
    return steps + [{'step': step, 'validation_loss': loss} for step, loss in validation.items()]


FALLS = {5: 3.0, 10: 2.5, 15: 2.0, 20: 1.5, 25: 1.0, 30: 0.5, 35: 0.4, 40: 0.3}


def test_overfitting_is_a_rise_of_one_and_a_fall_of_the_other():
    sign = evaluations.overfitting(lines(FALLS, {10: 3.0, 20: 2.0, 30: 2.2, 40: 2.5}))
    assert sign == evaluations.Overfitting(20, 40, (2.0, 2.5), (1.75, pytest.approx(0.35)))
    text = evaluations.text(sign, steps_per_epoch=10)
    assert text.startswith('from step 20 (2 epochs) to 40 (4 epochs) the validation loss rose from 2.0000 to 2.5000')


@pytest.mark.parametrize(
    ('training', 'validation'),
    [
        (FALLS, {10: 3.0, 20: 2.0, 30: 1.9, 40: 1.8}),  # it falls
        (FALLS, {10: 3.0, 20: 2.0, 30: 1.9, 40: 1.95}),  # one evaluation is no trend
        (FALLS, {10: 3.0, 20: 3.5}),
        (FALLS | {35: 3.0, 40: 3.0}, {10: 3.0, 20: 2.0, 30: 2.2, 40: 2.5}),  # training rises as well: it diverges
        ({}, {10: 3.0, 20: 2.0, 30: 2.2, 40: 2.5}),
    ],
)
def test_no_overfitting(training, validation):
    assert evaluations.overfitting(lines(training, validation)) is None


def test_patience_counts_evaluations_since_the_best():
    bests = []
    for step, loss in {10: 3.0, 20: 2.0, 30: 2.5, 40: 2.0, 50: float('nan')}.items():
        bests = evaluations.follow(bests, step, {'loss': loss})
    assert bests == [[20, 2.0, 3]]
    assert evaluations.exhausted(bests, 3) and not evaluations.exhausted(bests, 4)
    assert not evaluations.exhausted(bests, 0) and not evaluations.exhausted([], 1)


def test_sweep_ends_when_no_member_improves():
    bests = []
    for step, losses in {10: [3.0, 3.0], 20: [4.0, 2.0], 30: [4.0, 2.5]}.items():
        bests = evaluations.follow(bests, step, {'loss': 0.0, 'loss_members': losses})
    assert bests == [[10, 3.0, 2], [20, 2.0, 1]]
    assert not evaluations.exhausted(bests, 2) and evaluations.exhausted(bests, 1)


def test_best_step_is_named_beside_the_last(tmp_path):
    measured = {10: 3.0, 20: 2.0, 30: 2.5}
    assert evaluations.best_step(tmp_path, measured, policy=False).endswith('2.5000; it is not saved')
    (tmp_path / 'checkpoints' / '20').mkdir(parents=True)
    text = 'step 20: loss 2.0000; the last, 30: 2.5000; --step=best reads it'
    assert evaluations.best_step(tmp_path, measured, policy=False) == text


def test_remarks_on_a_run(tmp_path):
    def remarks(training, validation, **results):
        path = tmp_path / 'metrics.jsonl'
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines(training, validation)))
        return evaluations.remarks(tmp_path, {'cost': {'steps': 40, 'epochs': 4.0}} | results)

    assert remarks(FALLS, {30: 1.0}) == {}
    assert remarks(FALLS, {20: 2.0, 30: 1.0}) == {'best': 'step 30, the last, has the lowest loss of 2 evaluations'}
    diverged = remarks(FALLS, {20: 2.0, 30: math.nan})
    assert diverged == {'best': 'step 20: loss 2.0000; the last, 30: nan; it is not saved'}
    assert remarks(FALLS, {20: math.nan, 30: math.inf}) == {}
    overfits = remarks(FALLS, {10: 3.0, 20: 2.0, 30: 2.2, 40: 2.5}, stopped_early=True)
    assert overfits.keys() == {'best', 'ended', 'overfits'}
    assert overfits['best'].startswith('step 20: loss 2.0000') and 'step 20 (2 epochs)' in overfits['overfits']


def test_many_epochs_of_text_are_announced():
    assert evaluations.many_epochs(80, 2, 20) == ''
    once = evaluations.many_epochs(300, 2, 500)
    assert once.startswith('150 are planned; from about 40 on') and 'or budget.steps=80, prevents it' in once
    assert once.endswith('validation is measured 1 time, too few to see a rise: set evaluate.every_steps below 500')
    assert 'validation' not in evaluations.many_epochs(300, 2, 100)


def test_memorised_text_shows_after_one_evaluation(tmp_path):
    """Of runs that measure text, after many epochs, if validation is far above training."""

    def remarks(epochs, validation=2.0, measure='bits_per_byte', evaluated=(40,)):
        own = [{'step': step, f'validation_{measure}': 1.0, 'validation_loss': validation} for step in evaluated]
        path = tmp_path / 'metrics.jsonl'
        path.write_text(''.join(json.dumps(line) + '\n' for line in [*lines(FALLS, {}), *own]))
        return evaluations.remarks(tmp_path, {'cost': {'steps': 40, 'epochs': epochs}})

    text = remarks(200.0)['memorised']
    assert text.startswith('after 200 epochs the training loss is 0.3000 and the validation loss 2.0000: the model')
    assert not remarks(40.0) and not remarks(200.0, validation=0.44) and not remarks(200.0, measure='accuracy')
    assert not remarks(200.0, evaluated=())


def test_a_policy_is_ranked_by_its_reward(tmp_path):
    def best(*rewards):
        measured = {step: {'validation_loss': -reward, 'validation_reward': reward} for step, reward in rewards}
        lines = [{'step': step, 'validation_reward_error': 0.01} | values for step, values in measured.items()]
        (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
        return evaluations.remarks(tmp_path, {})['best']

    assert best((10, 0.25), (20, 0.5)) == 'step 20, the last, has the highest reward of 2 evaluations'
    assert best((10, 0.5), (20, 0.25)) == 'step 10: reward 0.5000; the last, 20: 0.2500; it is not saved'


@pytest.mark.parametrize(
    'measured, best',
    [
        ((math.nan, math.nan, math.nan, 1.5), 3),
        ((math.nan, 1.0, math.inf, 0.5), 3),  # as many have diverged of both rates
        ((0.5, math.nan, 3.0, 2.0), 3),
        ((2.0, 1.0, math.nan, 0.5), 1),
        ((math.nan,) * 4, 0),
    ],
)
def test_a_rate_is_behind_those_of_which_fewer_members_diverged(measured, best):
    assert evaluations.best_member((1.0, 1.0, 0.01, 0.01), measured) == best
