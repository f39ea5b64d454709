"""Scores a model on an evaluation task (`task_file`), with standard errors and one record for each row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import text_of
from lmtrain.errors import InputError
from lmtrain.evaluation import perplexity, statistics
from lmtrain.evaluation.heads import Head, means, score_rows
from lmtrain.evaluation.task_file import CHOICES, HEADS, EvaluationTask
from lmtrain.inference import prompting
from lmtrain.inference.demonstrations import ALL
from lmtrain.inference.prompt_search import answer_nats
from lmtrain.inference.questions import Question, ask
from lmtrain.tasks import TASKS
from lmtrain.tree import Params

NO_SHARES = ('bits_per_byte', 'absolute_error')  # main scores that are not written as percentages


class Evaluation(NamedTuple):
    """What `evaluate` returns.

    Attributes:
      results: 'task', 'kind', 'metric' (the name of the main score), 'value', 'stderr', 'interval' (95 %, None if it is
        not known), 'rows', the other scores with '<name>_stderr', and what `prompting.score` records of the engine.
      rows: for each row in order {'row' (its number), 'place', 'answer', 'predicted', 'right' (0 to 1), 'nats'}, and
        what the kind of scoring adds. nats: -log p of the right answer among the choices, None for generations.
    """

    results: dict[str, Any]
    rows: list[dict[str, Any]]


def evaluate(
    task: EvaluationTask,
    model,
    params: Params,
    tokenizer: Tokenizer,
    *,
    template: Template | None = None,
    end_ids: Sequence[int] = (),
    head: Head | None = None,
    batch_size: int = 32,
) -> Evaluation:
    """The score of a model on the rows of a task.

    Args:
      template: chat template of the prompts.
      end_ids: tokens that end a generation beside the tokenizer's.
      head: what is known of the head of the model; scoring.labels of the task replaces its labels.

    Raises InputError before anything compiles if the model cannot do the task, or a prompt is longer than its context.
    """
    if task.kind == 'perplexity':
        field = task.scoring.get('text', 'text')
        texts = [text_of(row, field, 'scoring.text') for row in task.rows]
        own, rows = perplexity.bits_per_byte(model, params, tokenizer, texts, batch_size)
        own |= prompting.engine(model, batch_size)
        return _evaluation(task, 'bits_per_byte', own, rows)
    if task.kind in HEADS:
        score, head = task.scoring, head or Head()
        own, rows = score_rows(
            model,
            params,
            tokenizer,
            TASKS[task.kind],
            task.rows,
            head._replace(labels=tuple(score['labels'])) if 'labels' in score else head,
            text=(score['text'],) if isinstance(score['text'], str) else score['text'],
            label=score['label'],
            too_long=score.get('too_long', 'error'),
            batch_size=batch_size,
        )
        return _evaluation(task, next(iter(own)), own | prompting.engine(model, batch_size), rows)
    assert task.settings, 'prompted kinds have settings'
    settings = task.settings._replace(chat_template=template, batch_size=batch_size)
    score = {'choices': _choices, 'generation': _generations}[task.kind]
    return score(task, model, params, tokenizer, settings, end_ids)


def _choices(task: EvaluationTask, model, params, tokenizer, settings, end_ids) -> Evaluation:
    questions, _ = ask(task.rows, settings, task.demonstrations)
    check_tokens(questions, tokenizer)
    scores = prompting.score(model, params, tokenizer, task.rows, settings, demonstrations=task.demonstrations)
    column = CHOICES[task.by]
    rows = []
    for question, row in zip(questions, scores.rows, strict=True):
        nats = np.array(row['calibrated_nats' if task.by == 'calibrated' else 'nats'])
        lengths = {'per_token': row['tokens'], 'per_byte': [len(choice.encode()) for choice in question.choices]}
        best = int(np.argmax(nats / np.array(lengths.get(task.by, 1))))
        own = {'answer': question.answer, 'predicted': question.choices[best], 'right': float(row[column])}
        own['nats'] = -answer_nats(nats, question.choices.index(question.answer))
        rows.append(own | {'choices': list(question.choices), 'choice_nats': row['nats']})
    metric = next(name for name, each in prompting.ACCURACIES.items() if each == column)
    return _evaluation(task, metric, scores.results, rows)


def _generations(task: EvaluationTask, model, params, tokenizer, settings, end_ids) -> Evaluation:
    scores = prompting.score(
        model, params, tokenizer, task.rows, settings, demonstrations=task.demonstrations, end_ids=end_ids
    )
    rows, each, metric = [], [], task.metric
    assert metric, 'generations have a metric'
    for row, accepted in zip(scores.rows, task.accepted, strict=True):
        own = metric(row['predicted'], accepted)
        each.append(own)
        right = next(iter(own.values()))
        line = {'answer': row['answer'], 'predicted': row['predicted'], 'right': right, 'nats': None}
        rows.append(line | own | {'finish_reason': row['finish_reason']})
    results = {name: value for name, value in scores.results.items() if not name.startswith('exact_match')}
    return _evaluation(task, next(iter(each[0])), results | means(each), rows)


def check_tokens(questions: Sequence[Question], tokenizer: Tokenizer) -> None:
    """Raises InputError if two choices of a row have the same tokens: no likelihood distinguishes them."""
    for choices, place in {q.choices: q.place for q in reversed(questions)}.items():  # the first row of each
        first: dict[tuple[int, ...], str] = {}
        for choice, ids in zip(choices, tokenizer.encode_batch(choices), strict=True):
            if (other := first.setdefault(tuple(ids.tolist()), choice)) != choice or choices.count(choice) > 1:
                raise InputError(f'{place}: the choices {other!r} and {choice!r} have the same tokens')


def _evaluation(task: EvaluationTask, metric: str, results: dict[str, Any], rows: list[dict[str, Any]]) -> Evaluation:
    """`rows` with numbers and places, and `results` with the main score."""
    value, error = results[metric], results.get(f'{metric}_stderr')
    right = [row['right'] for row in rows if 'right' in row]
    binary = bool(right) and {*right} <= {0.0, 1.0}  # and their mean is the main score
    interval = statistics.proportion(right)[2:] if binary and value == np.mean(right) else None
    if interval is None and error is not None:
        interval = value - 1.96 * error, value + 1.96 * error
    main = {'task': task.name, 'kind': task.kind, 'metric': metric, 'value': value, 'stderr': error}
    main |= {'interval': interval and list(interval), 'rows': len(rows)}
    numbered = [{'row': number, 'place': task.rows[number].place} | row for number, row in enumerate(rows)]
    return Evaluation(main | results, numbered)


def line(results: dict[str, Any]) -> str:
    """The main score as a line of text."""
    value, error, name = results['value'], results['stderr'], results['metric'].replace('_', ' ')
    if results['metric'] in NO_SHARES:
        score = f'{name} {value:.4f}' + (f' +- {error:.4f}' if error is not None else '')
    else:
        score = f'{name} {100 * value:.1f}' + (f' +- {100 * error:.1f}' if error is not None else '') + ' %'
    counts = [f'{results["rows"]:,} rows']
    if 'shots' in results:
        counts.append(f'{results["shots_mean"]:.1f} shots' if results['shots'] == ALL else f'{results["shots"]} shots')
    if results.get('chance'):
        counts.append(f'chance {100 * results["chance"]:.1f} %')
    if 'stopped' in results:
        counts.append(f'{100 * results["stopped"]:.0f} % ended')
    for word in ('dropped', 'cut'):
        what = {'dropped': 'demonstrations dropped', 'cut': 'prompts cut'}[word]
        counts += [f'{results[word]:,} {what}'] if results.get(word) else []
    return f'{results["task"]}: {score}  ({", ".join(counts)})'
