import itertools
import random

import pytest

from lmtrain.compare.pages import choice

ARMS = {'lora': ('train', 0.4, 0.9, 9, 1e13, 4e9), 'head': ('train', 0.4, 0.89, 9, 1e12, 4e9)}


@pytest.mark.parametrize(
    ('p_holm', 'p_equivalent', 'p_equivalent_holm', 'outcome', 'arm'),
    [
        (1.0, 0.01, 0.04, 'cheapest', 'head'),
        (1.0, 0.01, 0.06, 'undecided', 'lora'),  # equivalent without the correction only
        (1.0, 0.3, 0.3, 'undecided', 'lora'),  # not significant, which shows nothing
        (0.04, 0.5, 1.0, 'best', 'lora'),
        (0.06, 0.5, 1.0, 'undecided', 'lora'),
        (0.04, 0.01, 0.04, 'cheapest', 'head'),  # a difference that is shown, and is below the margin
    ],
)
def test_outcome_follows_the_statistics(comparison, p_holm, p_equivalent, p_equivalent_holm, outcome, arm):
    results = comparison(arms=ARMS, sizes=(512,))
    tests = {'p': 0.6, 'p_holm': p_holm, 'p_equivalent': p_equivalent, 'p_equivalent_holm': p_equivalent_holm}
    results['pairs'][0] |= tests
    chosen = choice.choose(results, 512)
    assert (chosen.outcome, chosen.arm, chosen.leader) == (outcome, arm, 'lora')


@pytest.mark.parametrize('arms', [['lora', 'head'], ['head', 'lora']])
@pytest.mark.parametrize(('difference', 'outcome'), [(0.05, 'best'), (-0.05, 'undecided')])
def test_arm_is_worse_only_if_the_leader_is_ahead_on_their_common_seeds(comparison, arms, difference, outcome):
    """The accuracies are over all seeds of each arm, the test is over those that both have finished."""
    results = comparison(arms=ARMS, sizes=(512,))
    signed = difference if arms[0] == 'lora' else -difference  # of the first arm less the second
    results['pairs'][0] |= {'arms': arms, 'difference': signed, 'p_holm': 0.001, 'p_equivalent_holm': 1.0}
    chosen = choice.choose(results, 512)
    assert (chosen.leader, chosen.outcome) == ('lora', outcome)
    assert chosen.undecided == (() if outcome == 'best' else ('head',))


def test_baseline_is_the_higher_of_both():
    assert choice.baseline({'task': {'majority': 0.2, 'chance': 0.3}}) == (0.3, 'chance')
    assert choice.baseline({'task': {'majority': 0.4, 'chance': 0.3}})[0] == 0.4
    assert choice.baseline({}) is None


def test_arm_must_lie_above_the_baseline_with_its_interval(comparison):
    results = comparison(arms=ARMS, sizes=(512,), majority=0.86)  # below the accuracy of 90 %, in its interval
    assert choice.choose(results, 512).outcome == 'majority'
    results['task']['majority'] = 0.85
    assert choice.choose(results, 512).outcome != 'majority'


def test_arm_that_is_the_cheapest_for_less_than_a_query_is_left_out():
    assert choice.cheapest({'a': (0, 10), 'b': (8, 2)}) == ((0.0, 'a'), (1.0, 'b'))
    assert choice.cheapest({'a': (0, 10), 'b': (7, 2)}) == ((0.0, 'b'),)


def test_cheapest_is_the_minimum_at_every_number_of_queries():
    for case in range(20):
        drawn = random.Random(case)
        costs = {name: (drawn.uniform(0, 1e6), drawn.uniform(1, 100)) for name in 'abcdef'}
        plan = choice.cheapest(costs)
        for (start, arm), (end, _) in itertools.pairwise([*plan, (2 * plan[-1][0] + 10, None)]):
            middle = (start + end) / 2
            totals = {name: create + middle * query for name, (create, query) in costs.items()}
            assert min(totals, key=totals.get) == arm
