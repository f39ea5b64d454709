"""Initial parameters: a Hugging Face directory or the checkpoint of an earlier run."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lmtrain import adapt, checkpoint, tree
from lmtrain.checkpoint import manifest
from lmtrain.data.tokenizers.load import FILES
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json_object, sha256
from lmtrain.models import Transformer, generation, hub
from lmtrain.models.settings import HEAD_KINDS
from lmtrain.tasks import TASKS, of_output
from lmtrain.training import sweep, workdir

# Fields of the model section that a run chooses itself: how a model computes. The others, what it computes, are those
# of the base.
COMPUTE = ('dropout', 'dtype', 'remat', 'unroll', 'attention')
OF_HEADS = {'head', 'mlm_head', 'task_head', 'heads'}  # top-level names of the leaves of heads


class Base(NamedTuple):
    """Parameters on a disk. Names, shapes and hashes were read from the files, no arrays yet.

    Attributes:
      hash: hex SHA-256 that identifies the parameters.
      model: the model of the parameters.
      tokenizer: the folder of its tokenizer.
      shapes: Params of jax.ShapeDtypeStruct.
      load: place -> Params; place(path, array) puts a leaf on devices.
      config: of the run that trained it; None for a Hugging Face directory.
      step: of the checkpoint; None for a Hugging Face directory.
      generation: the fields of its generation_config.json, see `generation.read`.
      labels: the class names of its head for 'classify' or 'tag', in the order of their ids; () without such a head.
      reread: Transformer -> (shapes, load) of the files of a Hugging Face directory with another head; None for a run.
      base: the base that the run started from; None if there is none.
      changed: paths of the leaves that differ from those of config.init.base: what the run trained, and the leaves of
        init.adapter.
    """

    hash: str
    model: Transformer
    tokenizer: Path
    shapes: tree.Params
    load: Callable[[Callable[[str, Any], Any]], tree.Params]
    config: Any = None
    step: int | None = None
    generation: Mapping[str, Any] = MappingProxyType({})
    labels: tuple[str, ...] = ()
    reread: Callable[[Transformer], tuple[tree.Params, Callable]] | None = None
    base: 'Base | None' = None
    changed: frozenset[str] = frozenset()

    @property
    def on_run(self) -> bool:
        """Whether the run started from another run, which only lmtrain opens."""
        return self.base is not None and self.base.config is not None


def open_base(directory: str, adapter: str = '', ignore: Sequence[str] = ()) -> Base:
    """The base of config.init: the last checkpoint of a run, or a Hugging Face directory. Checks all hashes of a run.

    Args:
      adapter: a PEFT directory whose leaves are added to those of the base; '' is none.
      ignore: unknown fields of config.json or adapter_config.json to skip.

    Raises FileNotFoundError or InputError naming the file or key.
    """
    path = local_path(directory, 'init.base')
    if (path / 'checkpoints').is_dir():
        base = open_run(path)
    elif (path / 'config.json').is_file():
        base = _pretrained(path, ignore)
    else:
        raise FileNotFoundError(
            f'init.base: {path.absolute()} is neither the folder of a run nor a Hugging Face directory: it holds no '
            'config.json'
        )
    files = [path / 'config.json']
    if adapter:
        adapter = local_path(adapter, 'init.adapter')
        base = _with_adapter(base, adapter, ignore)
        files.append(adapter / 'adapter_config.json')
    known = {name for file in files for name in workdir.read(file)}
    if missing := [name for name in ignore if name not in known]:
        raise InputError(f'init.ignore has {missing[0]!r}, which {" and ".join(map(str, files))} do not have')
    return base


def open_run(directory: Path, step: int | str = 'last', member: int = 0) -> Base:
    """The model of a run, from its folder; for a sweep, that of one member.

    Leaves that the run took from its own base are read from there.

    Args:
      step: 'last', 'best' (lowest validation loss) or the number of a checkpoint. Its hashes are checked here, once.

    Raises FileNotFoundError or InputError naming what is missing or differs, and checkpoint.Damaged.
    """
    members = read_run(directory)[2]
    if not 0 <= member < max(len(members), 1):
        range_ = f'the sweep has the members 0 to {len(members) - 1}' if members else f'{directory} is no sweep'
        raise InputError(f'member {member}: {range_}')
    return open_members(directory, step)[member]


def open_members(directory: Path, step: int | str = 'last') -> list[Base]:
    """`open_run` of every member of a sweep, or of the only one of a run. Their files are read once for all."""
    config, model, members = read_run(directory)
    checkpoints = (directory / 'checkpoints').absolute()
    inspected = checkpoint.inspect(checkpoints, step)
    if inspected is None:
        raise FileNotFoundError(f'{checkpoints} holds no checkpoint: nothing has been trained there yet')
    step, leaves, extra = inspected
    stored = tree.unflatten(leaves)
    stored = {name: stored[name] for name in ('trainable', 'frozen') if name in stored}
    changed = frozenset(tree.flatten(stored.get('trainable', {})))
    fingerprint = workdir.read(directory / 'fingerprints.json').get('base')
    base = _base_of_run(directory, config, fingerprint)
    inner = base and (base if base.model.head == model.head else with_head(base, model))

    def complete(own: tree.Params, base_params: tree.Params) -> tree.Params:
        """The leaves of the run, and those of its base that the run does not store."""
        base_params = tree.flatten(tree.cut(base_params, extra['cut']) if extra['cut'] else base_params)
        own = tree.flatten(own)
        return tree.unflatten(own | {path: leaf for path, leaf in base_params.items() if path not in own})

    @functools.cache
    def read() -> tree.Params:
        return checkpoint.load(checkpoints, stored, step, partial=True)[0]

    load_inner = functools.cache(inner.load) if inner else None

    def load(place, member: int):
        parts = dict(read())
        if members:
            # On the host: on a device, a program would be compiled for every shape.
            parts['trainable'] = jax.tree.map(lambda leaf: np.asarray(leaf)[member], parts['trainable'])
        own = tree.join(*parts.values())
        own = tree.unflatten({path: place(path, leaf) for path, leaf in tree.flatten(own).items()})
        return complete(own, load_inner(place)) if inner else own

    shapes = dict(stored)
    if members:
        one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # noqa: E731
        shapes['trainable'] = jax.tree.map(one, shapes['trainable'])
    shapes = tree.join(*shapes.values())
    shapes = jax.eval_shape(complete, shapes, inner.shapes) if inner else shapes
    identity = f'{manifest.read(checkpoints / str(step))["sha256"]} {fingerprint}'

    def of_member(member: int) -> Base:
        return Base(
            hash=hashlib.sha256(f'{identity} {member}'.encode()).hexdigest(),
            model=model,
            tokenizer=directory / 'tokenizer',
            shapes=shapes,
            load=functools.partial(load, member=member),
            config=_config_of_member(config, members[member]) if members else config,
            step=step,
            generation=generation.read(directory) or (inner.generation if inner else {}),
            labels=tuple(config.task.labels) if TASKS[config.task.name].has_classes else (),
            base=base,
            changed=changed | (base.changed if config.init.adapter else frozenset()),
        )

    return [of_member(member) for member in range(max(len(members), 1))]


def _config_of_member(config, member: sweep.Member):
    """The config that a member of a sweep would have as a run of its own."""
    config = config.copy_and_resolve_references()
    config.seed, config.optimizer.learning_rate = member.seed, member.learning_rate
    config.sweep = dict.fromkeys(config.sweep, ())
    return config


def _trial_of(directory: Path) -> str:
    """What to name in place of the folder of a comparison: a finished trial, of an arm that trains if there is one."""
    paths = sorted(directory.glob('trials/*/*/trial.json'))
    done = [path.parent for path in paths if read_json_object(path).get('status') == 'done']
    if not done:
        return 'none of its trials is done yet'
    trained = [folder for folder in done if (folder / 'config.json').is_file()]
    return f'name one of its trials, such as {[*trained, *done][0]}'


def read_run(directory: Path) -> tuple[ml_collections.ConfigDict, Transformer, tuple[sweep.Member, ...]]:
    """(config, model, members of the sweep) of the run in a folder."""
    if (directory / 'rows' / 'rows.json').is_file():
        raise InputError(f'{directory} is the folder of a comparison, not of a run: {_trial_of(directory)}')
    if not (directory / 'config.json').is_file():
        if (directory / 'trial.json').is_file():
            uses = '`lmtrain predict` and `lmtrain evaluate --rows` answer rows by it'
            raise InputError(f'{directory} is the trial of a prompted arm, which trains nothing: {uses}')
        if not directory.exists():
            raise FileNotFoundError(f'{directory}: there is no such folder')
        raise FileNotFoundError(f'{directory} is no folder of a run: it holds no config.json')
    config = ml_collections.ConfigDict(workdir.read_config(directory))
    try:
        _ = config.init.base
        return config, Transformer(**config.model), sweep.of(config)
    except (AttributeError, TypeError) as error:
        raise InputError(f'{directory / "config.json"} is not the config of a run of this lmtrain: {error}') from error


def _base_of_run(directory: Path, config, fingerprint: str | None) -> Base | None:
    """The base of a run, opened; None if it started from random parameters.

    Raises InputError if its hash is not `fingerprint`, the hash that the run recorded.
    """
    init = config.init
    if not init.base:
        return None
    base = open_base(init.base, init.adapter, init.ignore)
    if base.hash != fingerprint:
        raise InputError(
            f'{directory} was trained on another base than {init.base} holds now: its hash is {base.hash[:12]}, it was '
            f'{str(fingerprint)[:12]}'
        )
    return base


def _pretrained(path: Path, ignore: Sequence[str]) -> Base:
    """A Hugging Face directory."""
    from lmtrain.models import hf_heads, pretrained  # late: a run with random parameters does not need it

    config = pretrained.read_config(path)
    model = pretrained.model_of(config, ignore)
    labels = hf_heads.labels(config) if HEAD_KINDS[model.head].classes else ()
    shapes = pretrained.shapes_of(model)
    files = sorted(file for file in path.iterdir() if file.name == 'config.json' or file.suffix == '.safetensors')

    def load(place, model=None):
        return pretrained.load_pretrained(path, place, ignore=ignore, model=model)[1]

    def reread(model):
        return pretrained.shapes_in(path, model), functools.partial(load, model=model)

    about = {'generation': generation.read(path), 'labels': labels, 'reread': reread}
    return Base(_hash(files), model, path, shapes, load, **about)


def with_head(base: Base, model: Transformer) -> Base:
    """The base with the head of `model`, which differs from the base's model only in its head.

    It has those leaves of the new head that transformers finds in the files of another one (BERT's pooler, the
    prediction head of ModernBERT), and not the last projection: the run draws the missing leaves.
    """
    from lmtrain.models import pretrained

    if base.reread:
        shapes, load = base.reread(model)
        return base._replace(model=model, shapes=shapes, load=load)
    renamed = pretrained.shared_head_paths(base.model, model)
    dropped = OF_HEADS - (pretrained.shapes_of(model).keys() - {'task_head'})

    def convert(params: tree.Params) -> tree.Params:
        leaves = tree.flatten(params)
        body = {path: leaf for path, leaf in leaves.items() if path.partition('/')[0] not in dropped}
        return tree.unflatten(body | {new: leaves[old] for old, new in renamed.items() if old in leaves})

    shapes = convert(base.shapes)
    paths = tree.flatten(shapes).keys()

    def load(place):
        def put(path, leaf):
            path = renamed.get(path, path)
            return place(path, leaf) if path in paths else leaf

        return convert(base.load(put))

    return base._replace(model=model, shapes=shapes, load=load)


def _with_adapter(base: Base, path: Path, ignore: Sequence[str]) -> Base:
    """A base with the adapter of a PEFT directory."""
    named = with_hf_family(base.model)  # a run may have none
    model, missing = adapt.under_class(named, path, ignore), set()
    if model.head != base.model.head:
        bare = with_head(base._replace(model=named), model)
        base = _with_head_shapes(bare, adapt.labels_of(path, model.num_labels))
        missing = tree.flatten(base.shapes).keys() - tree.flatten(bare.shapes).keys()
    # Added to shapes: the arrays in the result are the leaves of the adapter.
    new = adapt.load_adapter(with_hf_family(base.model), base.shapes, path, ignore)
    own = {p: leaf for p, leaf in tree.flatten(new).items() if not isinstance(leaf, jax.ShapeDtypeStruct)}
    if missing := missing - own.keys():
        raise InputError(f'{path} lacks {min(missing)} of the head for its task_type, and so does its base')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), new)

    def load(place):
        params = base.load(place)
        adapt.check_base(path, params)
        below = {p: leaf for p, leaf in tree.flatten(params).items() if p not in own}
        return tree.unflatten(below | {p: place(p, leaf) for p, leaf in own.items()})

    if of_output(base.labels) and any((path / name).is_file() for name in FILES):  # with the run's chat template
        base = base._replace(tokenizer=path)
    files = sorted(file for file in path.iterdir() if file.name.startswith('adapter_'))
    both = hashlib.sha256(f'{base.hash} {_hash(files)}'.encode()).hexdigest()
    return base._replace(hash=both, shapes=shapes, load=load, reread=None, changed=frozenset(own))


def _with_head_shapes(base: Base, labels: tuple[str, ...]) -> Base:
    """A base with the shapes of all leaves of its head: an adapter has those that the base lacks."""
    from lmtrain.models import pretrained

    held = tree.flatten(base.shapes)
    head = {p: x for p, x in tree.flatten(pretrained.shapes_of(base.model)).items() if p.startswith('task_head/')}
    shapes = tree.unflatten(held | {path: leaf for path, leaf in head.items() if path not in held})
    return base._replace(shapes=shapes, labels=labels if HEAD_KINDS[base.model.head].classes else ())


def with_hf_family(model: Transformer) -> Transformer:
    """The model with a Hugging Face family that supports its settings: its own family if it has one, else the first.

    Raises InputError naming the nearest family and the settings that it does not support.
    """
    from lmtrain.models import pretrained

    nearest: tuple[str, list[str]] | None = None
    for family in sorted(pretrained.FAMILIES, key=lambda family: family != model.family):
        named = dataclasses.replace(model, family=family)
        try:
            others = pretrained.differences(named, pretrained.round_trip(named))
        except InputError:  # the family has no way to express one of these settings
            continue
        if not others:
            return named
        if nearest is None or len(others) < len(nearest[1]):
            nearest = family, others
    if nearest is None:
        raise InputError('no family of transformers has this model: config.json of none can say its settings')
    family, others = nearest
    raise InputError(
        f'no family of transformers has this model; the nearest, {family}, has no {" and no ".join(others)}'
    )


def no_form(pool: str) -> str:
    """The message on an added head that no class of transformers computes."""
    return f"objective.pool={pool!r} has no form in transformers; 'auto' gives a head that can be exported"


def exportable(config) -> str:
    """Whether `lmtrain export --format=hf` can write the model of a config: 'yes, as FAMILY' or 'no, because ...'."""
    init = config.init
    if config.data.tokenizer == 'base' and not init.base:
        return 'yes, as the base that config.init.base will name'
    try:
        directory = hub.local_directory(init.base)
        model = open_base(directory, init.adapter, init.ignore).model if directory else Transformer(**config.model)
        task = TASKS[config.task.name]
        if not task.predicts_tokens:
            from lmtrain.models import pretrained

            pool, count = config.objective.pool, model.num_labels or 2
            if model.head != task.head:
                model = (pretrained.with_task_head if pool == 'auto' else pretrained.with_linear_head)(
                    model, task.head, count, pool
                )
            if model is None:
                return f'no, because {no_form(pool)}'
        return f'yes, as {with_hf_family(model).family}'
    except (OSError, InputError) as error:
        return f'no, because {error}'


def _hash(files: list[Path]) -> str:
    """Hex sha256 of the names and contents of files."""
    total = hashlib.sha256()
    for file in files:
        total.update(f'{file.name} {sha256(file)}\n'.encode())
    return total.hexdigest()


def settings(config, model: Transformer) -> dict[str, Any]:
    """The model section of a run on a base: that of the base, except for the fields of COMPUTE."""
    own = {name: config.model[name] for name in COMPUTE}
    if own['unroll'] == config.model.num_layers:
        own['unroll'] = model.num_layers  # the default of base.py: all layers
    of_base = dataclasses.asdict(model)
    del of_base['vocab_fill']  # follows from the mesh; the config has no such field
    return of_base | own
