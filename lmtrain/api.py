"""The public functions of lmtrain: train, load, generate, evaluate, export, load_adapter.

`import lmtrain` offers them lazily: neither jax nor numpy is imported before the first of them is used. The command
line (launch/) calls the same functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain import adapt
from lmtrain.data.chat import conversation
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.rows import Row, read_rows
from lmtrain.errors import InputError
from lmtrain.evaluation import task_file, task_run
from lmtrain.evaluation.heads import Head
from lmtrain.inference import prompting, sample
from lmtrain.inference.prompts import before_answer, encode
from lmtrain.training import export as exporting
from lmtrain.training import init_from
from lmtrain.training import load as loading
from lmtrain.training import train as training
from lmtrain.training.load import LoadedModel

Messages = Sequence[Mapping[str, Any]]  # [{'role': 'user', 'content': 'text'}, ...]


class Completion(NamedTuple):
    """The continuation of a prompt, or the next piece of it."""

    text: str
    ids: list[int]  # without the end token
    finish_reason: str  # 'stop' (an end token), 'length' (max_tokens), 'context' (model.max_len), '' (not finished)


def train(config, workdir) -> dict[str, Any]:
    """Trains a config in the folder `workdir`. The same call resumes a run that was stopped.

    It starts from the newest intact checkpoint of the run, the one before it, the base (`config.init.base`), or a
    random initialisation: the first of these that exists.

    Args:
      config: ConfigDict, from `get_config()` of a recipe in configs/ or of a file like it. Exactly one field of
        `config.budget` is set.
      workdir: created if it does not exist. Receives checkpoints, metrics.jsonl, results.json and report.md.

    Returns:
      The content of results.json: 'validation' (loss in nats, bits per byte, ...), 'baselines', 'cost', 'plan'.

    Raises:
      InputError: the config, the data, or the folder of another config. Nothing was compiled.
      OSError: a file that cannot be read or written.
      lmtrain.runtime.lifecycle.RunEnded: a signal stopped the run after a save, or it cannot continue; `code` is the
        exit code for a process.

    >>> import lmtrain
    >>> from configs import tiny
    >>> config = tiny.get_config()
    >>> results = lmtrain.train(config, 'runs/tiny')  # doctest: +ELLIPSIS
      parameters...
    >>> results['validation']['bits_per_byte'] < 8
    True
    """
    return training.train(config, workdir)


def load(
    directory, *, step: int | str | None = None, member: int = 0, adapter: str = '', ignore: Sequence[str] = ()
) -> LoadedModel:
    """Loads a model and its tokenizer onto the first device.

    Args:
      directory: the folder of a run, or a Hugging Face directory (config.json, *.safetensors and tokenizer files).
      step: of a run: 'last', 'best' (lowest validation loss) or the number of a checkpoint. None is the last one.
      member: of a sweep, which of its runs.
      adapter: a PEFT directory whose adapter is added to the model; '' is none.
      ignore: unknown fields of config.json or adapter_config.json to skip.

    Returns:
      LoadedModel(config, model, tokenizer, params, step, end_ids, template). `config` is None for a Hugging Face
      directory, `template` is None if the model was not trained on conversations.

    Raises:
      FileNotFoundError: no model, checkpoint or tokenizer in the directory.
      InputError: an unsupported field or tensor, with the file and the way out.
      lmtrain.checkpoint.Damaged: a checkpoint does not match its hashes.

    >>> import lmtrain
    >>> model = lmtrain.load('runs/tiny')
    >>> model.step, model.model.num_layers
    (20, 2)
    >>> model.params['embed']['embedding'].shape  # [V, D]
    (257, 32)
    """
    if step is None and not member:
        return loading.load_directory(str(directory), adapter, ignore)
    if adapter or ignore:
        name = 'adapter' if adapter else 'ignore'
        raise InputError(f'{name} with step={step!r}, member={member}: a step and a member are of a run; leave one out')
    return loading.load_run(directory, 'last' if step is None else step, member)


def load_adapter(model: LoadedModel, directory, ignore: Sequence[str] = ()) -> LoadedModel:
    """Adds the adapter of a PEFT directory to a loaded model.

    The base parameters are shared between `model` and the result, so several adapters of one base need little memory.

    Args:
      directory: adapter_config.json and adapter_model.safetensors: LoRA, DoRA, IA3, prompt or prefix tuning, or heads.
      ignore: unknown fields of adapter_config.json to skip.

    Raises:
      FileNotFoundError: no adapter in the directory.
      InputError: an adapter of another base, or an unsupported field, tensor or head.

    >>> import lmtrain
    >>> from configs import tiny
    >>> config = tiny.get_config()
    >>> config.init.base, config.adapt.method, config.budget.steps = 'runs/tiny', 'lora', 2
    >>> results = lmtrain.train(config, 'runs/lora')  # doctest: +ELLIPSIS
      parameters...
    >>> lines = lmtrain.export('runs/lora', 'adapter', format='peft')
    >>> base = lmtrain.load('runs/tiny')
    >>> adapted = lmtrain.load_adapter(base, 'adapter')
    >>> adapted.params['layers']['attention']['query']['lora_a'].shape  # [N, D, R]
    (2, 32, 8)
    >>> adapted.params['embed']['embedding'] is base.params['embed']['embedding']
    True
    """
    directory = Path(directory)
    own = init_from.with_hf_family(model.model)
    head = adapt.under_class(own, directory, ignore).head
    if head != own.head:
        raise InputError(
            f'{directory} is for a model with the head {head!r}, and this one has {own.head!r}: '
            f'load both together, lmtrain.load(BASE, adapter={str(directory)!r})'
        )
    return model._replace(params=adapt.load_adapter(own, model.params, directory, ignore))


def generate(model: LoadedModel, prompts: Sequence[str | Messages | Conversation], **settings) -> list[Completion]:
    """The continuation of each prompt, in order; one compiled prefill and decode loop for all.

    Args: those of `stream`.

    Raises:
      InputError: a setting out of range, a prompt longer than the context, or a model that is not causal. Nothing was
        compiled.
      lmtrain.errors.NonFiniteOutput: a logit is nan or infinite.

    >>> import lmtrain
    >>> model = lmtrain.load('runs/tiny')
    >>> first, second = lmtrain.generate(model, ['def ', 'class '], max_tokens=8, temperature=0)
    >>> len(first.ids), first.finish_reason
    (8, 'length')
    >>> lmtrain.generate(model, ['def '], max_tokens=0)
    Traceback (most recent call last):
    lmtrain.errors.InputError: max_tokens=0 must lie in [1, 2147483647]
    """
    pieces: list[list[Completion]] = [[] for _ in prompts]
    for row, piece in stream(model, prompts, **settings):
        pieces[row].append(piece)
    return [
        Completion(''.join(piece.text for piece in row), [token for piece in row for token in piece.ids], row[-1][2])
        for row in pieces
    ]


def stream(
    model: LoadedModel,
    prompts: Sequence[str | Messages | Conversation],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    system: str = '',
    chat_template: str | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Yields (row, its next piece) as texts are generated; the last piece of a row has a `finish_reason`.

    Args:
      prompts: texts, or conversations as lists of messages up to the answer. A chat template writes a text as one
        user's turn; without one, a text is continued as it is.
      max_tokens, temperature (0 is greedy), top_k (0 is all), top_p: None is the value in the run's config.sample.
      seed: the same seed gives the same text, whatever else is in `prompts`.
      system: a system message for prompts that have none.
      chat_template: None is the one that the model was trained with, 'none' is none, 'auto' the tokenizer's own; or
        a name or a Jinja file.
    """
    turns = [as_prompt(f'prompt {index}', prompt) for index, prompt in enumerate(prompts)]
    chats = bool(system) or not all(isinstance(turn, str) for turn in turns)
    model = loading.with_chat_template(model, chat_template, chats)
    tokenizer, ids = model.tokenizer, [encode(turn, model.tokenizer, model.template, system) for turn in turns]
    pieces = sample.stream(
        model.model,
        model.params,
        ids,
        seed=seed,
        end_ids=model.end_ids,
        vocab_size=tokenizer.vocab_size,
        absent=tokenizer.absent,
        **sampling(model, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p),
    )
    decoders = [tokenizer.streamer() for _ in ids]
    for decode, prompt in zip(decoders, ids):
        decode(prompt)  # the text of the first piece depends on what precedes it
    return ((row, Completion(decoders[row](new), new, reason)) for row, new, reason in pieces)


