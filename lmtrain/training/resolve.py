"""Resolves a config: every change to it is made here, before anything is built.

Four things that config.json records are known only after the data was read: the names of the classes, the head of the
task with one output for each, whether a chat template wrote the rows, and the date that it wrote. They change nothing
that `build` reads from the config, so the config stays as it is resolved here, and `Run.resolved` adds them.
"""

import pathlib
from typing import Any

import jax
import ml_collections

from lmtrain.errors import InputError
from lmtrain.files import local_path
from lmtrain.models import hub
from lmtrain.parallel import vocab_padding
from lmtrain.report import run_config
from lmtrain.runtime import multihost
from lmtrain.tasks import TASKS
from lmtrain.training import budget_change, workdir
from lmtrain.training.checks import check_read, check_settings
from lmtrain.training.choose import check_is_one_model
from lmtrain.training.init_from import Base, open_base, settings


def resolve(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path | None = None,
    base: Base | None = None,
    extend: bool = False,
) -> tuple[ml_collections.ConfigDict, Base | None]:
    """The config with all its values decided, and the base that it starts from.

    Args:
      directory: the folder of the run. If it holds a run already, its vocabulary and date are kept.
      base: that of config.init if it is open already. None opens it, which checks every hash of its files.
      extend: if the run in `directory` has another budget, a new schedule begins at its newest checkpoint.

    Raises InputError or OSError naming the field or file, what was expected and the way out.
    """
    if 'compare' in config:
        raise InputError('config.compare is the section of a comparison: run it with `lmtrain compare`')
    check_settings(config)
    saved, schedule = _saved_config(directory, config, extend) if directory else (None, {})
    if directory and not saved:
        from configs import base as recipe  # late: only a run that begins needs the defaults

        defaults = recipe.get_config()
        if any(config[name].to_dict() != defaults[name].to_dict() for name in ('objective', 'policy')):
            check_read(config)
    config = config.copy_and_resolve_references()
    if saved:
        config.schedule.update(schedule)
        for section, name in (field.split('.') for field in run_config.LACKED):  # an older run goes on as it began
            config[section][name] = config[section][name] or saved[section][name]
        _keep_vocabulary(config, saved)
        config.task.date = config.task.date or saved['task']['date']
    if base is None and config.init.base:
        config.init.base = hub.local_directory(config.init.base)
        if not saved:
            check_is_one_model(config.init.base, 'init.base')
        base = open_base(config.init.base, config.init.adapter, config.init.ignore)
    if config.reward.model and not saved:
        check_is_one_model(
            str(local_path(config.reward.model, 'config.reward.model', config.data.root)), 'reward.model'
        )
    if base is None:
        _check_drawn(config)
    else:
        config.model = ml_collections.ConfigDict(settings(config, base.model))
    return config.lock(), base


def with_stand_in_text(config, folder: pathlib.Path) -> ml_collections.ConfigDict:
    """The config with a generated text in `folder`, tokenised by the base or into characters, in place of its data.

    For the task of text: its batches have the same shapes. For other tasks the rows decide what is compiled.
    """
    config = config.copy_and_resolve_references()
    text = folder / 'text.txt'
    text.write_text('a text of no matter ' * (1 + config.data.seq_len // 2), encoding='utf-8')
    tokenizer = 'base' if config.data.tokenizer == 'base' else 'chars'
    own = {'source': str(text), 'mix': (), 'document': 'file', 'split': 'tail', 'tokenizer': tokenizer}
    config.data.update(own | {'cache': str(folder), 'validation': 0.2, 'test': 0.2})
    config.evaluate.sources, config.sample.prompts = (), config.sample.prompts and ('a',)
    return config.lock()


def _saved_config(directory: pathlib.Path, config, extend: bool) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """(the config of the run in a folder, None if there is none; `budget_change.schedule`). Process 0 reads it for all.

    Raises InputError if there is nothing to extend.
    """
    saved, schedule = None, {}
    if jax.process_index() == 0 and (directory / 'config.json').exists():
        saved = workdir.read_config(directory)
        schedule = budget_change.schedule(saved, config, directory, extend)
    elif jax.process_index() == 0 and extend:
        raise InputError(f'--extend: {directory} holds no run: leave --extend out')
    return multihost.all_gather_object((saved, schedule))[0]


def _keep_vocabulary(config, saved: dict[str, Any]) -> None:
    """Keeps the vocabulary of a run whose config.json has it padded for its mesh, as earlier versions wrote it."""
    size, padded = config.model.vocab_size, saved['model']['vocab_size']
    if not config.init.base and padded == size + vocab_padding.num_padding_rows(size, saved['mesh']['tensor']):
        config.model.vocab_size = padded


def _check_drawn(config) -> None:
    """Raises InputError if a field needs a base, and there is none: the parameters are drawn."""
    fields = [name for name in ('adapter', 'ignore') if config.init[name]]
    if config.init.frozen_dtype != 'float32':
        fields.append('frozen_dtype')
    if fields:
        field = f'init.{fields[0]} = {config.init[fields[0]]!r}'
        raise InputError(f'{field} without init.base: name the folder of a run or a Hugging Face directory')
    if config.data.tokenizer == 'base':
        way_out = 'or train one from scratch with --config.data.tokenizer=bpe'
        if TASKS[config.task.name].reads_whole_rows:  # it improves answers that a base gives already
            way_out = 'such as a run of --config=configs/instruct.py on conversations'
        raise InputError(
            "data.tokenizer = 'base' without init.base: name a model with --config.init.base=DIR (the folder of a run "
            f'or a Hugging Face directory), {way_out}'
        )
