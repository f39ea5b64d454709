"""The public functions of lmtrain: train, load, generate, evaluate, export, load_adapter.

`import lmtrain` offers them lazily: neither jax nor numpy is imported before the first of them is used. The subcommands
that use a model (launch/) call the same functions; `lmtrain train` calls training/train.py itself, which imports less.
Those of a loaded model are in texts.py and rows.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmtrain import adapt
from lmtrain.api.model import Model, load
from lmtrain.api.rows import as_rows, evaluate
from lmtrain.api.texts import as_prompt, generate, sampling, stream
from lmtrain.errors import InputError
from lmtrain.training import choose, init_from
from lmtrain.training import export as exporting
from lmtrain.training import train as training
from lmtrain.training.load import LoadedModel

__all__ = [
    'Model', 'as_prompt', 'as_rows', 'evaluate', 'export', 'generate', 'load', 'load_adapter', 'sampling', 'stream',
    'train',
]  # fmt: skip


def train(config, workdir, *, extend: bool = False) -> dict[str, Any]:
    """Trains a config in the folder `workdir`. The same call resumes a run that was stopped.

    It starts from the first of these that exists: the newest intact checkpoint of the run (damaged ones are renamed to
    `<step>.corrupt`), the base (`config.init.base`), a random initialisation. A finished run is not computed again.

    A larger budget continues the run in the same folder if the schedule defines how: 'constant', and 'wsd' from its
    last checkpoint before the decay.

    Args:
      config: ConfigDict, from `get_config()` of a recipe in configs/ or of a file like it. Exactly one field of
        `config.budget` is set.
      workdir: created if it does not exist. Receives checkpoints, metrics.jsonl, results.json and report.md.
      extend: with another budget, a new schedule begins at the newest checkpoint of the run, whatever the schedule.

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
    return training.train(config, workdir, extend)


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
    params = adapt.load_adapter(own, model.params, directory, ignore)
    return model._replace(params=params, directory='')  # no longer the model of that run


def export(
    workdir,
    to,
    format: str = 'hf',
    *,
    merge: bool = False,
    step: int | str = choose.AUTO,
    member: int | None = None,
    licence: str = '',
) -> list[str]:
    """Writes the model of a run in a format that transformers or PEFT opens.

    Args:
      to: a directory that is new or empty.
      format: 'hf' (config.json, model.safetensors, tokenizer files) or 'peft' (the adapter and added heads only), each
        with a model card, README.md.
      merge: with 'hf', the adapter is merged into the weights; the largest change of an output is reported.
      step, member: as in `load`.
      licence: an identifier for the model card, such as 'apache-2.0'; '' is unknown.

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
    return exporting.export(workdir, to, format, merge, step, member, licence)
