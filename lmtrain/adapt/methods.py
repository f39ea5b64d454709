"""From a name in the config to a method: leaves to add, segments of layers, and the regex of what learns."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from lmtrain import tree
from lmtrain.adapt import head as heads
from lmtrain.adapt import ia3, lora, prefix, prompt
from lmtrain.adapt.adapter import Adapter, combine, extend, none
from lmtrain.errors import InputError

NAMES = ('full', 'layers', 'bitfit', 'norms', 'lora', 'ia3', 'prompt', 'prefix', 'head')
BIASES = r'.*/bias'
NORMS = r'.*norm/(scale|bias)'
TASKS, OWN_HEAD = ('classify', 'tag', 'span'), r'task_head/.*'


class Method(NamedTuple):
    """A way of adapting one model.

    Attributes:
      adapter: the leaves to add, and the way back.
      trainable: regex of the trainable paths of the extended tree.
      cut: layers in each segment of the stack; () leaves it whole.
    """

    adapter: Adapter
    trainable: str
    cut: tuple[int, ...] = ()

    def start(self, rng: jax.Array, params: tree.Params) -> tree.Params:
        """The base's parameters cut into segments and with the adapter's leaves, all checked; may be traced."""
        return extend(self.adapter, rng, tree.cut(params, self.cut) if self.cut else params)


def method(name: str, model, params: Mapping, *, head: Mapping | None = None, cut: Sequence[int] = (), **settings):
    """The Method of a name, for a model and its parameters (arrays or shapes).

    Args:
      name: one of NAMES. 'layers' takes `trainable`, a regex over paths with the layer's number
        (layers/11/mlp/up/kernel), or `last`, how many of the last layers are trained; 'lora', 'ia3', 'prompt' and
        'prefix' the arguments of their `adapter`; the others none.
      head: {'name', 'classes'} of a head that is added, unless `params` has it, and learns, with 'head' alone; None or
        the name '' adds none.
      cut: layers in each segment layers_0, layers_1, ...; patterns then are over those. For adapters of some layers.

    Raises ValueError where the name is unknown or nothing would learn; TypeError for an argument it does not take.
    """
    if name not in NAMES:
        raise InputError(f'adapt.method={name!r} is none of {", ".join(NAMES)}')
    settings, cut = dict(settings), tuple(cut)
    if name == 'prompt':
        settings |= {'scale': getattr(model, 'embed_scale', 1.0)}
    if name == 'prefix':
        settings |= {'num_kv_heads': model.num_kv_heads, 'head_dim': model.head_dim}
    if name == 'layers':
        if cut:
            raise InputError("adapt.cut with adapt.method='layers', which cuts where layers learn alike")
        cut, trainable = layers(params, **settings)
        found = Method(Adapter(none, dict), trainable, cut)
    elif name in PATTERNS:
        found = Method(Adapter(none, dict), PATTERNS[name](**settings), cut)
    else:
        module = {'lora': lora, 'ia3': ia3, 'prompt': prompt, 'prefix': prefix}[name]
        found = Method(module.adapter(**settings), module.TRAINABLE, cut)
    if model.head in TASKS and name != 'full':  # of the checkpoint: it learns with every method, as PEFT has it
        found = found._replace(trainable='|'.join(filter(None, [found.trainable, OWN_HEAD])))
    if head and head['name']:
        there = head['name'] in params.get('heads', {})  # the base's, which goes on
        adapter = found.adapter if there else combine(found.adapter, heads.adapter(**head))
        found = found._replace(adapter=adapter, trainable='|'.join(filter(None, [found.trainable, heads.TRAINABLE])))
    elif not found.trainable:
        raise InputError(f'adapt.method={name!r}: no head is added, and the base has none of its own for a task')
    shapes = jax.eval_shape(found.start, jax.random.key(0), params)
    try:
        tree.split(shapes, found.trainable)
    except ValueError as error:
        raise InputError(f'adapt.method={name!r}: {error}') from None
    return found


# Methods that are a regex of the base's own leaves; called with their settings, of which they take none.
PATTERNS = {'full': lambda: '.*', 'bitfit': lambda: BIASES, 'norms': lambda: NORMS, 'head': lambda: ''}


def layers(params: Mapping, *, trainable: str = '', last: int = 0) -> tuple[tuple[int, ...], str]:
    """(cut, regex of the cut tree's paths) where the layers that `trainable` names, or the `last` n, learn.

    Raises ValueError where both or neither is given, `last` is out of range, or the regex matches nothing.
    """
    if bool(trainable) == bool(last):
        raise InputError(f'layers.trainable={trainable!r} and layers.last={last}: exactly one says what learns')
    leaves, names = tree.flatten(params), tree.segments(params)
    inner = []  # of each layer: (its segment, the paths of its leaves there)
    for name in names:
        own = tree.flatten(params[name])
        inner += [(name, list(own))] * next(iter(own.values())).shape[0]
    N = len(inner)
    if not 0 <= last <= N:
        raise InputError(f'layers.last={last}, but the model has {N} layers')
    if last:
        trainable = rf'layers/({"|".join(map(str, range(N - last, N)))})/.*'
    others = [path for path in leaves if path.partition('/')[0] not in names]
    numbered = [[f'layers/{i}/{path}' for path in paths] for i, (_, paths) in enumerate(inner)]
    try:
        chosen = tree.match([(trainable, True)], others + list(itertools.chain(*numbered)), default=False)
    except ValueError as error:
        raise InputError(f'layers.trainable: {error}') from None
    rows = [
        (name, [path for path, n in zip(paths, row, strict=True) if chosen[n]])
        for (name, paths), row in zip(inner, numbered, strict=True)
    ]
    alike = [(len(list(group)), which) for (_, which), group in itertools.groupby(rows)]
    names = ['layers'] if len(alike) == 1 else [f'layers_{i}' for i in range(len(alike))]
    learning = [path for path in others if chosen[path]]
    for name, (_, paths) in zip(names, alike, strict=True):
        learning += [f'{name}/{path}' for path in paths]
    return tuple(n for n, _ in alike) if len(alike) > 1 else (), '|'.join(map(re.escape, learning))
