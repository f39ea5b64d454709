"""The verb predict: a row for every row, in their order and with their columns, in the format of the name."""

import csv
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from configs import base
from launch import cli, process_setup
from lmtrain.training import load

KERNELS = np.random.default_rng(0).normal(0, 1, (16, 3)).astype(np.float32)


@pytest.fixture
def stub(computes, monkeypatch, tmp_path):
    """stub(task, labels, text fields): pretends that there is a run with an added head of this task."""
    model, params, tokenizer = computes

    def of(task, labels=(), text=('text',)):
        size = len(labels) or {'regress': 1, 'span': 2}[task]
        config = base.get_config()
        config.task.update(name=task, text=text, label='label')
        config.objective.pool = 'mean'
        headed = params | {'heads': {task: {'kernel': jnp.asarray(KERNELS[:, :size])}}}
        run = load.LoadedModel(config, model, tokenizer, headed, 0, [256], None, tuple(labels))
        monkeypatch.setattr(load, 'load_run', lambda *_: run)
        monkeypatch.setattr(load, 'load_directory', lambda *_: run)
        return run

    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    return of


def predict(*words):
    return cli.main(['predict', '--workdir=w', *words])


def apply(run, ids):
    return jax.jit(run.model.apply)({'params': run.params}, {'tokens': ids})


def shares(run, text):
    """float64 [C]: the softmax of the mean of the head's outputs over the tokens of one row, not padded."""
    ids = np.array([[256, *text.encode(), 256]], np.int32)
    (name,) = run.params['heads']
    outputs = apply(run, ids)[name]
    return scipy.special.softmax(np.asarray(outputs, np.float64)[0].mean(0))


