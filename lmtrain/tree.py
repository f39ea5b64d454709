"""Paths, regex rules, split and join: a parameter's path is its name.

Every list of rules in the house is `[(regex, value), ...]` over paths such as `layers/attention/query/kernel`; the
first full match wins, and a pattern that matches no path is an error.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.errors import InputError

Params = dict[str, Any]  # nested dict of arrays
Rules = Iterable[tuple[str, Any]]


def flatten(tree: Mapping, prefix: str = '') -> dict[str, Any]:
    """Nested dict -> {path: leaf}, in sorted order of paths. Empty dicts vanish."""
    leaves = {}
    for key in sorted(tree):
        path = f'{prefix}/{key}' if prefix else str(key)
        if isinstance(tree[key], Mapping):
            leaves |= flatten(tree[key], path)
        else:
            leaves[path] = tree[key]
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """{path: leaf} -> nested dict; undoes `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def match(rules: Rules, paths: Iterable[str], default: Any = None) -> dict[str, Any]:
    """{path: value of the first rule whose regex matches the whole path}, `default` where none does.

    Raises ValueError naming a rule that is not a pair, and every pattern that matches no path at all (a typing error,
    most often) or is no regex.
    """
    paths, rules = list(paths), list(rules)
    values, used = {}, set()
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
    """The union of trees with disjoint leaves; undoes `split`. Raises ValueError where a path stands in two."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        new = flatten(tree)
        twice = leaves.keys() & new.keys()
        if twice:
            raise ValueError(f'{sorted(twice)[0]!r} stands in two of the trees to join')
        leaves |= new
    return unflatten(leaves)


def cut(params: Mapping, sizes: Sequence[int]) -> Params:
    """The stack `layers` [N, ...] in consecutive segments `layers_0`, `layers_1`, ... of so many layers each.

    For layers that learn unlike or have other leaves: a model runs the segments that it finds, in order. Layers that
    are in segments already are cut further. Raises ValueError where there is no stack, or the sizes are not positive,
    do not add up to N, or join layers of two segments.
    """
    if not any(re.fullmatch(r'layers(_0)?', name) for name in params):
        raise InputError(f'there is no stack `layers` to cut among {", ".join(sorted(params))}')
    names = segments(params)
    path, _ = next(iter(flatten(params[names[0]]).items()))
    starts = [0, *itertools.accumulate(jax.tree.leaves(params[name])[0].shape[0] for name in names)]
    if sum(sizes) != starts[-1] or min(sizes) < 1:
        raise InputError(f'segments of {list(sizes)} layers do not divide the {starts[-1]} of layers/{path}')
    stops = list(itertools.accumulate(sizes))
    if joined := set(starts[1:]) - set(stops):
        raise InputError(
            f'segments of {list(sizes)} layers join layers {min(joined) - 1} and {min(joined)}, which differ'
        )
    found = {}
    for i, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
        which = bisect.bisect_right(starts, stop - size) - 1
        first = stop - size - starts[which]
        found[f'layers_{i}'] = jax.tree.map(lambda x: x[first : first + size], params[names[which]])  # noqa: B023
    return {name: value for name, value in params.items() if name not in names} | found


def uncut(params: Mapping) -> Params:
    """The segments `layers_0`, `layers_1`, ... as one stack `layers`; undoes `cut`, and leaves one stack as it is.

    Raises ValueError where a leaf is not in every segment, or not in one shape and dtype.
    """
    names = segments(params)
    if names == ['layers']:
        return dict(params)
    first, *others = (flatten(params[name]) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        for path in first.keys() | other.keys():
            pair = [(x[path].shape[1:], str(x[path].dtype)) if path in x else 'missing' for x in (first, other)]
            if pair[0] != pair[1]:
                raise ValueError(f'{names[0]}/{path} is {pair[0]}, {name}/{path} is {pair[1]}: they make no stack')

    def concatenate(*leaves):
        library = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
        return library.concatenate(leaves)

    stack = {path: concatenate(leaf, *(other[path] for other in others)) for path, leaf in first.items()}
    return {name: value for name, value in params.items() if name not in names} | {'layers': unflatten(stack)}


def segments(params: Mapping) -> list[str]:
    """The names of the stacks of layers, in order: ['layers'], or ['layers_0', 'layers_1', ...].

    Raises ValueError where neither is there, both are, or one of the row is missing.
    """
    found = {name for name in params if re.fullmatch(r'layers(_\d+)?', name)}
    names = ['layers'] if 'layers' in found else [f'layers_{i}' for i in range(len(found))]
    if not found or found != set(names):
        raise ValueError(f'layers are one stack `layers` or a row from `layers_0` on, not {sorted(found)}')
    return names


def count(tree: Mapping) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def size(tree: Any) -> int:
    """Bytes of any pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
