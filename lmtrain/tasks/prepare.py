"""From config.task to batches of a task: rows read, labelled, encoded and laid out once, before anything compiles."""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.data import examples
from lmtrain.data.cache import build, cache_directory, key
from lmtrain.data.chat import encoding
from lmtrain.data.chat.template import UNWRITTEN
from lmtrain.data.example_store import Examples, PackedExamples, lengths, load, pack_examples, save
from lmtrain.data.labels import choose, class_of, counted
from lmtrain.data.rows import Row, place_of, read_rows, text_of, value_of
from lmtrain.data.splits import SPLITS, boundaries, hash_unit
from lmtrain.data.token_files import Split
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.load import LEARNED, check_fits, learn, open_tokenizer
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json, write_json

TASKS = ('chat', 'classify', 'regress', 'tag', 'span')
TOO_LONG = ('error', 'cut', 'drop')
# Raised when the same rows and settings give other batches: of what a template writes, of spans, of all others.
VERSIONS = {'template': 3, 'span': 2}
VERSION = 1
# What a batch of a task has beside tokens, segment_ids, positions and row; token_types where texts come in pairs.
COLUMNS = {
    'chat': ('targets', 'loss_mask'),
    'classify': ('labels', 'label_weights', 'token_types'),
    'regress': ('labels', 'label_weights', 'token_types'),
    'tag': ('labels', 'label_weights'),
    'span': ('spans', 'label_weights', 'token_types'),
}


