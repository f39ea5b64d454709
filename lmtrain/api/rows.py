"""Rows and texts under a loaded model: predictions of its head, and evaluations."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.data import cache
from lmtrain.data import source as sources
from lmtrain.data.chat import conversation
from lmtrain.data.rows import Row, read_rows, value_of
from lmtrain.errors import InputError
from lmtrain.evaluation import heads, perplexity, task_file, task_run
from lmtrain.evaluation.heads import Head
from lmtrain.inference import prompting
from lmtrain.tasks import TASKS, of_output
from lmtrain.tasks.task import Task
from lmtrain.training import choose, reward_scores
from lmtrain.training import load as loading
from lmtrain.training.load import LoadedModel


def predict(
    model: LoadedModel, rows, *, text: Sequence[str] = (), labels: Sequence[str] = (), batch_size: int = 32
) -> list[dict[str, Any]]:
    """The prediction of a model with a head for each row, in order; `lmtrain predict` writes them to a file.

    Args:
      rows: a file (jsonl, csv, ...), dicts, or texts, of which None is empty. They need no label.
      text: the fields that are read; () is those of the training, for a Hugging Face directory `text`. Of a reward
        model: prompt and completion, or one field of messages; () recognises the format of each row.
      labels: names of the classes in the order of their ids, if the model does not have them.

    Returns:
      A dict for each row with 'prediction' (None for a row without text), and for
        classes: 'probability' of the predicted class, 'probabilities' {class: its probability};
        numbers, and the score of a completion by a reward model: nothing else;
        tags: 'probability' of each word's tag, 'entities' [{'type', 'text', 'begin', 'end'}];
        answers in a context: 'begin' and 'end' in characters, 'probability', 'no_answer' (the probability of none).

    Raises:
      InputError: the model has no head for such a task, or a row lacks a field; the message names file and line.

    >>> import lmtrain
    >>> lmtrain.load('runs/tiny').predict(['some text'])
    Traceback (most recent call last):
    lmtrain.errors.InputError: the model has no head for classes, numbers, tags or spans: it continues texts (generate)
    """
    fields = text_fields(model, text)
    return predict_rows(model, _rows_of_texts(rows, (*fields, 'text')[0]), fields, labels, batch_size)[0]


def text_fields(model: LoadedModel, text: str | Sequence[str] = ()) -> tuple[str, ...]:
    """The fields that are read of a row: `text`, else those of the training, else 'text'; () of a reward model."""
    own = tuple(model.config.task.text) if model.config else ()
    default = () if predicted_task(model).scores_segments else ('text',)  # a reward model recognises the format
    return (text,) if isinstance(text, str) and text else tuple(text) or own or default


def predict_rows(
    model: LoadedModel, rows: Sequence[Row], text: Sequence[str], labels: Sequence[str], batch_size: int
) -> tuple[list[dict[str, Any]], int]:
    """(`predict` of rows, the number of them that were cut)."""
    task, config = predicted_task(model), model.config
    if task.scores_segments:
        return reward_scores.predict_rows(model, rows, text, batch_size)
    return heads.predict_rows(
        model.model,
        model.params,
        model.tokenizer,
        task,
        rows,
        Head(tuple(labels) or model.labels, config.objective.pool if config else 'auto'),
        text=text,
        batch_size=batch_size,
    )


def predicted_task(model: LoadedModel) -> Task:
    """The task of a model's head. Raises InputError if it has none that predicts something for rows."""
    if task := task_of_head(model):
        return task
    raise InputError('the model has no head for classes, numbers, tags or spans: it continues texts (generate)')


def task_of_head(model: LoadedModel) -> Task | None:
    """The task of a model's head; None if it has none that predicts something for rows."""
    config = model.config
    if config and not (task := TASKS[config.task.name]).predicts_tokens:
        return task
    if task := of_output(model.labels):
        return task
    size = model.model.num_labels
    fitting = [
        task
        for task in TASKS.values()
        if task.infer and task.head == model.model.head and task.num_outputs in (0, size)
    ]
    # One output is a number, unless its task has classes.
    return max(fitting, key=lambda task: task.num_outputs, default=None)


