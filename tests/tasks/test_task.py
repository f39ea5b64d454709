"""Every task's record is complete, and a new task or objective is one file: this one."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmtrain
from configs import tiny
from lmtrain.adapt.peft import config as peft
from lmtrain.data import COLUMNS
from lmtrain.data.examples import labelled_texts
from lmtrain.data.rows import value_of
from lmtrain.errors import InputError
from lmtrain.models.settings import HEAD_KINDS
from lmtrain.tasks import TASKS, classify, regress, token_loss
from lmtrain.tasks.pooling import pool_outputs
from lmtrain.tasks.task import Encoded, Task, has_setting, with_settings

# --- every task


@pytest.mark.parametrize('name', TASKS)
def test_record_is_complete(name):
    task = TASKS[name]
    assert task.name == name
    assert set(task.columns) <= set(COLUMNS) and not set(task.columns) & {'tokens', 'segment_ids', 'positions', 'row'}
    assert task.head in HEAD_KINDS and task.peft_type in peft.TASK_TYPES
    assert task.predicts_tokens == (task.head == 'lm')
    assert all(has_setting(loss, 'forward') and has_setting(loss, 'batch') for loss in task.losses.values())
    assert task.loss() is task.loss(next(iter(task.losses)))
    if not task.predicts_tokens:
        assert task.encode and task.predict and task.score
        assert task.has_classes == (not task.num_outputs) and task.output_size(('a', 'b', 'c')) in (1, 2, 3)


def test_head_and_peft_type_agree():
    """PEFT knows one type for each head."""
    pairs = {(task.head, task.peft_type) for task in TASKS.values()}
    assert len(pairs) == len({head for head, _ in pairs}) == len({kind for _, kind in pairs})


@pytest.mark.parametrize('name', TASKS)
def test_unknown_objective_is_refused_with_the_known_ones(name):
    known = ', '.join(TASKS[name].losses)
    message = f"task.name = '{name}': objective.name = 'x' is none of '', {known}"
    with pytest.raises(InputError, match=re.escape(message)):
        TASKS[name].loss('x')


def test_a_loss_gets_the_settings_that_it_has():
    settings = {'name': '', 'z_loss': 0.5, 'pool': 'last', 'head': 'logits'}
    assert with_settings(token_loss.loss, settings).keywords == {'z_loss': 0.5}
    assert with_settings(classify.loss, settings).keywords == {'pool': 'last', 'head': 'logits'}


# --- a new task: the number of letters 'a' in a text, with the absolute error as its loss


def count_loss(forward, batch, *, head='logits', pool='first'):
    error = jnp.abs(pool_outputs(forward(batch)[head], batch, pool)[:, 0] - batch['labels'])
    return {'loss': error, 'exact': (error < 0.5).astype(jnp.float32)}, batch['label_weights']


def count_predict(forward, batch, *, head='logits', pool='first'):
    return jnp.round(pool_outputs(forward(batch)[head], batch, pool)[:, 0])


def count_encode(rows, form):
    def number(row):
        return np.float32(value_of(row, form.label, 'config.task.label'))

    return Encoded(labelled_texts(rows, form.text, form.tokenizer, form.length, number), ['counted'])


def count_score(data, split, predicted):
    labels = np.asarray(data.examples[split].values['labels'])
    return {'mean_count': float(np.mean(predicted)), 'mean_label': float(labels.mean())}


COUNT = Task(
    name='count',
    head='classify',
    columns=('labels', 'label_weights'),
    losses={'absolute_error': count_loss},
    peft_type='SEQ_CLS',
    legend=regress.legend,
    render=regress.render,
    encode=count_encode,
    num_outputs=1,
    predict=count_predict,
    score=count_score,
)


# --- a new objective: the focal loss of classes (arXiv 1708.02002, equation 4)


def focal_loss(forward, batch, *, head='logits', pool='first', gamma=2.0):
    logits = pool_outputs(forward(batch)[head], batch, pool)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch['labels'][:, None], axis=1)[:, 0]
    p = jnp.exp(log_p)
    return {'loss': -((1 - p) ** gamma) * log_p, 'probability': p}, batch['label_weights']


FOCAL = dataclasses.replace(classify.TASK, losses=classify.TASK.losses | {'focal': focal_loss})


@pytest.fixture
def recipe(tmp_path):
    """A config of four steps on texts with a number and a class."""
    rows = [
        {'text': 'a' * (n % 4) + 'b' * (1 + n % 3), 'n': n % 4, 'kind': 'even' if n % 2 else 'odd'}
        for n in range(1, 25)
    ]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    config = tiny.get_config()
    config.data.update(root=str(tmp_path), cache=str(tmp_path / 'cache'), seq_len=16, test=0.0)
    config.model.update(num_layers=1, width=16)
    config.task.update(train=('rows.jsonl',), validation=('rows.jsonl',), text=('text',), buckets=1)
    config.budget.steps, config.optimizer.learning_rate = 4, 0.01
    config.evaluate.max_batches, config.log.every_steps, config.log.tensorboard = 0, 1, False
    return config


def metrics(workdir):
    lines = (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_new_task_trains_and_is_evaluated(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, 'count', COUNT)
    recipe.task.update(name='count', label='n')
    workdir = tmp_path / 'run'
    results = lmtrain.train(recipe, workdir)
    assert results['validation'].keys() >= {'loss', 'exact', 'targets'}
    assert results['validation']['targets'] == 24
    assert len({line['loss'] for line in metrics(workdir) if 'loss' in line}) > 2
    scores = lmtrain.evaluate(workdir, split='validation')
    assert scores['mean_label'] == 1.5 and scores['mean_count'] * 24 == pytest.approx(round(scores['mean_count'] * 24))
    assert scores['loss'] == pytest.approx(results['validation']['loss'], rel=1e-5)


def test_new_objective_trains_on_the_columns_of_its_task(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, 'classify', FOCAL)
    recipe.task.update(name='classify', label='kind')
    recipe.objective.update(name='focal', pool='mean')
    with recipe.objective.unlocked():
        recipe.objective.gamma = 2.0
    results = lmtrain.train(recipe, tmp_path / 'run')
    value = results['validation']
    assert value.keys() >= {'loss', 'probability'} and 'accuracy' not in value
    assert 0 < value['loss'] < -np.log(value['probability']) and 0 < value['probability'] < 1
    saved = json.loads((tmp_path / 'run' / 'config.json').read_text(encoding='utf-8'))
    assert saved['objective']['name'] == 'focal'
    recipe.objective.name = 'hinge'
    with pytest.raises(InputError, match="objective.name = 'hinge' is none of '', cross_entropy, focal"):
        lmtrain.train(recipe, tmp_path / 'other')
