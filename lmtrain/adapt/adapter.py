"""What an adapter is, and which leaves the layers know: the two things every method shares."""

import contextlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from lmtrain import tree
from lmtrain.errors import InputError

# A leaf that no layer reads would be ignored in silence, so these are all that `check` lets pass.
BESIDE = {
    r'lora_(a|b|scale)': ('kernel', 'embedding'),
    r'lora_magnitude|ia3_(in|out)': ('kernel',),
    r'prefix_(key|value)': ('key/kernel',),
}
ROOT = (
    r'prompt/embedding',
    r'prompt/mlp_\d+/(kernel|bias)',
    r'prefix/embedding',
    r'prefix/(up|down)/(kernel|bias)',
    r'heads/\w+/(kernel|bias)',
)
OUTPUTS = ('hidden', 'logits', 'logprob', 'log_z', 'cache')  # names that an added head may not take
# Kernels and tables that no Linear and no Embed reads.
ELSEWHERE = r'head/.*|heads/.*|prompt/.*|prefix/.*'


class Adapter(NamedTuple):
    """A method of adaptation: leaves to add to a tree of parameters, and the way back.

    Attributes:
      extend: (rng, params) -> Params, only the new leaves. Raises ValueError where they would not fit.
      fold: params -> params without the adapter's leaves, the same function of the batch where that has a closed form.
    """

    extend: Callable[[jax.Array, tree.Params], tree.Params]
    fold: Callable[[tree.Params], tree.Params]


def check(params: Mapping, new: Mapping) -> None:
    """Raises ValueError where a new leaf exists already, or no layer of the model would read it."""
    old, leaves = tree.flatten(params), tree.flatten(new)
    for path in leaves:
        if path in old:
            raise InputError(f'{path} is there already: an adapter of this kind has been added before')
        parent, _, name = path.rpartition('/')
        beside = next((siblings for pattern, siblings in BESIDE.items() if re.fullmatch(pattern, name)), ())
        known = any(f'{parent}/{sibling}' in old for sibling in beside) and not re.fullmatch(ELSEWHERE, path)
        if not known and not any(re.fullmatch(pattern, path) for pattern in ROOT):
            raise InputError(f'{path}: no layer reads a leaf of this name at this place, so it would change nothing')
        if path.startswith('heads/') and parent.removeprefix('heads/') in OUTPUTS:
            raise InputError(f'{path}: every model has an output of that name; name the head otherwise')


def extend(adapter: Adapter, rng: jax.Array, params: tree.Params) -> tree.Params:
    """`params` with the leaves of an adapter, checked."""
    new = adapter.extend(rng, params)
    check(params, new)
    return tree.join(params, new)


def combine(*adapters: Adapter) -> Adapter:
    """Several adapters as one, their leaves side by side (a LoRA with a head). Folds in the order given."""

    def extend(rng, params):
        new: tree.Params = {}
        for i, one in enumerate(adapters):
            new = tree.join(new, one.extend(jax.random.fold_in(rng, i), params))
        return new

    def fold(params):
        for one in adapters:
            params = one.fold(params)
        return params

    return Adapter(extend, fold)


def key_of(rng: jax.Array, path: str) -> jax.Array:
    """The key of a leaf, by its path: other leaves beside it change nothing."""
    return jax.random.fold_in(rng, zlib.crc32(path.encode()))


def sites(params: Mapping, rules: tree.Rules, what: str) -> dict[str, Any]:
    """{path of a kernel or embedding: value of the first rule that matches it}, where one does.

    Raises ValueError naming `what` if a rule is not a pair, or a pattern matches none that an adapter may stand beside.
    """
    leaves = list(tree.flatten(params))
    kernels = [path for path in leaves if path.endswith(('/kernel', '/embedding'))]
    places = [path for path in kernels if not re.fullmatch(rf'{ELSEWHERE}|task_head/.*', path)]  # that learns as it is
    try:
        found = tree.match(rules, places)
    except ValueError as error:
        others = []
        with contextlib.suppress(ValueError):  # every pattern matches a leaf, though one that has no adapter
            others = [path for path, value in tree.match(rules, leaves).items() if value is not None]
            others = [path for path in others if path not in places]
        problem = (
            f'a pattern matches only leaves that no adapter can stand beside, such as {others[0]}; ' if others else ''
        )
        raise InputError(f'{what}: {problem}{error}') from None
    if not found or all(value is None for value in found.values()):
        raise InputError(f'{what}={rules!r} adapts no kernel')
    return {path: value for path, value in found.items() if value is not None}


def none(rng, params) -> tree.Params:
    """The `extend` of a method that adds no leaf."""
    return {}
