"""Evaluation tasks as files: one TOML file names the rows, the prompt and the scoring (docs/data.md).

`read` checks everything that needs no model; `evaluate` (evaluation/task_run.py) scores a model.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.data.labels import named_class
from lmtrain.data.rows import Row, missing_field, read_rows, text_of, value_of
from lmtrain.data.text_files import decode
from lmtrain.errors import InputError, did_you_mean
from lmtrain.evaluation import scoring
from lmtrain.files import local_path
from lmtrain.inference.calibration import CONTENT_FREE
from lmtrain.inference.demonstrations import ALL, SELECTORS
from lmtrain.inference.prompting import PromptSettings
from lmtrain.inference.questions import answers_as_texts, ask, distinct_answers, parse_template
from lmtrain.tasks import TASKS, span

TEXT, TEXTS = (str,), (str, list)  # TEXTS: one, or an array of them
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    '': {'name': TEXT, 'data': (dict,), 'prompt': (dict,), 'scoring': (dict,)},
    'data': {'files': TEXTS, 'demonstrations': TEXTS, 'limit': (int,)},
    'prompt': {
        'template': TEXT,
        'answer': TEXT,
        'choices': TEXTS,
        'names': (dict,),
        'instruction': TEXT,
        'shots': (int, str),
        'select': TEXT,
        'seed': (int,),
        'separator': TEXT,
        'chat_template': TEXT,
        'system': TEXT,
        'cut': (bool,),
    },
    'scoring': {
        'kind': TEXT,
        'by': TEXT,
        'pattern': TEXT,
        'schema': (dict,),
        'max_tokens': (int,),
        'stop': (list,),
        'text': TEXTS,
        'label': TEXT,
        'labels': (list,),
        'too_long': TEXT,
    },
}
NAMES = 'prompt.choices', 'scoring.labels'  # arrays of texts, or of whole numbers, which are read as texts
WORDS: dict[type, str] = {str: 'text', list: 'an array of texts', dict: 'a table', int: 'a whole number'}
WORDS[bool] = 'true or false'

# {value of `by`: the column of `prompting.Scores.rows` that is averaged}
CHOICES = {
    'raw': 'right',
    'per_token': 'right_per_token',
    'per_byte': 'right_per_byte',
    'calibrated': 'right_calibrated',
}
GENERATION = 'exact', 'normalised', 'regex', 'json'
HEADS = tuple(name for name, task in TASKS.items() if task.answers)
PROMPTED = 'choices', 'generation'
KINDS = (*PROMPTED, 'perplexity', *HEADS)


class EvaluationTask(NamedTuple):
    """A task file.

    Attributes:
      kind: 'choices', 'generation', 'perplexity', or the task of a head: 'classify', 'tag', 'span'.
      by: of choices a key of `CHOICES`, of generations one of `GENERATION`, else ''.
      rows: of data.files; of a perplexity with the field of scoring.text.
      demonstrations: of data.demonstrations, () if there are none.
      settings: of choices and generations; None for other kinds. `chat_template` and `batch_size` are not yet set.
      chat_template: name of a chat template as in `lmtrain.generate`; None is that of the training.
      accepted: of generations, all right answers of each row; else ().
      metric: of generations, the score of a text.
      scoring: the section of the file.
    """

    name: str
    kind: str
    by: str
    rows: list[Row]
    demonstrations: list[Row]
    settings: PromptSettings | None
    chat_template: str | None
    accepted: tuple[tuple[str, ...], ...]
    metric: scoring.Metric | None
    scoring: Mapping[str, Any]


def read(file: str | Path) -> EvaluationTask:
    """Reads a task file and its rows, whose paths are relative to the file.

    Raises:
      FileNotFoundError: the file, or a file of rows.
      InputError: in one line what is wrong: an unknown or missing field, a template without a field of the rows, a
        label that no row has, a file without rows.
    """
    path = Path(file)
    sections = _sections(path)
    _check_kind(sections, path)
    data, prompt, score = (sections.get(name, {}) for name in ('data', 'prompt', 'scoring'))
    kind = score['kind']
    rows = _rows(data['files'], path, score) if kind == 'perplexity' else _rows(data['files'], path)
    demonstrations = _rows(data.get('demonstrations', ()), path)
    accepted: tuple[tuple[str, ...], ...] = ()
    settings = None
    if kind in PROMPTED:
        if 'answer' in prompt:
            rows, accepted = _answered(rows, prompt, path)
            demonstrations, _ = _answered(demonstrations, prompt, path)
        settings = _settings(prompt, score, path)
        rows, demonstrations = answers_as_texts(rows, settings, demonstrations)  # also by the rows beyond the limit
        _check_labels(rows + demonstrations, settings, path)
        questions, _ = ask(rows, settings, demonstrations)  # raises if a row lacks a field
        if settings.choices and settings.choices == settings.answer:  # also answers of rows beyond the limit
            settings = settings._replace(choices=distinct_answers(demonstrations or rows, settings.answer))
        accepted = accepted or tuple((question.answer,) for question in questions)
    by = score.get('by', {'choices': 'raw', 'generation': 'exact'}.get(kind, ''))
    limit = data.get('limit') or len(rows)
    return EvaluationTask(
        sections.get('name', path.stem),
        kind,
        by,
        rows[:limit],
        demonstrations or (rows if settings and settings.shots else []),
        settings,
        prompt.get('chat_template'),
        accepted[:limit] if kind == 'generation' else (),
        _metric(by, score, path) if kind == 'generation' else None,
        score,
    )


# --- the file


def _sections(path: Path) -> dict[str, Any]:
    """The tables of the file, with whole numbers of `NAMES` as texts.

    Raises InputError if a field is unknown or has the wrong type.
    """
    try:
        content = tomllib.loads(decode(path.read_bytes(), path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f'{path}: invalid TOML ({error})') from None
    for section, fields in FIELDS.items():
        table = content.get(section, {}) if section else content
        for name, value in table.items():
            dotted = f'{section}.{name}'.lstrip('.')
            if name not in fields:
                hint = did_you_mean(name, fields)
                raise InputError(f'{path}: {dotted!r} is none of the fields {", ".join(fields)}{hint}')
            types, listed = fields[name], list(value) if type(value) is list else []
            if dotted in NAMES:
                listed = [str(each) if type(each) is int else each for each in listed]
            if type(value) not in types or not all(type(each) is str for each in listed):
                kinds = ' or '.join(WORDS[each] for each in types)
                raise InputError(f'{path}: {dotted} = {value!r}; it must be {kinds}')
            if listed:
                table[name] = listed
    return content


def _check_kind(sections: Mapping[str, Any], path: Path) -> None:
    """Raises InputError if a field is missing that the kind of scoring needs, or one is there that it does not read."""
    score = sections.get('scoring', {})
    kind = score.get('kind')
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise InputError(f'{path}: scoring.kind = {kind!r} is none of {", ".join(KINDS)}{hint}')
    prompt = sections.get('prompt', {})
    prompted = ['prompt.template', 'prompt.answer'] if {'template', 'answer', 'names'} & prompt.keys() else []
    needed = {'choices': [*prompted, 'prompt.choices'], 'generation': prompted, 'perplexity': []}
    read = {'choices': ['by'], 'generation': ['by', 'pattern', 'schema', 'max_tokens', 'stop'], 'perplexity': ['text']}
    if 'names' in prompt:
        needed['choices'] = prompted
    for dotted in ['data.files', *needed.get(kind, ['scoring.text', 'scoring.label'])]:
        section, name = dotted.split('.')
        if not sections.get(section, {}).get(name):
            raise InputError(f'{path}: {dotted} is missing; scoring.kind = {kind!r} needs it')
    of_head = ['text', 'label', 'too_long', *(['labels'] if kind in HEADS and TASKS[kind].has_classes else [])]
    for name in score:
        if name not in ('kind', *read.get(kind, of_head)):
            raise InputError(f'{path}: scoring.{name} has no effect with scoring.kind = {kind!r}: leave it out')
    if score.get('too_long', 'error') not in ('error', 'cut'):
        raise InputError(f"{path}: scoring.too_long = {score['too_long']!r} is neither 'error' nor 'cut'")
    values = {'choices': tuple(CHOICES), 'generation': GENERATION}.get(kind, ())
    if 'by' in score and score['by'] not in values:
        raise InputError(f'{path}: scoring.by = {score["by"]!r} is none of {", ".join(values)}')
    _check_effect(sections, kind, path)


def _check_effect(sections: Mapping[str, Any], kind: str, path: Path) -> None:
    """Raises InputError if a field of data or prompt is not read, or is out of range."""
    data, prompt = sections.get('data', {}), sections.get('prompt', {})
    useless = {
        'prompt': kind not in PROMPTED and prompt,
        'data.demonstrations': kind not in PROMPTED and data.get('demonstrations'),
        'prompt.choices': kind != 'choices' and prompt.get('choices') or 'names' in prompt and 'choices' in prompt,
    }
    for dotted in [name for name, present in useless.items() if present]:
        reason = 'with prompt.names' if 'names' in prompt else f'with scoring.kind = {kind!r}'
        raise InputError(f'{path}: {dotted} has no effect {reason}: leave it out')
    if data.get('limit', 0) < 0:
        raise InputError(f'{path}: data.limit = {data["limit"]}; it must be at least 0 (all rows)')
    if prompt.get('names') == {}:
        raise InputError(f'{path}: prompt.names = {{}}: name at least one label, or leave it out')
    text = sections.get('scoring', {}).get('text', '')
    if kind == 'perplexity' and type(text) is not str:
        raise InputError(f'{path}: scoring.text = {text!r}; scoring.kind = {kind!r} reads one field: it must be text')
    if not all(type(word) is str for word in prompt.get('names', {}).values()):
        raise InputError(f'{path}: prompt.names = {prompt["names"]!r}: each word must be text')


def _rows(files: str | Sequence[str], path: Path, perplexity: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows of files; with the section scoring of a perplexity, a .txt file is one row."""
    field = (perplexity or {}).get('text', 'text')
    rows = []
    for name in [files] if isinstance(files, str) else files:
        if perplexity is not None and name.endswith('.txt'):
            file = local_path(name, 'data.files', str(path.parent))
            rows.append(Row(str(file), {field: decode(file.read_bytes(), file)}))
        else:
            rows += read_rows(name, str(path.parent))
    if perplexity is not None:
        rows = [row for row in rows if text_of(row, field, 'scoring.text')]
        if not rows:
            raise InputError(f'{path}: the texts of {field!r} are empty')
    return rows


