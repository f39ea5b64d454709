"""A base: parameters that stand on a disk already, of a Hugging Face directory or of an earlier run."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import ml_collections

from lmtrain import adapt, checkpoint, tree
from lmtrain.checkpoint import manifest
from lmtrain.errors import InputError
from lmtrain.files import local_path, sha256
from lmtrain.models import Transformer, generation
from lmtrain.models.settings import HEAD_KINDS
from lmtrain.tasks import TASKS
from lmtrain.training import sweep, workdir

# How a model computes is the run's own choice; what it computes is the base's.
COMPUTE = ('dropout', 'dtype', 'remat', 'unroll', 'attention')
OF_HEADS = {'head', 'mlm_head', 'task_head', 'heads'}  # where the leaves of heads are


class Base(NamedTuple):
    """Parameters on a disk; of the files nothing but names, shapes and hashes has been read.

    Attributes:
      hash: hex sha256 of what holds the parameters.
      model: its settings.
      tokenizer: the folder of its tokenizer.
      shapes: Params of jax.ShapeDtypeStruct.
      load: place -> Params; place(path, array) puts a leaf where it belongs.
      config: of the run that made it; None for a Hugging Face directory.
      step: of that run.
      generation: the fields of its generation_config.json, as `generation.read` gives them.
      labels: the classes of its head for 'classify' or 'tag', in the order of their numbers; () without such a head.
      reread: Transformer -> (shapes, load) of the files of a Hugging Face directory under another head.
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


