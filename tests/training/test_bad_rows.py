"""Rows and templates that cannot be used are refused in one line that names them, before anything compiles."""

import json

import pytest

from launch import cli, process_setup

TALK = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
SPAN = {'q': 'who', 'c': 'the cat', 'a': [{'answer_start': 5, 'text': 'cat'}]}
CASES = {
    'a label outside': (
        'classify',
        {'t': 'a', 'l': 'x'},
        "text=('t',) label=l labels=('a','b')",
        "rows.jsonl:1: the label 'x'",
    ),
    'no label': ('classify', {'t': 'a'}, "text=('t',) label=l", "no field 'l'; the fields there are: 't'"),
    'a null label': (
        'classify',
        {'t': 'a', 'l': None},
        "text=('t',) label=l",
        "rows.jsonl:1: the field 'l' is null: write its value, or leave out the row",
    ),
    'a number that is none': (
        'regress',
        {'t': 'a', 'l': 'high'},
        "text=('t',) label=l",
        "is a finite number, here it is 'high'",
    ),
    'tags too few': ('tag', {'t': ['a', 'b'], 'l': ['O']}, "text=('t',) label=l", '2 words'),
    'a span outside': (
        'span',
        SPAN,
        "text=('q','c') label=a",
        "rows.jsonl:1: the answer 'cat' at 5 lies outside the text",
    ),
    'two formats': ('chat', {'messages': TALK, 'conversations': TALK}, '', 'rows.jsonl:1: fields of two formats'),
    'nothing to learn': ('chat', {'messages': TALK[:1]}, '', 'rows.jsonl:1: no token to train'),
    'a template that fails': ('chat', {'messages': TALK}, 'template=t.jinja', 'rows.jsonl:1: the chat template'),
    'a template that is not there': ('chat', {'messages': TALK}, 'template=u.jinja', 'config.task.template: no file'),
    'rows that are not there': ('chat', {'messages': TALK}, "train=('x.jsonl',)", 'x.jsonl: no such file'),
    'rows too long': ('chat', {'messages': [TALK[0], TALK[1] | {'content': 'b' * 99}]}, '', 'data.seq_len is 32'),
    'the first token of a decoder': (
        'classify',
        {'t': 'a', 'l': 'x'},
        "text=('t',) label=l objective.pool=first",
        'the first token of a row has read nothing of it',
    ),
    'no such task': ('clasify', {}, '', "task.name = 'clasify'"),
}


@pytest.mark.parametrize(('task', 'row', 'words', 'message'), CASES.values(), ids=CASES)
def test_invalid_rows_are_refused_in_one_line(task, row, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'rows.jsonl').write_text(json.dumps(row) + '\n')
    (tmp_path / 't.jinja').write_text("{{ raise_exception('roles\nmust alternate') }}")
    data = {'tokenizer': 'bytes', 'seq_len': 32, 'cache': 'cache', 'validation': 0.0, 'test': 0.0}
    argv = ['show', '--config=tiny', '--batch', f'--config.task.name={task}', "--config.task.train=('rows.jsonl',)"]
    argv += [f'--config.data.{name}={value}' for name, value in data.items()]
    argv += ['--config.objective.pool=last']
    argv += [f'--config.{word}' if word.startswith('objective.') else f'--config.task.{word}' for word in words.split()]
    assert cli.main(argv) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count('\n') == 1 and 'Traceback' not in error and not out