# --- the prompt


def _answered(rows: list[Row], prompt: Mapping[str, Any], path: Path) -> tuple[list[Row], tuple[tuple[str, ...], ...]]:
    """(rows whose answer is one text, all accepted answers of each).

    An answer may be a list of texts, or SQuAD's answers; the first of them stands in demonstrations. prompt.names
    replaces labels by words (a verbaliser, arXiv 2001.07676).
    """
    field, names, single, accepted = prompt['answer'], prompt.get('names', {}), [], []
    for row in rows:
        value = value_of(row, field, 'prompt.answer')
        try:
            texts = span.answer_texts(value) if isinstance(value, list | dict) else [value]
        except (KeyError, TypeError):
            texts = []
        if not texts:
            raise InputError(f'{row.place}: {field!r} is no answer, no list of texts, and not like SQuAD: {value!r}')
        if names:
            ids = [named_class(text, tuple(names), row.place) for text in texts]
            if missing := [text for text, own in zip(texts, ids, strict=True) if own is None]:
                raise InputError(f'{row.place}: {path}: prompt.names has no word for the label {missing[0]!r}')
            texts = [list(names.values())[own] for own in ids if own is not None]
        single.append(row._replace(fields=row.fields | {field: texts[0]}))
        accepted.append(tuple(map(str, texts)))
    return single, tuple(accepted)


