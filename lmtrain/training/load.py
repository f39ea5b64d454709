"""The folder of a run as a model: restored, and evaluated on a split."""

import datetime
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from lmtrain import data, tree
from lmtrain.data.chat import encoding
from lmtrain.data.chat.load import open_template, trained_template
from lmtrain.data.chat.template import Template
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.errors import InputError
from lmtrain.evaluation import predictions
from lmtrain.models import Transformer, generation
from lmtrain.parallel import sharding
from lmtrain.tasks import TASKS
from lmtrain.training import evaluate, init_from, workdir
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve


class LoadedModel(NamedTuple):
    """A model that has been trained, with what is needed to use it."""

    config: Any
    model: Transformer
    tokenizer: data.Tokenizer
    params: tree.Params
    step: int
    end_ids: list[int]  # its texts end at any of these tokens
    template: Template | None  # that has written the conversations it was trained on


def load_run(directory, step: int | str = 'last', member: int = 0) -> LoadedModel:
    """The model in a run's folder, on the first device. `step`: 'last', 'best' (validation loss) or a number.

    Of a sweep `member`, with the config that it would have alone.

    Raises FileNotFoundError or ValueError naming what is missing, and checkpoint.Damaged.
    """
    found = init_from.open_run(pathlib.Path(directory), step, member)
    return _trained(found, data.load_tokenizer(found.tokenizer))


def load_directory(directory: str, adapter: str = '', ignore: Sequence[str] = ()) -> LoadedModel:
    """The model of a Hugging Face directory (or a run's folder), with a PEFT adapter if named; of no config, step 0.

    Unknown fields of config.json or adapter_config.json that are in `ignore` are skipped.

    Raises what `base.open_base` raises, and ValueError where the directory holds no tokenizer.
    """
    found = init_from.open_base(directory, adapter, ignore)
    return _trained(found, open_tokenizer(found.tokenizer, mask=False))


def _trained(found: init_from.Base, tokenizer: data.Tokenizer) -> LoadedModel:
    ends = generation.fields_of(found.generation, tokenizer, found.model.vocab_size)['eos_token_id']
    params = found.load(lambda path, array: jax.device_put(array))
    template = None
    if found.config and TASKS[found.config.task.name].conversations:
        template = trained_template(found.config.task, tokenizer)
    return LoadedModel(found.config, found.model, tokenizer, params, found.step or 0, ends, template)


def with_chat_template(run: LoadedModel, name: str | None, chats: bool) -> LoadedModel:
    """The model with the chat template that writes its prompts, and the tokens that end an answer in it.

    Args:
      name: of a template as in config.task.template ('none' leaves prompts as they stand); None is the one that the
        run was trained with. A model that was trained with none continues a text as it stands, also if its tokenizer
        has a chat template, as transformers' text-generation pipeline does.
      chats: there are messages or a system text, which only a template can write: None is then the tokenizer's own.

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


def evaluate_split(directory, split: str, step: int | str = 'last', member: int = 0) -> dict[str, float]:
    """`evaluate.evaluate` of the model of a run on a whole split: 'train', 'validation' or 'test'.

    Uses as many devices as divide a batch. If the task has a score, it is among the results.

    Raises what `load_run` and `build` raise, and InputError if the data or the tokenizer is not that of the training.
    """
    base = init_from.open_run(pathlib.Path(directory), step, member)
    trained = _trained(base, data.load_tokenizer(base.tokenizer))
    trained.config.mesh = {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}  # whatever it was trained on
    trained.config.optimizer.accumulate = 1
    size, devices = trained.config.data.batch_size, jax.devices()
    # The base of the run is open already: its hashes are not checked again.
    resolved = resolve(trained.config, base=base.base)
    run = build(*resolved, devices[: max(n for n in range(1, len(devices) + 1) if size % n == 0)])
    saved = workdir.read(pathlib.Path(directory) / 'fingerprints.json')
    for name, value in run.fingerprints.items():
        if saved.get(name) != value:
            raise InputError(
                f'the {name} is not what {directory} was trained with: {str(saved.get(name))[:12]} then, '
                f'{value[:12]} now'
            )
    params = jax.device_put(trained.params, sharding.shardings(trained.params, run.mesh))
    place = sharding.place(run.mesh)
    result = evaluate.evaluate(run.eval_step(), params, evaluate.passes(run, split), place)
    if run.task.score:
        settings = run.config.objective.to_dict() | {'head': run.output}
        result |= predictions.score_split(run.model, params, run.stream(split), place, **settings)
    return result
