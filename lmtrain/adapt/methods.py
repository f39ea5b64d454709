"""From the method's name in the config to its leaves, its segments of layers and the regex of trainable paths."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from lmtrain import tree
from lmtrain.adapt import head as heads
from lmtrain.adapt import ia3, lora, prefix, prompt
from lmtrain.adapt.adapter import Adapter, combine, extend, no_leaves
from lmtrain.errors import InputError, wrong_choice

PATTERNS = {'full': '.*', 'bitfit': r'.*/bias', 'norms': r'.*norm/(scale|bias)', 'head': ''}  # methods that add no leaf
# A module has `adapter` (settings -> Adapter), `TRAINABLE` (regex of its leaves) and `fold` (params -> params with the
# same outputs and without its leaves, as far as they have a closed form).
ADAPTERS = {'lora': lora, 'ia3': ia3, 'prompt': prompt, 'prefix': prefix}
METHODS = (*PATTERNS, 'layers', *ADAPTERS)
TASK_HEAD = r'task_head/.*'  # the checkpoint's own head for a task


class Method(NamedTuple):
    """A way of adapting one model.

    Attributes:
      adapter: adds the leaves.
      trainable: regex of the trainable paths of the extended tree.
      cut: the number of layers in each segment of the stack; () does not cut it.
    """

    adapter: Adapter
    trainable: str
    cut: tuple[int, ...] = ()

    def start(self, rng: jax.Array, params: tree.Params) -> tree.Params:
        """The base's parameters, cut into segments and extended by the adapter's leaves; can be traced."""
        return extend(self.adapter, rng, tree.cut(params, self.cut) if self.cut else params)


def adds_again(settings, before) -> bool:
    """Whether a method adds the leaves that another has added: the same adapter, and of LoRA the same kernels.

    Args:
      settings, before: two config.adapt.
    """
    if settings.method not in ADAPTERS or settings.method != before.method:
        return False
    return settings.method != 'lora' or _kernels(settings.lora) == _kernels(before.lora)


def _kernels(settings) -> tuple[str, ...]:
    """What selects the kernels of a LoRA: its leaves have the same paths with any rank and alpha."""
    return (settings.targets,) if settings.targets else tuple(pattern for pattern, _ in settings.rank)


def method(name: str, model, params: Mapping, *, head: Mapping | None = None, cut: Sequence[int] = (), **settings):
    """The Method of a name, for a model and its parameters (arrays or shapes).

    Args:
      name: one of METHODS. 'layers' takes the arguments of `layers`; 'lora', 'ia3', 'prompt' and 'prefix' those of
        their `adapter`; the others none.
      head: {'name', 'classes'} of a head that is added, unless `params` has it, and trained ('head' trains nothing
        else); None or the name '' adds none.
      cut: the number of layers in each segment layers_0, layers_1, ...; patterns are over those paths then. For
        adapters of some of the layers.

    Raises InputError if the name is unknown or nothing is trainable, TypeError for an argument that it does not take.
    """
    if name not in METHODS:
        raise wrong_choice('adapt.method', name, METHODS)
    chosen = _without_head(name, model, params, tuple(cut), settings)
    patterns = [chosen.trainable]
    if model.head not in ('lm', 'none') and name != 'full':  # trained with every method, as in PEFT
        patterns.append(TASK_HEAD)
    if head and head['name']:
        if head['name'] not in params.get('heads', {}):  # else the base has it, and its training continues
            chosen = chosen._replace(adapter=combine(chosen.adapter, heads.adapter(**head)))
        patterns.append(heads.TRAINABLE)
    chosen = chosen._replace(trainable='|'.join(filter(None, patterns)))
    if not chosen.trainable:
        raise InputError(f'adapt.method={name!r}: no head is added, and the base has none of its own for a task')
    shapes = jax.eval_shape(chosen.start, jax.random.key(0), params)
    try:
        tree.split(shapes, chosen.trainable)
    except ValueError as error:
        raise InputError(f'adapt.method={name!r}: {error}') from None
    return chosen


def _without_head(name: str, model, params: Mapping, cut: tuple[int, ...], settings: dict) -> Method:
    if name == 'layers':
        if cut:
            raise InputError("adapt.cut with adapt.method='layers', which cuts layers itself")
        cut, trainable = layers(params, **settings)
        return Method(no_leaves, trainable, cut)
    if name in PATTERNS:
        if settings:
            raise TypeError(f'adapt.method={name!r} takes no settings, but {", ".join(settings)} is set')
        return Method(no_leaves, PATTERNS[name], cut)
    if name == 'prompt':
        settings = settings | {'scale': model.embed_scale}
    if name == 'prefix':
        settings = settings | {'num_kv_heads': model.num_kv_heads, 'head_dim': model.head_dim}
    return Method(ADAPTERS[name].adapter(**settings), ADAPTERS[name].TRAINABLE, cut)


def fold(params: tree.Params) -> tree.Params:
    """`params` with every adapter merged into the model's leaves, as far as it has a closed form (LoRA, DoRA, IA3).

    The networks of P-tuning and prefix tuning are replaced by their outputs. Sums and products are in float32, and each
    leaf keeps its dtype. Raises InputError for a LoRA of an embedding to which the head is tied.
    """
    for adapter in ADAPTERS.values():
        params = adapter.fold(params)
    return params


def layers(params: Mapping, *, trainable: str = '', last: int = 0) -> tuple[tuple[int, ...], str]:
    """(cut, regex of the trainable paths of the cut tree), so that all layers of a segment train the same leaves.

    Args:
      trainable: regex over paths with the layer's number, such as layers/11/mlp/up/kernel.
      last: trains the last so many layers instead.

    Raises InputError if both or neither are set, if `last` is out of range, or if the regex matches nothing.
    """
    if bool(trainable) == bool(last):
        raise InputError(f'adapt.layers.trainable={trainable!r} and adapt.layers.last={last}: set exactly one of them')
    segments = [name for name, size in tree.segment_sizes(params).items() for _ in range(size)]  # of every layer
    N = len(segments)
    if not 0 <= last <= N:
        raise InputError(f'adapt.layers.last={last}: the model has {N} layers; set it to 1 to {N}')
    if last:
        trainable = rf'layers/({"|".join(map(str, range(N - last, N)))})/.*'
    others = [path for path in tree.flatten(params) if path.partition('/')[0] not in segments]
    paths = {name: list(tree.flatten(params[name])) for name in segments}
    numbered = [{path: f'layers/{i}/{path}' for path in paths[name]} for i, name in enumerate(segments)]
    every_path = [*others, *(path for layer in numbered for path in layer.values())]
    try:
        is_trainable = tree.match([(trainable, True)], every_path, default=False)
    except ValueError as error:
        raise InputError(f'adapt.layers.trainable: {error}') from None
    per_layer = [
        (name, [path for path, number in layer.items() if is_trainable[number]])
        for name, layer in zip(segments, numbered, strict=True)
    ]
    # Neighbours of one segment that train the same leaves stay together: (layers, trainable paths) of each new segment.
    groups = [(len(list(group)), layer) for (_, layer), group in itertools.groupby(per_layer)]
    names = ['layers'] if len(groups) == 1 else [f'layers_{i}' for i in range(len(groups))]
    chosen = [path for path in others if is_trainable[path]]
    for name, (_, layer) in zip(names, groups, strict=True):
        chosen += [f'{name}/{path}' for path in layer]
    return tuple(size for size, _ in groups) if len(groups) > 1 else (), '|'.join(map(re.escape, chosen))