def _rows_of_texts(rows, field: str) -> list[Row]:
    """`as_rows`, where a list of texts is a list of rows with this field; a missing text is None."""
    _reject_columns(rows)
    if not isinstance(rows, str | Path):
        rows = [row if isinstance(row, Mapping) else _cell(row) for row in rows]  # an iterator is read once
        texts = all(row is None or isinstance(row, str) for row in rows)
        rows = [{field: row} for row in rows] if texts else rows
    return as_rows(rows)


def evaluate(
    model,
    split: str = 'validation',
    *,
    step: int | str = choose.AUTO,
    member: int | None = None,
    rows=(),
    task=None,
    source='',
    overrides: Mapping[str, Any] | None = None,
    **settings,
) -> dict[str, Any]:
    """Evaluates a run on a split of its data, a model on a text or a task file, or a prompted model on `rows`.

    Args:
      model: the folder of a run, or a model that was loaded from one; except for a split also a Hugging Face directory.
      split: 'train', 'validation' or 'test'.
      step, member: of the run, as in `load`.
      rows: a file (jsonl, csv, tsv), several of them, or dicts.
      settings: with `rows`, fields of `lmtrain.inference.prompting.PromptSettings`: `template` (the text of a row,
        whose last field is the answer), `answer`, `choices`, `shots`, ..., `demonstrations`; `chat_template` is a name.
        Without a template a head answers (`text` and `labels` as in `predict`, `answer` is the label), or rows are
        conversations and the last answer is compared.
      task: a task file (docs/data.md, "Evaluation tasks"), or what `evaluation.task_file.read` returns.
      source: a text file, folder or glob, as config.data.source. Here and with `task`, `batch_size` is the one setting.
      overrides: {'data.document': 'line', ...}, the config of a split or a source (`training.load.OVERRIDES`).

    Returns:
      Of a split: 'loss' in nats per target, 'bits_per_token', 'bits_per_byte', 'targets', 'bytes', the scores of the
      task, and '..._stderr' (`training.split_errors`). Of rows: 'rows', 'accuracy' (of choices) or 'exact_match',
      '..._stderr', and 'answers', a dict for each row. Of a head or a task: `evaluation.task_run.Evaluation.results`,
      and 'answers'. Of a source: 'loss' in nats per token, 'perplexity', 'bits_per_token', 'bits_per_byte',
      'bits_per_byte_stderr', 'tokens', 'bytes', 'documents'. Of each: 'engine', 'dtype', 'attention', 'batch_size'.

    Raises:
      InputError: data that differs from the run's, a row without a field, or a prompt longer than the context.
      FileNotFoundError: no run, checkpoint or file.

    >>> import lmtrain
    >>> 0 < lmtrain.evaluate('runs/tiny', 'test')['bits_per_byte'] < 8
    True
    >>> rows = [{'sum': '1 + 1', 'value': '2'}, {'sum': '1 + 2', 'value': '3'}]
    >>> result = lmtrain.evaluate('runs/tiny', rows=rows, template='{sum}={value}', answer='value', choices=['2', '3'])
    >>> result['rows'], result['chance']
    (2, 0.5)
    """
    _reject_columns(rows)
    if source:
        return _evaluate_source(_loaded(model, step, member), source, overrides or {}, **settings)
    if overrides and (task is not None or rows):
        raise InputError('overrides with rows or task: they change how a split or a source is evaluated')
    if task is not None:
        return _evaluate_task(model, task, step, member, rows, **settings)
    if rows:
        return _evaluate_rows(_loaded(model, step, member), rows, **settings)
    if settings:
        raise InputError(f'{sorted(settings)[0]} without rows: a split has no prompts')
    if isinstance(model, LoadedModel):
        model, step, member = _folder_of(model), model.step, model.member
    return loading.evaluate_split(model, split, step, member, overrides or {}, reward_scores.scorer)


