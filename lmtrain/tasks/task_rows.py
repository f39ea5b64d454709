"""The rows of a task: read from files, divided into splits, with their classes and few shots of each."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.chat.conversation import FORMATS, WITH_PROMPT, with_known_fields, with_turns
from lmtrain.data.hash_rng import hash_unit
from lmtrain.data.labels import Classes, class_id, resolve_classes
from lmtrain.data.preferences import PROMPTS, Notes, with_prompt
from lmtrain.data.rows import Row, read_rows
from lmtrain.data.splits import SPLITS, boundaries
from lmtrain.data.verifiable_task import is_generated
from lmtrain.errors import InputError
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import Task

TOO_LONG = ('error', 'cut', 'drop')


class TaskConfig(NamedTuple):
    """The fields of config.task that decide which examples there are, and how they are packed.

    Attributes:
      name: of a task that reads rows.
      files: {split: files of rows} (jsonl(.gz), json, csv, tsv, parquet, conll; SQuAD's json), each a path from
        data.root or (path, label): then the lines of the file are texts of that label.
      text: fields that are read, in their order: one text or a pair; ('question', 'context') for 'span'; the words
        for 'tag'; the prompt for 'chat' (() there recognises messages, prompt + completion, alpaca, sharegpt).
      label: field of the label: class, number, tags, answers; the completion for 'chat'.
      labels: the classes in the order of their ids; () is those of the training rows, in the order of the base if
        they are the classes of its head, else sorted.
      shots: training rows of each class, or of all rows if the task has no classes or classes of words, chosen by hash;
        0 is all.
      buckets: how many lengths T batches have at most; 1 is data.seq_len alone.
      pack: several examples in a row, isolated; only if the targets are tokens, or texts with a score each.
      too_long: of rows longer than data.seq_len: 'error' | 'cut' (at the end; contexts of 'span' in windows that
        overlap; prompts of preferences at the beginning) | 'drop'.
      lengths: the lengths T of batches, ascending; () are at most `buckets` lengths with the least padding.
      group: rows that are encoded together; only of 'unpaired', whose texts share an estimate of the KL divergence.
    """

    name: str
    files: dict[str, tuple]
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    shots: int
    buckets: int
    pack: bool
    too_long: str
    group: int = 1
    lengths: tuple[int, ...] = ()

    @property
    def task(self) -> Task:
        """The record of the task."""
        return TASKS[self.name]

    def check(self, seq_len: int) -> None:
        """Raises InputError naming a field, its value and what it must be; `seq_len` is data.seq_len."""
        known = [name for name, task in TASKS.items() if task.reads_rows]
        require('name', self.name, self.name in known, f'one of {", ".join(map(repr, known))}')
        require('train', self.files['train'], bool(self.files['train']), "files of rows, such as ('train.csv',)")
        for split, files in self.files.items():
            for file in files:
                pair = isinstance(file, tuple | list) and len(file) == 2 and all(type(part) is str for part in file)
                require(split, file, type(file) is str or pair, 'a path, or (path, label)')
        chats = self.task.conversations  # () recognises their formats, and one field may hold a conversation
        named = all(type(name) is str and name for name in self.text) and (bool(self.text) or chats)
        require('text', self.text, named, 'the names of the fields that are read')
        labelled = type(self.label) is str and (bool(self.label) or chats and len(self.text) < 2)
        require('label', self.label, labelled, 'the name of a field')
        require('too_long', self.too_long, self.too_long in TOO_LONG, f'one of {", ".join(map(repr, TOO_LONG))}')
        is_count = type(self.shots) is int and self.shots >= 0
        require('shots', self.shots, is_count, 'a number of rows, or 0 for all')
        require('buckets', self.buckets, type(self.buckets) is int and self.buckets >= 1, 'at least 1 length')
        may_pack = (self.task.predicts_tokens or self.task.scores_segments) and not self.task.groups_rows
        may_pack = may_pack or not self.pack
        require('pack', self.pack, may_pack, f"False: rows of '{self.name}' stand alone")
        ascending = all(type(length) is int and length > 0 for length in self.lengths)
        ascending = ascending and list(self.lengths) == sorted(set(self.lengths))
        ascending = ascending and not (self.pack and len(self.lengths) > 1)
        require('lengths', self.lengths, ascending, 'ascending numbers of tokens; with task.pack only one')
        to_the_end = not self.lengths or self.lengths[-1] == seq_len
        require('lengths', self.lengths, to_the_end, f'numbers of which the last is data.seq_len = {seq_len}')
        least = 2 if self.task.groups_rows else 1  # a row needs the completion of another one
        require('group', self.group, type(self.group) is int and self.group >= least, f'at least {least} rows')


def require(name: str, value: Any, right: bool, expected: str) -> None:
    """Raises InputError naming a field of config.task, its value and what it must be."""
    if not right:
        raise InputError(f'config.task.{name} is {value!r}; it must be {expected}')


def read_splits(config: TaskConfig, data: Mapping, notes: list[str]) -> dict[str, list[Row]]:
    """{split: its rows}; shares may leave none to train. What was recognised or left out is added to `notes`.

    Rows without text are left out if the task has one output for each row, and so are rows without a word or a message.
    Preferences of one prompt, and rows of one prompt of a policy, are in one split.
    """
    fields = config.text[0] if config.text else 'text', config.label
    files = _without_generated(config.files, notes)
    rows = {
        split: [row for file in own for row in read_rows(file, data['root'], *fields, notes, split)]
        for split, own in files.items()
    }
    rows = {split: _with_content(each, config, split, notes) for split, each in rows.items()}
    if config.task.conversations and not config.text:
        rows = {split: [_as_read(row, config.task) for row in each] for split, each in rows.items()}
    shares = {split: float(data[split]) for split in SPLITS[1:] if not files[split]}
    if any(shares.values()):
        _divide(rows, shares, config)
    return rows


def repeated_texts(rows: dict[str, list[Row]], text: tuple[str, ...]) -> list[str]:
    """A line for each split with texts that are training texts too: its score is too good.

    Rows that are equal in every field are in one split; a column such as an id separates copies of a text.
    """
    texts = {
        split: [json.dumps([row.fields.get(name) for name in text], default=str) for row in own]
        for split, own in rows.items()
    }
    train, lines = {*texts['train']}, []
    for split in SPLITS[1:] if text else ():
        if count := sum(each in train for each in texts[split]):
            lines.append(f'{split}: {count:,} of {len(texts[split]):,} texts are also training texts')
    return lines


def _as_read(row: Row, task: Task) -> Row:
    """A row of a recognised format, with the fields that stand for those of other names."""
    if task.scores_segments:
        return with_prompt(row)
    if not task.measures_text and row.fields.get('prompt') is not None:  # a policy reads no answer
        return with_turns(row, row.fields['prompt'])
    return with_known_fields(row)


def _with_content(rows: list[Row], config: TaskConfig, split: str, notes: list[str]) -> list[Row]:
    """The rows that have what the task reads. Raises InputError if there are rows, but none has it."""
    filled, skipped = [], Notes()
    for row in rows:
        if missing := _missing_content(row, config):
            skipped.skip(f'without {missing}', row)
        else:
            filled.append(row)
    if rows and not filled:
        fields = ', '.join(map(repr, config.text or rows[0].fields))
        what = _missing_content(rows[0], config).removeprefix('a ')
        raise InputError(f'{rows[0].place}: no {what} in {fields}, as in all {split} rows')
    notes += [f'{split}: {line}' for line in skipped.lines()]
    return filled


def _missing_content(row: Row, config: TaskConfig) -> str:
    """'text', 'a word' or 'a message' if the fields that a task reads are without it; else ''.

    A field that is missing has content here: it is an error, by the readers of texts.
    """
    task = config.task
    values = [row.fields.get(name, name) for name in config.text]
    if task.labels_words:
        return 'a word' if values and values[0] in ([], None) else ''
    if task.conversations and not task.scores_segments:  # a prompt of preferences may be empty
        reads_prompt = task.on_policy and row.fields.get('prompt') is not None
        lists = values or ([] if reads_prompt else [row.fields.get(FORMATS[form][0]) for form in WITH_PROMPT])
        return 'a message' if [] in lists else ''
    blank = all(value is None or isinstance(value, str) and not value.strip() for value in values)
    return 'text' if task.pools_rows and values and blank else ''


def _without_generated(files: dict[str, tuple], notes: list[str]) -> dict[str, tuple]:
    """The files of the splits. A recipe's generated rows do not measure what is learned from a user's own."""
    if any(map(is_generated, files['train'])):
        return files
    own = {split: tuple(file for file in each if not is_generated(file)) for split, each in files.items()}
    for split in SPLITS[1:]:
        if len(own[split]) < len(files[split]):
            taken = 'the files that are named' if own[split] else 'a share of task.train'
            notes.append(f'{split}: {taken}, not the generated rows of the recipe')
    return own


def _divide(rows: dict[str, list[Row]], shares: dict[str, float], config: TaskConfig) -> None:
    """Moves `shares` of the training rows to the other splits, by `_draws`: rows of equal `_prompt_or_fields` together.

    Raises InputError naming a row of a policy without a prompt.
    """
    train, draws = rows['train'], _draws('split', [_prompt_or_fields(row, config) for row in rows['train']])
    sizes = [shares.get(split, 0.0) * len(draws) for split in SPLITS[1:]]
    first, second = boundaries(draws, np.ones(len(draws)), sizes)
    rows['train'] = [row for draw, row in zip(draws, train) if draw >= second]
    for split, (low, high) in zip(SPLITS[1:], ((0.0, first), (first, second))):
        if shares.get(split):
            rows[split] = [row for draw, row in zip(draws, train) if low <= draw < high]


def _prompt_or_fields(row: Row, config: TaskConfig) -> Any:
    """The prompt of a preference or of a policy, whose other fields may differ; else all fields of the row."""
    task = config.task
    if task.on_policy and task.dialogue:  # its prompt may be a question, or messages without their answer
        return task.dialogue(row, config.text, config.label, None)
    names = PROMPTS if task.scores_segments else ()
    return next((row.fields[name] for name in names if row.fields.get(name)), row.fields)


def _draws(purpose: str, contents: Sequence[Any]) -> np.ndarray:
    """[rows] float64 in [0, 1), a hash of the content of each row."""
    return np.array([hash_unit(purpose, json.dumps(content, sort_keys=True, default=str)) for content in contents])


def classes_of(rows: list[Row], config: TaskConfig, base: Sequence[str]) -> Classes:
    """The classes of the training rows; config.task.labels if the task has no classes."""
    row_labels = config.task.row_labels
    if row_labels is None:
        return Classes(config.labels, False, ())
    labels = (pair for row in rows for pair in row_labels(row, config.text, config.label))
    classes = resolve_classes(labels, config.labels, base)
    if len(classes.names) < 2:
        raise InputError(f'the training rows have only one class, {classes.names[0]!r}: there is nothing to classify')
    return classes


def few_shots(rows: list[Row], config: TaskConfig) -> list[Row]:
    """`config.shots` rows of each class, in the order of the file; of all rows if the task has no classes, or of words.

    A row of a task with classes of rows has exactly one (`Task.row_labels`).
    """
    row_labels = None if config.task.labels_words else config.task.row_labels
    chosen: dict[Hashable, list[int]] = {}
    for index in np.argsort(_draws('shots', [row.fields for row in rows]), kind='stable').tolist():
        group = None
        if row_labels:
            (place, label), *_ = row_labels(rows[index], config.text, config.label)
            group = class_id(label, config.labels, place)
        chosen.setdefault(group, []).append(index)
    return [rows[index] for index in sorted(index for group in chosen.values() for index in group[: config.shots])]
