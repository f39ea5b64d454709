"""An adapter adds leaves to a parameter tree; checks that a layer of the model reads each of them."""

import contextlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lmtrain import tree
from lmtrain.adapt import leaves
from lmtrain.errors import InputError

OUTPUTS = ('hidden', 'logits', 'logprob', 'log_z', 'cache')  # of every model: no added head may have such a name

# The way out if a base has the leaves of an adapter that a method would add.
MERGE = (
    "take another adapt.method, or merge those of 'lora' and 'ia3' first, with `lmtrain export --workdir=RUN "
    '--format=hf --merge --to=DIR`, and name DIR as init.base'
)

# A pure function (rng, params) -> only the leaves that it adds. It raises InputError if they do not fit the model.
Adapter = Callable[[jax.Array, tree.Params], tree.Params]


def check(params: Mapping, new: Mapping) -> None:
    """Raises InputError if a new leaf exists already, or if no layer of the model would read it."""
    old = tree.flatten(params)
    for path in tree.flatten(new):
        if path in old:
            raise InputError(f'{path} exists already: an adapter of this kind has been added before; {MERGE}')
        kind = leaves.kind_of(path)
        # `apply` ignores leaves that no layer reads, so a misplaced leaf would go unnoticed.
        if kind is None or not kind.fits(path, old):
            raise InputError(f'{path}: no layer reads a leaf of this name at this place, so it would change nothing')
        root, _, name = path.rpartition('/')[0].partition('/')
        if root == 'heads' and name in OUTPUTS:
            raise InputError(f'{path}: every model has an output of that name; choose another name for the head')


def extend(adapter: Adapter, rng: jax.Array, params: tree.Params) -> tree.Params:
    """`params` with the leaves of an adapter added. Raises InputError if one of them does not fit."""
    new = adapter(rng, params)
    if not new:
        return params
    check(params, new)
    return tree.join(params, new)


def combine(*adapters: Adapter) -> Adapter:
    """One adapter with the leaves of several, such as a LoRA and a head."""

    def new_leaves(rng, params):
        new: tree.Params = {}
        for i, adapter in enumerate(adapters):
            new = tree.join(new, adapter(jax.random.fold_in(rng, i), params))
        return new

    return new_leaves


def key_of(rng: jax.Array, path: str) -> jax.Array:
    """The random key of a leaf. It depends on the leaf's path alone, not on the other leaves of the adapter."""
    return jax.random.fold_in(rng, zlib.crc32(path.encode()))


def sites(params: Mapping, rules: tree.Rules, what: str) -> dict[str, Any]:
    """{path: value of the first matching rule}, of the kernels and embeddings that a rule matches.

    Raises InputError naming the field `what` if a rule is not a pair, or if a pattern matches no kernel or embedding
    that an adapter may stand beside.
    """
    paths = list(tree.flatten(params))
    # The head of a task is trained whole with every method, so it needs no adapter.
    adaptable = [path for path in leaves.adaptable(paths) if not path.startswith('task_head/')]
    try:
        values = tree.match(rules, adaptable)
    except ValueError as error:
        others = []
        with contextlib.suppress(ValueError):  # the patterns match leaves, but those that no adapter can stand beside
            others = [path for path, value in tree.match(rules, paths).items() if value is not None]
            others = [path for path in others if path not in adaptable]
        problem = ''
        if others:
            problem = f'a pattern matches only leaves that no adapter can stand beside, such as {others[0]}; '
        raise InputError(f'{what}: {problem}{error}') from None
    values = {path: value for path, value in values.items() if value is not None}
    if not values:
        raise InputError(f'{what}={rules!r} adapts no kernel')
    return values


def no_leaves(rng, params) -> tree.Params:
    """The adapter of a method that adds no leaf."""
    return {}
