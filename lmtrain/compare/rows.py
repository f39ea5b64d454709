"""The rows of a comparison: training, selection and test rows, and nested subsets of the training rows.

    rows/rows.json        classes, counts and notes; written last
    rows/train.jsonl      labelled rows that trials draw from
    rows/selection.jsonl  rows on which rate, step and prompt are chosen; in no subset
    rows/n32-seed1.jsonl  a subset: n8-seed1 is its beginning
    rows/test.jsonl       opened by the test stage only (testing.py)

A line has `text` (and `text2` of a pair), `label` (the class), `prompt` and `completion` (the row as text, up to its
answer, and the answer) and `place` (of the row in its file).
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from lmtrain.data.hash_rng import hash_unit
from lmtrain.data.labels import SHOWN, alike_notes, class_id, class_names, name_of, rare_notes
from lmtrain.data.rows import Row, jsonl_rows, text_of
from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import local_path, read_json_object, sha256, write_atomic, write_json
from lmtrain.inference.calibration import CONTENT_FREE
from lmtrain.inference.questions import parse_template, question
from lmtrain.tasks.task_rows import TaskConfig, classes_of, read_splits

ALL = 0  # a size: all training rows


class TaskRows(NamedTuple):
    """The rows that trials may see, and facts about all of them.

    Attributes:
      folder: of the files.
      classes: names in the order of their ids.
      train, selection: rows.
      facts: content of rows.json.
    """

    folder: Path
    classes: tuple[str, ...]
    train: list[Row]
    selection: list[Row]
    facts: dict[str, Any]

    @property
    def completions(self) -> list[str]:
        """The text of each class after a prompt, in the order of the ids."""
        return self.facts['completions']

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The fields of a line that a head reads."""
        return ('text', 'text2')[: len(self.facts['text'])]


def divide(config: ml_collections.ConfigDict, folder: Path) -> TaskRows:
    """Reads the task's files and writes the rows; a second call reads what the first one wrote.

    Rows of other settings or of files that have changed are divided again if no trial has begun, as after a dry run.

    Raises InputError if one has, or what the readers of a task raise.
    """
    settings = _settings(config)
    about = folder / 'rows.json'
    if about.exists() and (difference := _difference(config, folder, read_json_object(about), settings)):
        if (folder.parent / 'trials').exists():
            raise InputError(f'{difference}; use another --workdir')
        shutil.rmtree(folder)
    if not about.exists():
        _write(config, folder, settings)
    facts = read_json_object(about)
    train, selection = (read(folder / f'{part}.jsonl') for part in ('train', 'selection'))
    return TaskRows(folder, tuple(facts['classes']), train, selection, facts)


