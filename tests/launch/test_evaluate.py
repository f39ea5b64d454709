"""The verb evaluate passes its flags on: to `load.evaluate_split`, or with --rows to `prompting.score`."""

import json
import pathlib

import pytest

from configs import base
from launch import cli, process_setup
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.evaluation import task_run
from lmtrain.inference import prompting
from lmtrain.training import load, reward_scores

CHATS = Template(PLAIN, 'plain')


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Pretends that there is a run and that rows are scored; the calls of both functions."""
    calls = {}

    def score(model, params, tokenizer, rows, settings, **others):
        calls['score'] = [row.fields for row in rows], settings._asdict() | others
        return prompting.Scores(
            {'rows': len(rows), 'shots': 0, 'dropped': 0, 'cut': 0, 'accuracy': 0.5}, [{'right': 1}]
        )

    def evaluate_split(*words):
        calls['split'] = words
        return {'loss': 2.0, 'loss_stderr': 0.25, 'targets': 8.0, 'bits_per_token': 2.0}

    run = load.LoadedModel(None, None, Bytes(), {}, 0, [256, 7], CHATS)
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.setattr(load, 'load_run', lambda workdir, step, member: run)
    monkeypatch.setattr(load, 'evaluate_split', evaluate_split)
    monkeypatch.setattr(prompting, 'score', score)
    monkeypatch.setattr(prompting, 'line', lambda results: f'{results["rows"]} rows')
    monkeypatch.chdir(tmp_path)
    pathlib.Path('rows.csv').write_text('q,a\n' + ''.join(f'{n},{n * n}\n' for n in range(5)), encoding='utf-8')
    pathlib.Path('few.csv').write_text('q,a\n7,49\n', encoding='utf-8')
    pathlib.Path('w').mkdir()
    pathlib.Path('w', 'config.json').write_text(base.get_config().to_json(), encoding='utf-8')
    return calls


ASKED = ['evaluate', '--workdir=w', '--rows=rows.csv', '--template={q}: {a}', '--answer=a']


def test_rows_and_settings_reach_the_function(stub, capsys):
    words = ['--limit=3', '--system=Be brief.', '--seed=5', '--max_tokens=9', '--batch_size=4', '--results=out.json']
    assert cli.main([*ASKED, *words]) == 0
    rows, settings = stub['score']
    assert [row['q'] for row in rows] == ['0', '1', '2']
    wanted = {'template': '{q}: {a}', 'answer': 'a', 'choices': (), 'shots': 0, 'demonstrations': [], 'seed': 5}
    wanted |= {'max_tokens': 9, 'batch_size': 4, 'system': 'Be brief.', 'chat_template': CHATS}
    assert {name: settings[name] for name in wanted} == wanted
    assert settings['end_ids'][:2] == [256, 7]
    assert capsys.readouterr().out == '3 rows\nwritten: out.json\n'
    assert json.loads(pathlib.Path('out.json').read_text(encoding='utf-8'))['rows'] == [{'right': 1}]


def test_settings_of_demonstrations_reach_the_function(stub, capsys):
    words = ['--shots=max', '--select=bm25', '--instruction=Square it.', '--choices=49,4', '--calibrated']
    assert cli.main([*ASKED, *words]) == 0
    wanted = {'shots': -1, 'select': 'bm25', 'instruction': 'Square it.', 'calibrated': ('N/A', '[MASK]', '')}
    assert {name: stub['score'][1][name] for name in wanted} == wanted
    assert cli.main([*ASKED, '--shots=many']) == 2
    assert "--shots=many is neither a number nor 'max'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'drawn'),
    [
        ([], []),
        (['--shots=2'], ['0', '1', '2', '3', '4']),
        (['--shots=2', '--limit=1'], ['0', '1', '2', '3', '4']),
        (['--shots=2', '--demonstrations=few.csv'], ['7']),
        (['--demonstrations=few.csv'], ['7']),  # without shots they still say which answers there are
    ],
)
def test_demonstrations(stub, words, drawn):
    assert cli.main([*ASKED, *words]) == 0
    assert [row.fields['q'] for row in stub['score'][1]['demonstrations']] == drawn


@pytest.mark.parametrize(('text', 'choices'), [('yes,no, maybe', ['yes', 'no', ' maybe']), ('options', 'options')])
def test_choices_are_a_list_or_a_field(stub, text, choices):
    assert cli.main([*ASKED, f'--choices={text}']) == 0
    assert stub['score'][1]['choices'] == choices


@pytest.mark.parametrize(
    ('words', 'choices'),
    [
        (['--limit=2'], ['0', '1', '16', '4', '9']),
        (['--limit=2', '--shots=1'], ['0', '1', '16', '4', '9']),
        (['--limit=2', '--demonstrations=few.csv'], ['49']),
    ],
)
def test_choices_are_the_answers_of_all_rows_also_beyond_the_limit(stub, words, choices):
    assert cli.main([*ASKED, '--choices=a', *words]) == 0
    rows, settings = stub['score']
    assert len(rows) == 2 and settings['choices'] == choices


def test_rows_beyond_the_limit_tell_indices_from_texts(stub):
    rows = [{'q': 'a', 'c': ['1', '0'], 'a': '0'}, {'q': 'b', 'c': ['x', 'y'], 'a': '1'}]
    pathlib.Path('own.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    words = ['--rows=own.jsonl', '--template={q}: {a}', '--answer=a', '--choices=c', '--limit=1']
    assert cli.main(['evaluate', '--workdir=w', *words]) == 0
    assert [row['a'] for row in stub['score'][0]] == ['1']


def test_what_the_reader_chose_and_skipped_is_printed_once(stub, capsys):
    pathlib.Path('cells.csv').write_text('q;a\n1;1\n\n2;4\n', encoding='utf-8')
    words = ['--template={q}: {a}', '--answer=a', '--demonstrations=cells.csv', '--shots=1']
    assert cli.main(['evaluate', '--workdir=w', '--rows=cells.csv', *words]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("cells.csv: the cells are separated by ';'") == 1 and captured.out == '2 rows\n'


def test_split_is_evaluated_at_the_checkpoint(stub, capsys):
    assert cli.main(['evaluate', '--workdir=w', '--split=test', '--step=30']) == 0
    assert stub['split'] == (pathlib.Path('w'), 'test', 30, 0, {}, reward_scores.scorer)
    assert capsys.readouterr().out == 'test: loss 2.0000 +- 0.2500, bits per token 2.0000  (8 tokens)\n'


@pytest.mark.parametrize(('task', 'count'), [('classify', '8 rows'), ('tag', '8 words'), ('reward', '8 pairs')])
def test_split_is_counted_in_the_unit_of_its_task(stub, capsys, task, count):
    config = base.get_config()
    config.task.name = task
    pathlib.Path('w', 'config.json').write_text(config.to_json(), encoding='utf-8')
    assert cli.main(['evaluate', '--workdir=w']) == 0
    assert capsys.readouterr().out.endswith(f'  ({count})\n')


def test_missing_source_is_named_by_its_flag(stub, capsys):
    assert cli.main(['evaluate', '--workdir=w', '--source=no.txt']) == 2
    error = ' '.join(capsys.readouterr().err.split())
    assert 'no.txt: no such file' in error and "--source is 'python'" in error and 'data.' not in error


def test_invalid_results_path_is_rejected_first(stub, capsys):
    for words, error in ((['--results=no/f.json'], 'there is no directory no'), (['--results=.'], 'is a directory')):
        assert cli.main(['evaluate', '--workdir=w', *words]) == 2
        assert error in capsys.readouterr().err and not stub


TASK = """
[data]
files = "rows.csv"
[prompt]
template = "{q}: {a}"
answer = "a"
[scoring]
kind = "generation"
"""


def test_a_task_is_scored_and_written(stub, monkeypatch, capsys):
    calls = {}

    def evaluate(task, *model, **settings):
        calls.update(settings, name=task.name)
        results = {'task': 'squares', 'kind': 'generation', 'metric': 'exact_match', 'value': 0.5, 'stderr': 0.1}
        return task_run.Evaluation(results | {'rows': 2}, [{'row': 0, 'answer': 'é'}, {'row': 1, 'answer': 'b'}])

    monkeypatch.setattr(task_run, 'evaluate', evaluate)
    pathlib.Path('squares.toml').write_text(TASK, encoding='utf-8')
    words = ['evaluate', '--workdir=w', '--task=squares.toml', '--outputs=out.jsonl', '--results=out.json']
    assert cli.main([*words, '--batch_size=3']) == 0
    assert (calls['name'], calls['batch_size'], calls['template'], calls['end_ids'][:2]) == (
        'squares',
        3,
        CHATS,
        [256, 7],
    )
    expected = 'squares: exact match 50.0 +- 10.0 %  (2 rows)\nwritten: out.jsonl\nwritten: out.json\n'
    assert capsys.readouterr().out == expected
    lines = pathlib.Path('out.jsonl').read_text(encoding='utf-8').splitlines()
    assert [json.loads(line)['answer'] for line in lines] == ['é', 'b']
    assert json.loads(pathlib.Path('out.json').read_text(encoding='utf-8'))['results']['value'] == 0.5


@pytest.mark.parametrize(
    'words, message',
    [
        (['--task=squares.toml', '--shots=2'], '--shots with --task: squares.toml holds the rows and the settings'),
        (['--task=squares.toml', '--outputs=no/o.jsonl'], '--outputs=no/o.jsonl: there is no directory no'),
        (['--outputs=o.jsonl', '--rows=rows.csv'], '--outputs without --task'),
        (['--task=other.toml'], 'other.toml: No such file'),
        (['--rows=rows.csv', '--limit=-1'], '--limit=-1: -1 is not a non-negative integer'),
        (['--rows=rows.csv', '--seed=-1'], '--seed=-1: -1 is not a non-negative integer'),
        (['--source=a.txt', '--batch_size=0'], '--batch_size=0: 0 is not a positive integer'),
    ],
)
def test_invalid_use_of_a_task_is_refused(stub, capsys, words, message):
    pathlib.Path('squares.toml').write_text(TASK, encoding='utf-8')
    assert cli.main(['evaluate', '--workdir=w', *words]) == 2
    assert message in capsys.readouterr().err
