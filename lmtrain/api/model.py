"""The object that `lmtrain.load` returns."""

from collections.abc import Sequence
from pathlib import Path

from lmtrain import tree
from lmtrain.api import rows, texts
from lmtrain.errors import InputError
from lmtrain.training import choose
from lmtrain.training import load as loading
from lmtrain.training.load import LoadedModel


class Model(LoadedModel):
    """What `lmtrain.load` returns: a model with its parameters and tokenizer, and methods.

    The fields are those of `LoadedModel`, and the methods are the functions of texts.py and rows.py.

    >>> import lmtrain
    >>> model = lmtrain.load('runs/tiny')
    >>> model
    Model(2 layers, width 32, 41,152 parameters, step 20)
    >>> len(model.generate(['def '], max_tokens=8)[0].ids)
    8
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """One line; the parameters themselves would fill the screen of a notebook."""
        step = f', step {self.step:,}' if self.config else ''
        size = f'{self.model.num_layers} layers, width {self.model.width}'
        return f'Model({size}, {tree.count(self.params):,} parameters{step})'

    generate = texts.generate
    stream = texts.stream
    chat = texts.chat
    logprobs = texts.logprobs
    predict = rows.predict
    evaluate = rows.evaluate


def load(
    directory,
    *,
    step: int | str = choose.AUTO,
    member: int | None = None,
    adapter: str = '',
    ignore: Sequence[str] = (),
) -> Model:
    """Loads a model and its tokenizer onto the first device.

    Args:
      directory: the folder of a run, or a Hugging Face directory (config.json, *.safetensors and tokenizer files).
      step: of a run: 'last', 'best' (lowest validation loss), the number of a checkpoint, or 'auto': the best if the
        loss was measured more than twice and has risen since, else the last.
      member: of a sweep, which of its runs. None is the best by validation.
      adapter: a PEFT directory whose adapter is added to the model; '' is none.
      ignore: unknown fields of config.json or adapter_config.json to skip.

    Returns:
      A `Model`: the model, its parameters and tokenizer, and the methods generate, stream, chat, logprobs, predict and
      evaluate. `config` is None for a Hugging Face directory, `template` is None if the model was not trained on
      conversations.

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
    is_run = (Path(directory) / 'checkpoints').is_dir() and not (adapter or ignore)
    if step in (choose.AUTO, None) and member is None and not is_run:
        choose.check_is_one_model(str(directory), 'init.base')
        return Model(*loading.load_directory(str(directory), adapter, ignore))
    if adapter or ignore:
        name = 'adapter' if adapter else 'ignore'
        raise InputError(f'{name} with step={step!r}, member={member}: a step and a member are of a run; leave one out')
    return Model(*loading.load_run(directory, choose.AUTO if step is None else step, member))
