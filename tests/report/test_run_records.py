"""Records of folders: runs that ended, run or broke, older ones, and trials of a comparison."""

import fcntl
import json
import math
import pathlib

import pytest

from lmtrain.report import run_records

OLD_RUNS = pathlib.Path(__file__).parents[1] / 'training' / 'old_runs' / 'saved'


def write(folder, config=None, results=None, metrics=(), timings=(), **files):
    """Writes the folder of a run: JSON files, and JSON lines."""
    folder.mkdir(parents=True)
    for name, value in {'config': config, 'results': results, **files}.items():
        if value is not None:
            (folder / f'{name}.json').write_text(json.dumps(value), encoding='utf-8')
    for name, lines in {'metrics': metrics, 'timings': timings}.items():
        if lines:
            text = ''.join(json.dumps(line) + '\n' for line in lines)
            (folder / f'{name}.jsonl').write_text(text, encoding='utf-8')
    return folder


CONFIG = {'seed': 3, 'adapt': {'method': 'lora'}, 'model': {'width': 64}, 'data': {}, 'optimizer': {}, 'budget': {}}
VALIDATION = {
    'loss': 1.5,
    'perplexity': 4.5,
    'bits_per_token': 2.2,
    'bits_per_byte': 1.1,
    'targets': 9.0,
    'bytes': 18.0,
}
COST = {'steps': 40, 'seconds': 12.5, 'flops': 4e9}
METRICS = [{'step': 10, 'loss': 3.0}, {'step': 10, 'validation_loss': 2.5}, {'step': 20, 'loss': 2.0}]
TIMINGS = [
    {'step': 1, 'seconds_per_step': 2.0, 'flops_per_second': 50.0},
    {'step': 20, 'seconds_per_step': 0.5, 'flops_per_second': 200.0},
]


def test_finished_run(tmp_path):
    folder = write(tmp_path / 'one', CONFIG, {'validation': VALIDATION, 'cost': COST, 'data': {'bytes': 9}})
    record = run_records.read(folder)
    assert (record['name'], record['state'], record['step']) == ('one', 'finished', 40)
    assert (record['seed'], record['adapt.method'], record['model.width']) == (3, 'lora', 64)
    assert (record['loss'], record['bits_per_byte'], record['flops'], record['seconds']) == (1.5, 1.1, 4e9, 12.5)
    assert record['validation.perplexity'] == 4.5 and record['cost.steps'] == 40
    assert not {'perplexity', 'targets', 'reason', 'data.bytes'} & record.keys()


def test_scores_of_another_task(tmp_path):
    scores = {'loss': 0.7, 'accuracy': 0.8, 'f1': 0.75, 'targets': 100.0, 'accuracy_members': [0.7, 0.9]}
    record = run_records.read(write(tmp_path / 'one', CONFIG, {'validation': scores}))
    assert (record['accuracy'], record['f1']) == (0.8, 0.75)
    assert 'bits_per_byte' not in record and 'validation.accuracy_members' not in record


def test_a_policy_is_shown_by_its_reward(tmp_path):
    scores = {'loss': -0.75, 'reward': 0.75, 'reward_error': 0.01}
    line = {'step': 10} | {f'validation_{name}': value for name, value in scores.items()}
    folder = write(tmp_path / 'policy', CONFIG, {'validation': scores}, metrics=[line])
    record = run_records.read(folder)
    assert 'loss' not in record and (record['reward'], record['validation.loss']) == (0.75, -0.75)
    assert run_records.curve(folder, 'reward') == [(10, 0.75)]
    del scores['reward_error'], line['validation_reward_error']  # of a reward model it is the mean of all scores
    folder = write(tmp_path / 'model', CONFIG, {'validation': scores}, metrics=[line])
    assert run_records.read(folder)['loss'] == -0.75 and run_records.curve(folder, 'reward') == []


def test_stopped_run_has_the_cost_until_then(tmp_path):
    folder = write(tmp_path / 'one', CONFIG, metrics=METRICS, timings=TIMINGS)
    record = run_records.read(folder)
    assert (record['state'], record['step'], record['loss']) == ('stopped', 20, 2.5)
    assert record['seconds'] == 2.0 + 19 * 0.5
    assert record['flops'] == 20 * 100.0
    (folder / 'checkpoints/23').mkdir(parents=True)  # saved between two lines of metrics.jsonl
    assert run_records.read(folder)['step'] == 23


def test_loss_that_is_not_finite(tmp_path):
    lines = [*METRICS, {'step': 20, 'validation_loss': 'nan'}]
    folder = write(tmp_path / 'one', CONFIG, metrics=lines)
    record = run_records.read(folder)
    assert record['state'] == 'stopped' and math.isnan(record['loss'])
    assert run_records.curve(folder, 'loss') == [(10, 2.5)]


def test_running_run_holds_its_lock(tmp_path):
    folder = write(tmp_path / 'one', CONFIG, metrics=METRICS)
    with open(folder / '.lock', 'w', encoding='utf-8') as lock:
        assert run_records.read(folder)['state'] == 'stopped'
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_records.read(folder)['state'] == 'running'
    assert run_records.read(folder)['state'] == 'stopped'


