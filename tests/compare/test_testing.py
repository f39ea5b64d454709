"""The test stage: files of a trial, and trials that are tested already."""

import hashlib
import json

import jax
import numpy as np
import pytest

from lmtrain import tree
from lmtrain.compare import choice_scores, comparison, new_rows, testing, trials
from lmtrain.files import write_json
from lmtrain.training import init_from


def test_each_test_row_has_a_line_with_its_nats(small, monkeypatch):
    shared, selected = small('nats', ('zero_shot',), test=6)
    [trial] = trials.listed(shared, selected)
    (shared.folder / trial.folder).mkdir(parents=True, exist_ok=True)
    log_p = np.log(np.array([[0.5, 0.3, 0.2]] * 6))
    monkeypatch.setattr(testing, '_answers', lambda *arguments: (log_p, 2))
    done = {'status': 'done', 'chosen': {}}
    testing.run(shared, [(trial, done)])
    lines = [json.loads(line) for line in (shared.folder / trial.folder / 'predictions.jsonl').read_text().splitlines()]
    nats = dict(zip(shared.task.classes, -np.log([0.5, 0.3, 0.2])))
    assert [line['row'] for line in lines] == list(range(6))
    for line in lines:
        assert line['predicted'] == shared.task.classes[0] and line['nats'] == pytest.approx(nats[line['answer']])
        assert line['right'] == (line['answer'] == shared.task.classes[0])
    test = testing.read(shared, trial)
    assert test['cut'] == 2 and test['rows'] == 6
    assert test['accuracy'] == pytest.approx(np.mean([line['right'] for line in lines]))
    assert test['interval'][0] < test['accuracy'] < test['interval'][1]

    monkeypatch.setattr(testing.rows, 'read', None)  # a trial that is tested opens no file
    assert testing.run(shared, [(trial, done)]) == [(trial, done)]
    failed = done | {'status': 'failed'}
    assert testing.run(shared, [(trial._replace(seed=9), failed)]) == [(trial._replace(seed=9), failed)]


def test_the_recorded_dtype_is_that_of_the_model_that_was_scored(small):
    """Prompts read the base as the config says, whatever the base's own dtype; an arm may have another one."""

    def change(config):
        config.model.dtype = 'bfloat16'
        config.compare.arms.head.overrides += (('model.dtype', 'float32'),)

    shared, selected = small('dtypes', ('zero_shot', 'head'), change, sizes=(4,), test=6, templates=())
    assert shared.base.model.dtype == 'float32' and shared.model.model.dtype == 'bfloat16'
    listed = trials.listed(shared, selected)
    finished = [(trial, trials.run(shared, trial, comparison.EXECUTE[trial.arm.kind])) for trial in listed]
    tested = testing.run(shared, finished)
    dtypes = {trial.arm.name: testing.read(shared, trial)['dtype'] for trial, _ in tested}
    assert dtypes == {'zero_shot': 'bfloat16', 'head': 'float32'}
    write_json(shared.folder / 'config.json', shared.config.to_dict())
    prompted = new_rows.open_trial(shared.folder / listed[0].folder)
    assert prompted.comparison.model.model == shared.model.model  # new rows are answered as the test rows


def test_trials_of_a_later_call_have_a_stage_of_their_own(small, monkeypatch):
    shared, selected = small('stages', ('zero_shot', 'few_shot'), test=6)
    finished = [(trial, {'status': 'done', 'chosen': {}}) for trial in trials.listed(shared, selected)]
    assert len(finished) == 3
    for trial, _ in finished:
        (shared.folder / trial.folder).mkdir(parents=True, exist_ok=True)
    answers = [RuntimeError('no memory'), (np.log(np.full((6, 3), 1 / 3)), 0)]
    fails = {finished[1][0].folder}

    def answer(shared, trial, *rest):
        if trial.folder in fails:
            raise answers[0]
        return answers[1]

    monkeypatch.setattr(testing, '_answers', answer)
    monkeypatch.setattr(testing, '_model', lambda shared, *rest: shared.model)
    testing.run(shared, finished[:2])
    testing.run(shared, finished)  # one trial is new
    fails.clear()
    testing.run(shared, finished)  # what was interrupted is continued
    assert [testing.read(shared, trial)['stage'] for trial, _ in finished] == [1, 1, 2]
    new, record = finished[0]
    record = trials.run(shared, new, lambda *arguments: record)  # again, as with other settings
    testing.run(shared, [(new, record)])
    assert testing.read(shared, new)['stage'] == 3
    old = testing.read(shared, new)
    for trial, _ in finished:  # of an earlier version
        folder = shared.folder / trial.folder
        (folder / 'stage.txt').unlink()
        write_json(folder / 'test.json', {name: value for name, value in old.items() if name != 'stage'})
    (shared.folder / new.folder / 'test.json').unlink()
    testing.run(shared, finished)
    assert testing.read(shared, new)['stage'] == 2


