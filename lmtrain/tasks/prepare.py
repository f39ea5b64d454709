"""From config.task to the batches of a task: rows are read, labelled, encoded and packed before anything compiles."""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import preferences
from lmtrain.data.cache import build, cache_directory, key
from lmtrain.data.chat import conversation
from lmtrain.data.chat.load import open_template, with_template
from lmtrain.data.chat.messages import has_json_arguments
from lmtrain.data.chat.template import UNWRITTEN, Template
from lmtrain.data.example_store import Examples, PackedExamples, batch_lengths, collect, load, pack_examples, save
from lmtrain.data.examples import LengthPolicy
from lmtrain.data.labels import Classes, class_id, count_notes, name_of, rare_notes
from lmtrain.data.rows import Row, text_of, value_of
from lmtrain.data.splits import SPLITS
from lmtrain.data.token_files import Split
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.load import LEARNED, check_fits, learn, open_tokenizer
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json, write_json
from lmtrain.runtime import multihost, progress
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import Encoded, RowFormat, Task
from lmtrain.tasks.task_rows import TaskConfig, classes_of, few_shots, read_splits, repeated_texts, require

EVALUATION_BUCKETS = 4  # lengths of batches of rows without a config
TEMPLATE_VERSION = 3  # increased if a template and the same rows give other examples; the others are `Task.version`


@dataclass(frozen=True)
class TaskData:
    """The rows of a task, encoded; the counterpart of `lmtrain.data.Corpus`, with the same names.

    Attributes:
      splits: of a task that predicts tokens, num_tokens and num_bytes count what the loss counts.
      fingerprint: hex sha256 of rows, tokenizer, template and settings.
      lengths: T of the batches, ascending; one compiled program each.
      text, label: fields that are read.
      labels: names of the classes in the order of their ids; () without classes.
      labels_of_base: whether `labels` are those of the base in its order.
      notes: lines for the header of a run: what was recognised, counted, cut or left out.
      template: that wrote rows; None if none did.
      rows, examples, packed: of each split.
    """

    task: Task
    tokenizer: Tokenizer
    splits: dict[str, Split]
    fingerprint: str
    seq_len: int
    lengths: tuple[int, ...]
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    labels_of_base: bool
    notes: tuple[str, ...]
    template: Template | None
    rows: dict[str, list[Row]] = field(repr=False)
    examples: dict[str, Examples] = field(repr=False)
    packed: dict[str, PackedExamples] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """('',): the rows of a task are one source."""
        return ('',)

    @property
    def sizes(self) -> dict[str, int]:
        """{split: its rows, without those that were left out}; a row may be several examples."""
        return {split: len(np.unique(each.source)) for split, each in self.examples.items()}

    def baselines(self) -> dict[str, float]:
        """{}: the loss of a task is not in bits per byte."""
        return {}


