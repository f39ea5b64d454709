"""What the data decides about a run: the chat template that writes its conversations, and the date."""

import dataclasses
import datetime
import json
import types

import ml_collections
import pytest

from configs.base import get_config
from lmtrain.report.run_config import WrongRun
from lmtrain.runtime import multihost
from lmtrain.tasks import TASKS, prepare
from lmtrain.training import workdir
from lmtrain.training.build import _objective as objective
from lmtrain.training.build import _read_data as read_data
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

DATED = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
TALK = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]


@pytest.fixture
def make(tmp_path):
    """A function from rows and what differs in config.task to a config."""
    (tmp_path / 'dated.jinja').write_text(DATED)

    def config(rows, **over):
        (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        config = get_config()
        config.model.update(vocab_size=257, max_len=64, num_layers=1, width=32, num_heads=2)
        config.data.update(
            tokenizer='bytes', test=0.0, seq_len=64, batch_size=8, root=str(tmp_path), cache=str(tmp_path)
        )
        config.budget.steps = 4
        config.sample.prompts = ()
        config.task.update(name='chat', train=('rows.jsonl',), validation=('rows.jsonl',), **over)
        return config

    return config


def on(monkeypatch, day):
    """Makes it that day."""

    class Date(datetime.date):
        @classmethod
        def today(cls):
            return cls.fromisoformat(day)

    monkeypatch.setattr(prepare, 'datetime', types.SimpleNamespace(date=Date))


def test_resumed_run_uses_the_date_of_its_first_start(make, tmp_path, monkeypatch):
    config = make([{'messages': TALK}] * 8, template='dated.jinja')
    on(monkeypatch, '2031-02-03')
    first = build(*resolve(config))
    assert first.resolved['task']['date'] == '2031-02-03' and first.config.task.date == config.task.date == ''
    assert '03 Feb 2031 ' in first.corpus.tokenizer.decode(first.stream('train').batch(0)['tokens'][0].tolist())
    workdir.bind(tmp_path, first.resolved, first.fingerprints)
    on(monkeypatch, '2031-02-04')
    new = build(*resolve(config))
    assert new.resolved['task']['date'] == '2031-02-04' and new.fingerprints != first.fingerprints
    again = build(*resolve(config, tmp_path))
    assert again.config.task.date == '2031-02-03'
    assert workdir.bind(tmp_path, again.resolved, again.fingerprints) == []
    saved = ml_collections.ConfigDict(workdir.read_config(tmp_path))
    assert build(*resolve(saved)).fingerprints == first.fingerprints  # as in an evaluation of the run
    config.task.date = '2031-02-05'
    other = build(*resolve(config, tmp_path))
    assert other.config.task.date == '2031-02-05'
    with pytest.raises(WrongRun, match='fingerprint of data'):
        workdir.bind(tmp_path, other.resolved, other.fingerprints)


def test_all_processes_use_the_date_of_process_0(make, monkeypatch):
    on(monkeypatch, '2031-02-04')  # here; elsewhere it is not yet midnight
    everyone = multihost.all_gather_object
    monkeypatch.setattr(
        multihost,
        'all_gather_object',
        lambda value: ['2031-02-03', value] if isinstance(value, str) else everyone(value),
    )
    run = build(make([{'messages': TALK}] * 8, template='dated.jinja'))
    assert run.resolved['task']['date'] == run.corpus.template.date == '2031-02-03'


def test_template_without_date_does_not_depend_on_the_day(make, monkeypatch):
    config = make([{'messages': TALK}] * 8, date='2031-02-03')
    prints = []
    for day in ('2031-02-03', '2031-02-04'):
        on(monkeypatch, day)
        run = build(config)
        assert (run.resolved['task']['template'], run.resolved['task']['date']) == ('auto', '')
        prints.append(run.fingerprints)
    assert prints[0] == prints[1]


def test_rows_of_plain_text_have_no_template(make):
    config = make([{'prompt': 'a', 'completion': 'b'}] * 8, template='dated.jinja')
    run = build(config)
    assert (run.resolved['task']['template'], run.resolved['task']['date'], run.corpus.template) == ('none', '', None)
    assert run.corpus.tokenizer.config_json == b''
    assert build(ml_collections.ConfigDict(run.resolved)).fingerprints == run.fingerprints


def test_tokenizer_of_a_run_contains_its_template(make):
    run = build(make([{'messages': TALK}] * 8, template='dated.jinja', date='2031-02-03'))
    assert json.loads(run.corpus.tokenizer.config_json)['chat_template'] == DATED
    assert run.corpus.template.date == '2031-02-03'


@pytest.mark.parametrize('date', ['3 Feb 2031', '2031-2-3', '20310203', 20310203])
def test_invalid_date_is_named(make, date):
    config = make([{'messages': TALK}] * 8)
    with config.ignore_type():
        config.task.date = date
    with pytest.raises(
        ValueError, match="config.task.date is .*; it must be a day such as '2026-01-31', or '' for today"
    ):
        build(config)


@pytest.mark.parametrize(('head', 'labels'), [('classify', ('good', 'bad')), ('tag', ('bad', 'good'))])
def test_order_of_classes_is_that_of_a_base_with_a_head_for_the_task(make, head, labels):
    config = make([{'words': 'a', 'class': name} for name in ('good', 'bad') * 4], text=('words',), label='class')
    config.task.name = 'classify'
    base = types.SimpleNamespace(model=types.SimpleNamespace(head=head), shapes={}, labels=('good', 'bad'))
    assert read_data(config, base).labels == labels


def test_a_setting_of_a_loss_is_a_field_of_the_config(monkeypatch):
    def focal(forward, batch, *, head='logits', beta=1.0, gamma=2.0): ...

    task = dataclasses.replace(TASKS['classify'], losses={'focal': focal})
    monkeypatch.setitem(TASKS, 'classify', task)
    config = get_config()
    config.task.name = 'classify'
    with pytest.raises(TypeError, match="loss 'classify' has the setting 'gamma': add it to config.objective"):
        objective(config, 'own')
    with config.objective.unlocked():
        config.objective.gamma = 0.5
    assert objective(config, 'own').keywords == {'head': 'own', 'beta': 0.1, 'gamma': 0.5}
