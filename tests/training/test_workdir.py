"""A folder belongs to one run and one process. Every field of the config has a rule for resumed runs."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from configs import base
from lmtrain.files import flatten_fields
from lmtrain.report import run_config
from lmtrain.report.run_config import WrongRun
from lmtrain.training import workdir

CONFIG = json.loads(json.dumps(base.get_config().to_dict()))
FIELDS = sorted(flatten_fields(CONFIG))
PRINTS = {'data': 'aa', 'tokenizer': 'bb'}

# The answer for every field: a prefix, and what may happen to fields under it. All else is fixed.
FREE = (
    'log.',
    'evaluate.',
    'checkpoint.',
    'sample.',
    'plan.',
    'watchdog.',
    'sdc_check_every',
    'data.cache',
    'data.root',
)
FREE += ('policy.show_every', 'policy.evaluate_temperature')
FREE += ('data.split', 'task.template', 'task.date', 'task.labels')  # of which the fingerprint of the data knows
FREE += ('objective.pool',)  # of a text, the task of base.py
ROUNDING = ('mesh.', 'model.attention', 'model.remat', 'model.unroll', 'optimizer.accumulate')


def changed(field: str, config=CONFIG, value='something else'):
    """The config with one field otherwise."""
    config = copy.deepcopy(config)
    *sections, name = field.split('.')
    section = config
    for key in sections:
        section = section[key]
    section[name] = value
    return config


def test_every_field_has_the_expected_kind():
    for field in FIELDS:
        if field.startswith(FREE):
            kind = 'free'
        elif field.startswith(ROUNDING) and not field.startswith('model.attention_'):
            kind = 'rounding'
        elif field == 'schedule.begin':
            kind = 'extended'
        else:
            kind = 'fixed'
        differences = workdir.compare(CONFIG, changed(field))
        assert [(difference.field, difference.kind) for difference in differences] == [(field, kind)]


def test_folder_with_former_names_of_fields_is_the_same_run(tmp_path):
    saved = copy.deepcopy(CONFIG)
    saved['data']['corrupt'] = saved['data'].pop('mask_rate')
    saved['verify_every'], saved['learns'] = saved.pop('sdc_check_every'), saved.pop('trainable')
    saved['adapt']['layers']['learns'] = saved['adapt']['layers'].pop('trainable')
    workdir.bind(tmp_path, saved, PRINTS)
    assert workdir.read_config(tmp_path) == CONFIG
    assert workdir.bind(tmp_path, CONFIG, PRINTS) == []


def test_every_rule_matches_a_field():
    for pattern, _ in workdir.MAY_CHANGE:
        assert any(re.fullmatch(pattern, field) for field in FIELDS), pattern


def test_pooling_may_change_unless_the_loss_pools():
    for name, kind in {'text': 'free', 'chat': 'free', 'tag': 'free', 'classify': 'fixed', 'regress': 'fixed'}.items():
        saved = changed('task.name', value=name)
        differences = workdir.compare(saved, changed('objective.pool', saved, 'mean'))
        assert [(difference.field, difference.kind) for difference in differences] == [('objective.pool', kind)], name


def test_budget_is_fixed_if_the_schedule_changes():
    saved = changed('budget.steps', changed('schedule.name', value='cosine'), 100)
    current = changed('budget.steps', changed('schedule.name', value='constant'), 200)
    assert {difference.kind for difference in workdir.compare(saved, current)} == {'fixed'}


@pytest.mark.parametrize(
    'saved, current, fields',
    [
        ({'a': (1, (2, 3))}, {'a': [1, [2, 3]]}, []),
        ({'a': 1.0}, {'a': 1.0}, []),
        ({'a': 1}, {'a': True}, ['a']),
        ({'a': None}, {'a': 0}, ['a']),
        ({'a': {'b': 1}}, {'a': {'b': 1, 'c': 2}}, ['a.c']),
        ({'a': {'b': 1}}, {}, ['a.b']),
        ({'a': {}}, {'a': {'b': 1}}, ['a', 'a.b']),
    ],
)
def test_values_are_compared_as_json(saved, current, fields):
    assert [difference.field for difference in workdir.compare(saved, current)] == fields


def test_folder_belongs_to_its_config(tmp_path):
    assert workdir.bind(tmp_path, CONFIG, PRINTS) == []
    assert json.loads((tmp_path / 'config.json').read_text()) == {'version': run_config.VERSION} | CONFIG
    assert workdir.bind(tmp_path, base.get_config().to_dict(), PRINTS) == []  # with its tuples
    other = changed('model.width', changed('log.every_steps', value=3), 512)
    with pytest.raises(WrongRun) as caught:
        workdir.bind(tmp_path, other, PRINTS | {'data': 'cc'})
    text = str(caught.value)
    assert f'model.width: saved {CONFIG["model"]["width"]}, now 512' in text
    assert 'fingerprint of data: saved "aa", now "cc"' in text
    assert 'another --workdir' in text and 'log.every_steps' not in text
    assert workdir.read_config(tmp_path) == CONFIG  # refused: untouched


def test_config_of_a_newer_version_is_refused(tmp_path):
    workdir.bind(tmp_path, CONFIG, PRINTS)
    (tmp_path / 'config.json').write_text(json.dumps({'version': 99} | CONFIG))
    with pytest.raises(WrongRun, match='config.json has version 99, and this lmtrain reads up to'):
        workdir.read_config(tmp_path)


def test_field_that_an_older_run_lacks_has_the_value_of_its_behaviour(tmp_path):
    saved = copy.deepcopy(CONFIG)
    del saved['sweep']['zipped'], saved['schedule']['begin']
    (tmp_path / 'config.json').write_text(json.dumps(saved))  # without a version
    config = workdir.read_config(tmp_path)
    assert config['sweep']['zipped'] is True  # seeds and rates were zipped then
    assert config['schedule']['begin'] == 0.0
    for field in run_config.LACKED:
        assert field in FIELDS


def test_allowed_change_is_saved_and_returned(tmp_path):
    workdir.bind(tmp_path, CONFIG, PRINTS)
    workdir.record(tmp_path, None, [], commit='abc')
    now = changed('log.every_steps', value=3)
    differences = workdir.bind(tmp_path, now, PRINTS)
    workdir.record(tmp_path, 40, differences, commit='def')
    assert workdir.read_config(tmp_path) == now
    first, second = map(json.loads, (tmp_path / 'lineage.jsonl').read_text().splitlines())
    assert (first['resumed_from'], first['changed'], first['commit']) == (None, [], 'abc')
    assert second['resumed_from'] == 40
    before = CONFIG['log']['every_steps']
    assert second['changed'] == [{'field': 'log.every_steps', 'saved': before, 'current': 3, 'kind': 'free'}]
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', second['time'])


def test_seconds_after_the_last_checkpoint_of_a_killed_start(tmp_path):
    timings = [{'step': step, 'seconds_per_step': seconds} for step, seconds in ((10, 5.0), (20, 0.5), (25, 0.2))]
    text = ''.join(json.dumps(line) + '\n' for line in timings) + '{"step": 30, "sec'
    (tmp_path / 'timings.jsonl').write_text(text)
    assert workdir.lost_seconds(tmp_path, 12) == pytest.approx(8 * 0.5 + 5 * 0.2)
    assert workdir.lost_seconds(tmp_path, 25) == 0 == workdir.lost_seconds(tmp_path / 'new', 0)


def test_incomplete_line_of_the_lineage_is_dropped(tmp_path):
    (tmp_path / 'lineage.jsonl').write_text('{"resumed_from": 4}\n{"time": "20')
    workdir.record(tmp_path, 5, [])
    lines = (tmp_path / 'lineage.jsonl').read_text().splitlines()
    assert [json.loads(line)['resumed_from'] for line in lines] == [4, 5]


def test_checkpoints_without_config_are_refused(tmp_path):
    (tmp_path / 'checkpoints' / '10').mkdir(parents=True)
    with pytest.raises(WrongRun, match=r'holds checkpoints but no config\.json'):
        workdir.bind(tmp_path, CONFIG, PRINTS)


@pytest.mark.parametrize('name', ['config.json', 'fingerprints.json'])
@pytest.mark.parametrize('content', [b'', b'{"a": ', b'\xff'])
def test_broken_file_of_the_folder_is_named(tmp_path, name, content):
    workdir.bind(tmp_path, CONFIG, PRINTS)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WrongRun, match=name):
        workdir.bind(tmp_path, CONFIG, PRINTS)


def test_folder_is_created(tmp_path):
    workdir.check(tmp_path / 'a' / 'b', state_bytes=1000, keep=3)
    assert os.listdir(tmp_path / 'a' / 'b') == []


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'deeper'):
        with pytest.raises(NotADirectoryError, match=r'is not a directory; choose another --workdir'):
            workdir.check(path)


def test_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(workdir.tempfile, 'TemporaryFile', refused)  # root writes through every permission
    with pytest.raises(PermissionError, match='cannot be written: Read-only file system; choose another'):
        workdir.check(tmp_path)


def test_free_space_is_checked_before_the_run(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10**12, 0, 4 * 10**9))
    workdir.check(tmp_path, state_bytes=10**9, keep=2)  # 3.2 GB of 4
    with pytest.raises(OSError, match=r'4\.2 GB needed for 3 checkpoints of 1 GB .*, 4 GB free'):
        workdir.check(tmp_path, state_bytes=10**9, keep=3)
    (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
    os.truncate(os.open(tmp_path / 'checkpoints' / '5' / 'state', os.O_CREAT | os.O_RDWR), 10**9)
    workdir.check(tmp_path, state_bytes=10**9, keep=3)  # one of them is there already
    (tmp_path / 'checkpoints' / '5').rename(tmp_path / 'checkpoints' / '5.corrupt')
    with pytest.raises(OSError, match=r'4\.2 GB needed'):
        workdir.check(tmp_path, state_bytes=10**9, keep=3)


LOCKED = """
import sys, time
from lmtrain.training import workdir
held = workdir.lock(sys.argv[1])
print('locked', flush=True)
time.sleep(600)
"""


def test_folder_is_locked_until_the_process_is_killed(tmp_path):
    other = subprocess.Popen([sys.executable, '-c', LOCKED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'locked\n'
        with pytest.raises(BlockingIOError, match=f'process {other.pid} trains there'):
            workdir.lock(tmp_path)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    workdir.lock(tmp_path).close()
    workdir.lock(tmp_path).close()


LINES = [f'{{"step": {step}, "loss": {10 - step}}}\n' for step in (0, 1, 2, 2, 4)]


@pytest.mark.parametrize(
    'step, torn, count',
    [(9, '', 5), (4, '', 5), (3, '', 4), (2, '{"step": 5, "lo', 4), (9, '{"step": 5}', 5), (-1, '', 0)],
)
def test_lines_after_a_step_are_removed(tmp_path, step, torn, count):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(''.join(LINES) + torn)
    assert workdir.truncate_jsonl(path, step) == 5 - count + bool(torn)
    assert path.read_text() == ''.join(LINES[:count])
    assert workdir.truncate_jsonl(path, step) == 0


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(LINES[0] + '{"loss": 3}\n' + LINES[2])
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: no JSON object with a step'):
        workdir.truncate_jsonl(path, 9)
    assert len(path.read_text().splitlines()) == 3
    assert workdir.truncate_jsonl(tmp_path / 'none.jsonl', 9) == 0