def as_prompt(place: str, prompt: str | Messages | Conversation, tools=None) -> str | Conversation:
    """A prompt in the form that templates take: messages end before the last answer.

    Raises InputError naming `place` if a message is malformed or none precedes the answer.
    """
    if isinstance(prompt, str | Conversation):
        return prompt
    _, dialogue = conversation.read(Row(place, {'messages': prompt, 'tools': tools}), (), '')
    before, _ = before_answer(dialogue, which=None)
    if not before.messages:
        raise InputError(f'{place}: no message before the answer of the assistant')
    return before


def sampling(model: LoadedModel, **chosen) -> dict[str, Any]:
    """`chosen`, with the values of the run's config.sample for each that is None.

    A model without a config has the defaults of configs/base.py.
    """
    from configs import base  # late: only a Hugging Face directory needs the defaults

    section = (model.config or base.get_config()).sample
    return {name: section[name] if value is None else value for name, value in chosen.items()}


def evaluate(
    model, split: str = 'validation', *, step: int | str = 'last', member: int = 0, rows=(), task=None, **settings
) -> dict[str, Any]:
    """Evaluates a run on a split of its data, a prompted model on `rows`, or a model on the task of a file.

    Args:
      model: the folder of a run; with `rows` or `task` also a Hugging Face directory or a LoadedModel.
      split: 'train', 'validation' or 'test'.
      step, member: of the run, as in `load`.
      rows: a file (jsonl, csv, tsv), several of them, or dicts.
      settings: with `rows`, fields of `lmtrain.inference.prompting.PromptSettings`: `template` (the text of a row,
        which ends in the field of the answer), `answer`, `choices`, `shots`, ..., and `demonstrations`. Without a
        template, rows are conversations and the last answer is compared. `chat_template` is a name, as in `generate`.
      task: a task file (docs/data.md, "Evaluation tasks"), or what `evaluation.task_file.read` returns; of the
        settings, only `batch_size` is then read.

    Returns:
      Of a split: 'loss' in nats per target, 'bits_per_token', 'bits_per_byte', 'targets', 'bytes', and the scores of
      the task. Of rows: 'rows', 'accuracy' (of choices) or 'exact_match', their standard errors '..._stderr', and
      'answers', one dict for each row. Of a task: `evaluation.task_run.Evaluation.results`, and 'answers'.

    Raises:
      InputError: data that differs from the run's, a row without a field, or a prompt longer than the context.
      FileNotFoundError: no run, checkpoint or file.

    >>> import lmtrain
    >>> result = lmtrain.evaluate('runs/tiny', 'test')
    >>> 0 < result['bits_per_byte'] < 8
    True
    >>> rows = [{'sum': '1 + 1', 'value': '2'}, {'sum': '1 + 2', 'value': '3'}]
    >>> model = lmtrain.load('runs/tiny')
    >>> result = lmtrain.evaluate(model, rows=rows, template='{sum} = {value}', answer='value', choices=['2', '3'])
    >>> result['rows'], result['chance']
    (2, 0.5)
    """
    if task is not None:
        return _evaluate_task(model, task, step, member, rows, **settings)
    if not rows:
        if isinstance(model, LoadedModel) or settings:
            word = sorted(settings)[0] if settings else 'a LoadedModel'
            raise InputError(f'{word} without rows: a split is evaluated from the folder of a run')
        return loading.evaluate_split(model, split, step, member)
    model = _loaded(model, step, member)
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


