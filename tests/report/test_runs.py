"""The table of runs: differences, order, conditions, layout, files."""

import csv
import json

import pytest

from lmtrain.errors import InputError
from lmtrain.report import runs


def record(name, state='finished', **fields):
    return {'name': name, 'folder': f'/runs/{name}', 'state': state} | {
        field.replace('__', '.'): value for field, value in fields.items()
    }


@pytest.fixture
def records():
    common = {'model__width': 64, 'data__source': 'python'}
    first = {'adapt__method': 'full', 'optimizer__learning_rate': 1e-3, 'seed': 0}
    second = {'adapt__method': 'lora', 'optimizer__learning_rate': 3e-3, 'seed': 0, 'adapt__new': 1}
    third = {'adapt__method': 'full', 'optimizer__learning_rate': 1e-3, 'seed': 1}
    return [
        record('n32', **common, **first, loss=2.5, validation__loss=2.5, flops=4e9, seconds=61.0, step=20),
        record('n8', **common, **second, loss=1.5, validation__loss=1.5, flops=2e10, seconds=5.0, step=20),
        record('n128', 'stopped', **common, **third, step=1200),
    ]


def names(records):
    return [record['name'] for record in records]


def test_the_task_is_first_and_a_score_of_few_runs_last(records):
    for each, name in zip(records, ('text', 'text', 'preference'), strict=True):
        each |= {'task.name': name, 'bits_per_byte': 2.0, 'validation.bits_per_byte': 2.0}
    records[2] |= {'logps_chosen': -9.0, 'validation.logps_chosen': -9.0}
    assert runs.differences(records)[0] == 'task.name'
    assert runs.results(records) == ['state', 'loss', 'bits_per_byte', 'flops', 'seconds', 'logps_chosen']


def test_differences_are_fields_of_the_config(records):
    # The rate differs where the method does, so it is last.
    assert runs.differences(records) == ['adapt.method', 'seed', 'optimizer.learning_rate']
    assert runs.differences(records[:2]) == ['adapt.method', 'optimizer.learning_rate']
    assert runs.differences(records[:1]) == []
    records[0]['log.every_steps'], records[2]['log.every_steps'] = 1, 10
    differences = ['adapt.method', 'seed', 'log.every_steps', 'optimizer.learning_rate']
    assert runs.differences(records) == differences


def test_scores_are_no_differences(records):
    for value, one in enumerate(records):
        one |= {'accuracy': value / 3, 'validation.accuracy': value / 3}
    assert 'accuracy' not in runs.differences(records)
    assert runs.results(records) == ['state', 'loss', 'accuracy', 'flops', 'seconds']


@pytest.mark.parametrize(
    ('by', 'expected'),
    [
        ('name', ['n8', 'n32', 'n128']),
        ('-name', ['n128', 'n32', 'n8']),
        ('loss', ['n8', 'n32', 'n128']),
        ('-loss', ['n32', 'n8', 'n128']),  # those without it are last
        ('method', ['n32', 'n128', 'n8']),
        ('-learning_rate', ['n8', 'n32', 'n128']),
    ],
)
def test_order(records, by, expected):
    assert names(runs.order(records, by)) == expected


def test_nan_is_last(records):
    records[0]['loss'] = float('nan')
    assert names(runs.order(records, 'loss')) == ['n8', 'n32', 'n128']
    assert names(runs.order(records, '-loss')) == ['n8', 'n32', 'n128']
    assert 'nan' in runs.table(records)[1]


@pytest.mark.parametrize(
    ('conditions', 'expected'),
    [
        ([], ['n32', 'n8', 'n128']),
        (['adapt.method=lora'], ['n8']),
        (['adapt.method!=lora'], ['n32', 'n128']),
        (['validation.loss<2'], ['n8']),
        (['validation.loss <= 2.5', 'seconds>5'], ['n32']),
        (['step>=1200'], ['n128']),
        (['learning_rate=0.001'], ['n32', 'n128']),
        (['learning_rate=1e-3', 'seed=1'], ['n128']),
        (['adapt.new!=1'], ['n32', 'n128']),
        (['state=stopped'], ['n128']),
        (['loss>100'], []),
    ],
)
def test_conditions(records, conditions, expected):
    assert names(runs.select(records, conditions)) == expected


@pytest.mark.parametrize(
    ('condition', 'message'),
    [
        ('adapt.method', 'is no condition'),
        ('adapt.methd=lora', "no run has a field 'adapt.methd', did you mean 'adapt.method'"),
        ('adapt.method<3', '< compares numbers'),
        ('loss<low', '< compares numbers'),
        ('width=64=3', None),
    ],
)
def test_conditions_with_errors(records, condition, message):
    if message is None:
        assert runs.select(records, [condition]) == []
        return
    with pytest.raises(InputError, match=message):
        runs.select(records, [condition])


