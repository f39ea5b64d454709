"""New rows without labels are answered by what a trial chose, as the test stage answers the test rows."""

import csv
import json

import numpy as np
import pytest

from launch import cli, process_setup
from lmtrain.compare import comparison, new_rows, predictors, prompted, trained, trials
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.files import read_json, write_json


@pytest.fixture(scope='module')
def finished(small):
    """finished(arm) -> (comparison, a trial of the arm that is done, the content of its trial.json)."""

    def run(name):
        shared, selected = small('new_rows', (name,), templates=())
        write_json(shared.folder / 'config.json', shared.config.to_dict())
        trial = trials.listed(shared, selected)[-1]
        record = trials.finished(shared, trial) or trials.run(shared, trial, comparison.EXECUTE[trial.arm.kind])
        assert record['status'] == 'done', record['reason']
        return shared, trial, record

    return run


def columns(log_p, classes):
    return [
        {'prediction': classes[int(np.argmax(row))], 'probability': pytest.approx(np.exp(row.max()), abs=1e-5)}
        for row in log_p
    ]


@pytest.mark.slow
@pytest.mark.parametrize('arm', ['zero_shot', 'bm25', 'nearest', 'search', 'head', 'lora_text'])
def test_rows_are_answered_as_in_the_comparison(finished, arm):
    shared, trial, record = finished(arm)
    rows = shared.task.selection
    if trial.arm.kind == 'train':
        loaded = trained.load(shared, trial, record['chosen'])
        expected = trained.predictor(shared, trial, loaded, record['chosen'])(rows)
    else:
        expected = prompted.predictor(shared, trial, record['chosen'])(rows)
    answers = new_rows.open_trial(shared.folder / trial.folder)
    new = [row._replace(fields={'note': row.fields['text'], 'animal': 'an answer that is not read'}) for row in rows]
    predicted, cut = new_rows.predict(answers, new, batch_size=3)
    assert cut == 0 and answers.text == ('note',)
    assert [{name: row[name] for name in ('prediction', 'probability')} for row in predicted] == columns(
        expected, shared.task.classes
    )
    for row in predicted:
        assert tuple(row['probabilities']) == shared.task.classes
        assert sum(row['probabilities'].values()) == pytest.approx(1) and max(row['probabilities'].values()) < 1


