"""Predictions of rows and the bits per byte of a source, through the public object."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import lmtrain
from lmtrain.api import rows
from lmtrain.api.model import Model
from lmtrain.errors import InputError
from lmtrain.evaluation import perplexity


@pytest.fixture
def loaded(computes):
    model, params, tokenizer = computes
    return Model(None, model, tokenizer, params, 0, [256], None)


def with_head(loaded, name, size, **fields):
    """A Hugging Face model with a head of its own: the row's last token."""
    model = dataclasses.replace(loaded.model, head=name, num_labels=size, head_pool='last', head_bias=False, tied=False)
    kernel = jnp.asarray(np.random.default_rng(0).normal(0, 1, (16, size)), jnp.float32)
    params = {key: leaf for key, leaf in loaded.params.items() if key != 'lm_head'}
    return loaded._replace(model=model, params=params | {'task_head': {'out': {'kernel': kernel}}}, **fields)


def test_a_source_is_scored_document_by_document(loaded, tmp_path):
    (tmp_path / 'a.txt').write_text('cats sat\non mats\n', encoding='utf-8')
    (tmp_path / 'b.txt').write_text('é' * 70, encoding='utf-8')
    results = loaded.evaluate(source=tmp_path)
    texts = ['cats sat\non mats\n', 'é' * 70]
    expected, _ = perplexity.bits_per_byte(loaded.model, loaded.params, loaded.tokenizer, texts)
    assert {name: results[name] for name in expected} == expected and results['documents'] == 2
    assert results['loss'] == pytest.approx(results['bits_per_byte'] * np.log(2))  # a token is a byte here
    lines = lmtrain.evaluate(loaded, source=tmp_path / 'a.txt', overrides={'data.document': 'line'})
    assert lines['documents'] == 2 and lines['bytes'] < results['bytes']
    coarse = loaded.evaluate(source=tmp_path, overrides={'model.dtype': 'bfloat16', 'data.batch_size': 1})
    assert 0 < abs(coarse['bits_per_byte'] - results['bits_per_byte']) < 0.1


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ({'source': 'nowhere.txt'}, 'nowhere.txt'),
        ({'source': 'x', 'overrides': {'optimizer.name': 'sgd'}}, 'config.optimizer.name has no effect on an eval'),
        ({'rows': [{'a': 'b'}], 'overrides': {'data.batch_size': 1}}, 'overrides with rows or task'),
        ({}, 'a split belongs to a run, and this model is a Hugging Face directory'),
        ({'shots': 1}, 'shots without rows'),
    ],
)
def test_invalid_evaluations_are_refused(loaded, words, message):
    with pytest.raises((InputError, FileNotFoundError), match=message):
        loaded.evaluate(**words)


TEXTS = ['cats', 'sat', 'on', 'mats', 'and ' * 30, 'slept']


def test_classes_of_rows_are_scored_by_the_head(loaded, tmp_path):
    model = with_head(loaded, 'classify', 3, labels=('x', 'y', 'z'))
    predicted = [row['prediction'] for row in model.predict(TEXTS)]
    labels = [*predicted[:4], *('z' if label == 'x' else 'x' for label in predicted[4:])]
    (tmp_path / 'a.csv').write_text(
        'words,class\n' + ''.join(f'{text},{label}\n' for text, label in zip(TEXTS, labels)), encoding='utf-8'
    )
    results = model.evaluate(rows=str(tmp_path / 'a.csv'), text='words', answer='class', batch_size=4)
    assert results['accuracy'] == results['value'] == pytest.approx(4 / 6) and 0 < results['macro_f1'] < 1
    assert results['rows'] == 6 and results['too_long'] == 1
    assert [row['predicted'] for row in results['answers']] == predicted
    assert [row['right'] for row in results['answers']] == [1] * 4 + [0] * 2


def test_numbers_of_rows_are_scored_by_the_head(loaded):
    model = with_head(loaded, 'classify', 1)
    numbers = [row['prediction'] for row in model.predict(TEXTS)]
    labels = [0.5, -1.0, 2.0, 0.25, 1.5, -0.75]
    results = model.evaluate(rows=[{'text': text, 'label': label} for text, label in zip(TEXTS, labels)])
    errors = np.array(numbers) - labels
    assert results['metric'] == 'absolute_error' and results['value'] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert results['squared_error'] == pytest.approx((errors**2).mean(), rel=1e-5)
    assert results['pearson'] == pytest.approx(scipy.stats.pearsonr(numbers, labels)[0], rel=1e-5)
    assert results['interval'][0] < results['value'] < results['interval'][1] and 'right' not in results['answers'][0]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ({'shots': 2}, 'shots without a template: the model has a head for classify'),
        (
            {'answer': 'class'},
            r"row 0: no field 'class'; the fields there are: 'text', 'label'. Set answer \(--answer\)",
        ),
        ({'text': 'body'}, r"row 0: no field 'body'.*Set text \(--text\)"),
        ({'labels': ('x', 'y')}, 'the head has 3 classes, and 2 are named: x, y: set labels'),
    ],
)
def test_invalid_evaluations_of_a_head_are_refused(loaded, words, message):
    model = with_head(loaded, 'classify', 3, labels=('x', 'y', 'z'))
    with pytest.raises(InputError, match=message):
        model.evaluate(rows=[{'text': 'a', 'label': 'x'}], **words)