def test_names_of_scores_may_have_slashes_and_hyphens(records):
    for value, one in zip((0.4, 0.6, -1.0), records, strict=True):
        one |= {'rewards/accuracies': value, 'validation.pass-at-1': value}
    assert names(runs.select(records, ['rewards/accuracies>0.5'])) == ['n8']
    assert names(runs.select(records, ['validation.pass-at-1=-1', 'pass-at-1<-0.5'])) == ['n128']


def test_field_by_its_last_part(records):
    assert runs.field('method', records) == 'adapt.method'
    assert runs.field('loss', records) == 'loss'
    records[0] |= {'a.rank': 1, 'b.rank': 2}
    with pytest.raises(InputError, match="'rank' is the end of several fields: a.rank, b.rank"):
        runs.field('rank', records)


def test_table(records):
    assert runs.table(records) == [
        '      method  seed  learning_rate  state               loss  FLOPs    time',
        'n32   full       0          0.001  finished          2.5000  4.00B  1m 01s',
        'n8    lora       0          0.003  finished          1.5000  20.0B      5s',
        'n128  full       1          0.001  stopped at 1,200',
    ]
    assert runs.table(records, ['optimizer.learning_rate', 'step']) == [
        '      learning_rate   step',
        'n32           0.001     20',
        'n8            0.003     20',
        'n128          0.001  1,200',
    ]


def test_columns_that_do_not_fit_are_below_the_runs_that_differ(records):
    lines = runs.table(records, width=50)
    assert max(map(len, lines)) <= 50
    assert lines[1:] == [
        'n32   finished          2.5000  4.00B  1m 01s',
        'n8    finished          1.5000  20.0B      5s',
        '    adapt.method=lora;',
        '    optimizer.learning_rate=0.003',
        'n128  stopped at 1,200',
        '    seed=1',
    ]


@pytest.mark.parametrize('width', [80, 60])
def test_no_line_is_too_wide(records, width):
    records = [dict(records[number % 3]) for number in range(8)]
    for number, one in enumerate(records):
        one |= {f'model.field_{i}': f'value {(number + i) ** 2 % 11} of several' for i in range(40)}
        one |= {'data.paths': [f'/a/long/path/{number}/rows.jsonl', 'x'], 'data.index': number % 2}
        one['name'] = f'some/long/folder/of/runs/with/a/name/{number}'
    records[2] |= {'state': 'broken', 'reason': 'config.json: invalid JSON, ' + 'and so on, ' * 20}
    lines = runs.table(records, width=width)
    assert max(map(len, lines)) <= width
    assert sum(line.endswith(' more') for line in lines) == 8
    assert any('config.json: invalid JSON' in line for line in lines)
    assert sum(line.startswith('…') for line in lines) == 8


def test_control_characters_do_not_reach_the_terminal(records):
    records[0] |= {'name': 'a\x1b[2Jb\n', 'data.source': '\x1b]0;title\x07'}
    records[1] |= {'state': 'broken', 'reason': 'no \x1b[31m'}
    assert not {'\x1b', '\x07', '\n'} & set(''.join(runs.table(records)))


def test_counts(records):
    assert runs.counts(records) == '3 runs: 2 finished, 1 stopped'


def test_written_files_have_whole_values(records, tmp_path):
    records[0]['data.source'] = '=HYPERLINK("x")'
    runs.write(records, ['loss', 'data.source'], tmp_path / 'a.csv')
    with open(tmp_path / 'a.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['loss'] for row in rows] == ['2.5', '1.5', '']
    assert rows[0]['data.source'] == '\'=HYPERLINK("x")'  # a spreadsheet does not compute it
    runs.write(records, (), tmp_path / 'a.json')
    first, *_ = json.loads((tmp_path / 'a.json').read_text(encoding='utf-8'))
    assert first == {
        'name': 'n32',
        'data.source': '=HYPERLINK("x")',
        'adapt.method': 'full',
        'seed': 0,
        'optimizer.learning_rate': 1e-3,
        'state': 'finished',
        'loss': 2.5,
        'flops': 4e9,
        'seconds': 61.0,
    }
    runs.write(records, ('all',), tmp_path / 'a.json')
    whole = json.loads((tmp_path / 'a.json').read_text(encoding='utf-8'))
    assert whole[1]['adapt.new'] == 1 and whole[0]['adapt.new'] is None