def _evaluate_rows(model: LoadedModel, rows, **settings) -> dict[str, Any]:
    """`prompting.score` of rows; without a template by the head of the model, if it has one."""
    if not settings.get('template') and (head := task_of_head(model)):
        return _evaluate_head(model, head, rows, **settings)
    listed, settings = as_rows(rows), {'template': '', 'answer': ''} | settings
    others = as_rows(settings.pop('demonstrations', ()))
    name, system = settings.pop('chat_template', None), settings.get('system', '')
    chats = bool(system) or not settings['template'] and any(messages_in(row) for row in listed)
    model = loading.with_chat_template(model, name, chats)
    scores = prompting.score(
        model.model,
        model.params,
        model.tokenizer,
        listed,
        prompting.PromptSettings(chat_template=model.template, **settings),
        demonstrations=others,
        end_ids=model.end_ids,
    )
    return scores.results | {'answers': scores.rows}


def _evaluate_head(
    model: LoadedModel, task: Task, rows, *, text=(), answer='', labels=(), batch_size: int = 32, **others
) -> dict[str, Any]:
    """The scores of a model's head on rows with labels; rows that are too long are cut, as by `predict`."""
    if others:
        raise InputError(f'{sorted(others)[0]} without a template: the model has a head for {task.name}')
    if not task.answers:
        raise InputError(f'a model for {task.name} is evaluated on a split of its run; `predict` scores rows')
    label = answer or (model.config.task.label if model.config else 'label')
    scoring = {'kind': task.name, 'text': text_fields(model, text), 'label': label, 'too_long': 'cut'}
    scoring |= {'labels': labels} if labels else {}
    listed, fields = as_rows(rows), dict.fromkeys(scoring['text'], 'text (--text)') | {label: 'answer (--answer)'}
    for row in listed:
        for name, field in fields.items():
            if name == label or name not in row.fields:  # a text may be null
                value_of(row, name, field)
    evaluation = task_file.EvaluationTask('rows', task.name, '', listed, [], None, None, (), None, scoring)
    return _evaluate_task(model, evaluation, choose.AUTO, None, batch_size=batch_size)


def _loaded(model, step: int | str, member: int | None) -> LoadedModel:
    """A model, loaded if it is the folder of a run or a Hugging Face directory."""
    if isinstance(model, LoadedModel):
        return model
    run = (Path(model) / 'checkpoints').is_dir()
    return loading.load_run(model, step, member) if run else loading.load_directory(str(model))


def _folder_of(model: LoadedModel) -> str:
    """The folder of the run that a model was loaded from. Raises InputError if it is not the model of a run."""
    if not model.directory:
        raise InputError(
            'a split belongs to a run, and this model is a Hugging Face directory, or has an adapter that no run '
            'trained: evaluate it on rows=..., task=... or source=...'
        )
    return model.directory


def _evaluate_source(
    model: LoadedModel, source: str | Path, overrides: Mapping[str, Any], *, batch_size: int = 32
) -> dict[str, Any]:
    """Bits per byte of the documents of a text file, a folder or a glob, each read behind the begin token.

    The data section of the run's config, or of the defaults, says how files become documents; `overrides` change it.
    """
    from configs import base  # late: only a Hugging Face directory needs the defaults

    loading.check_overrides(overrides)
    config = (model.config or base.get_config()).data
    how = {'root': '', 'batch_size': batch_size} | {name: config[name] for name in ('text_field', 'document', 'cache')}
    how |= {name.removeprefix('data.'): value for name, value in overrides.items()}
    directory = cache.cache_directory(how['cache'])
    opened = sources.open_source(str(source), how['root'], directory, how['text_field'], how['document'])
    computed = {name.removeprefix('model.'): value for name, value in overrides.items() if name.startswith('model.')}
    transformer = dataclasses.replace(model.model, **computed)
    perplexity.check_language_model(transformer)
    texts = [document.text for document in opened.documents()]
    results, _ = perplexity.bits_per_byte(transformer, model.params, model.tokenizer, texts, how['batch_size'])
    nats = math.log(results['perplexity'])
    results |= prompting.engine(transformer, how['batch_size'])
    return {'loss': nats, 'bits_per_token': nats / math.log(2)} | results | {'documents': len(texts)}


