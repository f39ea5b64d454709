"""Parameter paths, regex rules over them, split and join.

A parameter's path is its name, for example `layers/attention/query/kernel`. Every list of rules is `[(regex, value),
...]` over paths: the first regex that matches the whole path wins, and a regex that matches no path is an error.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from lmtrain.errors import InputError

Params = dict[str, Any]  # nested dict of arrays
STACK = 'layers'  # the leaves of all layers, stacked [N, ...]
Rules = Iterable[tuple[str, Any]]


def flatten(tree: Mapping, prefix: str = '') -> dict[str, Any]:
    """Nested dict -> {path: leaf}, sorted by path. Empty dicts are dropped.

    >>> flatten({'mlp': {'up': 1, 'down': 2}, 'norm': 3})
    {'mlp/down': 2, 'mlp/up': 1, 'norm': 3}
    """
    leaves = {}
    for key in sorted(tree):
        path = f'{prefix}/{key}' if prefix else str(key)
        if isinstance(tree[key], Mapping):
            leaves |= flatten(tree[key], path)
        else:
            leaves[path] = tree[key]
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """{path: leaf} -> nested dict; the inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def match(rules: Rules, paths: Iterable[str], default: Any = None) -> dict[str, Any]:
    """{path: value of the first rule whose regex matches the whole path}; `default` if none matches.

    Raises InputError naming a rule that is not a pair, a pattern that is no regular expression, and every pattern that
    matches no path: most often a typing error.

    >>> match([('.*/bias', 0.0), ('mlp/.*', 0.1)], ['mlp/kernel', 'mlp/bias', 'norm/scale'])
    {'mlp/kernel': 0.1, 'mlp/bias': 0.0, 'norm/scale': None}
    """
    paths, rules = list(paths), list(rules)
    values: dict[str, Any] = {}
    used: set[int] = set()
    for rule in rules:
        if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
            raise InputError(f"{rule!r} is not a pair (regex, value); a list of pairs looks like (('.*/kernel', 8),)")
        pattern = rule[0]
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f'{pattern!r} is no regular expression: {error}') from error
    for path in paths:
        hits = [i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)]
        used.update(hits)
        values[path] = rules[hits[0]][1] if hits else default
    idle = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if idle:
        raise InputError(
            f'{", ".join(map(repr, idle))} matches no parameter. Patterns match the whole path; the paths are: '
            + ', '.join(paths)
        )
    return values


def split(tree: Mapping, trainable: str) -> tuple[Params, Params]:
    """(trainable, frozen): the leaves whose whole path the regex `trainable` matches, and the others.

    Raises InputError if `trainable` matches nothing or is no regular expression.
    """
    leaves = flatten(tree)
    try:
        chosen = match([(trainable, True)], leaves, default=False)
    except ValueError as error:
        raise InputError(f'trainable: {error}') from None
    return (
        unflatten({path: leaf for path, leaf in leaves.items() if chosen[path]}),
        unflatten({path: leaf for path, leaf in leaves.items() if not chosen[path]}),
    )


def join(*trees: Mapping) -> Params:
    """The union of trees with disjoint leaves; the inverse of `split`. Raises ValueError if two trees share a path."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        new = flatten(tree)
        shared = leaves.keys() & new.keys()
        if shared:
            raise ValueError(f'{min(shared)!r} is in two of the trees to join')
        leaves |= new
    return unflatten(leaves)


def cut(params: Mapping, sizes: Sequence[int]) -> Params:
    """Cuts the stack `layers` [N, ...] into consecutive segments `layers_0`, `layers_1`, ... of `sizes` layers.

    For layers that differ in what is trainable, or in their leaves. A model runs the segments that it finds, in order.
    Segments can be cut further. Raises InputError if there is no stack, or if the sizes are not positive, do not add up
    to N, or join layers of two segments.
    """
    if not any(re.fullmatch(r'layers(_0)?', name) for name in params):
        raise InputError(f'there is no stack `layers` to cut among {", ".join(sorted(params))}')
    names = segments(params)
    path, _ = next(iter(flatten(params[names[0]]).items()))
    starts = [0, *itertools.accumulate(segment_sizes(params).values())]
    if sum(sizes) != starts[-1] or min(sizes) < 1:
        raise InputError(f'segments of {list(sizes)} layers do not divide the {starts[-1]} of layers/{path}')
    stops = list(itertools.accumulate(sizes))
    if joined := set(starts[1:]) - set(stops):
        raise InputError(
            f'segments of {list(sizes)} layers join layers {min(joined) - 1} and {min(joined)}, which differ'
        )
    cut_segments = {}
    for i, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
        which = bisect.bisect_right(starts, stop - size) - 1
        first = stop - size - starts[which]
        cut_segments[f'layers_{i}'] = jax.tree.map(lambda x: x[first : first + size], params[names[which]])  # noqa: B023
    return {name: value for name, value in params.items() if name not in names} | cut_segments


def segments(params: Mapping) -> list[str]:
    """The names of the stacks of layers, in order: ['layers'], or ['layers_0', 'layers_1', ...].

    Raises ValueError if there is neither, if there are both, or if a number is missing.
    """
    stacks = {name for name in params if re.fullmatch(rf'{STACK}(_\d+)?', name)}
    names = [STACK] if STACK in stacks else [f'{STACK}_{i}' for i in range(len(stacks))]
    if not stacks or stacks != set(names):
        raise ValueError(f'layers are one stack `layers` or consecutive ones from `layers_0` on, not {sorted(stacks)}')
    return names


def segment_sizes(params: Mapping) -> dict[str, int]:
    """{name of a stack of layers: number of layers}, in order; see `segments`."""
    return {name: jax.tree.leaves(params[name])[0].shape[0] for name in segments(params)}


def count(tree: Mapping) -> int:
    """The number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def size(tree: Any) -> int:
    """Bytes of any pytree of arrays or shapes, over all devices."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