def _loaded(model, step: int | str, member: int) -> LoadedModel:
    """A model, loaded if it is the folder of a run or a Hugging Face directory."""
    if isinstance(model, LoadedModel):
        return model
    return load(model, step=None if step == 'last' else step, member=member)


def _evaluate_task(model, file, step: int | str, member: int, rows=(), *, batch_size: int = 32, **others):
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


def as_rows(rows) -> list[Row]:
    """Rows of one file, of several files, or of dicts."""
    rows = [rows] if isinstance(rows, str | Path) else rows
    listed = []
    for index, row in enumerate(rows):
        if isinstance(row, str | Path):
            listed += read_rows(str(row), '')
        else:
            listed.append(row if isinstance(row, Row) else Row(f'row {index}', dict(row)))
    return listed


def messages_in(row: Row) -> list[dict[str, Any]]:
    """The messages of a row that holds a conversation; [] for a prompt and its completion.

    Raises InputError if it holds neither.
    """
    return conversation.read(row, (), '')[1].messages


def export(
    workdir, to, format: str = 'hf', *, merge: bool = False, step: int | str = 'last', member: int = 0
) -> list[str]:
    """Writes the model of a run in a format that transformers or PEFT opens.

    Args:
      to: a directory that is new or empty.
      format: 'hf' (config.json, model.safetensors, tokenizer files) or 'peft' (the adapter and added heads only).
      merge: with 'hf', the adapter is merged into the weights; the largest change of an output is reported.
      step, member: as in `load`.

    Returns:
      One line for each thing written, left out or changed.

    Raises:
      InputError: the format cannot represent the model; the message names the leaf or setting and the way out.
      FileExistsError: `to` is not empty.

    >>> import lmtrain
    >>> lines = lmtrain.export('runs/tiny', 'exported')
    >>> lines[0], lines[-1]
    ('step 20 of runs/tiny', 'written: exported')
    """
    return exporting.export(workdir, to, format, merge, step, member)
