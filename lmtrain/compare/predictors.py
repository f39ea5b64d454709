"""Predictors: the probability of each class for rows, from a trained head or from the likelihood of answers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmtrain.compare import choice_scores
from lmtrain.compare.rows import TaskRows, content_free
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.data.chat.load import open_template
from lmtrain.data.chat.template import Template
from lmtrain.data.examples import Example, LengthPolicy
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference import batches, demonstrations, prompting
from lmtrain.inference.calibration import log_softmax
from lmtrain.inference.questions import ask
from lmtrain.tasks import TASKS
from lmtrain.tasks.pooling import pool_outputs
from lmtrain.tasks.task import RowFormat
from lmtrain.training import init_from
from lmtrain.training import load as loading
from lmtrain.training.load import LoadedModel

BATCH_SIZE = 32  # rows scored together; it changes no score beyond rounding

Predict = Callable[[Sequence[Row]], np.ndarray]  # rows -> log p float64 [rows, C], normalised over the classes


def base(config) -> LoadedModel:
    """The base of a comparison as its prompts read it: computed as the config says, like the trained arms.

    Raises what `load_directory` raises.
    """
    loaded = loading.load_directory(config.init.base, config.init.adapter, config.init.ignore)
    own = init_from.settings(config, loaded.model)
    own = {name: own[name] for name in init_from.COMPUTE}
    return loaded._replace(model=dataclasses.replace(loaded.model, **own))


def by_head(loaded: LoadedModel, task: TaskRows, seq_len: int, temperature: float = 1.0) -> Predict:
    """The predictor of a run of the task, which has a head with one output for each class.

    Args:
      seq_len: see `encode`.
      temperature: by which the logits are divided (`choice_scores.fit_temperature`).
    """
    record, config = TASKS[loaded.config.task.name], loaded.config
    output = 'logits' if loaded.model.head == record.head else record.name

    def predict(rows: Sequence[Row]) -> np.ndarray:
        examples, size = encode(rows, loaded, task, seq_len)[0], min(BATCH_SIZE, len(rows))
        grid = batches.Grid(seq_len, size, coarse=batches.is_coarse(loaded.model, loaded.params, size))
        log_p = np.zeros((len(rows), len(task.classes)))
        for members, (B, T) in batches.divide([len(example.tokens) for example in examples], grid):
            some = [examples[member] for member in members]
            values = _log_p(loaded.model, output, config.objective.pool, loaded.params, _padded(some, B, T))
            log_p[[example.source for example in some]] = np.asarray(values, np.float64)[: len(some)]
        return log_softmax(log_p / temperature)

    return predict


def encode(rows: Sequence[Row], loaded: LoadedModel, task: TaskRows, seq_len: int) -> tuple[list[Example], int]:
    """(the rows as a head reads them, how many of them are cut).

    If training leaves out long rows, they are cut here: every row has an answer.

    Args:
      seq_len: tokens of a row. The batches of the training are as short as its longest row: other rows may be longer.
    """
    config = loaded.config
    length = LengthPolicy('error' if config.task.too_long == 'error' else 'cut', seq_len)
    form = RowFormat(task.text_fields, 'label', task.classes, loaded.tokenizer, None, length, training=False)
    return TASKS[config.task.name].encode(rows, form).examples, length.count


def _padded(examples: Sequence[Example], size: int, T: int) -> dict[str, np.ndarray]:
    """A batch of `size` rows of T tokens; rows beyond the examples are copies of the first."""
    names = ['tokens', 'segment_ids', *examples[0].flat]
    batch = {name: np.zeros((size, T), np.int32) for name in names}
    for row in range(size):
        example = examples[row if row < len(examples) else 0]
        for name, values in {'tokens': example.tokens, 'segment_ids': 1, **example.flat}.items():
            batch[name][row, : len(example.tokens)] = values
    return batch


@functools.partial(jax.jit, static_argnames=('model', 'output', 'pool'))
def _log_p(model, output: str, pool: str, params, batch) -> jax.Array:
    """float32 [B, C]."""
    logits = pool_outputs(model.apply({'params': params}, batch)[output], batch, pool)
    return jax.nn.log_softmax(logits.astype(np.float32), axis=-1)


def check_promptable(model) -> None:
    """Raises InputError if a model cannot be prompted."""
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot be prompted')
    if model.head != 'lm':
        raise InputError(f'the model has the head {model.head!r} and no vocabulary: it cannot be prompted')


def settings_of(comparison: Comparison, trial: Trial, instruction: str = '') -> prompting.PromptSettings:
    """How the rows become prompts in a trial of an arm that prompts or answers as text.

    Every row has an answer: one that is longer than the context is cut, unless config.task.too_long is 'error'.
    """
    arm = trial.arm.settings
    template = _chat_template(comparison, arm.get('chat_template', ''))
    shots = min(arm['shots'], trial.size)  # ALL is negative
    options = {'shots': shots, 'select': arm['select'], 'seed': trial.seed}
    options['cut'] = comparison.config.task.too_long != 'error'
    return settings(comparison.task, instruction=instruction, chat_template=template, **options)


def _chat_template(comparison: Comparison, name: str) -> Template | None:
    """The template that an arm names. InputError: the base has none, or it writes a date and none is configured."""
    if not name:
        return None
    tokenizer, task = comparison.model.tokenizer, comparison.config.task
    if name == 'auto' and 'chat_template' not in tokenizer.config:
        raise InputError("chat_template is 'auto', and the tokenizer of the base has no chat template")
    template = open_template(name, tokenizer, comparison.config.data.root, task.date)
    if template and template.writes_date and not task.date:
        raise InputError(f'{template.name} writes the date: set config.task.date, on which the prompts then depend')
    return template


def settings(task: TaskRows, **options: Any) -> prompting.PromptSettings:
    """How the rows of a task become prompts; `calibrated` holds the whole prompts of inputs without content."""
    free = content_free(task.facts['template'], task.facts['label'])
    options = {'calibrated': free, 'batch_size': BATCH_SIZE} | options
    return prompting.PromptSettings('{prompt}{completion}', 'completion', task.completions, **options)


def by_likelihood(
    loaded: LoadedModel, pool: Sequence[Row], form: prompting.PromptSettings, chosen: Mapping[str, Any]
) -> Predict:
    """The predictor of a causal model: the likelihood of the classes' texts after the prompt.

    Args:
      pool: rows from which demonstrations are taken.
      chosen: 'score', 'temperature' and 'bias' of `choice_scores.candidates`.
    """
    check_promptable(loaded.model)
    vectors = pool_vectors(loaded, pool, form)  # once, and not for every query
    return lambda rows: answer(loaded, pool, form, chosen, rows, vectors)[0]


def answer(
    loaded: LoadedModel,
    pool: Sequence[Row],
    form: prompting.PromptSettings,
    chosen: Mapping[str, Any],
    rows: Sequence[Row],
    vectors: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, int]:
    """(log p float64 [rows, C], the number of prompts that lost their beginning, if `form.cut`).

    Args:
      pool, chosen: see `by_likelihood`.
      vectors: `pool_vectors`, if they are computed already.
    """
    vectors = pool_vectors(loaded, pool, form) if vectors is None else vectors
    scored = choice_scores.of_rows(loaded, pool, form, rows, [chosen['score']], vectors)
    return choice_scores.scaled(scored.log_p, chosen), scored.cut


def pool_vectors(loaded: LoadedModel, pool: Sequence[Row], form: prompting.PromptSettings) -> Mapping[str, np.ndarray]:
    """The embeddings of rows that may be demonstrations, if they are retrieved by them; else {}."""
    if form.select != 'nearest' or not form.shots:
        return {}
    return demonstrations.embedded(loaded.model, loaded.params, loaded.tokenizer, ask(pool, form)[0], form.batch_size)