def test_null_is_an_empty_text_of_a_pair(loaded):
    model = with_head(loaded, 'classify', 2, labels=('x', 'y'))
    pairs = [[{'text': 'a', 'other': other, 'label': label} for label in 'xy'] for other in (None, '')]
    null, empty = (model.evaluate(rows=rows, text=('text', 'other')) for rows in pairs)
    assert null == empty and null['rows'] == 2
    with pytest.raises(InputError, match="row 0: the field 'label' is null: write its value"):
        model.evaluate(rows=[{'text': 'a', 'label': None}])


class NAType:
    """What pandas has for a missing text; its truth value and its equality are errors there."""

    def __bool__(self):
        raise TypeError('boolean value of NA is ambiguous')


def test_values_of_numpy_and_pandas_are_read(loaded):
    model = with_head(loaded, 'classify', 2, labels=('0', '1'))
    one, other = model.predict(['cats', 'mats'])
    empty = {'prediction': None}
    for missing in (None, np.nan, np.float64('nan'), NAType()):
        assert model.predict(['cats', missing, 'mats']) == [one, empty, other]
        assert model.predict([{'text': 'cats'}, {'text': missing}]) == [one, empty]
    assert model.predict(np.array(['cats', 'mats'])) == [one, other] and model.predict([None]) == [empty]
    labelled = [{'text': text, 'label': np.int64(label)} for text, label in (('cats', 0), ('mats', 1))]
    plain = [row | {'label': int(row['label'])} for row in labelled]
    assert model.evaluate(rows=labelled) == model.evaluate(rows=plain)
    numbers = with_head(loaded, 'classify', 1)
    targets = [{'text': 'a', 'label': np.float32(0.5)}, {'text': 'b', 'label': np.float64(2)}]
    assert numbers.evaluate(rows=targets)['rows'] == 2
    tags = with_head(loaded, 'tag', 2, labels=('O', 'B'))
    words = np.array(['cats', 'sat'], object)
    (tagged,) = tags.predict([{'text': words}])
    assert len(tagged['prediction']) == 2 and tags.predict([{'text': words[:0]}]) == [empty]
    assert tags.evaluate(rows=[{'text': words, 'label': np.array([0, 1])}])['rows'] == 1
    talk = np.array([{'role': 'user', 'content': np.array([{'type': 'text', 'text': 'a'}])}])
    (row,) = rows.as_rows([{'messages': talk, 'day': np.datetime64('2026-01-31'), 'pair': ('a', 'b')}])
    assert row.fields['messages'] == [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}]
    assert str(row.fields['day']) == '2026-01-31' and row.fields['pair'] == ('a', 'b')


@pytest.mark.parametrize('row', [3, None, ['text', 'a']])
def test_other_rows_are_refused(loaded, row):
    with pytest.raises(InputError, match='row 1 is .*: rows are dicts'):
        with_head(loaded, 'classify', 2, labels=('x', 'y')).predict([{'text': 'a'}, row])


class Frame:
    """What an iteration of a DataFrame gives, and its truth value."""

    columns = ('text',)

    def __iter__(self):
        return iter(self.columns)

    def __bool__(self):
        raise ValueError('The truth value of a DataFrame is ambiguous')


@pytest.mark.parametrize(
    ('columns', 'message'),
    [
        ({'text': ['a', 'b'], 'label': [0, 1]}, r"a dict with the keys 'text', 'label': pass a list of dicts, .*zip"),
        ({'text': 'a'}, r"a dict with the keys 'text': pass a list of dicts, \[row\] for one row"),
        (Frame(), r"a table \(Frame\): pass a list of dicts, such as df\.to_dict\('records'\)"),
    ],
)
def test_columns_are_not_read_as_texts(loaded, columns, message):
    """An iteration gives their names."""
    model = with_head(loaded, 'classify', 2, labels=('a', 'b'))
    for read in (model.predict, rows.as_rows, lambda columns: model.evaluate(rows=columns)):
        with pytest.raises(InputError, match=message):
            read(columns)


def test_the_task_of_a_pretrained_head(loaded):
    assert rows.predicted_task(with_head(loaded, 'classify', 3)).name == 'classify'
    assert rows.predicted_task(with_head(loaded, 'classify', 1)).num_outputs == 1
    assert rows.predicted_task(with_head(loaded, 'tag', 3)).labels_words
    assert rows.predicted_task(with_head(loaded, 'span', 2)).num_outputs == 2
    with pytest.raises(InputError, match='the model has no head for classes'):
        rows.predicted_task(loaded)


@pytest.mark.slow
def test_texts_and_dicts_are_rows(loaded):
    model = with_head(loaded, 'classify', 2, labels=('a', 'b'))
    one, other = model.predict(['cats', 'mats'])
    assert one.keys() == {'prediction', 'probability', 'probabilities'} and sum(one['probabilities'].values()) == (
        pytest.approx(1, abs=1e-6)
    )
    assert model.predict([{'s': 'mats', 'label': 'unread'}, {'s': ''}], text='s') == [other, {'prediction': None}]
    assert model.predict({'text': text} for text in ('cats', 'mats')) == [one, other]
    assert model._replace(labels=()).predict(['mats'], labels=['x', 'y'])[0]['prediction'] in 'xy'
    with pytest.raises(InputError, match="row 0: no field 'text'; the fields there are: 's'"):
        model.predict([{'s': 'mats'}])
    with pytest.raises(InputError, match='the head has 2 classes, and their names are not known: set labels'):
        model._replace(labels=()).predict(['mats'])