def _evaluate_task(model, file, step: int | str, member: int | None, rows=(), *, batch_size: int = 32, **others):
    """`task_run.evaluate` of a task file; the file is read and checked before the model is loaded."""
    if others or rows:
        name = 'rows' if rows else sorted(others)[0]
        raise InputError(f'{name} with task: the task file holds the rows and the settings of the prompts')
    task = file if isinstance(file, task_file.EvaluationTask) else task_file.read(file)
    model = _loaded(model, step, member)
    if task.settings:
        chats = bool(task.settings.system) or not task.settings.template and any(map(messages_in, task.rows))
        model = loading.with_chat_template(model, task.chat_template, chats)
    pool = model.config.objective.pool if model.config else 'auto'
    evaluation = task_run.evaluate(
        task,
        model.model,
        model.params,
        model.tokenizer,
        template=model.template,
        end_ids=model.end_ids,
        head=Head(model.labels, pool),
        batch_size=batch_size,
    )
    return evaluation.results | {'answers': evaluation.rows}


def as_rows(rows, notes: list[str] | None = None) -> list[Row]:
    """Rows of one file, of several files, or of dicts, whose values may be those of numpy and pandas.

    Args:
      notes: a line is appended for what the reader of a file chose and skipped, see `read_rows`.

    Raises InputError if they are columns, or if a row is anything else.
    """
    _reject_columns(rows)
    rows = [rows] if isinstance(rows, str | Path) else rows
    listed = []
    for index, row in enumerate(rows):
        if isinstance(row, str | Path):
            listed += read_rows(str(row), '', notes=notes)
        elif isinstance(row, Row):
            listed.append(row)
        elif isinstance(row, Mapping):
            listed.append(Row(f'row {index}', {name: _cell(value) for name, value in row.items()}))
        else:
            raise InputError(f'row {index} is {row!r:.60}: rows are dicts, or all of them are texts')
    return listed


def _cell(value: Any) -> Any:
    """A cell as a file of JSON has it: lists and numbers for those of numpy, None for a missing one of pandas.

    >>> import numpy as np
    >>> [_cell(value) for value in (np.int64(3), np.array(['a', 'b']), float('nan'))]
    [3, ['a', 'b'], None]
    """
    value = _plain(value)
    missing = isinstance(value, float) and math.isnan(value) or type(value).__name__ in ('NAType', 'NaTType')
    return None if missing else value


def _plain(value: Any) -> Any:
    """A value with lists and numbers of Python in place of arrays and scalars of numpy."""
    value = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def _reject_columns(rows) -> None:
    """Raises InputError if `rows` hold columns, such as a DataFrame: an iteration would give the names as texts."""
    if isinstance(rows, Mapping):
        names = ', '.join(map(repr, list(rows)[:5]))
        raise InputError(
            f'rows are a dict with the keys {names}: pass a list of dicts, [row] for one row; from a dict of lists, '
            '[dict(zip(columns, cells)) for cells in zip(*columns.values())]'
        )
    if hasattr(rows, 'columns'):
        raise InputError(
            f"rows are a table ({type(rows).__name__}): pass a list of dicts, such as df.to_dict('records') of pandas, "
            'or a list of the texts'
        )


def messages_in(row: Row) -> list[dict[str, Any]]:
    """The messages of a row that holds a conversation; [] for a prompt and its completion.

    Raises InputError if it holds neither.
    """
    return conversation.read(row, (), '')[1].messages
