"""The requests of the comparison with lm-eval, and the comparison of its answers."""

import json

from experiments.evaluator import requests, task_files
from lmtrain.evaluation import task_file
from lmtrain.inference.questions import ask


def test_rows_become_requests(tmp_path):
    lines = [{'query': f'q{n}', 'choices': ['a', 'b c'], 'gold': n % 2} for n in range(4)]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, lines)), encoding='utf-8')
    rows = requests.multiple_choice(tmp_path / 'rows.jsonl', '{query}:', 3)
    assert [row.context for row in rows] == ['q0:', 'q1:', 'q2:']
    assert [r.args for r in requests.log_likelihoods(rows[:1])] == [('q0:', ' a'), ('q0:', ' b c')]
    (last,) = requests.with_shots(rows, 2)
    assert last.context == 'q0: a\n\nq1: b c\n\nq2:'
    ((context, settings),) = (request.args for request in requests.generations([last], 5))
    assert context == last.context and settings['max_gen_toks'] == 5


def test_articles_begin_at_titles(tmp_path):
    text = ' \n = One = \n \n a b \n = = Part = = \n <unk> c \n = Two words = \n d \n'
    (tmp_path / 'valid.txt').write_text(text, encoding='utf-8')
    articles = [request.args[0] for request in requests.texts(tmp_path / 'valid.txt', 5)]
    assert articles == [' = One = \n \n a b \n = = Part = = \n unk c \n', ' = Two words = \n d \n']


def test_answers_are_compared_row_by_row():
    rows = [requests.Row('x', ('a', 'b'), 0), requests.Row('y', ('a', 'b', 'c'), 2)]
    ours = [(-1.0, True), (-2.0, False), (-3.0, False), (-2.0, False), (-1.0, True)]
    theirs = [(-1.5, True), (-2.0, False), (-3.0, False), (-0.5, False), (-1.0, False)]
    assert requests.compared(rows, ours, theirs) == {
        'rows': 2,
        'same_predictions': 1,
        'accuracy': [1.0, 0.5],
        'largest_difference': 1.5,
        'same_greedy': 0.8,
    }


def test_task_files_ask_what_the_requests_ask(tmp_path):
    rows = [requests.Row('x "1"', ('a', 'b c'), 1), requests.Row('y\nAnswer:', ('1', '2', '3'), 0)]
    task = task_file.read(task_files.choices(tmp_path / 'own.toml', rows))
    asked, _ = ask(task.rows, task.settings)
    pairs = [(q.context + choice, choice == q.answer) for q in asked for choice in q.choices]
    right = [choice == row.choices[row.gold] for row in rows for choice in row.choices]
    assert pairs == [(''.join(r.args), own) for r, own in zip(requests.log_likelihoods(rows), right, strict=True)]
    texts = [requests.Request((text,)) for text in (' = One = \n', 'é')]
    task = task_file.read(task_files.perplexity(tmp_path / 'texts.toml', texts))
    assert task.kind == 'perplexity' and [row.fields['text'] for row in task.rows] == [' = One = \n', 'é']


def test_banking77_rows_have_all_intents(tmp_path):
    (tmp_path / 'train.csv').write_text('text,category\n"a, b ",x_y\nc,z\n', encoding='utf-8')
    first, second = requests.banking77(tmp_path / 'train.csv')
    assert first == ('a, b\nIntent:', ('x y', 'z'), 0) and second.gold == 1
