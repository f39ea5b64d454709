"""Loads the model of a run or a Hugging Face directory, and evaluates a run on a split."""

import contextlib
import datetime
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lmtrain import data, tree
from lmtrain.data.chat import encoding
from lmtrain.data.chat.load import open_template, trained_template
from lmtrain.data.chat.template import Template
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.errors import InputError
from lmtrain.evaluation import heads
from lmtrain.inference import prompting
from lmtrain.models import Transformer, generation, hub
from lmtrain.parallel import sharding
from lmtrain.runtime import progress
from lmtrain.tasks import TASKS, of_output
from lmtrain.training import choose, evaluate, init_from, reference, rollouts, split_errors, workdir
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

# Fields and sections of a config that an evaluation reads: how it computes, and where and how texts are read.
OVERRIDES = ('data', 'evaluate', 'mesh', *(f'model.{name}' for name in init_from.COMPUTE if name != 'dropout'))


class LoadedModel(NamedTuple):
    """A trained model on the first device.

    Attributes:
      config: of the run; None for a Hugging Face directory.
      step: of the checkpoint; 0 for a Hugging Face directory.
      end_ids: tokens that end a text.
      template: chat template of the conversations that it was trained on; None if there is none, or it is not known.
      labels: the class names of its head, in the order of their ids; () if it has none, or they are not known.
      directory: the folder of the run; '' for a Hugging Face directory, and if the parameters were changed since.
      member: of the run, if that is a sweep.
    """

    config: Any
    model: Transformer
    tokenizer: data.Tokenizer
    params: tree.Params
    step: int
    end_ids: list[int]
    template: Template | None
    labels: tuple[str, ...] = ()
    directory: str = ''
    member: int = 0


def load_run(directory, step: int | str = choose.AUTO, member: int | None = None) -> LoadedModel:
    """The model of the run in a folder.

    Args:
      step: 'last', 'best' (lowest validation loss), the number of a checkpoint, or 'auto', see `choose.choose`.
      member: of a sweep; the config is the one that it would have alone. None is the best by validation.

    Raises FileNotFoundError or InputError naming what is missing, and checkpoint.Damaged.
    """
    choice = choose.choose(directory, step, member)
    base = init_from.open_run(pathlib.Path(directory), choice.step, choice.member)
    loaded = _load(base, data.load_tokenizer(base.tokenizer))
    return loaded._replace(directory=str(directory), member=choice.member)


def load_members(directory, step: int) -> Iterator[LoadedModel]:
    """`load_run` of every member of a sweep, or of the only one of a run, whose files are read once for all."""
    bases = init_from.open_members(pathlib.Path(directory), step)
    tokenizer = data.load_tokenizer(bases[0].tokenizer)
    for member, base in enumerate(bases):
        yield _load(base, tokenizer)._replace(directory=str(directory), member=member)


def load_directory(directory: str, adapter: str = '', ignore: Sequence[str] = ()) -> LoadedModel:
    """The model of a Hugging Face directory or, as a base is opened, of the last checkpoint of a run.

    Args:
      adapter: a PEFT directory whose adapter is added; '' is none.
      ignore: unknown fields of config.json or adapter_config.json to skip.

    Raises what `init_from.open_base` raises, and InputError if the directory has no tokenizer.
    """
    base = init_from.open_base(hub.local_directory(directory, '--base'), adapter, ignore)
    loaded = _load(base, open_tokenizer(base.tokenizer, mask=False))
    return loaded._replace(directory='' if adapter or base.config is None else directory)


def _load(base: init_from.Base, tokenizer: data.Tokenizer) -> LoadedModel:
    ends = generation.fields_of(base.generation, tokenizer, base.model.vocab_size)['eos_token_id']
    with progress.phase('loading the parameters', brief=True):
        params = base.load(_on_device)
    template = None
    if base.config and TASKS[base.config.task.name].conversations:
        template = trained_template(base.config.task, tokenizer)
    elif of_output(base.labels) and 'chat_template' in tokenizer.config:
        template = open_template('auto', tokenizer, '', datetime.date.today().isoformat())
    return LoadedModel(base.config, base.model, tokenizer, params, base.step or 0, ends, template, base.labels)


def _on_device(path: str, array) -> jax.Array:
    """One function for all loads: members of a sweep share the leaves of their base."""
    return jax.device_put(array)