def test_trial_counts_its_selection_rows_and_its_own_cost(tmp_path):
    trial = {'arm': 'lora', 'kind': 'train', 'size': 32, 'seed': 1, 'status': 'done', 'reason': ''}
    trial |= {'selection': {'rows': 64, 'accuracy': 0.8, 'loss': 0.6, 'candidates': []}}
    trial |= {'ledger': {'train_flops': 7e9, 'selection_flops': 2e9, 'device_seconds': 3.0, 'peak_bytes': None}}
    folder = write(tmp_path / 'n32-seed1', CONFIG, {'validation': {'loss': 9.0, 'accuracy': 0.1}}, trial=trial)
    (folder / 'test.json').write_text('{"accuracy": 0.7, "rows": 200}', encoding='utf-8')
    record = run_records.read(folder)
    assert (record['state'], record['trial.arm'], record['trial.size']) == ('finished', 'lora', 32)
    assert (record['loss'], record['accuracy'], record['test.accuracy']) == (0.6, 0.8, 0.7)
    assert (record['flops'], record['seconds']) == (9e9, 3.0)  # of the whole grid, as the time is
    failed = write(tmp_path / 'failed', trial=trial | {'status': 'failed', 'reason': 'nothing fits'})
    assert run_records.read(failed)['state'] == 'failed' and run_records.read(failed)['reason'] == 'nothing fits'


@pytest.mark.parametrize(
    ('file', 'content', 'reason'),
    [
        ('config.json', b'{"seed": ', 'config.json: invalid JSON'),
        ('config.json', b'[1]', 'config.json: expected a JSON object'),
        ('config.json', b'\xff\xfe', 'config.json: invalid JSON'),
        ('config.json', b'{"version": 99}', 'config.json has version 99, and this lmtrain reads up to'),
        ('config.json', b'{"model_type": "gpt2"}', "config.json is not the config of a run: it has no section 'data'"),
        ('results.json', b'', 'results.json: invalid JSON'),
        ('trial.json', b'nan?', 'trial.json: invalid JSON'),
        ('metrics.jsonl', b'{"step": 1}\nbroken\n{"step": 3}\n', 'metrics.jsonl:2: invalid JSON'),
        ('metrics.jsonl', b'{"loss": 1}\n', None),
        (
            'timings.jsonl',
            b'{"seconds_per_step": "fast", "flops_per_second": 1, "step": 2}\n',
            'timings.jsonl: seconds_per_step is text',
        ),
    ],
)
def test_broken_file_is_a_reason(tmp_path, file, content, reason):
    folder = write(tmp_path / 'one', CONFIG, metrics=METRICS)
    (folder / file).write_bytes(content)
    record = run_records.read(folder)
    assert record['state'] == ('broken' if reason else 'stopped')
    assert record.get('reason', '').startswith(reason or '')


def test_folder_without_a_config_is_broken(tmp_path):
    record = run_records.read(write(tmp_path / 'one', metrics=METRICS))
    assert (record['state'], record['reason'], record['step']) == ('broken', 'there is no config.json', 20)


def test_unreadable_results_of_odd_types(tmp_path):
    record = run_records.read(write(tmp_path / 'one', CONFIG, {'validation': [1], 'cost': None, 'test': 'x'}))
    assert record['state'] == 'finished' and 'loss' not in record


def test_find_lists_runs_and_trials_only(tmp_path):
    write(tmp_path / 'a' / 'run', CONFIG, metrics=METRICS)
    write(tmp_path / 'a' / 'run' / 'checkpoints' / '10', CONFIG, metrics=METRICS)
    write(tmp_path / 'export', CONFIG)  # a Hugging Face directory
    write(tmp_path / 'new', CONFIG, fingerprints={})  # before its first step
    write(tmp_path / 'which', CONFIG, {'arms': {}})
    write(tmp_path / 'which' / 'trials' / 'zero_shot' / 'n0-seed0', trial={'status': 'done'})
    write(tmp_path / 'which' / 'trials' / 'lora' / 'n8-seed0', CONFIG, metrics=METRICS)
    found = [folder.relative_to(tmp_path).as_posix() for folder in run_records.find([tmp_path, tmp_path / 'a'])]
    assert found == ['a/run', 'new', 'which/trials/lora/n8-seed0', 'which/trials/zero_shot/n0-seed0']
    assert run_records.find([tmp_path / 'a' / 'run']) == [tmp_path / 'a' / 'run']
    with pytest.raises(FileNotFoundError, match='gone is not a directory'):
        run_records.find([tmp_path / 'gone'])


@pytest.mark.parametrize(
    ('ledger', 'flops'),
    [
        ({'train_flops': 0.0, 'selection_flops': 5e9}, 5e9),
        ({'train_flops': 7e9}, 7e9),
        ({'selection_flops': None}, 4e9),
    ],
)
def test_a_trial_has_the_flops_of_its_search(tmp_path, ledger, flops):
    trial = {'arm': 'search', 'kind': 'prompt', 'size': 32, 'seed': 1, 'status': 'done', 'ledger': ledger}
    folder = write(tmp_path / 'n32-seed1', CONFIG, {'cost': COST}, trial=trial)
    assert run_records.read(folder)['flops'] == flops


def test_runs_of_an_older_version():
    records = [run_records.read(folder) for folder in run_records.find([OLD_RUNS])]
    assert records and all(record['state'] in ('finished', 'stopped') and record['step'] > 0 for record in records)
    assert all('loss' in record and 'model.width' in record for record in records)
    for record in records:  # one setting has one name in a table with newer runs
        assert record['data.mask_rate'] == 0.0 and not {'data.corrupt', 'verify_every', 'learns'} & record.keys()
        assert record['sweep.zipped'] is True and record['log.plot'] is True  # fields that are newer
