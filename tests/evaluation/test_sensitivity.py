"""Sensitivity of a prompt: the accuracies are those of `score`, and the intervals those of scipy."""

import numpy as np
import pytest
from scipy import stats

from lmtrain.data.rows import Row
from lmtrain.evaluation.sensitivity import Variant, orders, sensitivity, sets, templates
from lmtrain.inference import prompting

TEXTS = 'cat dog hen owl pig cow ant bee'.split()
ROWS = [Row(f'rows:{i}', {'text': text, 'gold': 'ab'[i % 3 % 2]}) for i, text in enumerate(TEXTS)]
POOL = [Row(f'pool:{i}', {'text': text, 'gold': 'ab'[i % 2]}) for i, text in enumerate('emu fly gnu yak'.split())]
SETTINGS = prompting.PromptSettings('{text} is {gold}', 'gold', ('a', 'b'), shots=2, separator='\n', batch_size=8)


def test_the_distribution_is_that_of_the_scores(computes):
    variants = sets(SETTINGS, POOL, 5)
    result = sensitivity(*computes, ROWS, variants)
    each = [prompting.score(*computes, ROWS, own, demonstrations=demos).results for own, demos in variants]
    accuracies = [own['accuracy'] for own in each]
    assert result['accuracies'] == accuracies and len(set(accuracies)) > 1
    assert (result['worst'], result['best']) == (min(accuracies), max(accuracies))
    assert result['mean'] == pytest.approx(np.mean(accuracies)) and result['n'] == 5 and result['rows'] == 8
    assert result['stdev'] == pytest.approx(np.std(accuracies, ddof=1))
    wilson = stats.binomtest(round(8 * max(accuracies)), 8).proportion_ci(method='wilson')
    assert result['best_interval'] == pytest.approx([*wilson])
    low, high = result['interval']
    assert low < result['mean'] < high
    assert result['computed_tokens'] == sum(own['computed_tokens'] for own in each)


def test_orders_are_distinct_and_of_the_same_rows():
    variants = orders(SETTINGS, POOL[:3], 6)
    assert len({tuple(row.place for row in each.demonstrations) for each in variants}) == 6
    assert all({row.place for row in each.demonstrations} == {'pool:0', 'pool:1', 'pool:2'} for each in variants)
    assert all((each.settings.select, each.settings.shots) == ('first', -1) for each in variants)
    assert len(orders(SETTINGS, POOL[:2], 10)) == 2
    assert orders(SETTINGS, POOL, 4, seed=1) == orders(SETTINGS, POOL, 4, seed=1) != orders(SETTINGS, POOL, 4, seed=2)


def test_sets_have_as_many_rows_as_shots():
    variants = sets(SETTINGS, POOL, 6)
    assert all(len({row.place for row in each.demonstrations}) == 2 for each in variants)
    assert len({tuple(row.place for row in each.demonstrations) for each in variants}) > 2
    with pytest.raises(ValueError, match='shots=5: a set has at least 1 row, and the pool has 4'):
        sets(SETTINGS._replace(shots=5), POOL, 2)


def test_templates_and_calibrated_scores(computes):
    texts = ['{text} is {gold}', '{text}: {gold}']
    settings = SETTINGS._replace(shots=0, calibrated=('N/A',))
    result = sensitivity(*computes, ROWS, templates(settings, [], texts), column='right_calibrated')
    each = [prompting.score(*computes, ROWS, settings._replace(template=text)).results for text in texts]
    assert result['accuracies'] == [own['accuracy_calibrated'] for own in each]


def test_one_variant_and_none(computes):
    result = sensitivity(*computes, ROWS, [Variant(SETTINGS._replace(shots=0), [])])
    assert result['stdev'] is None and result['worst'] == result['best']
    with pytest.raises(ValueError, match='no variant of the prompt'):
        sensitivity(*computes, ROWS, [])
