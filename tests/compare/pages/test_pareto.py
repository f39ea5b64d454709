import random

from lmtrain.compare.pages import pareto


def test_front_is_the_set_that_nothing_dominates():
    drawn = random.Random(3)
    costs = {name: (drawn.randint(0, 9), drawn.randint(0, 9)) for name in range(40)}
    best = pareto.front(costs)
    for name, (cost, accuracy) in costs.items():
        better = [
            other for other, own in costs.items() if own != (cost, accuracy) and own[0] <= cost and own[1] >= accuracy
        ]
        assert (name in best) == (not better)


def test_classes_follow_the_tests_of_the_pairs(comparison):
    arms = {
        'cheap': ('prompt', 0.6, 0.6, 0, 1e9, 1e9),
        'best': ('train', 0.5, 0.80, 10, 1e12, 1e9),
        'close': ('train', 0.5, 0.79, 10, 1e13, 1e9),
        'waste': ('train', 0.5, 0.55, 10, 1e14, 1e9),
    }
    results = comparison(arms=arms, sizes=(512,))
    ranks = {
        point.arm: rank for point, rank in pareto.classes(results, pareto.points(results, 512, 'create_flops')).items()
    }
    assert ranks == {'cheap': 'front', 'best': 'front', 'close': 'close', 'waste': 'dominated'}
    for tested in results['pairs']:
        tested['p_holm'] = 0.5
    ranks = pareto.classes(results, pareto.points(results, 512, 'create_flops'))
    assert sorted(ranks.values()) == ['close', 'close', 'front', 'front']


def test_arm_that_is_ahead_on_the_common_seeds_is_not_dominated(comparison):
    arms = {'best': ('train', 0.5, 0.8, 10, 1e12, 1e9), 'waste': ('train', 0.5, 0.55, 10, 1e14, 1e9)}
    results = comparison(arms=arms, sizes=(512,))
    for sign, rank in ((1, 'dominated'), (-1, 'close')):
        results['pairs'][0] |= {'difference': sign * 0.05, 'p_holm': 0.001}
        ranks = pareto.classes(results, pareto.points(results, 512, 'create_flops'))
        assert {point.arm: own for point, own in ranks.items()} == {'best': 'front', 'waste': rank}


def test_points_of_rows_are_of_all_sizes(comparison):
    arms = {'prompt': ('prompt', 0.6, 0.6, 0, 0.0, 1e9), 'lora': ('train', 0.3, 0.9, 10, 1e12, 1e9)}
    results = comparison(arms=arms, sizes=(8, 512))
    points = pareto.points(results, 512, 'rows')
    assert [(point.arm, point.cost) for point in points] == [('prompt', 8), ('lora', 8), ('prompt', 512), ('lora', 512)]
    ranks = {(point.arm, point.size): rank for point, rank in pareto.classes(results, points).items()}
    assert ranks[('lora', 8)] == 'dominated' and ranks[('prompt', 8)] == ranks[('lora', 512)] == 'front'
    assert ranks[('prompt', 512)] == 'dominated'


def test_arm_without_a_cost_has_no_point(comparison):
    results = comparison()
    for trial in results['trials']:
        if trial['arm'] == 'head':
            del trial['ledger']['query_seconds']
    assert 'head' not in [point.arm for point in pareto.points(results, 512, 'query_seconds')]


def test_overlapping_intervals_of_untested_pairs_show_no_difference(comparison):
    arms = {'prompt': ('prompt', 0.6, 0.5, 0, 0.0, 1e9), 'lora': ('train', 0.2, 0.55, 10, 1e12, 1e9)}
    results = comparison(arms=arms, sizes=(8, 512))
    ranks = pareto.classes(results, pareto.points(results, 512, 'rows'))
    # 60 % (53 to 67) with 8 rows, 55 % (48 to 62) with 512 rows
    assert {rank for point, rank in ranks.items() if point[:2] == ('lora', 512)} == {'close'}