def test_classes_of_a_csv(stub, capsys):
    run = stub('classify', ['bad', 'good', 'new'])
    texts = ['one', '', 'much longer, with a comma', ' ', 'x' * 100]
    rows = [['id', 'text', 'label'], *([f'0{i}', text, ''] for i, text in enumerate(texts))]
    with open('in.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(rows)
    assert predict('--rows=in.csv', '--to=out.csv', '--batch_size=2') == 0
    out, err = capsys.readouterr()
    assert out == 'written: out.csv\n'
    assert err.splitlines() == [
        "classify: 5 rows, read from 'text'",
        '2 without text: their prediction is empty',
        '1 longer than the context of the model: cut',
    ]
    with open('out.csv', newline='', encoding='utf-8') as file:
        written = list(csv.DictReader(file))
    names = ['id', 'text', 'label', 'prediction', 'probability', *(f'probabilities.{x}' for x in run.labels)]
    assert list(written[0]) == names and [row['id'] for row in written] == ['00', '01', '02', '03', '04']
    assert [row['text'] for row in written] == texts
    for row in (written[0], written[2]):
        expected = shares(run, row['text'])
        found = [float(row[f'probabilities.{label}']) for label in run.labels]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert row['prediction'] == run.labels[int(np.argmax(expected))]
        assert float(row['probability']) == max(found)
    assert [written[1][name] for name in names[3:]] == [''] * 5 == [written[3][name] for name in names[3:]]


def test_lines_of_a_text_file(stub, capsys):
    """Each line is a text, whatever the field that the training read was called."""
    run = stub('classify', ['bad', 'good', 'new'], text=('sentence',))
    pathlib.Path('in.txt').write_text('one, two\n\n"three"\n', encoding='utf-8')
    assert predict('--rows=in.txt', '--to=out.csv') == 0
    assert capsys.readouterr().err == "classify: 2 rows, read from 'text'\n"
    with open('out.csv', newline='', encoding='utf-8') as file:
        written = list(csv.DictReader(file))
    assert [row['text'] for row in written] == ['one, two', '"three"'] and 'label' not in written[0]
    expected = [run.labels[int(np.argmax(shares(run, row['text'])))] for row in written]
    assert [row['prediction'] for row in written] == expected


def test_numbers_of_a_jsonl(stub, capsys):
    run = stub('regress')
    lines = [{'text': 'one', 'prediction': 'mine'}, {'text': 'two', 'n': [1]}, {'text': None}]
    pathlib.Path('in.jsonl').write_text('\n\n'.join(map(json.dumps, lines)), encoding='utf-8')
    assert predict('--rows=in.jsonl', '--to=out.jsonl') == 0
    assert "the rows have a column 'prediction': the new one is 'prediction_2'" in capsys.readouterr().err
    written = [json.loads(line) for line in pathlib.Path('out.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [{name: row[name] for name in row if name != 'prediction_2'} for row in written] == lines
    ids = np.array([[256, *b'two', 256]], np.int32)
    number = np.asarray(apply(run, ids)['regress'])[0].mean()
    assert written[1]['prediction_2'] == pytest.approx(number, abs=1e-5) and written[2]['prediction_2'] is None


def test_tags_of_words_and_of_a_text(stub):
    run = stub('tag', ['O', 'B-X', 'I-X'], ('tokens',))
    lines = [{'tokens': ['Ada', 'met', 'Bob']}, {'tokens': 'Ada  met Bob'}, {'tokens': []}]
    pathlib.Path('in.jsonl').write_text('\n'.join(map(json.dumps, lines)), encoding='utf-8')
    assert predict('--rows=in.jsonl', '--to=out.jsonl') == 0
    first, second, third = (json.loads(x) for x in pathlib.Path('out.jsonl').read_text(encoding='utf-8').splitlines())
    ids = np.array([[256, *b'Ada met Bob', 256]], np.int32)
    outputs = np.asarray(apply(run, ids)['tag'], np.float64)[0]
    expected = scipy.special.softmax(outputs[[1, 5, 9]], axis=-1)  # at the first byte of each word
    assert first['prediction'] == [run.labels[i] for i in expected.argmax(-1)] == second['prediction']
    np.testing.assert_allclose(first['probability'], expected.max(-1), atol=1e-5)
    covered = {index for each in first['entities'] for index in range(each['begin'], each['end'])}
    assert covered == {i for i, tag in enumerate(first['prediction']) if tag != 'O'} and third['prediction'] is None
    for each in first['entities']:
        assert each['text'] == ' '.join(lines[0]['tokens'][each['begin'] : each['end']]) and each['type'] == 'X'


def test_answers_in_a_context(stub):
    run = stub('span', (), ('question', 'context'))
    lines = [{'question': 'who', 'context': 'it was Ada'}, {'question': 'who', 'context': 'it was Ada or Bob. ' * 5}]
    pathlib.Path('in.jsonl').write_text('\n'.join(map(json.dumps, lines)), encoding='utf-8')
    assert predict('--rows=in.jsonl', '--to=out.jsonl') == 0
    written = [json.loads(x) for x in pathlib.Path('out.jsonl').read_text(encoding='utf-8').splitlines()]
    for row in written:
        assert row['prediction'] == row['context'][row['begin'] : row['end']]
        assert 0 < row['probability'] <= 1 and 0 <= row['no_answer'] <= 1
    question, context = lines[0].values()
    ids = np.array([[256, *question.encode(), 256, *context.encode(), 256]], np.int32)
    scores = np.asarray(apply(run, ids)['span'], np.float64)[0]
    first = 1 + len(question) + 1
    p = scipy.special.softmax(scores[[0, *range(first, first + len(context))]], axis=0)  # the null span first
    products = np.triu(np.outer(p[1:, 0], p[1:, 1]))
    begin, end = np.unravel_index(products.argmax(), products.shape)
    assert written[0]['prediction'] == context[begin : end + 1].strip()
    assert written[0]['probability'] == pytest.approx(products.max(), rel=1e-4)
    assert written[0]['no_answer'] == pytest.approx(p[0, 0] * p[0, 1], rel=1e-4)


def test_a_failed_run_leaves_the_old_file(stub, monkeypatch):
    stub('classify', ['a', 'b', 'c'])
    pathlib.Path('in.csv').write_text('text\none\n', encoding='utf-8')
    pathlib.Path('out.csv').write_text('old', encoding='utf-8')
    monkeypatch.setattr('os.fsync', lambda _: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    assert predict('--rows=in.csv', '--to=out.csv') == 2
    assert pathlib.Path('out.csv').read_text(encoding='utf-8') == 'old'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], '--rows is missing, such as --rows=new.csv'),
        (['--rows=in.csv'], '--to is missing'),
        (['--rows=in.csv', '--to=out.xlsx'], 'rows are written as .jsonl or .csv'),
        (['--rows=in.csv', '--to=no/out.csv'], '--to=no/out.csv: there is no directory no'),
        (['--rows=no.csv', '--to=out.csv'], 'no.csv: no such file'),
        (['--rows=bad.jsonl', '--to=out.csv'], 'bad.jsonl:2: invalid JSON'),
        (['--rows=in.csv', '--to=out.csv', '--text=txt'], "in.csv:2: no field 'txt'; the fields there are: 'text'"),
        (
            ['--rows=in.csv', '--to=out.csv', '--labels=a,b'],
            'the head has 3 classes, and 2 are named: a, b: set labels',
        ),
        (['--rows=in.csv', '--to=out.csv', '--batch_size=0'], '--batch_size=0 must be at least 1'),
    ],
)
def test_errors_name_file_and_line(stub, capsys, words, message):
    stub('classify', ['a', 'b', 'c'])
    pathlib.Path('in.csv').write_text('text\none\n', encoding='utf-8')
    pathlib.Path('bad.jsonl').write_text('{"text": "a"}\n{\n', encoding='utf-8')
    assert predict(*words) == 2
    assert message in capsys.readouterr().err and not pathlib.Path('out.csv').exists()


def test_a_model_without_a_head_is_refused(computes, stub, capsys, monkeypatch):
    model, params, tokenizer = computes
    run = load.LoadedModel(None, model, tokenizer, params, 0, [256], None)
    monkeypatch.setattr(load, 'load_directory', lambda *_: run)
    pathlib.Path('in.csv').write_text('text\none\n', encoding='utf-8')
    assert cli.main(['predict', '--base=b', '--rows=in.csv', '--to=out.csv']) == 2
    assert 'the model has no head for classes, numbers, tags or spans' in capsys.readouterr().err
