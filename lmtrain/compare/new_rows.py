"""The classes of new rows, which need no label, by what a finished trial chose: model or prompt, score, temperature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from lmtrain.compare import arms, predictors, prompted, rows, trained, trials
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.data.labels import class_id
from lmtrain.data.rows import Row, text_of, value_of
from lmtrain.errors import InputError
from lmtrain.evaluation import heads
from lmtrain.files import read_json_object
from lmtrain.inference import demonstrations
from lmtrain.tasks import TASKS, classify
from lmtrain.training.init_from import open_base


class Answers(NamedTuple):
    """A finished trial with its model.

    Attributes:
      comparison: whose `model` is that of the trial: the base of a prompted arm, else the trained model.
      chosen: on the selection rows, see trial.json.
    """

    comparison: Comparison
    trial: Trial
    chosen: dict[str, Any]

    @property
    def text(self) -> tuple[str, ...]:
        """The fields of the comparison's files that are read."""
        return tuple(self.comparison.task.facts['text'])

    @property
    def has_head(self) -> bool:
        """Whether a head answers, and not the likelihood of the classes' texts after a prompt."""
        config = self.comparison.model.config
        return self.trial.arm.kind == 'train' and TASKS[config.task.name].has_classes


def open_trial(folder: str | Path) -> Answers:
    """Loads what a trial chose, from its folder in that of a comparison.

    Raises InputError if the trial failed, or if the comparison was called again with other settings of this arm.
    """
    folder = Path(folder).absolute()
    directory, record = folder.parents[2], read_json_object(folder / 'trial.json')
    if record['status'] != 'done':
        raise InputError(f'{folder}: this trial has failed ({record["reason"]}): name one that is done')
    config = ml_collections.ConfigDict(read_json_object(directory / 'config.json'))
    arm = next((arm for arm in arms.read(config.compare, [record['arm']]) if arm.name == record['arm']), None)
    facts = read_json_object(directory / 'rows' / 'rows.json')
    task = rows.TaskRows(directory / 'rows', tuple(facts['classes']), [], [], facts)
    init = config.init.base, config.init.adapter, config.init.ignore
    comparison = Comparison(config, directory, task, open_base(*init), None, [record['size']])
    trial = arm and Trial(arm, record['size'], record['seed'], 0)
    if not trial or not trials.is_of(comparison, trial, record):
        raise InputError(
            f'{folder} is a trial of other settings of this arm, another base or other rows than {directory} has now: '
            'run the arm again with `lmtrain compare`'
        )
    chosen = record['chosen']
    model = trained.load(comparison, trial, chosen) if arm.kind == 'train' else predictors.base(config)
    return Answers(comparison._replace(model=model), trial, chosen)


def predict(
    answers: Answers, new: Sequence[Row], text: Sequence[str] = (), batch_size: int = predictors.BATCH_SIZE
) -> tuple[list[dict[str, Any]], int]:
    """(the columns of `classify.describe` for each row, the number of rows that are longer than the context and cut).

    A row without any text has the prediction None.

    Args:
      text: the fields that are read, in the order of those of the comparison; () are the same names.

    Raises InputError if a row lacks a field.
    """
    text, task = _fields(answers, text), TASKS[answers.comparison.config.task.name]
    filled = [index for index, row in enumerate(new) if not heads.is_blank(row, text, task)]
    columns: list[dict[str, Any]] = [{'prediction': None} for _ in new]
    shares, cut = _probabilities(answers, [new[index] for index in filled], text, batch_size)
    for index, own in zip(filled, shares, strict=True):
        columns[index] = classify.columns(own, answers.comparison.task.classes)
    return columns, cut


def score(
    answers: Answers,
    labelled: Sequence[Row],
    text: Sequence[str] = (),
    label: str = '',
    batch_size: int = predictors.BATCH_SIZE,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`heads.score_rows` of rows with labels.

    Args:
      label: its field; '' is that of the comparison.
    """
    text, classes = _fields(answers, text), answers.comparison.task.classes
    label = label or answers.comparison.task.facts['label']
    right = [class_id(value_of(row, label, 'answer (--answer)'), classes, row.place) for row in labelled]
    shares, cut = _probabilities(answers, labelled, text, batch_size)
    pairs = [(classes[one], classes[other]) for one, other in zip(right, np.argmax(shares, axis=1), strict=True)]
    results, lines = heads.scores(TASKS[answers.comparison.config.task.name], pairs)
    return {'rows': len(pairs)} | results | {'too_long': cut}, lines


def _fields(answers: Answers, text: Sequence[str]) -> tuple[str, ...]:
    """The fields that are read. Raises InputError if `text` names more or fewer than the comparison reads."""
    text = tuple(text) or answers.text
    if len(text) == len(answers.text):
        return text
    raise InputError(f'text = {", ".join(text)}: the comparison reads {len(answers.text)}, {", ".join(answers.text)}')


def _probabilities(
    answers: Answers, new: Sequence[Row], text: Sequence[str], batch_size: int
) -> tuple[np.ndarray, int]:
    """(float64 [rows, C], the number of rows that are cut)."""
    if not new:
        return np.zeros((0, len(answers.comparison.task.classes))), 0
    lines = [_line(answers, row, text) for row in new]
    log_p, cut = _by_head(answers, lines) if answers.has_head else _by_prompt(answers, lines, batch_size)
    return np.exp(log_p), cut


def _line(answers: Answers, row: Row, text: Sequence[str]) -> Row:
    """A row as one of the comparison; its label is a placeholder, which neither a head nor a prompt reads."""
    facts, task = answers.comparison.task.facts, answers.comparison.task
    texts = [text_of(row, name, 'text (--text)') for name in text]
    fields = row.fields | dict(zip(answers.text, texts, strict=True)) | {facts['label']: task.classes[0]}
    prompt, completion = rows.rendered(row._replace(fields=fields), facts['template'], facts['label'], task.classes[0])
    own = dict(zip(task.text_fields, texts, strict=True))
    return row._replace(fields=own | {'label': task.classes[0], 'prompt': prompt, 'completion': completion})


def _by_head(answers: Answers, lines: Sequence[Row]) -> tuple[np.ndarray, int]:
    """(log p float64 [rows, C], how many rows are cut)."""
    comparison, trial, chosen = answers
    length = trained.seq_len(comparison, trial, comparison.model)
    _, cut = predictors.encode(lines, comparison.model, comparison.task, length)
    return trained.predictor(comparison, trial, comparison.model, chosen)(lines), cut


def _by_prompt(answers: Answers, lines: Sequence[Row], batch_size: int) -> tuple[np.ndarray, int]:
    """(log p float64 [rows, C], how many prompts are cut)."""
    comparison, trial, chosen = answers
    is_trained = trial.arm.kind == 'train'
    pool, form = trained.prompt(comparison, trial) if is_trained else prompted.prompt(comparison, trial, chosen)
    # A new row that has the text of one of the pool has one other row less: ALL is then all the others.
    shots = demonstrations.ALL if form.shots >= len(pool) > 0 else form.shots
    form = form._replace(shots=shots, cut=True, batch_size=batch_size)
    return predictors.answer(comparison.model, pool, form, chosen, lines)