def open_base(directory: str, adapter: str = '', ignore: Sequence[str] = ()) -> Base:
    """The base that `config.init` names: a run's folder (its last checkpoint) or a Hugging Face directory.

    Args:
      adapter: folder of a PEFT adapter for it, whose leaves are joined to its own; '' is none.
      ignore: unknown fields of the base's config.json or of adapter_config.json that are skipped.

    Raises FileNotFoundError, ValueError naming the file or key.
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
    """The model in a run's folder, of a sweep its `member`. `step`: 'last', 'best' (validation loss) or a number.

    What a run took from a base of its own is read from there, and refused where that is no longer what it was.
    Raises FileNotFoundError or ValueError naming what is missing or differs, and checkpoint.Damaged.
    """
    if not (directory / 'config.json').is_file():
        raise FileNotFoundError(f'{directory} is no folder of a run: it holds no config.json')
    config = ml_collections.ConfigDict(workdir.read_config(directory))
    try:
        model, members = Transformer(**config.model), sweep.of(config)
        init = config.init.to_dict()
    except (AttributeError, TypeError) as error:
        raise InputError(f'{directory / "config.json"} is not the config of a run of this lmtrain: {error}') from error
    if not 0 <= member < max(len(members), 1):
        there = f'the sweep has the members 0 to {len(members) - 1}' if members else f'{directory} is no sweep'
        raise InputError(f'member {member}: {there}')
    checkpoints = (directory / 'checkpoints').absolute()
    held = checkpoint.inspect(checkpoints, step)
    if held is None:
        raise FileNotFoundError(f'{checkpoints} holds no checkpoint: nothing has been trained there yet')
    step, leaves, extra = held

    def kind(name: str) -> tree.Params:
        return tree.unflatten({p.removeprefix(f'{name}/'): x for p, x in leaves.items() if p.startswith(f'{name}/')})

    trainable, frozen = kind('trainable'), kind('frozen')
    inner, fingerprint = None, workdir.read(directory / 'fingerprints.json').get('base')
    if init['base']:
        inner = open_base(init['base'], init['adapter'], init['ignore'])
        inner = inner if inner.model.head == model.head else with_head(inner, model)
        if inner.hash != fingerprint:
            raise InputError(
                f'{directory} was trained on another base than {init["base"]} holds now: its hash is '
                f'{inner.hash[:12]}, it was {str(fingerprint)[:12]}'
            )

    def under(own: tree.Params, below: tree.Params) -> tree.Params:
        """A run's own leaves, and of its base's those that it lacks."""
        below = tree.flatten(tree.cut(below, extra['cut']) if extra['cut'] else below)
        own = tree.flatten(own)
        return tree.unflatten(own | {path: leaf for path, leaf in below.items() if path not in own})

    alone = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), trainable) if members else trainable
    shapes = tree.join(alone, frozen)
    shapes = under(shapes, inner.shapes) if inner else shapes

    def load(place):
        wanted = {'trainable': trainable} | ({'frozen': frozen} if frozen else {})
        parts, _ = checkpoint.load(checkpoints, wanted, step, partial=True)
        if members:
            parts['trainable'] = jax.tree.map(lambda leaf: leaf[member], parts['trainable'])
        own = tree.join(*parts.values())
        own = tree.unflatten({path: place(path, leaf) for path, leaf in tree.flatten(own).items()})
        return under(own, inner.load(place)) if inner else own

    if members:
        config.seed, config.optimizer.learning_rate = members[member].seed, members[member].learning_rate
        config.sweep = dict.fromkeys(config.sweep, ())
    parts = f'{manifest.read(checkpoints / str(step))["sha256"]} {fingerprint} {member}'
    fields = generation.read(directory) or (inner.generation if inner else {})
    digest = hashlib.sha256(parts.encode()).hexdigest()
    labels = tuple(config.task.labels) if TASKS[config.task.name].has_classes else ()
    return Base(digest, model, directory / 'tokenizer', shapes, load, config, step, fields, labels)


def _pretrained(path: Path, ignore: Sequence[str]) -> Base:
    """A Hugging Face directory."""
    from lmtrain.models import hf_heads, pretrained  # late: a run that begins at random has no need of it

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
    """The base without its own head, for `model`, which is the same but for the head (`pretrained.headed`).

    Of the new head it has the leaves that transformers finds in the files of another one (BERT's pooler, the prediction
    head of ModernBERT), and not the last projection: the run draws what is missing.
    """
    from lmtrain.models import pretrained

    if base.reread:
        shapes, load = base.reread(model)
        return base._replace(model=model, shapes=shapes, load=load)
    renamed = pretrained.shared_head(base.model, model)
    left = OF_HEADS - (pretrained.shapes_of(model).keys() - {'task_head'})

    def of(params: tree.Params) -> tree.Params:
        leaves = tree.flatten(params)
        body = {path: leaf for path, leaf in leaves.items() if path.partition('/')[0] not in left}
        return tree.unflatten(body | {new: leaves[old] for old, new in renamed.items() if old in leaves})

    shapes = of(base.shapes)
    kept = tree.flatten(shapes).keys()

    def load(place):
        def put(path, leaf):
            path = renamed.get(path, path)
            return place(path, leaf) if path in kept else leaf

        return of(base.load(put))

    return base._replace(model=model, shapes=shapes, load=load)


def _with_adapter(base: Base, path: Path, ignore: Sequence[str]) -> Base:
    """A base with the leaves of a PEFT directory."""
    model, lacking = adapt.under_class(with_hf_family(base.model), path, ignore), set()
    if model.head != base.model.head:
        bare = with_head(base, model)
        base = _with_room(bare, adapt.labels_of(path, model.num_labels))
        lacking = tree.flatten(base.shapes).keys() - tree.flatten(bare.shapes).keys()
    # On an abstract base, the arrays are the adapter's own leaves.
    new = adapt.load_adapter(with_hf_family(base.model), base.shapes, path, ignore)
    own = {p: leaf for p, leaf in tree.flatten(new).items() if not isinstance(leaf, jax.ShapeDtypeStruct)}
    if lacking := lacking - own.keys():
        raise InputError(f'{path} lacks {min(lacking)} of the head for its task_type, and so does its base')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), new)

    def load(place):
        params = base.load(place)
        adapt.check_base(path, params)
        below = {p: leaf for p, leaf in tree.flatten(params).items() if p not in own}
        return tree.unflatten(below | {p: place(p, leaf) for p, leaf in own.items()})

    files = sorted(file for file in path.iterdir() if file.name.startswith('adapter_'))
    both = hashlib.sha256(f'{base.hash} {_hash(files)}'.encode()).hexdigest()
    return base._replace(hash=both, shapes=shapes, load=load, reread=None)


def _with_room(base: Base, labels: tuple[str, ...]) -> Base:
    """A base with the shapes of all leaves of its head, of which an adapter has those that the base lacks."""
    from lmtrain.models import pretrained

    held = tree.flatten(base.shapes)
    head = {p: x for p, x in tree.flatten(pretrained.shapes_of(base.model)).items() if p.startswith('task_head/')}
    shapes = tree.unflatten(held | {path: leaf for path, leaf in head.items() if path not in held})
    return base._replace(shapes=shapes, labels=labels if HEAD_KINDS[base.model.head].classes else ())


def with_hf_family(model: Transformer) -> Transformer:
    """The model under the Hugging Face family that has its settings: its own if it names one, or the first of all.

    Raises ValueError naming the nearest family and the settings that it does not have.
    """
    from lmtrain.models import pretrained

    nearest: tuple[str, list[str]] | None = None
    for family in sorted(pretrained.FAMILIES, key=lambda family: family != model.family):
        named = dataclasses.replace(model, family=family)
        try:
            others = pretrained.differences(named, pretrained.read_as(named))
        except ValueError:  # the family cannot write or read one of these settings at all
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
    """What to tell about an added head that no class of transformers computes."""
    return f"objective.pool={pool!r} has no form in transformers; 'auto' gives a head that can be exported"


def exportable(config) -> str:
    """Whether `lmtrain export --format=hf` can write the model of a config: 'yes, as FAMILY' or 'no: REASON'."""
    init = config.init
    if config.data.tokenizer == 'base' and not init.base:
        return 'as the base that config.init.base will name'
    try:
        model = open_base(init.base, init.adapter, init.ignore).model if init.base else Transformer(**config.model)
        task = TASKS[config.task.name]
        if not task.predicts_tokens:
            from lmtrain.models import pretrained

            pool, count = config.objective.pool, model.num_labels or 2
            if model.head != task.head:
                model = (pretrained.headed if pool == 'auto' else pretrained.as_class)(model, task.head, count, pool)
            if model is None:
                return f'no: {no_form(pool)}'
        return f'yes, as {with_hf_family(model).family}'
    except (OSError, ValueError) as error:
        return f'no: {error}'


def _hash(files: list[Path]) -> str:
    """Hex sha256 of the names and contents of files."""
    total = hashlib.sha256()
    for file in files:
        total.update(f'{file.name} {sha256(file)}\n'.encode())
    return total.hexdigest()


def settings(config, model: Transformer) -> dict[str, Any]:
    """The model section of a run on a base: the base's settings, but for how they are computed."""
    own = {name: config.model[name] for name in COMPUTE}
    if own['unroll'] == config.model.num_layers:
        own['unroll'] = model.num_layers  # all of them, as in base.py
    of_base = dataclasses.asdict(model)
    del of_base['vocab_fill']  # of a mesh, and no setting of a config
    return of_base | own