def prepare_task(
    data: Mapping,
    *,
    name: str,
    train: Iterable | str,
    validation: Iterable | str,
    test: Iterable | str,
    text: Iterable[str],
    label: str,
    labels: Iterable[str],
    shots: int,
    buckets: int,
    lengths: Iterable[int],
    pack: bool,
    too_long: str,
    group: int,
    template: str,
    date: str,
    vocab_limit: int | None = None,
    base_labels: Sequence[str] = (),
) -> TaskData:
    """Reads, encodes and packs the rows of config.task: `prepare_task(config.data, **config.task, vocab_limit=...)`.

    Args:
      data: config.data, of which `root`, `cache`, `tokenizer`, `vocab_size`, `seq_len`, and the shares `validation` and
        `test` are read. A share is taken from the training rows, by hash, if the split has no files of its own.
      name, ..., group: the fields of `TaskConfig`.
      template: 'auto' (the tokenizer's own, else 'plain') | 'plain' | 'none' | the name of one of the tokenizer's
        several templates | file of a Jinja chat template. Only conversations read it.
      date: that a template with `strftime_now` writes, 'YYYY-MM-DD'; '' is today, by the clock of process 0.
      vocab_limit: rows of the model's embedding; no text may need a token beyond them.
      base_labels: the classes of the base's own head for this task, in the order of their ids.

    Raises InputError, FileNotFoundError or ImportError naming the file and line, the field, and the way out.
    """
    files = {'train': _tuple(train), 'validation': _tuple(validation), 'test': _tuple(test)}
    labels = tuple(name_of(value, 'config.task.labels') for value in labels)
    config = TaskConfig(name, files, _tuple(text), label, labels, shots, buckets, pack, too_long, group, tuple(lengths))
    config.check(data['seq_len'])
    _check_date(date)
    rows = read_splits(config, data, notes := [])
    notes += repeated_texts(rows, config.text)
    divided = bool(rows['train'])
    if not divided:  # the shares took all; what is wrong with a row is named first
        rows = dict.fromkeys(SPLITS, []) | {'train': [row for split in SPLITS for row in rows[split]]}
    classes = _classes(rows, config, base_labels)
    config = config._replace(labels=classes.names)
    if shots:
        rows['train'] = few_shots(rows['train'], config)
    tokenizer = _tokenizer(data, rows['train'], config)
    jinja = _template(template, tokenizer, data['root'], date) if config.task.conversations else None
    encoded = _encode_splits(config, data, rows, tokenizer, jinja)
    for split, examples in encoded.examples.items():
        largest = int(examples.tokens[:-1].max(initial=-1))
        check_fits(tokenizer, data['tokenizer'], vocab_limit, largest, f'a {split} row')
    notes += [*classes.notes, *encoded.notes, *_unused_template(config.task, tokenizer, jinja, encoded.template)]
    if not divided or not len(encoded.examples['train'].source):
        way_out = [] if divided else ['set data.validation and data.test lower']
        raise InputError(f'no training row is left of {len(rows["train"])}: {"; ".join([*notes, *way_out])}')
    return _packed(config, data, rows, tokenizer, encoded, classes.of_base, notes)


def _check_date(date: str) -> None:
    try:
        right = not date or datetime.date.fromisoformat(date).isoformat() == date
    except (TypeError, ValueError):
        right = False
    require('date', date, right, "a day such as '2026-01-31', or '' for today")


def _tuple(value: Iterable | str) -> tuple:
    return (value,) if isinstance(value, str) else tuple(value)


def _classes(rows: dict[str, list[Row]], config: TaskConfig, base: Sequence[str]) -> Classes:
    """The classes of the rows of config.task.train, also of rows that a share moved to another split.

    If the rows that are left to train have the labels of all moved rows, their classes are taken. (With further rows,
    another spelling of a label, or an id, would be a class of its own.)
    """
    moved = [row for split in SPLITS[1:] if not config.files[split] for row in rows[split]]
    row_labels = config.task.row_labels
    if not moved or row_labels is None:
        return classes_of(rows['train'], config, base)
    try:
        classes = classes_of(rows['train'], config, base)
        for row in moved:
            for place, label in row_labels(row, config.text, config.label):
                class_id(label, classes.names, place)
    except InputError:
        return classes_of([*rows['train'], *moved], config, base)
    return classes


def _tokenizer(data: Mapping, rows: list[Row], config: TaskConfig) -> Tokenizer:
    """The tokenizer that data.tokenizer names, or one learned from the texts of the training rows."""
    kind = data['tokenizer']
    if kind not in LEARNED:
        return open_tokenizer(local_path(kind, 'data.tokenizer', data['root']), False)
    if kind == 'bytes':
        return learn(kind, (), data['vocab_size'], False)
    if kind != 'bpe' and not config.text:
        raise InputError(
            f'data.tokenizer is {kind!r}, which cannot write a chat template: with task.name={config.name!r} take '
            "'bpe' or 'bytes', or the tokenizer of a model or a run"
        )
    with progress.phase(f'training the tokenizer ({kind})'):
        return learn(kind, (text for row in rows for text in _texts(row, config)), data['vocab_size'], False)


