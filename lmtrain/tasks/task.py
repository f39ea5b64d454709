"""The record of a task. Other modules read this record and the names of columns, and never compare names of tasks."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.data.examples import Example, LengthPolicy
from lmtrain.data.preview import Batch
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import wrong_choice
from lmtrain.models.settings import HEAD_KINDS


class RowFormat(NamedTuple):
    """How the rows of one split become examples.

    Attributes:
      text: the fields that are read.
      label: the field of the label; '' for rows without one, of which the columns of labels have no meaning.
      labels: names of the classes in the order of their ids; () if the task has no classes.
      tokenizer: encodes the texts; its `layout` has the special tokens of a row.
      template: chat template that writes conversations, or None.
      length: the limit, and what happens to rows beyond it.
      training: whether the rows belong to the training split.
      group: rows that are encoded together (`Task.groups_rows`).
    """

    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    template: Template | None
    length: LengthPolicy
    training: bool
    group: int = 1


class Encoded(NamedTuple):
    """Examples of one split, lines that describe them, and whether a chat template wrote any of them."""

    examples: list[Example]
    notes: Sequence[str] = ()
    templated: bool = False


@dataclass(frozen=True)
class Task:
    """A task: data columns, loss, predictions and score.

    Attributes:
      name: value of config.task.name.
      head: the head that the model needs, a value of config.model.head.
      columns: those of `lmtrain.data.COLUMNS` that the model, losses and predictions read, besides tokens, segment_ids,
        positions and row. A batch has only these of the examples' columns per token (`Example.flat`), and bytes in
        evaluation, but all columns per example (`Example.values`). With 'targets' the task predicts tokens. With
        'scored' so many consecutive examples as its largest value are a group, which is one row of a batch; rows may be
        packed, and methods with virtual tokens are refused.
      losses: {name: loss}, the objectives; config.objective.name selects one, the first is the default. A loss is
        `loss(forward, batch, **settings) -> ({name: values}, weights)`, with 'loss' among the names. Its settings are
        the fields of config.objective that it has as keyword arguments; `head` is the name of the output that it reads.
        A keyword argument without such a field is an error: add the field to configs/base.py.
        A loss with the setting `reference` reads the log-probabilities of a reference model (`reference_logprob`).
      peft_type: PEFT's `task_type` for a model with this head.
      legend: batch -> explanation of the annotations in the preview of its rows.
      render: (tokenizer, batch, row, names of the classes) -> annotated preview of one row (`data.preview.render_row`).
      encode: (rows, RowFormat) -> Encoded. An example, and a group of `scored` examples together, has at most
        `RowFormat.length.seq_len` tokens (one more with 'targets', since the last is only a target): `encode` cuts,
        drops or refuses longer ones. None: the task reads a text corpus (config.data) and not rows.
      row_labels: (row, text fields, label field) -> [(place, label)] of the row, from which classes are collected.
        A head that pools rows needs exactly one pair per row, and `labels` [B]. None: the task has no classes.
      num_outputs: outputs of the head; 0 is one for each class. Without 'targets', exactly one of `row_labels` and
        `num_outputs` is set.
      predict: predict(forward, batch, **settings), one prediction for each example: [B, ...], with 'scored' [B, S].
        None: it has no predictions.
      score: (TaskData, split, predictions in the order of the examples) -> {name: value}, metrics of the whole split.
        `encode`, `predict` and `score` are required without 'targets'.
      details: (TaskData, split, predictions in the order of the examples) -> {name: JSON value}, entries of
        results.json on the validation split, which the report shows. None: it has none.
      answers: (TaskData, split, predictions in the order of the examples) -> [(label, prediction)] of the rows, JSON
        values; `rate`: (answers) -> {name: value}, their scores, the main one first. None: the task has no evaluation
        file (`evaluate --task`).
      rates_rows: whether every score of `rate` is a mean of those of single rows.
      infer: infer(forward, batch, **settings), the prediction for each row of a batch with its probabilities, arrays.
      describe: (TaskData, split, results of `infer` in the order of the examples) -> {index of a row: {column: JSON
        value}}, what `lmtrain predict` writes beside the row. None, like `infer`: the command is not for this task.
      conversations: rows may be conversations, which a chat template writes, or have fields of fixed names: a template
        is opened, and config.task.text and label may be empty. Without it both are required.
      dialogue: (row, RowFormat.text, RowFormat.label, template) -> the `Conversation` of a row, whose prompt the
        samples of the report continue. Required with `conversations` and 'targets'.
      groups_rows: so many rows as config.task.group are encoded together.
      measures_text: whether the loss is the likelihood of a text, which evaluations give in bits per byte.
      estimators: {objective: (Sampled, **settings) -> Credit}, see `tasks.advantages`, of a task that is trained on
        completions that its model samples: `training/rollouts.py` makes its batches. Settings are fields of
        config.policy and config.objective. {}: batches come from the data.
      added_head: name of a head with one output for each token, `heads/NAME`, that the losses read; '' is none.
      output_name: of the one output of the head, in the id2label of an export, by which the export is recognised as a
        model of this task. '': an output without a name is a number.
      unit: noun for one of the 'targets' of an evaluation, over which its measures are means.
      version: increment it when the same rows and settings give other examples.
    """

    name: str
    head: str
    columns: tuple[str, ...]
    losses: Mapping[str, Callable]
    peft_type: str
    legend: Callable[[Batch], str]
    render: Callable[[Tokenizer, Batch, int, tuple[str, ...]], str]
    encode: Callable[[Sequence[Row], RowFormat], Encoded] | None = None
    row_labels: Callable[[Row, tuple[str, ...], str], Iterable[tuple[str, Any]]] | None = None
    num_outputs: int = 0
    predict: Callable | None = None
    score: Callable[[Any, str, Sequence], dict[str, float]] | None = None
    details: Callable[[Any, str, Sequence], dict[str, Any]] | None = None
    answers: Callable[[Any, str, Sequence], list[tuple[Any, Any]]] | None = None
    rate: Callable[[Sequence[tuple[Any, Any]]], dict[str, float]] | None = None
    rates_rows: bool = False
    infer: Callable | None = None
    describe: Callable[[Any, str, Sequence], dict[int, dict[str, Any]]] | None = None
    conversations: bool = False
    dialogue: Callable[[Row, tuple[str, ...], str, Template | None], Conversation] | None = None
    groups_rows: bool = False
    measures_text: bool = False
    estimators: Mapping[str, Callable] = field(default_factory=dict)
    added_head: str = ''
    output_name: str = ''
    unit: str = 'row'
    version: int = 1

    @functools.cached_property
    def reads_rows(self) -> bool:
        """Whether it reads rows (config.task) and not a text corpus (config.data)."""
        return self.encode is not None

    @functools.cached_property
    def predicts_tokens(self) -> bool:
        """Whether its targets are tokens, read from the vocabulary of the model."""
        return 'targets' in self.columns

    @functools.cached_property
    def on_policy(self) -> bool:
        """Whether it is trained on completions that its model samples."""
        return bool(self.estimators)

    @functools.cached_property
    def scores_segments(self) -> bool:
        """Whether its examples are segments of a row that are scored separately, so that a row holds several."""
        return 'scored' in self.columns

    @functools.cached_property
    def reads_whole_rows(self) -> bool:
        """Whether its losses read sums over the tokens of a sequence, so that no device may see a part of a row."""
        return self.predicts_tokens and (self.scores_segments or self.on_policy)

    @functools.cached_property
    def has_classes(self) -> bool:
        """Whether its labels are classes."""
        return self.row_labels is not None

    @functools.cached_property
    def pools_rows(self) -> bool:
        """Whether there is one output for each row, and not one for each token."""
        return HEAD_KINDS[self.head].per_row

    @functools.cached_property
    def labels_words(self) -> bool:
        """Whether there is a class for each word: a row holds lists of words and of labels."""
        return self.has_classes and not self.pools_rows

    def output_size(self, labels: Sequence[str]) -> int:
        """Outputs of the head for these classes."""
        return self.num_outputs or len(labels)

    def loss(self, name: str = '') -> Callable:
        """The loss that config.objective.name selects; '' selects the first. Raises InputError if it is unknown."""
        if name and name not in self.losses:
            raise wrong_choice(f'task.name = {self.name!r}: objective.name', name, ('', *self.losses))
        return self.losses[name or next(iter(self.losses))]

    def estimator(self, name: str = '') -> Callable:
        """The estimator of advantages that belongs to the objective."""
        return self.estimators[name or next(iter(self.losses))]

    def settings(self, name: str = '') -> set[str]:
        """The fields of config.objective and config.policy that an objective reads, by its loss or its estimator."""
        functions = [self.loss(name), *([self.estimator(name)] if self.estimators else [])]
        return {parameter for function in functions for parameter in inspect.signature(function).parameters}


def has_setting(function: Callable, name: str) -> bool:
    """Whether a loss or prediction reads this setting of config.objective."""
    return name in inspect.signature(function).parameters


def with_settings(function: Callable, settings: Mapping[str, Any]) -> functools.partial:
    """A loss or prediction with those of `settings` that it reads.

    Example:
      >>> def loss(forward, batch, *, head='logits'): ...
      >>> with_settings(loss, {'head': 'classify', 'z_loss': 0.0}).keywords
      {'head': 'classify'}
    """
    known = inspect.signature(function).parameters
    return functools.partial(function, **{name: x for name, x in settings.items() if name in known})