def fingerprints(params):
    """{path: SHA-256 of the bytes} of parameters."""
    leaves = tree.flatten(jax.device_get(params))
    return {path: hashlib.sha256(np.ascontiguousarray(leaf)).hexdigest() for path, leaf in leaves.items()}


@pytest.mark.parametrize('name', ['zero_shot', 'few_shot', 'nearest', 'search', 'content_free'])
def test_an_arm_that_prompts_changes_no_parameter_of_the_base(small, name):
    def change(config):
        config.compare.arms.search.budget = 10_000  # tokens: a few candidates

    shared, selected = small('unchanged', (name,), change, test=6)
    trial = trials.listed(shared, selected)[-1]  # of the largest size: with draws and templates
    before, files = fingerprints(shared.model.params), shared.base.hash
    record = trials.run(shared, trial, comparison.EXECUTE['prompt'])
    assert record['status'] == 'done', record['reason']
    [(_, record)] = testing.run(shared, [(trial, record)])
    assert testing.read(shared, trial) is not None and len(before) > 10
    assert fingerprints(shared.model.params) == before
    init = shared.config.init
    assert init_from.open_base(init.base, init.adapter, init.ignore).hash == files
    assert not list((shared.folder / trial.folder).rglob('checkpoints'))


def test_probabilities_that_are_nan_fail_the_trial_and_write_nothing(small, monkeypatch):
    shared, selected = small('broken', ('zero_shot',), test=6)
    [trial] = trials.listed(shared, selected)
    (shared.folder / trial.folder).mkdir(parents=True, exist_ok=True)
    nan = np.full((6, 3), np.nan)
    monkeypatch.setattr(testing, '_answers', lambda *arguments: (nan, 0))
    [(_, record)] = testing.run(shared, [(trial, {'status': 'done', 'chosen': {}})])
    assert record['status'] == 'failed' and record['reason'].startswith('on the test rows: ')
    assert testing.read(shared, trial) is None
    assert choice_scores.score(np.log([[0.5, 0.3, 0.2]] * 6), shared.task.train[:6], shared.task.classes).loss > 0


@pytest.mark.parametrize('too_long', ['cut', 'error'])
def test_a_test_row_that_is_longer_than_the_context_is_cut_and_counted(small, too_long):
    shared, selected = small(f'beyond_context_{too_long}', ('bm25',), test=4)
    shared.config.task.too_long = too_long
    trial = trials.listed(shared, selected)[0]
    (shared.folder / trial.folder).mkdir(parents=True, exist_ok=True)
    (shared.folder / trial.folder / 'test.json').unlink(missing_ok=True)
    path = shared.task.folder / 'test.jsonl'
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    lines[1]['prompt'] = 'mice sat ' * 100 + lines[1]['prompt']
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    chosen = {'instruction': '', 'shots': 2, 'select': 'bm25', 'score': 'sum', 'bias': [], 'temperature': 1.0}
    [(_, record)] = testing.run(shared, [(trial, {'status': 'done', 'chosen': chosen})])
    if too_long == 'cut':
        assert record['status'] == 'done' and testing.read(shared, trial)['cut'] == 1
    else:
        assert record['status'] == 'failed' and 'tokens even without demonstrations' in record['reason']