def _texts(row: Row, config: TaskConfig) -> Iterator[str]:
    """The texts of a row from which a tokenizer is learned."""
    if config.task.conversations:
        preferred = config.task.scores_segments
        read = preferences.dialogues(row) if preferred else [conversation.read(row, config.text, config.label)[1]]
        for dialogue in read:
            yield from filter(None, [*(message['content'] for message in dialogue.messages), *dialogue.texts])
        return
    for name in config.text:
        value = value_of(row, name, 'config.task.text') if config.task.labels_words else text_of(row, name)
        yield value if isinstance(value, str) else ' '.join(map(str, value))


def _template(template: str, tokenizer: Tokenizer, root: str, date: str) -> Template | None:
    """The chat template that config.task.template names."""
    today = datetime.date.today().isoformat()
    date = date or multihost.all_gather_object(today)[0]  # the same for all processes, also at midnight
    return open_template(template, tokenizer, root, date)


def _unused_template(task: Task, tokenizer: Tokenizer, opened: Template | None, used: Template | None) -> list[str]:
    """A line if preferences are plain texts, though the tokenizer has a chat template, in which its model answers."""
    if opened and not used and task.scores_segments and 'chat_template' in tokenizer.config:
        return [f'prompts are continued as they are, without {opened.name}: write prompts as messages to use it']
    return []


# --- examples


class EncodedSplits(NamedTuple):
    """The examples of all splits, lines that describe them, and the template if it wrote any of them.

    key: hex sha256 of what the examples follow from.
    """

    examples: dict[str, Examples]
    notes: list[str]
    template: Template | None
    key: str


def _encode_splits(
    config: TaskConfig, data: Mapping, rows: dict[str, list[Row]], tokenizer: Tokenizer, template: Template | None
) -> EncodedSplits:
    """The rows of all splits as examples, from the cache if they were encoded before."""
    task, seq_len = config.task, data['seq_len']
    encode_rows = task.encode
    assert encode_rows, f'{task.name} reads a corpus'  # TaskConfig.check raises before
    settings = [config.name, config.text, config.label, config.labels, config.too_long, seq_len]
    settings += [config.group] if task.groups_rows else []
    fields = [row.fields for each in rows.values() for row in each] if task.conversations else []
    settings += ['arguments are objects'] if has_json_arguments(fields) else []
    content = _digest(rows), tokenizer.encoding

    def encode(split: str) -> Encoded:
        length = LengthPolicy(config.too_long, seq_len)
        fields = config.text, config.label, config.labels
        form = RowFormat(*fields, tokenizer, template, length, split == 'train', config.group)
        encoded = encode_rows(rows[split], form) if rows[split] else Encoded([])
        return encoded._replace(notes=[*encoded.notes, *length.note()])

    versions = {'template': TEMPLATE_VERSION} | {name: each.version for name, each in TASKS.items() if each.version > 1}
    name = f'task-{key(versions, *content, settings, template, "bytes")[:32]}'
    examples, about = _cached(cache_directory(data['cache']) / name, encode)
    template = template if about['templated'] else None
    if template:
        own = [task.version] if task.version > 1 else []
        digest = key(TEMPLATE_VERSION, *own, *content, settings, template)
    else:
        digest = key(task.version, *content, [*settings, UNWRITTEN if task.conversations else ''])
    return EncodedSplits(examples, about['notes'], template, digest)


def _cached(directory: Path, encode: Callable[[str], Encoded]) -> tuple[dict[str, Examples], dict[str, Any]]:
    """({split: its examples}, {'notes', 'templated'}) from `directory`, which is written if it does not exist."""

    def write(directory: Path) -> None:
        about = {'notes': [], 'templated': False}
        for split in SPLITS:
            encoded = encode(split)
            save(directory / split, encoded.examples)
            about['notes'] += [f'{split}: {line}' for line in encoded.notes]
            about['templated'] |= encoded.templated
        write_json(directory / 'notes.json', about)

    directory = build(directory, write)
    about = read_json(directory / 'notes.json')
    return {split: load(directory / split) for split in SPLITS}, about


