"""Predictors: probabilities of classes do not depend on the batch, and agree with the model's own outputs."""

import math

import numpy as np
import pytest

import lmtrain
from configs import classify
from lmtrain import tree
from lmtrain.compare import choice_scores, predictors
from lmtrain.compare.rows import TaskRows
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference import demonstrations, prompting
from lmtrain.inference.calibration import calibrate

CLASSES = ('dogs', 'mats', 'rats')


def make_rows(count):
    return [
        Row(
            '', {'text': f'{i} cats' * (1 + i % 3), 'label': CLASSES[i % 3], 'prompt': f'{i} on', 'completion': ' dogs'}
        )
        for i in range(count)
    ]


@pytest.fixture(scope='module')
def task(text):
    facts = {'completions': [f' {name}' for name in CLASSES], 'text': ['note']}
    facts |= {'template': '{note} on {animal}', 'label': 'animal'}
    return TaskRows(text.parent, CLASSES, make_rows(12), [], facts)


@pytest.fixture(scope='module')
def base(text):
    from configs import tiny

    config = tiny.get_config()
    config.data.source, config.data.cache = str(text), str(text.parent / 'cache')
    config.data.validation = config.data.test = 0.2
    config.budget.steps = 2
    lmtrain.train(config, text.parent / 'base')
    return text.parent / 'base'


@pytest.mark.slow
@pytest.mark.parametrize('pool', ['auto', 'mean'])
def test_a_head_gives_the_same_probabilities_in_every_batch(base, task, text, pool):
    config = classify.get_config()
    path = text.parent / 'train.csv'
    path.write_text('text,label\n' + ''.join(f'{row.fields["text"]},{row.fields["label"]}\n' for row in task.train))
    config.init.base, config.data.cache, config.data.seq_len = str(base), str(text.parent / 'cache'), 32
    config.task.train = config.task.validation = (str(path),)
    config.task.text, config.task.label, config.task.labels = ('text',), 'label', CLASSES
    config.data.test, config.budget.steps, config.objective.pool = 0.0, 3, pool
    config.log.tensorboard = False
    trained = lmtrain.train(config, text.parent / pool)
    loaded = lmtrain.load(text.parent / pool)
    predict = predictors.by_head(loaded, task, 32)
    log_p = predict(task.train)
    assert np.exp(log_p).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert predict(task.train[3:4])[0] == pytest.approx(log_p[3], abs=1e-5)
    scores = choice_scores.score(log_p, task.train, CLASSES)
    assert scores.loss == pytest.approx(trained['validation']['loss'], abs=1e-5)
    assert scores.accuracy == pytest.approx(trained['validation']['accuracy'])
    # A head with logits that are 100 times as large.
    leaves = tree.flatten(loaded.params)
    assert any(path.startswith(('heads/', 'task_head')) for path in leaves)
    larger = {path: 100 * leaf if path.startswith(('heads/', 'task_head')) else leaf for path, leaf in leaves.items()}
    sure = loaded._replace(params=tree.unflatten(larger))
    confident = choice_scores.score(predictors.by_head(sure, task, 32)(task.train), task.train, CLASSES)
    divided = predictors.by_head(sure, task, 32, 100.0)(task.train)
    assert divided == pytest.approx(log_p, abs=1e-4)
    fitted = choice_scores.fit_temperature(predictors.by_head(sure, task, 32)(task.train), task.train, CLASSES)
    cooler = choice_scores.score(predictors.by_head(sure, task, 32, fitted)(task.train), task.train, CLASSES)
    assert cooler.loss < confident.loss - 0.5 and fitted > 10
    assert (cooler.predicted == confident.predicted).all()


def test_likelihoods_are_normalised_over_the_classes(base, task):
    loaded, rows = lmtrain.load(base), task.train
    scored = choice_scores.of_rows(loaded, (), predictors.settings(task), rows, ('sum', 'per_byte')).log_p
    raw = lmtrain.evaluate(
        loaded,
        rows=[row.fields for row in rows],
        template='{prompt}{completion}',
        answer='completion',
        choices=task.completions,
    )
    nats = np.array([row['nats'] for row in raw['answers']])
    assert scored['sum'] == pytest.approx(nats - np.logaddexp.reduce(nats, axis=1)[:, None], abs=1e-6)
    assert (scored['per_byte'].argmax(1) == (nats / [5, 5, 5]).argmax(1)).all()
    chosen = {'score': 'sum', 'bias': [], 'temperature': 1e6}
    hot = predictors.by_likelihood(loaded, (), predictors.settings(task), chosen)(rows)
    assert hot == pytest.approx(-math.log(3), abs=1e-3)


def test_content_free_prompts_end_as_those_of_rows(base, task):
    loaded, rows = lmtrain.load(base), task.train[:3]
    scored = choice_scores.of_rows(loaded, (), predictors.settings(task), rows, ('content_free',)).log_p
    prompts = [*(row.fields['prompt'] for row in rows), 'N/A on', '[MASK] on', ' on']
    listed = [{'prompt': prompt, 'completion': ' dogs'} for prompt in prompts]
    form = {'template': '{prompt}{completion}', 'answer': 'completion', 'choices': task.completions}
    nats = [row['nats'] for row in lmtrain.evaluate(loaded, rows=listed, **form)['answers']]
    expected = [calibrate(np.array(own), np.array(nats[3:])) for own in nats[:3]]
    assert scored['content_free'] == pytest.approx(np.array(expected), abs=1e-5)


def test_models_that_cannot_be_prompted_are_refused():
    class Encoder:
        causal, head = False, 'lm'

    class Classifier:
        causal, head = True, 'classify'

    with pytest.raises(InputError, match='masked language model'):
        predictors.check_promptable(Encoder)
    with pytest.raises(InputError, match="head 'classify'"):
        predictors.check_promptable(Classifier)


def test_the_pool_is_embedded_once_and_not_for_every_query(base, task, monkeypatch):
    loaded, rows, texts = lmtrain.load(base), task.train, []
    form = predictors.settings(task, shots=2, select='nearest')
    chosen = {'score': 'sum', 'bias': [], 'temperature': 1.0}
    expected = choice_scores.of_rows(loaded, rows[4:], form, rows[:4], ['sum']).log_p['sum']
    embeddings = prompting.embeddings

    def counted(model, params, tokenizer, own, batch_size):
        texts.append(len(own))
        return embeddings(model, params, tokenizer, own, batch_size)

    monkeypatch.setattr(prompting, 'embeddings', counted)
    monkeypatch.setattr(demonstrations, 'embeddings', counted)
    predict = predictors.by_likelihood(loaded, rows[4:], form, chosen)
    assert predict(rows[:4]) == pytest.approx(expected, abs=1e-5)
    assert predict(rows[1:2])[0] == pytest.approx(expected[1], abs=1e-5)
    assert texts == [8, 4, 1]
