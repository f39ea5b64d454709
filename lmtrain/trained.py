"""The folder of a run as a model: restored, evaluated on a split, sampled from."""

import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lmtrain import checkpoint, data, evaluate, sample, sharding, sweep, tree
from lmtrain.checkpoint import workdir as folder
from lmtrain.models import Transformer
from lmtrain.run import assemble, sample_settings


class Trained(NamedTuple):
    """A model that has been trained, with what is needed to use it."""

    config: Any
    model: Transformer
    tokenizer: data.Tokenizer
    params: tree.Params
    step: int


def restore(workdir, step: int | str = 'last', member: int = 0) -> Trained:
    """The model in a run's folder, on the first device. `step`: 'last', 'best' (validation loss) or a number.

    Of a sweep `member`, with the config that it would have alone.

    Raises FileNotFoundError or ValueError naming what is missing, and checkpoint.Damaged.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').exists():
        raise FileNotFoundError(f'{workdir} is no folder of a run: it holds no config.json')
    config = ml_collections.ConfigDict(folder.read(workdir / 'config.json'))
    try:
        model = Transformer(**config.model)
        one_row = {'tokens': np.zeros((1, config.data.seq_len), np.int32)}
        members = sweep.of(config)
    except (AttributeError, TypeError) as error:
        raise ValueError(f'{workdir / "config.json"} is not the config of a run of this lmtrain: {error}') from error
    if not 0 <= member < max(len(members), 1):
        there = f'the sweep has the members 0 to {len(members) - 1}' if members else f'{workdir} is no sweep'
        raise ValueError(f'member {member}: {there}')
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), one_row)['params'])
    trainable, frozen = tree.split(shapes, config.learns)
    wanted = {'trainable': sweep.stacked(trainable, members)} | ({'frozen': frozen} if frozen else {})
    saved = checkpoint.restore(workdir / 'checkpoints', wanted, step, partial=True)
    if saved is None:
        raise FileNotFoundError(f'{workdir / "checkpoints"} holds no checkpoint: nothing has been trained there yet')
    parts, extra = saved
    if members:
        parts['trainable'] = jax.tree.map(lambda leaf: leaf[member], parts['trainable'])
        config.seed, config.optimizer.learning_rate = members[member].seed, members[member].learning_rate
        config.sweep = dict.fromkeys(config.sweep, ())
    return Trained(config, model, data.load_tokenizer(workdir / 'tokenizer'), tree.join(*parts.values()), extra['step'])


def evaluate_split(workdir, split: str, step: int | str = 'last', member: int = 0) -> dict[str, float]:
    """The loss in bits of a run's model on all of 'train', 'validation' or 'test', on all devices.

    Raises what `restore` and `run.assemble` raise, and ValueError where the data is no longer what it was.
    """
    trained = restore(workdir, step, member)
    trained.config.mesh = {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}  # whatever it was trained on
    run = assemble(trained.config)
    saved = folder.read(pathlib.Path(workdir) / 'fingerprints.json')
    for name, value in run.fingerprints().items():
        if saved.get(name) != value:
            raise ValueError(
                f'the {name} is not what {workdir} was trained with: {str(saved.get(name))[:12]} then, {value[:12]} now'
            )
    params = jax.device_put(trained.params, sharding.shardings(trained.params, run.mesh))
    stream = run.stream(split, shuffle=False)
    return evaluate.evaluate(run.eval_step(), params, stream, sharding.place(run.mesh))


def samples(config, model: Transformer, tokenizer: data.Tokenizer, params: tree.Params) -> str:
    """The texts that the config's sample section asks for, or the word that there are none."""
    if not model.causal:
        return 'A bidirectional model makes no text.\n'
    wanted = sample_settings(config, tokenizer)
    texts = sample.generate(model, params, **wanted)
    named = zip(config.sample.prompts, wanted['prompts'], texts, strict=True)
    return '\n\n'.join(f'--- {name!r}\n{tokenizer.decode(prompt + text)}' for name, prompt, text in named) + '\n'