def _difference(config, folder: Path, facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """Why the rows in `folder` are not those of the config; '' if they are."""
    if facts['settings'] != json.loads(json.dumps(settings)):
        changed = [name for name in settings if json.loads(json.dumps(settings[name])) != facts['settings'].get(name)]
        return f'{folder}: these rows were divided with other settings of {", ".join(changed)}'
    if 'files' not in facts:  # of an earlier version
        return ''
    files = facts['files']
    for path, digest in _digests(config).items():
        if path in files and files[path] != digest:
            return f'{path} has changed since {folder} was divided from it'
        if digest not in files.values():  # of another data.root
            return f'{path} is none of the files that {folder} was divided from'
    return ''


def read(path: Path) -> list[Row]:
    """The rows of one of the files."""
    return list(jsonl_rows(path, []))


def sizes(
    config: ml_collections.ConfigDict, available: int, reasons: Sequence[str] = ()
) -> tuple[list[int], list[str]]:
    """(the sizes of subsets, ascending; notes about those left out).

    Args:
      reasons: why there are no more rows; part of the error.

    Raises InputError if none is left.
    """
    requested = sorted({available if size == ALL else size for size in config.compare.sizes})
    usable = [size for size in requested if 0 < size <= available]
    if not usable:
        example = f'--config.compare.sizes={max(1, available // 2)},{available}'
        raise InputError(
            f'config.compare.sizes = {tuple(config.compare.sizes)}, but only {available} training rows are left'
            f'{_in_brackets(reasons)}: name smaller sizes, such as {example}, or 0 for all'
        )
    notes = [f'size {size} is left out: there are {available} training rows' for size in requested if size > available]
    return usable, notes


def order(rows: Sequence[Row], classes: Sequence[str], seed: int) -> list[Row]:
    """The rows in the order of a seed, whose beginnings are the subsets.

    First one row of each class, so that a subset of C rows or more has every class; then the others at random, so
    that larger subsets have the distribution of the task.
    """
    draws = [(hash_unit(f'subset {seed}', row.fields['text'] + row.fields.get('text2', '')), row) for row in rows]
    shuffled = [row for _, row in sorted(draws, key=lambda draw: draw[0])]
    first = {row.fields['label']: row for row in reversed(shuffled)}
    chosen = {id(row) for row in first.values()}
    beginning = [row for row in shuffled if id(row) in chosen]
    return beginning + [row for row in shuffled if id(row) not in chosen]


def name(size: int, seed: int) -> str:
    """The name of a subset and of the trials on it."""
    return f'n{size}-seed{seed}'


def write_subsets(task: TaskRows, sizes: Iterable[int], seeds: int) -> None:
    """Writes the files of the subsets that do not exist."""
    for seed in range(1, seeds + 1):
        ordered = order(task.train, task.classes, seed)
        for size in sizes:
            path = task.folder / f'{name(size, seed)}.jsonl'
            if not path.exists():
                _write_rows(path, [row.fields for row in ordered[:size]])


def _settings(config) -> dict[str, Any]:
    """What decides which rows there are."""
    task = {f'task.{name}': config.task[name] for name in ('train', 'validation', 'test', 'text', 'label', 'labels')}
    return task | {
        'data.test': config.data.test,
        'compare.selection': config.compare.selection,
        'compare.test': config.compare.test,
        'compare.template': config.compare.template,
    }


def _digests(config) -> dict[str, str]:
    """{absolute path: SHA-256} of the files of the task that exist; a comparison goes on without them."""
    sources = [source for files in _task(config).files.values() for source in files]  # a path, or (path, label)
    names = [source if isinstance(source, str) else source[0] for source in sources]
    paths = [local_path(name, 'config.task', config.data.root).absolute() for name in names]
    return {str(path): sha256(path) for path in paths if path.is_file()}


def _write(config, folder: Path, settings: dict[str, Any]) -> None:
    notes: list[str] = []
    task = _task(config)
    if config.compare.template:
        _check_template(config.compare.template, 'config.compare.template', task.label)
    splits = read_splits(task, {**config.data, 'validation': 0.0}, notes)
    every = [row for rows in splits.values() for row in rows]
    _check_classes(every, task)
    _check_labels(every, task)
    parts = _divide(config, splits, task, notes)
    # Of all rows of the training files: a rare class may have been drawn into another part. Other files have no others.
    own = [row for part, split in PARTS.items() if part == 'train' or not task.files[split] for row in parts[part]]
    classes = classes_of(own, task, ()).names
    template = (
        config.compare.template or '\n'.join(f'{{{field}}}' for field in task.text) + f'\nLabel: {{{task.label}}}'
    )
    lines = {part: [_line(row, task, template, classes) for row in rows] for part, rows in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for part, fields in lines.items():
        _write_rows(folder / f'{part}.jsonl', fields)
    ids = {part: [classes.index(row['label']) for row in listed] for part, listed in lines.items()}
    notes += alike_notes(classes)
    notes += rare_notes(classes, ids)
    digest = hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()
    completions = [_completion(template, task.label, label) for label in classes]
    facts = {'settings': settings, 'digest': digest, 'classes': classes, 'completions': completions}
    facts |= {'text': task.text, 'label': task.label, 'template': template, 'notes': notes, 'files': _digests(config)}
    write_json(folder / 'rows.json', facts | {'rows': {part: len(rows) for part, rows in lines.items()}}, indent=1)


def _check_classes(rows: Sequence[Row], task: TaskConfig) -> None:
    """InputError: the rows have choices of their own, and not classes that are the same for all of them."""
    works = 'a comparison needs the same classes for all rows; `lmtrain evaluate --task=FILE` scores choices per row'
    for row in rows:
        if name := next((name for name in task.text if isinstance(row.fields.get(name), list)), None):
            raise InputError(f'{row.place}: {name!r} is a list, as of choices: {works}')
    labels = {str(row.fields.get(task.label)) for row in rows}
    if len(labels) == len(rows) > 2:
        raise InputError(f'config.task.label = {task.label!r} differs in all of {len(rows)} rows: {works}')


def _check_labels(rows: Sequence[Row], task: TaskConfig) -> None:
    """InputError: config.task.labels has a class that no row has; chance and every arm would count it as an answer."""
    used = set()
    for row in rows if task.labels else ():
        with contextlib.suppress(InputError):  # of a label that is no class, which has an error of its own
            used.add(class_id(row.fields.get(task.label), task.labels, row.place))
    for number, name in enumerate(task.labels):
        if number in used:
            continue
        present = class_names((row.place, row.fields.get(task.label)) for row in rows)
        hint = did_you_mean(name, [other for other in present if other not in task.labels] or present)
        shown = ', '.join(map(repr, present[:SHOWN])) + (', ...' if len(present) > SHOWN else '')
        raise InputError(
            f'config.task.labels has {name!r}, which no row has in the field {task.label!r}{hint}: the labels of the '
            f'rows are {shown}; leave {name!r} out, add rows of it, or set config.task.labels=() for those of the rows'
        )


def _task(config) -> TaskConfig:
    """The fields of config.task; the task itself is one with a class for each row."""
    fields = config.task
    files = {split: (files,) if isinstance(files := fields[split], str) else tuple(files) for split in SPLITS}
    text = (fields.text,) if isinstance(fields.text, str) else tuple(fields.text)
    labels = tuple(name_of(value, 'config.task.labels') for value in fields.labels)
    task = TaskConfig(fields.name, files, text, fields.label, labels, 0, 1, False, fields.too_long)
    task.check(config.data.seq_len)
    if not (task.task.has_classes and task.task.pools_rows):
        raise InputError(f'config.task.name is {task.name!r}: a comparison needs a task with one class for each row')
    if len(text) > 2:
        raise InputError(
            f'config.task.text is {text}: one field, or a pair. If the others are choices: a comparison needs the same '
            'classes for all rows, and `lmtrain evaluate --task=FILE` scores choices per row'
        )
    return task


SPLITS = ('train', 'validation', 'test')
PARTS = dict(zip(('train', 'selection', 'test'), SPLITS))  # {part: the split whose files it comes from, if it has any}


def _divide(config, splits: dict[str, list[Row]], task: TaskConfig, notes: list[str]) -> dict[str, list[Row]]:
    """Training, selection and test rows; no text is in two of them, or twice in one."""
    seen: set[tuple[str, ...]] = set()

    def new(rows: list[Row], part: str) -> list[Row]:
        first = []
        for row in rows:
            key = tuple(text_of(row, field) for field in task.text)
            if key not in seen:
                seen.add(key)
                first.append(row)
        if len(first) < len(rows):
            notes.append(f'{len(rows) - len(first)} {part} rows are left out: their text occurs before')
        return first

    def drawn(rows: list[Row], purpose: str) -> list[Row]:
        return sorted(rows, key=lambda row: hash_unit(purpose, ' '.join(text_of(row, field) for field in task.text)))

    test = drawn(new(splits['test'], 'test'), 'test')
    test = test[: config.compare.test] if config.compare.test else test
    if not test:
        raise InputError('there are no test rows: name files in config.task.test, or set config.data.test to a share')
    held_out, count = new(splits['validation'], 'validation'), config.compare.selection
    train = new(splits['train'], 'training')
    if count < 1:
        raise InputError(f'config.compare.selection = {count}: rates, steps and prompts are chosen on at least 1 row')
    if held_out:
        selection = drawn(held_out, 'selection')[:count]
    else:
        ordered = drawn(train, 'selection')
        selection, train = ordered[:count], ordered[count:]
    if not train:
        raise InputError(
            f'no training row is left after {len(test)} test rows and config.compare.selection = {count}'
            f'{_in_brackets(notes)}: {_way_out(config, 0 if held_out else len(selection), bool(task.files["test"]))}'
        )
    return {'train': train, 'selection': selection, 'test': test}


def _way_out(config, others: int, has_test_file: bool) -> str:
    """What leaves training rows, if `others` rows of the training files are no test rows."""
    if others >= 2:
        return f'set --config.compare.selection={others // 2}, half of the {others} other rows'
    if has_test_file:
        return 'name files with other rows in config.task.train'
    return f'set config.data.test lower, such as --config.data.test={config.data.test / 2:g}, or name more rows'


def _in_brackets(notes: Sequence[str]) -> str:
    return f' ({"; ".join(notes)})' if notes else ''


def _line(row: Row, task: TaskConfig, template: str, classes: Sequence[str]) -> dict[str, Any]:
    """The fields of a written row."""
    value = row.fields.get(task.label)
    label = classes[class_id(value, tuple(classes), row.place)]
    read = [text_of(row, field) for field in task.text]
    # A template has texts: a text may be null, and a label true or 1.0.
    named = row._replace(fields=row.fields | dict(zip(task.text, read)) | {task.label: label})
    prompt, completion = rendered(named, template, task.label, label)
    texts = dict(zip(('text', 'text2'), read))
    # Of a pair for preferences, the rejected side is another class, which depends on the text alone.
    others = [name for name in classes if name != label]
    other = others[int(hash_unit('rejected', ' '.join(texts.values())) * len(others))]
    pair = {'chosen': completion, 'rejected': _completion(template, task.label, other)}
    return texts | {'label': label, 'prompt': prompt, 'completion': completion} | pair | {'place': row.place}


def check_templates(templates: Sequence[str]) -> None:
    """Raises InputError if one of config.compare.templates is none of `in_template`, or does not end in {label}."""
    for template in templates:
        _check_template(template, 'config.compare.templates', 'label')
        if other := next((field for _, field in parse_template(template) if field not in ('text', 'label')), None):
            raise InputError(
                f'config.compare.templates: template {template!r} has the field {{{other}}}: these templates have '
                '{text}, which is the text of the row, and end in {label}'
            )


def _check_template(template: str, place: str, label: str) -> None:
    """Raises InputError naming the field `place` of the config if a template does not end in {label}, or repeats it."""
    try:
        *fields, last = [field for _, field in parse_template(template)]
    except InputError as error:
        raise InputError(f'{place}: {error}') from None
    if last != label or label in fields:
        raise InputError(f'{place}: template {template!r} must end in {{{label}}} and contain it only once')


def in_template(rows: Sequence[Row], template: str) -> list[Row]:
    """Rows of a comparison with their prompts by another template, of {text} (of a pair both lines) and {label}."""
    changed = []
    for row in rows:
        text = '\n'.join(row.fields[name] for name in ('text', 'text2') if name in row.fields)
        source = row._replace(fields={'text': text, 'label': row.fields['label']})
        names = dict(zip(('prompt', 'completion'), rendered(source, template, 'label', row.fields['label'])))
        changed.append(row._replace(fields=row.fields | names))
    return changed


def completions_of(template: str, classes: Sequence[str]) -> list[str]:
    """The text of each class after a prompt by a template of `in_template`."""
    return [_completion(template, 'label', label) for label in classes]


def content_free(template: str, field: str) -> list[str]:
    """Prompts of inputs without content in all fields of a template that ends in `field`, the label.

    They end as the prompt of a row does (Zhao et al. 2021, arXiv 2102.09690, section 5).

    >>> content_free('Note: {note}\\nLabel: {animal}', 'animal')
    ['Note: N/A\\nLabel:', 'Note: [MASK]\\nLabel:', 'Note: \\nLabel:']
    """
    names = [name for _, name in parse_template(template)]
    rows = [Row('', dict.fromkeys(names, text)) for text in CONTENT_FREE]
    return [rendered(row, template, field, '')[0] for row in rows]


def rendered(row: Row, template: str, field: str, label: str) -> tuple[str, str]:
    """(prompt, completion) of a row by a template that ends in the label."""
    context = question(row, template, field, ()).context
    completion = _completion(template, field, label)
    return context.removesuffix(completion.removesuffix(label)), completion


def _completion(template: str, field: str, label: str) -> str:
    """A class after a prompt: a space of the template before the answer is part of it, as of a word's token."""
    before = template.removesuffix(f'{{{field}}}')
    return before[len(before.rstrip(' ')) :] + label


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(fields, ensure_ascii=False) + '\n' for fields in rows)
    write_atomic(path, ''.join(lines).encode())