@dataclass(frozen=True)
class Task:
    """What `prepare_task` gives; where a run needs a corpus it has the same names (`tokenizer`, `splits`, ...)."""

    name: str  # one of TASKS
    tokenizer: Tokenizer
    splits: dict[str, Split]  # num_tokens and num_bytes are those of what is learned where it is 'chat'
    fingerprint: str  # hex sha256 of rows, tokenizer, template and settings
    seq_len: int
    lengths: tuple[int, ...]  # T of the batches: one compiled program each, ascending
    text: tuple[str, ...]  # the fields that are read
    label: str
    labels: tuple[str, ...]  # names of the classes or tags; () elsewhere
    kept: bool  # whether `labels` are those of the base in its order
    notes: tuple[str, ...]  # what was recognised, counted, cut or left out: to be said at the start
    template: encoding.Template | None  # that has written rows of 'chat'; None if all stand as they are
    rows: dict[str, list[Row]] = field(repr=False)
    examples: dict[str, Examples] = field(repr=False)
    laid: dict[str, PackedExamples] = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """What its batches have beside tokens, segment_ids, positions and row."""
        return COLUMNS[self.name]

    def baselines(self) -> dict[str, float]:
        """{}: a task's loss is not in bits per byte."""
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
    pack: bool,
    too_long: str,
    template: str,
    date: str,
    vocab_limit: int | None = None,
    base_labels: Sequence[str] = (),
) -> Task:
    """The rows of config.task as batches: `prepare_task(config.data, **config.task, vocab_limit=...)`.

    Args:
      data: config.data, of which `root`, `cache`, `tokenizer`, `vocab_size`, `seq_len`, and the shares `validation` and
        `test` (taken from the training rows, by hash, where no file of their own is named) are read.
      name: 'chat' | 'classify' | 'regress' | 'tag' | 'span'.
      train, validation, test: files of rows (jsonl(.gz), json, csv, tsv, parquet, conll; SQuAD's json), each a path
        from data.root or (path, label): then the file's lines are texts of that label.
      text: fields that are read, in their order: one text or a pair; ('question', 'context') for 'span'; the words
        for 'tag'; the prompt for 'chat' (() there recognises messages, prompt + completion, alpaca, sharegpt).
      label: field of the label: class, number, tags, answers; the completion for 'chat'.
      labels: the classes in the order of their numbers; () is those of the training rows, in the order of the base if
        they are the classes of its head, else sorted.
      shots: training rows kept of each class (of all rows where there are no classes), chosen by hash; 0 is all.
      buckets: how many lengths T batches come in at most; 1 is data.seq_len alone.
      pack: several conversations a row, isolated ('chat' alone).
      too_long: of rows longer than data.seq_len: 'error' | 'cut' (at the end; contexts of 'span' in windows that
        overlap) | 'drop'.
      template: 'auto' (the tokenizer's own, else 'plain') | 'plain' | 'none' | the name of one of the tokenizer's
        several templates | file of a Jinja chat template ('chat' alone).
      date: that a template with `strftime_now` writes, 'YYYY-MM-DD'; '' is today, by the clock of process 0.
      vocab_limit: rows of the model's embedding; no text may need a token beyond them.
      base_labels: the classes of the base's own head for this task, in the order of their numbers.

    Raises FileNotFoundError, ValueError or ImportError naming the file and line, the field, and the way out.
    """
    named = {'train': train, 'validation': validation, 'test': test}
    named = {split: (files,) if isinstance(files, str) else tuple(files) for split, files in named.items()}
    text = (text,) if isinstance(text, str) else tuple(text)
    labels = tuple(labels)
    _check(name, named, text, label, shots, buckets, pack, too_long, date)
    seq_len, shares = data['seq_len'], {split: float(data[split]) for split in SPLITS[1:]}
    fields = text[0] if text else 'text', label
    notes: list[str] = []
    rows = {
        split: [row for file in files for row in read_rows(file, data['root'], *fields, notes)]
        for split, files in named.items()
    }
    _divide(rows, {split: share for split, share in shares.items() if not named[split]})
    kept = False
    if name in ('classify', 'tag'):
        labels, kept, remarks = choose(_labelled(name, rows['train'], text, label), labels, base_labels)
        notes += remarks
        if len(labels) < 2:
            raise InputError(f'the training rows have one class alone, {labels[0]!r}: there is nothing to tell apart')
    if shots:
        rows['train'] = _few(
            rows['train'], shots, (lambda row: _value(name, row, label, labels)) if name == 'classify' else None
        )
    tokenizer = _tokenizer(data, rows['train'], text, name)
    writing = None
    if name == 'chat':
        from lmtrain.runtime import multihost  # late: it needs jax, and reading rows does not

        date = (
            date or multihost.all_gather_object(datetime.date.today().isoformat())[0]
        )  # one for all, also at midnight
        writing = encoding.template_of(template, tokenizer, data['root'], date)
    content = _digest(rows), tokenizer.encoding, [name, text, label, labels, too_long, seq_len]

    def encode(split: str) -> tuple[list[examples.Example], list[str], bool]:
        long = examples.LengthPolicy(too_long, seq_len)
        if name == 'chat' and rows[split]:
            encoded, lines, by_template = encoding.conversations(rows[split], text, label, tokenizer, writing, long)
        else:
            encoded, lines = _encode(name, rows[split], text, label, labels, tokenizer, long, learn=split == 'train')
            by_template = False
        return encoded, lines + long.note(), by_template

    place = cache_directory(data['cache']) / f'task-{key(VERSIONS, *content, writing, "bytes")[:32]}'
    made, about = _encoded(place, encode)
    for split, each in made.items():
        largest = int(each.tokens[:-1].max(initial=-1))
        check_fits(tokenizer, data['tokenizer'], vocab_limit, largest, f'a {split} row')
    notes += about['notes']
    writing = writing if about['templated'] else None
    if writing:
        known = key(VERSIONS['template'], *content, writing)
    else:
        stands = [UNWRITTEN if name == 'chat' else '']
        known = key(VERSIONS.get(name, VERSION), *content[:2], content[2] + stands)
    if not len(made['train'].source):
        raise InputError(f'no training row is left of {len(rows["train"])}: {"; ".join(notes)}')
    if name in ('classify', 'tag'):
        notes += counted(labels, _numbers(made['train']))
    shorter = int(name == 'chat')
    sizes = np.concatenate([np.diff(each.begins) for each in made.values()]) - shorter
    laid = {split: pack_examples(each, shorter, seq_len if pack else 0) for split, each in made.items()}
    return Task(
        name=name,
        tokenizer=encoding.carrying(tokenizer, writing) if writing else tokenizer,
        splits={split: _split(each, laid[split], tokenizer, name) for split, each in made.items()},
        fingerprint=key(known, shares, shots, buckets, pack),
        seq_len=seq_len,
        lengths=lengths(sizes, 1 if pack else buckets, seq_len),
        text=text,
        label=label,
        labels=labels,
        kept=kept,
        notes=tuple(notes),
        template=writing,
        rows=rows,
        examples=made,
        laid=laid,
    )