def with_chat_template(run: LoadedModel, name: str | None, chats: bool) -> LoadedModel:
    """The model with the chat template for its prompts, and with the tokens that end an answer.

    Args:
      name: of a template as in config.task.template ('none' uses prompts unchanged). None is the template of the
        training. A model that was trained without one continues texts unchanged, also if its tokenizer has a chat
        template, as transformers' text-generation pipeline does.
      chats: whether there are messages or a system text, which only a template can write. None then is the template
        of the tokenizer.

    Raises FileNotFoundError or ValueError if there is no such template.
    """
    template = run.template
    if name is not None or template is None and chats:
        if name is None and 'chat_template' not in run.tokenizer.config:
            raise InputError(
                'there are messages or a system text, and neither the run nor its tokenizer has a chat template to '
                "write them: name a Jinja file or 'plain' (one message a line), or give each prompt as one text"
            )
        date = (run.template.date if run.template else '') or datetime.date.today().isoformat()
        template = open_template(name or 'auto', run.tokenizer, '', date)
    if template is None:
        return run._replace(template=None)
    end = encoding.answer_end(run.tokenizer, template)
    ends = dict.fromkeys([*run.end_ids, *([end] if end is not None else [])])
    return run._replace(template=template, end_ids=list(ends))


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises InputError if an evaluation does not read one of these fields of a config."""
    for name in overrides:
        if not any(name == known or name.startswith(f'{known}.') for known in OVERRIDES):
            raise InputError(
                f'config.{name} has no effect on an evaluation; its fields are those of {", ".join(OVERRIDES)}'
            )


def evaluate_split(
    directory,
    split: str,
    step: int | str = choose.AUTO,
    member: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    open_model: Callable | None = None,
) -> dict[str, Any]:
    """`evaluate.evaluate` of the model of a run on a whole split: 'train', 'validation' or 'test'.

    Of a policy it is `rollouts.held_out`.

    Uses as many devices as divide a batch. If the task has a score, it is among the results. So are standard errors
    ('<name>_stderr', see `split_errors`; 'reward_error' of a policy) and the engine, as in `prompting.engine`.

    Args:
      overrides: {'section.field': value} of the run's config that an evaluation may change (`OVERRIDES`).
      open_model: `reward_scores.scorer`, which imports this module; for policies whose reward is a model.

    Raises what `load_run` and `build` raise, and InputError if the data or the tokenizer is not that of the training.
    """
    check_overrides(overrides or ())
    choice = choose.choose(directory, step, member)
    base = init_from.open_run(pathlib.Path(directory), choice.step, choice.member)
    trained = _load(base, data.load_tokenizer(base.tokenizer))
    trained.config.mesh = {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}  # whatever it was trained on
    trained.config.optimizer.accumulate = 1
    trained.config.update_from_flattened_dict(dict(overrides or {}))
    size, devices = trained.config.data.batch_size, jax.devices()
    # The base of the run is open already: its hashes are not checked again.
    resolved = resolve(trained.config, base=base.base)
    run = build(*resolved, devices[: max(n for n in range(1, len(devices) + 1) if size % n == 0)])
    saved = workdir.read(pathlib.Path(directory) / 'fingerprints.json')
    for name, value in run.fingerprints.items():
        if saved.get(name, value) != value:  # an older version did not record that of a reward
            raise InputError(
                f'the {name} is not what {directory} was trained with: {str(saved.get(name))[:12]} then, '
                f'{value[:12]} now: it has changed, or this version of lmtrain reads it in another way (CHANGELOG.md)'
            )
    if run.initial.reference_mode:
        run = reference.complete(run)
    params = jax.device_put(trained.params, sharding.shardings(trained.params, run.mesh))
    place = sharding.place(run.mesh)
    if run.task.on_policy:
        with contextlib.closing(rollouts.Sampler(run, open_model)) as sampler:
            return rollouts.held_out(sampler, split)(params) | prompting.engine(run.model, size)
    streams = evaluate.passes(run, split)
    recorder = split_errors.Recorder(run) if run.mesh.shape['sequence'] == 1 else None  # else rows are divided
    result = evaluate.evaluate(recorder or run.eval_step(), params, streams, place)
    assert result is not None, 'nothing stops this evaluation'
    result = recorder.with_errors(result, streams) if recorder else result
    if run.task.score:
        settings = run.config.objective.to_dict() | {'head': run.output}
        result |= heads.score_split(run.model, params, run.stream(split), place, **settings)
    return result | prompting.engine(run.model, size) | {'attention': run.attention}
