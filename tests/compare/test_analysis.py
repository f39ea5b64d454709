"""What results.json says follows from the files of the trials: intervals, pairs, code lengths, break-even."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.compare import analysis
from lmtrain.evaluation import statistics
from lmtrain.evaluation.equivalence import equivalence

ROWS = 60
LEDGER = {'train_flops': 0.0, 'selection_flops': 10.0, 'query_flops': 5.0, 'query_flops_cached': 2.0}


@pytest.fixture
def records(tmp_path):
    """Trials of three arms: two that train with two seeds at two sizes, and one prompt without rows."""
    rng, listed = np.random.default_rng(0), []
    cells = [('prompt', 0, 1)] + [(arm, size, seed) for arm in ('one', 'two') for size in (8, 32) for seed in (1, 2)]
    for arm, size, seed in cells:
        right = rng.random(ROWS) < (0.5 if arm == 'prompt' else 0.6 + 0.01 * size * (arm == 'two'))
        folder = tmp_path / arm / f'n{size}-seed{seed}'
        folder.mkdir(parents=True)
        lines = [{'row': row, 'answer': 'a', 'right': bool(hit)} for row, hit in enumerate(right)]
        (folder / 'predictions.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
        seeds = [seed] if size else [1, 2]
        blocks = [{'seed': s, 'begin': 8, 'end': 32, 'nats': 24 * math.log(2) * s} for s in seeds if size in (0, 8)]
        ledger = LEDGER if arm == 'prompt' else LEDGER | {'train_flops': 100.0 * seed, 'query_flops': 1.0}
        about = {'arm': arm, 'size': size, 'seed': seed, 'status': 'done', 'blocks': blocks, 'ledger': ledger}
        about |= {'folder': f'{arm}/n{size}-seed{seed}', 'test': {'loss': 1.0 + seed}, 'right': right}
        listed.append(about)
    return listed


def hits(records, arm, size):
    return np.stack([each['right'] for each in records if (each['arm'], each['size']) == (arm, size)]).astype(float)


def test_accuracies_have_intervals_over_rows_and_seeds(tmp_path, records):
    lines = analysis.summary(analysis.Hits(tmp_path, records))
    assert [(line['arm'], line['size'], line['seeds']) for line in lines] == [
        ('prompt', 0, 1), ('one', 8, 2), ('one', 32, 2), ('two', 8, 2), ('two', 32, 2)
    ]  # fmt: skip
    for line in lines:
        own = hits(records, line['arm'], line['size'])
        expected = statistics.proportion(own)
        assert line['accuracy'] == own.mean() and line['interval'] == [expected.low, expected.high]
    assert lines[1]['loss'] == 2.5


def test_pairs_share_rows_and_seeds_and_are_corrected_within_a_size(tmp_path, records):
    lines = analysis.pairs(analysis.Hits(tmp_path, records), ['prompt', 'one', 'two'], 0.1)
    assert [(line['size'], line['arms']) for line in lines[:3]] == [
        (8, ['prompt', 'one']), (8, ['prompt', 'two']), (8, ['one', 'two'])
    ]  # fmt: skip
    for line in lines:
        one, other = (hits(records, arm, 0 if arm == 'prompt' else line['size']) for arm in line['arms'])
        one = np.broadcast_to(one, other.shape)  # one seed of the prompt against every seed
        expected = statistics.compare(one, other)
        assert (line['difference'], line['p']) == (expected.mean, expected.p)
        assert (line['p_equivalent'], line['rows_to_decide']) == equivalence(one, other, 0.1, alpha=0.05 / 3)
    for size in (8, 32):
        own = [line for line in lines if line['size'] == size]
        for name in ('p', 'p_equivalent'):
            assert [line[f'{name}_holm'] for line in own] == statistics.holm([line[name] for line in own])


def test_arms_that_read_no_rows_are_tested_at_size_0_if_there_is_no_other(tmp_path, records):
    other = tmp_path / 'other'
    other.mkdir()
    [prompt] = [each for each in records if each['arm'] == 'prompt']
    lines = [json.dumps({'right': row % 10 > 0}) + '\n' for row in range(ROWS)]  # 90 % against 50 %
    (other / 'predictions.jsonl').write_text(''.join(lines), encoding='utf-8')
    both = [prompt, prompt | {'arm': 'other', 'folder': 'other'}]
    [line] = analysis.pairs(analysis.Hits(tmp_path, both), ['prompt', 'other'], 0.1)
    assert (line['size'], line['arms']) == (0, ['prompt', 'other'])
    assert line['difference'] == pytest.approx(prompt['right'].mean() - 0.9) and line['p_holm'] < 0.001
    lines = analysis.pairs(analysis.Hits(tmp_path, [*both, *records[1:]]), ['prompt', 'other', 'one'], 0.1)
    assert [(each['size'], each['arms']) for each in lines[:1]] == [(8, ['prompt', 'other'])]
    assert {each['size'] for each in lines} == {8, 32}


def test_code_lengths_are_means_over_seeds(records):
    lengths = analysis.code_lengths(records, [8, 32], num_classes=4)
    for arm in ('prompt', 'one', 'two'):  # a prompt without rows has scored the blocks of both seeds
        assert lengths[arm]['blocks'] == [[8, 16.0], [32, pytest.approx(24 * 1.5)]]
        assert lengths[arm]['bits'] == pytest.approx(16 + 36) and lengths[arm]['uniform_bits'] == 64
    records[1]['blocks'] = []  # a seed without a score is left out
    assert analysis.code_lengths(records, [8, 32], 4)['one'] == {
        'bits': pytest.approx(16 + 48),
        'uniform_bits': 64,
        'blocks': [[8, 16.0], [32, pytest.approx(48)]],
        'seeds': 1,
    }


def test_break_even_uses_the_means_of_the_ledgers(records):
    kinds = {'prompt': 'prompt', 'one': 'train', 'two': 'train'}
    lines = analysis.break_even(records, kinds, 32)
    assert [(line['prompt'], line['trained']) for line in lines] == [('prompt', 'one'), ('prompt', 'two')]
    # Creation: 150 + 10 against 10; a query: 1 against 5, or 2 if the demonstrations are cached.
    assert lines[0]['queries'] == pytest.approx(150 / 4)
    assert lines[0]['queries_cached'] is None  # cached queries cost 2 for both
    assert dict(map(tuple, lines[0]['curve']))[10.0] == pytest.approx(1500 / 4)


def test_sensitivity_and_forgetting_are_over_all_trials_of_an_arm(records):
    selected = {'selection': {'rows': 10}}
    records[1] |= selected | {'draws': [0.2, None, 0.4], 'forgetting': {'kl': 0.1}}
    records[2] |= selected | {'draws': [0.6], 'forgetting': {'kl': 0.3}}
    records[0] |= {'forgetting': {'kl': 9.0}, 'forgetting_text': 'of another text'}
    assert analysis.sensitivity(records, 'draws')['one']['mean'] == pytest.approx(0.4)
    assert analysis.forgetting(records, '') == {'one': {'kl': pytest.approx(0.2)}}
    assert [own['kl'] for own in analysis.forgetting(records, 'of another text').values()] == [9.0]


def test_the_worst_and_the_best_prompt_have_wilson_intervals_over_rows(records):
    records[1] |= {'selection': {'rows': 96}, 'draws': [k / 96 for k in (30, 60, 41)]}
    own = analysis.sensitivity(records, 'draws')['one']
    for name, right in (('worst', 30), ('best', 60)):
        wilson = stats.binomtest(right, 96).proportion_ci(method='wilson')
        assert own[name] == right / 96 and own[f'{name}_interval'] == pytest.approx([*wilson])


def test_the_deviation_within_a_seed_leaves_out_that_of_other_demonstrations(records):
    for record, orders in zip(records[1:3], ([0.2, 0.4], [0.7, 0.9, 0.8])):  # two seeds of one arm
        record |= {'selection': {'rows': 10}, 'orders': orders}
    own = analysis.sensitivity(records, 'orders')['one']
    assert own['stdev_within'] == pytest.approx(((2 * 0.1**2 + 2 * 0.1**2) / (5 - 2)) ** 0.5) and own['stdev'] > 0.25
    records[1]['orders'], records[2]['orders'] = [0.2], [0.9]
    assert analysis.sensitivity(records, 'orders')['one']['stdev_within'] is None
    records[2]['orders'] = []  # of an earlier version
    assert analysis.sensitivity(records, 'orders')['one']['n'] == 1