LABEL = examples.LABEL


def _check(name, named, text, label, shots, buckets, pack, too_long, date) -> None:
    def need(field: str, value, right: bool, expected: str) -> None:
        if not right:
            raise InputError(f'config.task.{field} is {value!r}; it must be {expected}')

    need('name', name, name in TASKS, f'one of {", ".join(map(repr, TASKS))}')
    need('train', named['train'], bool(named['train']), "files of rows, such as ('train.csv',)")
    for split, files in named.items():
        for file in files:
            pair = isinstance(file, tuple | list) and len(file) == 2 and all(type(part) is str for part in file)
            need(split, file, type(file) is str or pair, 'a path, or (path, label)')
    right = all(type(each) is str and each for each in text)
    need('text', text, right and (bool(text) or name == 'chat'), 'the names of the fields that are read')
    whole = name == 'chat' and len(text) < 2  # () recognises formats, and one field may hold a conversation
    need('label', label, type(label) is str and (bool(label) or whole), 'the name of a field')
    need('too_long', too_long, too_long in TOO_LONG, f'one of {", ".join(map(repr, TOO_LONG))}')
    need('shots', shots, type(shots) is int and shots >= 0, 'a number of rows, or 0 for all')
    need('buckets', buckets, type(buckets) is int and buckets >= 1, 'at least 1 length')
    need('pack', pack, name == 'chat' or not pack, f"False: rows of '{name}' stand alone")
    try:
        written = not date or datetime.date.fromisoformat(date).isoformat() == date
    except (TypeError, ValueError):
        written = False
    need('date', date, written, "a day such as '2026-01-31', or '' for today")


def _divide(rows: dict[str, list[Row]], shares: dict[str, float]) -> None:
    """Takes `shares` of the training rows for the other splits, by the hash of a row's fields: equal rows together."""
    if not any(shares.values()):
        return
    draws = np.array([hash_unit('split', json.dumps(row.fields, sort_keys=True, default=str)) for row in rows['train']])
    wanted = [shares.get(split, 0.0) * len(draws) for split in SPLITS[1:]]
    first, second = boundaries(draws, np.ones(len(draws)), wanted)
    whole = list(zip(draws.tolist(), rows['train']))
    rows['train'] = [row for draw, row in whole if draw >= second]
    for split, (low, high) in zip(SPLITS[1:], ((0.0, first), (first, second))):
        if shares.get(split):
            rows[split] = [row for draw, row in whole if low <= draw < high]
    if not rows['train']:
        raise InputError(f'no training row is left of {len(whole)}: set data.validation and data.test lower')


def _labelled(name: str, rows: list[Row], text: tuple[str, ...], label: str):
    for row in rows:
        if name == 'classify':
            yield row.place, value_of(row, label, LABEL)
        else:
            for index, tag in enumerate(examples.tags_of(row, text[0], label)[1]):
                yield place_of(row, index), tag


def _numbers(made: Examples) -> list[int]:
    """The classes of the labels: one of each example, or of each word."""
    if 'labels' in made.values:
        return made.values['labels'].tolist()
    return made.flat['labels'][made.flat['label_weights'] > 0].tolist()