def test_the_verb_writes_a_file(finished, tmp_path, monkeypatch, capsys):
    shared, trial, _ = finished('bm25')
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'new.csv').write_text('id,words\n1,4 cats sat\n2,\n3,' + 'mice sat ' * 100 + '\n', encoding='utf-8')
    words = ['predict', f'--workdir={shared.folder / trial.folder}', '--rows=new.csv', '--to=out.csv']
    assert cli.main([*words, '--text=words']) == 0
    assert capsys.readouterr().err.splitlines() == [
        "bm25, 16 labelled rows, seed 1: 3 rows, read from 'words'",
        '1 without text: their prediction is empty',
        '1 longer than the context of the model: cut',
    ]
    written = list(csv.DictReader((tmp_path / 'out.csv').read_text(encoding='utf-8').splitlines()))
    names = ['prediction', 'probability', *(f'probabilities.{name}' for name in shared.task.classes)]
    assert list(written[0]) == ['id', 'words', *names] and written[0]['prediction'] in shared.task.classes
    assert [written[1][name] for name in names] == [''] * 5 and written[2]['prediction'] in shared.task.classes
    for flag, message in (
        ([], "no field 'note'; the fields there are: 'id', 'words'. Set text (--text) to one of them"),
        (['--text=id,words'], 'text = id, words: the comparison reads 1, note'),
        (['--text=words', '--step=4'], '--step with '),
        (['--text=words', '--labels=a,b'], '--labels with '),
    ):
        assert cli.main([*words, *flag]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize('select', ['fixed', 'first'])
def test_a_row_of_the_training_has_all_the_others_as_demonstrations(small, select):
    shared, selected = small('new_rows', ('bm25',), templates=())
    trial = trials.listed(shared, selected)[0]
    chosen = {'instruction': '', 'shots': 4, 'select': select, 'score': 'sum', 'bias': [], 'temperature': 2.0}
    pool, form = prompted.prompt(shared, trial, chosen)
    assert len(pool) == 4
    row = pool[1]
    new = [row, *shared.task.selection[:2]]
    predicted, _ = new_rows.predict(
        new_rows.Answers(shared, trial, chosen), [each._replace(fields={'note': each.fields['text']}) for each in new]
    )
    others = [each for each in pool if each is not row]
    expected = [
        predictors.by_likelihood(shared.model, others, form._replace(shots=3), chosen)([row])[0],
        *predictors.by_likelihood(shared.model, pool, form, chosen)(new[1:]),
    ]
    assert [{name: each[name] for name in ('prediction', 'probability')} for each in predicted] == columns(
        expected, shared.task.classes
    )


def test_rows_with_labels_are_scored(finished, tmp_path, monkeypatch, capsys):
    shared, trial, _ = finished('bm25')
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    rows = [{'note': row.fields['text'], 'kind': row.fields['label']} for row in shared.task.selection]
    new = [Row('', row) for row in rows]
    predicted, _ = new_rows.predict(new_rows.open_trial(shared.folder / trial.folder), new)
    for row, own in zip(rows[:5], predicted):
        row['kind'] = own['prediction']
    right = [row['kind'] == own['prediction'] for row, own in zip(rows, predicted)]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    words = ['evaluate', f'--workdir={shared.folder / trial.folder}', '--rows=rows.jsonl']
    assert cli.main([*words, '--answer=kind', '--results=out.json']) == 0
    assert capsys.readouterr().out.startswith(f'rows.jsonl: accuracy {np.mean(right):.4f} +- ')
    written = read_json(tmp_path / 'out.json')
    assert [row['right'] for row in written['rows']] == right and written['results']['rows'] == 8
    for flag, message in (
        ([], "no field 'animal'; the fields there are: 'note', 'kind'. Set answer (--answer) to one of them"),
        (['--answer=kind', '--shots=2'], '--shots with '),
    ):
        assert cli.main([*words, *flag]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(words[:2]) == 2
    assert 'is the trial of a prompted arm, which trains nothing' in capsys.readouterr().err


@pytest.mark.parametrize('verb', ['predict --rows=new.csv --to=out.csv', 'generate', 'evaluate'])
def test_the_folder_of_a_comparison_is_no_run(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'new.csv').write_text('text\none\n', encoding='utf-8')
    (tmp_path / 'which/rows').mkdir(parents=True)
    write_json(tmp_path / 'which/config.json', {})
    write_json(tmp_path / 'which/rows/rows.json', {})

    def message():
        assert cli.main([*verb.split(), '--workdir=which']) == 2
        return capsys.readouterr().err.strip().partition('which is the folder of a comparison, not of a run: ')[2]

    assert message() == 'none of its trials is done yet'
    for arm, status in (('bm25', 'done'), ('few_shot', 'failed'), ('head', 'done')):
        folder = tmp_path / 'which/trials' / arm / 'n4-seed1'
        folder.mkdir(parents=True)
        write_json(folder / 'trial.json', {'status': status})
        if arm == 'bm25':
            assert message() == f'name one of its trials, such as {folder.relative_to(tmp_path)}'
    write_json(folder / 'config.json', {})  # of a run: every verb reads this trial
    assert message() == 'name one of its trials, such as which/trials/head/n4-seed1'


def test_trial_of_other_settings_or_without_a_result_is_refused(finished, tmp_path):
    shared, trial, record = finished('bm25')
    folder = tmp_path / trial.folder
    folder.mkdir(parents=True)
    for name in ('rows', 'config.json'):
        (tmp_path / name).symlink_to(shared.folder / name)
    write_json(folder / 'trial.json', record | {'status': 'failed', 'reason': 'no memory'})
    with pytest.raises(InputError, match=r'n16-seed1: this trial has failed \(no memory\)'):
        new_rows.open_trial(folder)
    write_json(folder / 'trial.json', record)
    assert new_rows.open_trial(folder).chosen == record['chosen']
    config = read_json(shared.folder / 'config.json')
    config['compare']['arms']['bm25']['shots'] = 3
    (tmp_path / 'config.json').unlink()
    (tmp_path / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    with pytest.raises(InputError, match='other settings of this arm, another base or other rows'):
        new_rows.open_trial(folder)
    del config['compare']['arms']['bm25']
    config['compare']['only'] = []
    (tmp_path / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    with pytest.raises(InputError, match='other settings of this arm'):
        new_rows.open_trial(folder)
