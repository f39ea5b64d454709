"""Paths, regex rules, split and join: a parameter's path is its name.

Every list of rules in the house is `[(regex, value), ...]` over paths such as `layers/attention/query/kernel`; the
first full match wins, and a pattern that matches no path is an error.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

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

    Raises ValueError naming every pattern that matches no path at all (a typing error, most often) or is no regex.
    """
    paths, rules = list(paths), list(rules)
    values, used = {}, set()
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'{pattern!r} is no regular expression: {error}') from error
    for path in paths:
        hits = [i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)]
        used.update(hits)
        values[path] = rules[hits[0]][1] if hits else default
    idle = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if idle:
        raise ValueError(
            f'{", ".join(map(repr, idle))} matches no parameter. Patterns match the whole path; the paths are: '
            + ', '.join(paths)
        )
    return values


def split(tree: Mapping, learns: str) -> tuple[Params, Params]:
    """(trainable, frozen): the leaves whose path the regex `learns` matches in full, and the others.

    Raises ValueError where `learns` matches nothing or is no regex.
    """
    leaves = flatten(tree)
    try:
        chosen = match([(learns, True)], leaves, default=False)
    except ValueError as error:
        raise ValueError(f'learns: {error}') from None
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


def count(tree: Mapping) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def size(tree: Any) -> int:
    """Bytes of any pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