def _settings(prompt: Mapping[str, Any], score: Mapping[str, Any], path: Path) -> PromptSettings:
    """The PromptSettings of a file."""
    answer, template = prompt.get('answer', ''), prompt.get('template', '')
    if template and {field for _, field in parse_template(template)} == {answer}:
        raise InputError(f'{path}: prompt.template names no field but the answer {answer!r}: every prompt is the same')
    shots = prompt.get('shots', 0)
    if isinstance(shots, str) and shots != 'max' or isinstance(shots, int) and shots < 0:
        raise InputError(f"{path}: prompt.shots = {shots!r} is neither a number nor 'max'")
    select = prompt.get('select', 'random')
    if select not in SELECTORS:
        raise InputError(f'{path}: prompt.select = {select!r} is none of {", ".join(SELECTORS)}')
    choices = list(prompt['names'].values()) if 'names' in prompt else prompt.get('choices', ())
    names = ('instruction', 'separator', 'seed', 'system', 'cut')
    return PromptSettings(
        template=template,
        answer=answer,
        choices=choices if score['kind'] == 'choices' else (),
        shots=ALL if shots == 'max' else shots,
        select=select,
        calibrated=CONTENT_FREE if score.get('by') == 'calibrated' else (),
        **{name: prompt[name] for name in names if name in prompt},
        **{name: score[name] for name in ('max_tokens', 'stop') if name in score},
    )


def _check_labels(rows: Sequence[Row], settings: PromptSettings, path: Path) -> None:
    """Raises InputError if a listed choice is the answer of no row, or occurs twice."""
    for _, field in parse_template(settings.template) if settings.template else ():
        if field not in rows[0].fields:
            raise missing_field(rows[0].place, field, rows[0].fields, 'prompt.template')
    if isinstance(settings.choices, str) or not settings.choices:
        return
    if len(set(settings.choices)) < len(settings.choices):
        raise InputError(f'{path}: a choice occurs twice in {list(settings.choices)}')
    questions, _ = ask(rows, settings)
    answers = {question.answer for question in questions}
    if unused := [choice for choice in settings.choices if choice not in answers]:
        raise InputError(
            f'{path}: no row has the answer {unused[0]!r}: leave it out; the answers are {sorted(answers)[:10]}'
        )


def _metric(by: str, score: Mapping[str, Any], path: Path) -> scoring.Metric:
    """The score of generated texts. Raises InputError if its pattern or schema is missing or invalid."""
    needed = {'regex': 'pattern', 'json': 'schema'}.get(by)
    for name in ('pattern', 'schema'):
        if name in score and name != needed:
            raise InputError(f'{path}: scoring.{name} has no effect with scoring.by = {by!r}: leave it out')
    if needed and needed not in score:
        raise InputError(f'{path}: scoring.{needed} is missing; scoring.by = {by!r} needs it')
    if by == 'regex':
        return scoring.regex(score['pattern'], f'{path}: scoring.pattern')
    if by == 'json':
        return scoring.json_answer(score['schema'], f'{path}: scoring.schema')
    return {'exact': scoring.exact, 'normalised': scoring.normalised}[by]
