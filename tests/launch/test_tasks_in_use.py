"""A run of each task with a head, from its rows to figures in a file and predictions for rows without a label."""

import json
import shlex

import pytest

from configs import tiny
from launch import cli
from lmtrain.training import train

TEXTS = [f'{word} number {n}' for n in range(12) for word in ('good', 'bad')]


def rows_of(task):
    """(fields of the text, rows) of a task."""
    if task == 'classify':
        return ('text',), [{'text': text, 'label': text.split()[0]} for text in TEXTS]
    if task == 'regress':
        return ('text',), [{'text': text, 'label': len(text) / 4} for text in TEXTS]
    if task == 'tag':
        return ('text',), [{'text': text.split(), 'label': ['B-Q', 'O', 'O']} for text in TEXTS]
    answer = [{'text': 'number', 'answer_start': 5}]
    return ('q', 'text'), [{'q': f'what {n}', 'text': 'good number', 'label': answer} for n in range(24)]


def recipe(folder, task):
    text, rows = rows_of(task)
    (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    config = tiny.get_config()
    config.task.update(name=task, train=(str(folder / 'rows.jsonl'),), text=text, label='label', buckets=1)
    config.data.update(cache=str(folder / 'cache'), seq_len=32, batch_size=8, validation=0.3, test=0.2)
    config.model.update(num_layers=1, width=16, num_heads=2)
    config.objective.pool = 'last'
    config.budget.steps = config.checkpoint.every_steps = config.evaluate.every_steps = 2
    config.log.update(tensorboard=False)
    return config


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classify', 'regress', 'tag', 'span'])
def test_figures_and_predictions(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.train(recipe(tmp_path, task), 'run')
    _, _, commands = capsys.readouterr().out.partition('next: ')
    use, measure = (shlex.split(command) for command in commands.splitlines())
    assert measure == ['lmtrain', 'evaluate', '--workdir=run', '--split=test']
    assert cli.main(measure[1:]) == 0 and 'test: loss ' in capsys.readouterr().out
    results = tmp_path / 'results.json'
    assert cli.main(['evaluate', f'--workdir={tmp_path / "run"}', f'--results={results}']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('validation: loss ') and all(len(line) <= 80 for line in lines[:-1])
    figures = json.loads(results.read_text(encoding='utf-8'), parse_constant=pytest.fail)['results']
    scores = {name for name, value in figures.items() if type(value) is float} - {'loss', 'targets'}
    assert 'loss_stderr' in scores
    scores = {name for name in scores if not name.endswith('_stderr')}
    assert figures['split'] == 'validation' and figures['loss'] > 0 and scores

    assert cli.main(['evaluate', '--workdir=run', '--rows=rows.jsonl', '--limit=20', f'--results={results}']) == 0
    line = ' '.join(capsys.readouterr().out.splitlines()[:-1])
    main = {'classify': 'accuracy', 'regress': 'absolute error', 'tag': 'entity f1', 'span': 'exact match'}[task]
    assert line.startswith(f'rows.jsonl: {main} ') and line.endswith('  (20 rows)')
    written = json.loads(results.read_text(encoding='utf-8'))
    assert written['results']['rows'] == len(written['rows']) == 20
    of_batches = {'accuracy'} if task in ('tag', 'span') else set()  # of words, of windows: not of rows
    assert scores - of_batches <= written['results'].keys()

    text, rows = rows_of(task)
    unlabelled = [{name: row[name] for name in text} for row in rows[:5]]
    (tmp_path / 'new.jsonl').write_text('\n'.join(map(json.dumps, unlabelled)), encoding='utf-8')
    assert use == ['lmtrain', 'predict', '--workdir=run', '--rows=new.jsonl', '--to=predicted.jsonl']
    assert cli.main(use[1:]) == 0
    written = [json.loads(line) for line in (tmp_path / 'predicted.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [{name: row[name] for name in text} for row in written] == unlabelled
    assert all(row['prediction'] is not None for row in written)
