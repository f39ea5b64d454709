"""config.reward: parts, weights, failures, and messages for what is wrong."""

import math

import numpy as np
import pytest

from configs import base
from lmtrain import rewards
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.rewards.reward import Reward

BATCH = (['p'] * 3, ['1', '2', '3'], [{'answer': '2'}] * 3)


def section(**changes):
    config = base.get_config().reward
    config.update(changes)
    return config


def test_a_weighted_sum_of_a_verifier_a_model_and_a_file(tmp_path):
    (tmp_path / 'own.py').write_text('def f(prompts, completions): return [float("nan"), 4, 6]', encoding='utf-8')
    opened = []

    def open_model(folder):
        opened.append(folder)
        return lambda prompts, completions, rows: [0.5, -1.0, math.inf]

    weights = (('exact', 2.0), ('model', 0.5), ('file', -0.25))
    config = section(verifier='exact', model='reward', file='own.py', weights=weights)
    with rewards.build(config, root=str(tmp_path), open_model=open_model) as reward:
        scored = reward(*BATCH)
    assert opened == [str(tmp_path / 'reward')]
    assert {name: part.tolist() for name, part in scored.parts.items()} == {
        'exact': [0.0, 1.0, 0.0],
        'model': [0.5, -1.0, -1.0],  # a failure has the worst score
        'file': [6.0, 4.0, 6.0],
    }
    np.testing.assert_allclose(scored.total, [0.25 - 1.5, 2.0 - 0.5 - 1.0, -0.5 - 1.5])
    assert scored.total.dtype == np.float32
    assert scored.failures == {'model: inf is not finite': 1, 'file: nan is not finite': 1}
    assert reward.notes == (f'reward model {tmp_path / "reward"}', f'rewards of {tmp_path / "own.py"}')


@pytest.mark.parametrize(
    ('scores', 'weight', 'failed'),
    [
        (['time limit', 1.0, 0.0], 1.0, 0.0),
        (['time limit', 1.0, 1.0], 1.0, 0.0),
        ([math.nan, -3.0, -0.5], 2.0, -3.0),
        ([math.nan, -3.0, -0.5], -1.0, 0.0),
        ([math.nan, -3.0, 0.5], -1.0, 0.5),
        (['crash'] * 3, 1.0, 0.0),
    ],
)
def test_no_completion_gains_by_a_failure(scores, weight, failed):
    part = Reward(lambda prompts, completions, rows: scores)
    scored = rewards.mixture.RewardFunction({'own': part}, {'own': weight})(*BATCH)
    assert scored.parts['own'][0] == failed and scored.total[0] == weight * failed == scored.total.min()


def test_a_verifier_alone_has_weight_one_and_checks_rows():
    with rewards.build(section(verifier='exact')) as reward:
        assert reward(*BATCH).total.tolist() == [0.0, 1.0, 0.0]
        with pytest.raises(InputError, match=r"rows\.jsonl:2: no field 'answer'"):
            reward.check([Row('rows.jsonl:1', {'answer': ''}), Row('rows.jsonl:2', {})])


def test_two_verifiers_by_weights():
    config = section(weights=(('exact', 1.0), ('regex', 0.5)), pattern='[23]')
    with rewards.build(config) as reward:
        assert reward(*BATCH).total.tolist() == [0.0, 1.5, 0.5]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, 'config.reward gives no reward'),
        ({'verifier': 'exat'}, "verifier = 'exat' is none of .*, did you mean 'exact'"),
        ({'weights': (('exat', 1.0),)}, "did you mean 'exact'"),
        ({'weights': (('exact', math.nan),)}, 'pairs of a name and a number'),
        ({'weights': (('exact',),)}, 'pairs of a name and a number'),
        ({'weights': (('exact', 1.0), ('exact', 2.0))}, 'occurs twice'),
        ({'weights': (('model', 1.0),)}, r"config.reward.model is ''; it must be set"),
        ({'model': 'run'}, "config.reward.model = 'run': a reward model scores the completions of a policy run"),
        ({'verifier': 'exact', 'weights': (('number', 1.0),)}, "no weight of 'exact'"),
        ({'verifier': 'exact', 'seconds': 0.0}, 'config.reward.seconds is 0.0; it must be above 0'),
        ({'verifier': 'unit_test', 'memory_mib': 1}, 'config.reward.memory_mib is 1'),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        rewards.build(section(**changes))


def test_a_part_that_cannot_be_built_ends_the_processes_of_the_others(monkeypatch):
    closed = []
    part = Reward(lambda prompts, completions, rows: [], close=lambda: closed.append(True))
    monkeypatch.setitem(rewards.mixture.verifiers.VERIFIERS, 'exact', lambda settings: part)
    with pytest.raises(InputError, match='no such file'):
        rewards.build(section(weights=(('exact', 1.0), ('file', 1.0)), file='missing.py'))
    assert closed