def _digest(rows: dict[str, list[Row]]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            digest.update(json.dumps([split, row.fields], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _class_ids(examples: Examples) -> Iterator[int]:
    """The class of each example, or of each labelled word."""
    if 'labels' in examples.values:
        return iter(examples.values['labels'].tolist())
    return iter(examples.flat['labels'][examples.flat['label_weights'] > 0].tolist())


# --- batches


def _packed(
    config: TaskConfig,
    data: Mapping,
    rows: dict[str, list[Row]],
    tokenizer: Tokenizer,
    encoded: EncodedSplits,
    labels_of_base: bool,
    notes: list[str],
) -> TaskData:
    """TaskData: examples packed into batch rows, and the bucket lengths."""
    task, seq_len, examples = config.task, data['seq_len'], encoded.examples
    shares = {split: float(data[split]) for split in SPLITS[1:]}
    counts = []
    if task.has_classes:
        ids = {split: list(_class_ids(each)) for split, each in examples.items() if len(each.source)}
        counts = [*count_notes(config.labels, ids['train']), *rare_notes(config.labels, ids, task.unit)]
    unread = int(task.predicts_tokens)  # the last token of an example is a target only
    packed = {split: pack_examples(each, unread, seq_len, config.pack) for split, each in examples.items()}
    sizes = np.concatenate([each.rows.sizes for each in packed.values()])
    return TaskData(
        task=task,
        tokenizer=with_template(tokenizer, encoded.template) if encoded.template else tokenizer,
        splits={split: _split(task, each, packed[split], tokenizer) for split, each in examples.items()},
        fingerprint=key(encoded.key, shares, config.shots, config.lengths or config.buckets, config.pack),
        seq_len=seq_len,
        lengths=config.lengths or batch_lengths(sizes, 1 if config.pack else config.buckets, seq_len),
        text=config.text,
        label=config.label,
        labels=config.labels,
        labels_of_base=labels_of_base,
        notes=(*notes, *counts),
        template=encoded.template,
        rows=rows,
        examples=examples,
        packed=packed,
    )


def encode_rows(
    rows: Sequence[Row],
    task: Task,
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    text: Sequence[str],
    label: str,
    labels: Sequence[str],
    too_long: str,
) -> tuple[TaskData, int]:
    """(the rows as the split 'test' of a TaskData, the number of rows of more than `seq_len` tokens)."""
    length, encode = LengthPolicy(too_long, seq_len), task.encode
    assert encode, f'{task.name} reads a corpus'
    form = RowFormat(tuple(text), label, tuple(labels), tokenizer, None, length, training=False)
    examples = collect(encode(rows, form).examples)
    packed = pack_examples(examples, int(task.predicts_tokens), seq_len, pack=False)
    return TaskData(
        task=task,
        tokenizer=tokenizer,
        splits={},
        fingerprint='',
        seq_len=seq_len,
        lengths=batch_lengths(packed.rows.sizes, EVALUATION_BUCKETS, seq_len),
        text=form.text,
        label=label,
        labels=form.labels,
        labels_of_base=False,
        notes=tuple(length.note()),
        template=None,
        rows={'test': list(rows)},
        examples={'test': examples},
        packed={'test': packed},
    ), length.count


def _split(task: Task, examples: Examples, packed: PackedExamples, tokenizer: Tokenizer) -> Split:
    """The counts of a split: what the loss counts if it is the likelihood of text, else all tokens."""
    tokens, sizes = examples.tokens[:-1], tokenizer.token_bytes[examples.tokens[:-1]]
    if task.measures_text and len(tokens):
        learned = examples.flat['loss_mask'] > 0
        tokens, sizes = examples.tokens[1:][learned], examples.flat['bytes'][learned]
    return Split((), len(np.unique(examples.source)), len(tokens), int(sizes.sum()), len(packed.rows.first) - 1)
