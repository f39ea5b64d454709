"""The monitor of a policy run: means per line of the log, and the warning about an exploited reward."""

import json

import pytest

from lmtrain.training.monitor import Monitor

STEP = {'ratio_deviation': 0.0, 'scorer_gap': 0.125, 'targets': 4.0}  # values of a step
FIRST = {'first_ratio': 1.0, 'scorer_gap': 0.125}  # figures of the first step


def results(reward, error=0.01):
    return {'reward': reward, 'reward_error': error}


def after(monitor, *rewards):
    for reward in rewards:
        monitor.add(STEP, {'reward': reward}, first=True)
    return monitor


def test_line_has_the_means_of_the_rollouts_since_the_previous_one():
    monitor = after(Monitor(), 0.25, 0.75)
    monitor.add(STEP, {'reward': 2.0, 'reward_failures': 6}, first=True)  # the others had no failure
    assert monitor.figures() == FIRST | {'reward': 1.0, 'reward_failures': 2.0}
    assert monitor.figures() == FIRST | {'reward': 1.0, 'reward_failures': 2.0}  # no rollout since
    assert after(monitor, 0.5).figures() == FIRST | {'reward': 0.5}


def test_steps_without_a_signal_are_counted():
    monitor = after(Monitor(), 0.25)
    monitor.add(STEP | {'targets': 0.0}, {'reward': 9.0}, first=False)
    assert monitor.figures() == FIRST | {'reward': 0.25, 'empty_steps': 1}


def test_a_rollout_that_is_not_finite_is_left_out():
    monitor = after(Monitor(), 0.25)
    monitor.add(STEP | {'ratio_deviation': float('nan')}, {'reward': 0.75}, first=True)
    monitor.add(STEP, {'reward': float('inf')}, first=True)
    json.dumps(monitor.state, allow_nan=False)
    assert after(monitor, 0.75).figures() == FIRST | {'reward': 0.5}


def test_state_survives_json():
    monitor, whole = after(Monitor(), 0.25), after(Monitor(), 0.25, 0.75)
    resumed = after(Monitor(json.loads(json.dumps(monitor.state))), 0.75)
    assert resumed.figures() == whole.figures() and json.dumps(resumed.state) == json.dumps(whole.state)


@pytest.mark.parametrize(
    'reward, held_out, warns',
    [(0.9, 0.4, True), (0.9, 0.49, False), (0.5, 0.4, False), (0.9, 0.6, False)],
    ids=['rises, falls', 'rises, falls within the error', 'does not rise', 'both rise'],
)
def test_warning_if_the_reward_rises_while_the_held_out_one_falls(reward, held_out, warns):
    monitor = after(Monitor(), 0.5, 0.7)
    assert monitor.compare(results(0.5)) == ''
    warning = after(monitor, reward).compare(results(held_out))
    expected = (
        f'the reward rises (0.600 to {reward:.3f}) while the reward of held-out prompts falls (0.500 to {held_out:.3f})'
    )
    assert warning.startswith(expected) if warns else not warning


def test_best_is_compared_and_not_the_last():
    monitor = Monitor()
    assert monitor.compare(results(0.9)) == ''  # before the first rollout
    assert after(monitor, 0.5).compare(results(0.8)) == ''  # the first reward is the one to compare with
    assert 'exploit' in after(monitor, 0.6).compare(results(0.85))


def test_a_part_that_is_only_measured_is_compared_too():
    monitor = after(Monitor(), 2.0)
    assert monitor.compare(results(2.0) | {'reward_exact': 0.75, 'reward_exact_error': 0.02, 'length': 9.0}) == ''
    falls = after(monitor, 4.0).compare(results(4.0) | {'reward_exact': 0.5, 'reward_exact_error': 0.02, 'length': 5.0})
    assert falls.startswith(
        'the reward rises (2.000 to 4.000) while the reward_exact of held-out prompts falls (0.750 to 0.500)'
    )


def test_warning_is_printed_once_per_change():
    monitor = after(Monitor(), 0.5)
    assert monitor.compare(results(0.6)) == ''
    texts = [after(monitor, reward).compare(results(held_out)) for reward, held_out in ((0.7, 0.4), (0.8, 0.3))]
    assert 'exploit' in texts[0] and texts[1] == ''
    assert monitor.compare(results(0.3)) == ''  # of a resumed run, without a rollout since: no news
    resumed = Monitor(json.loads(json.dumps(monitor.state)))
    assert after(resumed, 0.9).compare(results(0.2)) == ''
    ended = after(resumed, 0.9).compare(results(0.595))
    assert ended == 'no longer: the reward of held-out prompts is 0.595, the training reward 0.900'
    assert after(resumed, 0.9).compare(results(0.595)) == ''
    assert 'exploit' in after(resumed, 0.95).compare(results(0.4))


def test_both_measures_that_fall_are_named():
    """Each is compared with its own best, also if the other one falls."""
    exact = {'reward_exact': 0.5, 'reward_exact_error': 0.01}
    monitor = after(Monitor(), 0.5)
    assert monitor.compare(results(0.6) | exact) == ''
    text = after(monitor, 0.8).compare(results(0.3) | exact | {'reward_exact': 0.7})
    assert 'the reward of held-out' in text and 'reward_exact' not in text
    assert 'the reward_exact of held-out prompts falls (0.700 to 0.100)' in after(monitor, 0.9).compare(
        results(0.3) | exact | {'reward_exact': 0.1}
    )