def _few(rows: list[Row], shots: int, class_of) -> list[Row]:
    """`shots` rows of each class, in the order of the file."""
    draws = [hash_unit('shots', json.dumps(row.fields, sort_keys=True, default=str)) for row in rows]
    kept: dict[Any, list[int]] = {}
    for index in np.argsort(draws, kind='stable').tolist():
        kept.setdefault(class_of(rows[index]) if class_of else None, []).append(index)
    return [rows[index] for index in sorted(index for each in kept.values() for index in each[:shots])]


def _tokenizer(data: Mapping, rows: list[Row], text: tuple[str, ...], name: str) -> Tokenizer:
    kind = data['tokenizer']
    if kind not in LEARNED:
        return open_tokenizer(local_path(kind, 'data.tokenizer', data['root']), False)
    if kind != 'bytes' and (name == 'tag' or not text):
        raise InputError(
            f"data.tokenizer is {kind!r}, which is learned from texts: with task.name={name!r} take 'bytes', or the "
            'tokenizer of a model or a run'
        )
    texts = (text_of(row, each) for row in rows for each in text) if kind != 'bytes' else ()
    return learn(kind, texts, data['vocab_size'], False)


def _encoded(place: Path, encode: Callable[[str], tuple]) -> tuple[dict[str, Examples], dict[str, Any]]:
    """({split: its examples}, {'notes', 'templated'}) from the directory `place`, which is written if it is not there.

    encode: split -> (examples, notes on them, whether a chat template has written any).
    """

    def write(directory: Path) -> None:
        about = {'notes': [], 'templated': False}
        for split in SPLITS:
            encoded, lines, by_template = encode(split)
            save(directory / split, encoded)
            about['notes'] += [f'{split}: {line}' for line in lines]
            about['templated'] |= by_template
        write_json(directory / 'notes.json', about)

    place = build(place, write)
    about = read_json(place / 'notes.json')
    return {split: load(place / split) for split in SPLITS}, about


def _encode(name, rows, text, label, labels, tokenizer, long, learn) -> tuple[list[examples.Example], list[str]]:
    if not rows:
        return [], []
    if name == 'tag':
        if len(text) != 1:
            raise InputError(f"config.task.text is {text!r}; one field is expected, such as ('tokens',)")
        return examples.tags(rows, text[0], label, labels, tokenizer, long), []
    if name == 'span':
        made = examples.spans(rows, text, label, tokenizer, long, learn)
        null = sum(tuple(each.values['spans']) == examples.NULL_SPAN for each in made)
        return made, [f'{null:,} of {len(made):,} windows hold no answer'] * bool(null)
    made = examples.texts(rows, text, tokenizer, long)
    for row in rows:  # those that were dropped as well
        _value(name, row, label, labels)
    for each in made:
        each.values.update(labels=_value(name, rows[each.source], label, labels), label_weights=np.float32(1))
    return made, []


def _value(name: str, row: Row, label: str, labels: tuple[str, ...]):
    value = value_of(row, label, LABEL)
    if name == 'regress':
        return np.float32(examples.number_of(value, row.place))
    return np.int32(class_of(value, labels, row.place))


def _digest(rows: dict[str, list[Row]]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            digest.update(json.dumps([split, row.fields], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _split(made: Examples, laid: PackedExamples, tokenizer: Tokenizer, name: str) -> Split:
    tokens, sizes = made.tokens[:-1], tokenizer.token_bytes[made.tokens[:-1]]
    if name == 'chat' and len(tokens):
        learned = made.flat['loss_mask'] > 0
        tokens, sizes = made.tokens[1:][learned], made.flat['bytes'][learned]
    return Split((), len(np.unique(made.source)), len(tokens), int(sizes.sum()), len(laid.rows.first) - 1)
