"""Evaluation tasks on a small model: scores equal those of other functions and sums by hand."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lmtrain
from lmtrain.evaluation import task_file, task_run
from lmtrain.inference import prompting
from lmtrain.training.load import LoadedModel

ROWS = [{'text': text, 'label': 'ab'[index % 2]} for index, text in enumerate('cat dog hen owl pig'.split())]
FILE = """
[data]
files = "rows.jsonl"
[prompt]
template = "{text} is {label}"
answer = "label"
shots = 1
separator = "\\n"
"""


@pytest.fixture
def task(tmp_path):
    """A function from the section scoring, and more of the prompt, to a task."""

    def function(scoring, prompt='', rows=ROWS, text=FILE):
        (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        (tmp_path / 'quiz.toml').write_text(f'{text}{prompt}\n[scoring]\n{scoring}\n', encoding='utf-8')
        return task_file.read(tmp_path / 'quiz.toml')

    return function


@pytest.mark.parametrize('by, column', task_file.CHOICES.items())
def test_choices(task, computes, by, column):
    quiz = task(f'kind = "choices"\nby = "{by}"', 'choices = ["a", "b", "or neither"]', rows=[*ROWS, OTHER])
    evaluation = task_run.evaluate(quiz, *computes, batch_size=4)
    settings = quiz.settings._replace(batch_size=4)
    scores = prompting.score(*computes, quiz.rows, settings, demonstrations=quiz.demonstrations)
    assert [row['right'] for row in evaluation.rows] == [row[column] for row in scores.rows]
    results = evaluation.results
    p = np.mean([row[column] for row in scores.rows])
    assert results['value'] == results[results['metric']] == p and results['rows'] == 6
    assert results['stderr'] == pytest.approx((p * (1 - p) / 5) ** 0.5)
    assert results['interval'] == pytest.approx([*stats.binomtest(int(p * 6), 6).proportion_ci(method='wilson')])
    for number, (row, scored) in enumerate(zip(evaluation.rows, scores.rows, strict=True)):
        assert (row['row'], row['answer']) == (number, scored['answer'])
        assert (row['predicted'] == row['answer']) == row['right']
        nats = np.array(scored['calibrated_nats' if by == 'calibrated' else 'nats'])
        length = {'per_token': scored['tokens'], 'per_byte': [1, 1, 10]}.get(by, 1)
        assert row['predicted'] == row['choices'][int(np.argmax(nats / length))]
        expected = -(nats - np.logaddexp.reduce(nats))[row['choices'].index(row['answer'])]
        assert row['nats'] == pytest.approx(expected)
    assert {'engine', 'dtype', 'attention', 'batch_size'} <= results.keys() and results['batch_size'] == 4


OTHER = {'text': 'emu', 'label': 'or neither'}


def test_the_predicted_choice_depends_on_the_normalisation(task, computes):
    choices = ['a', 'bb', 'ccc', 'dddd', 'eeeee']
    rows = [row | {'label': choice} for row, choice in zip(ROWS, choices, strict=True)]
    predicted = []
    for by in ('raw', 'per_byte'):
        quiz = task(f'kind = "choices"\nby = "{by}"', f'choices = {json.dumps(choices)}', rows=rows)
        predicted.append([row['predicted'] for row in task_run.evaluate(quiz, *computes).rows])
    assert predicted[0] != predicted[1]


def test_scores_do_not_depend_on_the_batch_size(task, computes):
    quiz = task('kind = "choices"', 'choices = ["a", "b"]')
    one, many = (task_run.evaluate(quiz, *computes, batch_size=size).rows for size in (1, 8))
    for row, other in zip(one, many, strict=True):
        np.testing.assert_allclose(row['choice_nats'], other['choice_nats'], rtol=1e-5)


def test_generations(task, computes):
    quiz = task('kind = "generation"\nby = "regex"\npattern = "(.)"\nmax_tokens = 3')
    evaluation = task_run.evaluate(quiz, *computes)
    scores = prompting.score(*computes, quiz.rows, quiz.settings, demonstrations=quiz.demonstrations)
    texts = [row['predicted'] for row in scores.rows]
    assert [row['predicted'] for row in evaluation.rows] == texts
    right = [text[:1] == row['label'] for text, row in zip(texts, ROWS, strict=True)]
    assert evaluation.results['metric'] == 'regex_match' and evaluation.results['value'] == np.mean(right)
    assert 'exact_match' not in evaluation.results and 0 <= evaluation.results['stopped'] <= 1
    assert all(row['nats'] is None and row['finish_reason'] in ('stop', 'length') for row in evaluation.rows)


def test_several_scores_of_generations_have_standard_errors(task, computes):
    quiz = task('kind = "generation"\nby = "normalised"\nmax_tokens = 8\nstop = []')
    results = task_run.evaluate(quiz, *computes).results
    assert results['metric'] == 'normalised_match'
    assert {'word_f1', 'word_f1_stderr', 'normalised_match_stderr'} <= results.keys()


def test_perplexity(task, computes):
    text = '[data]\nfiles = "rows.jsonl"\n'
    evaluation = task_run.evaluate(task('kind = "perplexity"\ntext = "text"', text=text), *computes)
    assert evaluation.results['metric'] == 'bits_per_byte' and evaluation.results['bytes'] == 15
    low, high = evaluation.results['interval']
    assert low < evaluation.results['value'] < high
    assert [row['row'] for row in evaluation.rows] == [0, 1, 2, 3, 4]
    assert 'bits per byte' in task_run.line(evaluation.results)


def test_lines_fit_the_terminal(task, computes):
    line = task_run.line(task_run.evaluate(task('kind = "choices"', 'choices = ["a", "b"]'), *computes).results)
    assert line.startswith('quiz: accuracy ') and 'chance 50.0 %' in line and len(line) <= 80
    generated = task('kind = "generation"\nmax_tokens = 3')
    line = task_run.line(task_run.evaluate(generated, *computes).results)
    assert line.startswith('quiz: exact match ') and '% ended' in line and len(line) <= 80


# --- the public function


def loaded(computes) -> LoadedModel:
    model, params, tokenizer = computes
    return LoadedModel(None, model, tokenizer, params, 0, [tokenizer.end_id], None)


def test_the_public_function(tmp_path, task, computes):
    quiz = task('kind = "choices"', 'choices = ["a", "b"]')
    results = lmtrain.evaluate(loaded(computes), task=tmp_path / 'quiz.toml', batch_size=4)
    expected = task_run.evaluate(quiz, *computes, batch_size=4)
    assert results.pop('answers') == expected.rows and results == expected.results
    with pytest.raises(ValueError, match='shots with task: the task file holds the rows and the settings'):
        lmtrain.evaluate(loaded(computes), task=quiz, shots=3)


def test_conversations(task, computes):
    talk = [{'role': 'user', 'content': 'cat?'}, {'role': 'assistant', 'content': 'a'}]
    quiz = task(
        'kind = "generation"\nby = "json"\nschema = { type = "string" }\nmax_tokens = 3',
        text='[data]\nfiles = "rows.jsonl"\n[prompt]\nchat_template = "plain"\n',
        rows=[{'messages': talk}, {'messages': [*talk, *talk]}],
    )
    assert quiz.accepted == (('a',), ('a',)) and quiz.settings.template == ''
    results = lmtrain.evaluate(loaded(computes), task=quiz)
    assert results['metric'] == 'json_valid' and results['json_match'] == 0.0 and results['rows'] == 2


# --- heads


def with_head(computes, name):
    """The model with an added head of two outputs."""
    model, params, tokenizer = computes
    kernel = np.random.default_rng(0).normal(0, 1, (16, 2)).astype(np.float32)
    return model, params | {'heads': {name: {'kernel': jnp.asarray(kernel)}}}, tokenizer


HEAD_FILE = '[data]\nfiles = "rows.jsonl"\n'


def test_classes_by_a_head(task, computes):
    quiz = task('kind = "classify"\ntext = "text"\nlabel = "label"\nlabels = ["a", "b"]', text=HEAD_FILE)
    model, params, tokenizer = with_head(computes, 'classify')
    evaluation = task_run.evaluate(quiz, model, params, tokenizer, head=task_run.Head(pool='mean'), batch_size=2)
    expected, kernel = [], np.asarray(params['heads']['classify']['kernel'])
    for row in ROWS:
        ids = np.array([[tokenizer.begin_id, *row['text'].encode(), tokenizer.end_id]])
        hidden = model.apply({'params': params}, {'tokens': ids})['hidden'][0]
        expected.append('ab'[int(np.argmax(np.asarray(hidden).mean(0) @ kernel))])
    assert [row['predicted'] for row in evaluation.rows] == expected
    right = [a == row['label'] for a, row in zip(expected, ROWS, strict=True)]
    assert evaluation.results['metric'] == 'accuracy' and evaluation.results['value'] == np.mean(right)
    assert {'macro_f1', 'macro_f1_stderr'} <= evaluation.results.keys()


def test_tags_by_a_head(task, computes):
    rows = [{'tokens': ['ab', 'c'], 'tags': ['O', 'B-X']}, {'tokens': ['d'], 'tags': ['B-X']}]
    quiz = task('kind = "tag"\ntext = "tokens"\nlabel = "tags"\nlabels = ["O", "B-X"]', text=HEAD_FILE, rows=rows)
    evaluation = task_run.evaluate(quiz, *with_head(computes, 'tag'))
    assert evaluation.results['metric'] == 'entity_f1'
    assert [len(row['predicted']) for row in evaluation.rows] == [2, 1]


def test_answers_in_a_context_by_a_head(task, computes):
    rows = [{'q': 'who', 'c': 'it was Ada', 'a': [{'text': 'Ada', 'answer_start': 7}]}] * 2
    quiz = task('kind = "span"\ntext = ["q", "c"]\nlabel = "a"\ntoo_long = "cut"', text=HEAD_FILE, rows=rows)
    evaluation = task_run.evaluate(quiz, *with_head(computes, 'span'))
    assert evaluation.results['metric'] == 'exact_match' and 'answer_f1_stderr' in evaluation.results
    assert evaluation.rows[0]['answer'] == ['Ada'] and evaluation.rows[0]['predicted'] in 'it was Ada'


# --- bad input


@pytest.mark.parametrize(
    'scoring, prompt, message',
    [
        ('kind = "choices"', 'choices = ["a", "b"]', 'no language-model head'),
        ('kind = "perplexity"', '', 'only a causal language model'),
    ],
)
def test_an_encoder_is_not_prompted(task, computes, scoring, prompt, message):
    model, params, tokenizer = computes
    text = FILE if prompt else HEAD_FILE
    with pytest.raises(ValueError, match=message):
        task_run.evaluate(task(scoring, prompt, text=text), dataclasses.replace(model, head='none'), params, tokenizer)


def test_a_missing_head_is_named(task, computes):
    quiz = task('kind = "classify"\ntext = "text"\nlabel = "label"', text=HEAD_FILE)
    with pytest.raises(ValueError, match="needs a head for it; the model has model.head='lm', and added heads: none"):
        task_run.evaluate(quiz, *computes)
    with pytest.raises(ValueError, match='the head has 2 classes, and their names are not known: set labels'):
        task_run.evaluate(quiz, *with_head(computes, 'classify'))


def test_prompts_that_are_too_long_are_counted(task, computes):
    rows = [row | {'text': row['text'] * 20 * (index % 2)} for index, row in enumerate(ROWS)]
    quiz = task('kind = "choices"', 'choices = ["a", "b"]', rows=rows)
    with pytest.raises(ValueError, match='rows.jsonl:2: the prompt has .* first of 2 such rows of 5'):
        task_run.evaluate(quiz, *computes)
    quiz = task('kind = "choices"', 'choices = ["a", "b"]\ncut = true', rows=rows)
    results = task_run.evaluate(quiz, *computes).results
    assert results['cut'] == 2 and '2 prompts cut' in task_run.line(results)


def test_choices_with_the_same_tokens(task, computes):
    model, params, tokenizer = computes

    class Blind(type(tokenizer)):
        def encode_batch(self, texts):
            return super().encode_batch([text.replace('b', 'a') for text in texts])

    with pytest.raises(ValueError, match="rows.jsonl:1: the choices 'a' and 'b' have the same tokens"):
        task_run.evaluate(task('kind = "choices"', 'choices = ["a", "b"]'), model, params, Blind())
    rows = [row | {'options': ['a', 'b', 'b']} for row in ROWS]
    with pytest.raises(ValueError, match="rows.jsonl:1: the choices 'b' and 'b' have the same tokens"):
        task_run.evaluate(task('kind = "choices"', 'choices = "options"', rows=rows), model, params, tokenizer)
