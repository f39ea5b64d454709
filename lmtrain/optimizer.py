"""Schedules and optimizers of the config. An optimizer gives directions; the step multiplies by the learning rate."""

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmtrain import tree
from lmtrain.errors import InputError, wrong_choice

STACKED = 'layers[^/]*/.*'  # paths of leaves [N, ...], stacked over layers
LAYER_MATRICES = 'layers[^/]*/.*kernel'  # those of them that are matrices [N, rows, columns]
SCHEDULES = ('cosine', 'linear', 'constant', 'wsd')
OPTIMIZERS = ('adamw', 'muon', 'lion', 'adafactor', 'sgd')
MUON_MOMENTUM = 0.95  # of every published run; b1 and b2 are those of the AdamW on the other leaves
NOT_SET: Mapping[str, Any] = MappingProxyType({})  # no budget
Each = Callable[[Callable[[jax.Array], jax.Array], tree.Params], tree.Params]
# Coefficients of the quintic Newton-Schulz iteration with the largest slope at zero (Jordan et al., 2024,
# kellerjordan.github.io/posts/muon), and the number of iterations.
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


def _check_range(field: str, value: float, low: float, high: float, open_above: bool = False) -> None:
    """Raises InputError if value is outside [low, high], or [low, high) with `open_above`; nan always is."""
    inside = low <= value < high if open_above else low <= value <= high
    if not inside:
        raise InputError(f'{field} = {value}: it must lie in [{low:g}, {high:g}{")" if open_above else "]"}')


def schedule(
    name: str, warmup: float, start: float, decay: float, final: float, begin=0.0, warmup_budget=0.0, budget=NOT_SET
) -> Callable[[jax.Array], jax.Array]:
    """The learning rate's factor as a function of progress, the spent share of the budget.

    The factor rises linearly from `start` to 1 during the first `warmup` of the budget, stays at 1, and then falls to
    exactly `final` at progress 1: after the warmup for 'cosine' and 'linear', during the last `decay` of the budget for
    'wsd' (linearly; arXiv 2405.18392). 'constant' stays at 1 and ignores `decay` and `final`.

    Args:
      begin: how much of the budget is spent when the schedule begins; all shares are those of the rest.
      warmup_budget: the budget that `warmup` is a share of; 0 is all after `begin`.
      budget: the section `config.budget`, whose unit the two have.

    Returns:
      f(progress float32 scalar in [0, 1], may be traced) -> float32 scalar in [0, 1].

    Raises:
      InputError: an unknown name, a number outside [0, 1], or warmup and decay that exceed the budget.

    >>> factor = schedule('linear', warmup=0.5, start=0.0, decay=0.0, final=0.0)
    >>> [float(factor(progress)) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if name not in SCHEDULES:
        raise wrong_choice('schedule.name', name, SCHEDULES)
    for field, value in {'warmup': warmup, 'start': start, 'decay': decay, 'final': final}.items():
        _check_range(f'schedule.{field}', value, 0.0, 1.0)
    before = 0.0
    if begin or warmup_budget:
        before, warmup = _after_begin(begin, warmup, warmup_budget, budget)
    falling = {'cosine': 1.0 - warmup, 'linear': 1.0 - warmup, 'constant': 0.0, 'wsd': decay}[name]
    if name != 'constant' and falling == 0.0:
        field = 'decay' if name == 'wsd' else 'warmup'
        value = decay if name == 'wsd' else warmup
        raise InputError(
            f"schedule.{field} = {value} leaves {name!r} no share of the budget to decay in; 'constant' does not decay"
        )
    if warmup + falling > 1.0 + 1e-9:
        raise InputError(f'schedule.warmup + schedule.decay = {warmup} + {decay} is more than the whole budget, 1')

    def factor(progress):
        progress = jnp.asarray(progress, jnp.float32)
        if before:
            progress = (progress - before) / (1.0 - before)
        # Counted from the end, so that the remainder is exactly 0 at progress 1 whatever the rounding of the shares.
        remaining = jnp.clip((1.0 - progress) / falling, 0.0, 1.0) if falling else jnp.ones_like(progress)
        if name == 'cosine':
            remaining = 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - remaining)))
        fall = jnp.minimum(final + (1.0 - final) * remaining, 1.0)
        if not warmup:
            return fall
        rise = start + (1.0 - start) * jnp.clip(progress / warmup, 0.0, 1.0)
        return jnp.where(progress < warmup, rise, fall)

    return factor


def _after_begin(begin: float, warmup: float, warmup_budget: float, budget: Mapping) -> tuple[float, float]:
    """(the share of the budget before `begin`, the warmup as a share of the rest)."""
    whole = next(value for value in budget.values() if value is not None)
    _check_range('schedule.begin', begin, 0.0, whole, open_above=True)
    _check_range('schedule.warmup_budget', warmup_budget, 0.0, math.inf, open_above=True)
    return begin / whole, min(warmup * (warmup_budget or whole - begin) / (whole - begin), 1.0)


def optimizer(
    name: str,
    *,
    weight_decay: float,
    decayed: str,
    b1: float,
    b2: float,
    eps: float,
    learning_rate: float = 1.0,
    learning_rates=(),
    clip: float = 0.0,
    accumulate: int = 1,
    each: Each | None = None,
) -> optax.GradientTransformation:
    """The section `config.optimizer` -> direction and decoupled weight decay, without the learning rate.

    `update` returns `direction + weight_decay * parameter`, the second term only on paths that match `decayed`. The
    step multiplies by `-learning_rate * schedule(progress) * factor of the path`. The state holds moments of the tree
    given to `init` and nothing else. The step applies learning rates, clipping and accumulation; they are arguments
    here so that the section is checked in one place. `each` is passed to `scale_by_muon`; it is not in the config.

    | name | direction | uses |
    |---|---|---|
    | adamw | Adam with bias correction (arXiv 1711.05101) | b1, b2, eps |
    | muon | orthogonalised momentum on the matrices of layers (`scale_by_muon`), AdamW elsewhere | b1, b2, eps |
    | lion | sign of interpolated momentum (arXiv 2302.06675); needs a 3 to 10 times smaller learning rate | b1, b2 |
    | adafactor | factored second moment, clipped to RMS 1, no momentum (arXiv 1804.04235, 4, 6 and 7.2) | - |
    | sgd | momentum b1 | b1 |

    Raises:
      InputError: names the field, its value and its range. At `init`, if a layer's kernel is not a matrix ('muon').
    """
    if name not in OPTIMIZERS:
        raise wrong_choice('optimizer.name', name, OPTIMIZERS)
    _check_range('optimizer.learning_rate', learning_rate, 0.0, math.inf, open_above=True)
    if learning_rates:
        _check_learning_rates(learning_rates)
    _check_range('optimizer.weight_decay', weight_decay, 0.0, math.inf, open_above=True)
    _check_range('optimizer.b1', b1, 0.0, 1.0, open_above=True)
    _check_range('optimizer.b2', b2, 0.0, 1.0, open_above=True)
    _check_range('optimizer.eps', eps, 0.0, 1.0)
    if not eps and name in ('adamw', 'muon'):
        raise InputError(
            f'optimizer.eps = {eps}: it must be above 0 for {name!r}, which else divides 0 by 0; 1e-8 is usual'
        )
    _check_range('optimizer.clip', clip, 0.0, math.inf, open_above=True)
    if accumulate < 1:
        raise InputError(f'optimizer.accumulate = {accumulate}: a step has at least 1 micro-batch')
    direction = _direction(name, b1, b2, eps, each)
    return optax.chain(direction, _decay(weight_decay, decayed)) if weight_decay else direction


def _check_learning_rates(learning_rates) -> None:
    for pair in learning_rates:
        if not isinstance(pair, tuple | list) or [type(part) for part in pair] not in ([str, float], [str, int]):
            raise InputError(
                f'optimizer.learning_rates has {pair!r}: it consists of pairs of a regex and a factor, such as '
                "(('.*embedding', 0.1),)"
            )
        pattern, rate = pair
        _check_range(f'optimizer.learning_rates[{pattern!r}]', rate, 0.0, math.inf, open_above=True)


def _direction(name: str, b1: float, b2: float, eps: float, each: Each | None) -> optax.GradientTransformation:
    """The update direction of an optimizer, without decay and learning rate."""
    if name == 'lion':
        return optax.scale_by_lion(b1, b2)
    if name == 'adafactor':
        return by_path(STACKED, per_layer(_adafactor()), _adafactor())
    if name == 'sgd':
        return optax.trace(b1)
    adam = optax.scale_by_adam(b1, b2, eps)
    return by_path(LAYER_MATRICES, scale_by_muon(each), adam) if name == 'muon' else adam


def _adafactor() -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _decay(weight_decay: float, decayed: str) -> optax.GradientTransformation:
    """Adds weight_decay * parameter on the paths that match."""
    try:
        pattern = re.compile(decayed)
    except re.error as error:
        raise InputError(f'optimizer.decayed: {decayed!r} is no regular expression: {error}') from error

    def mask(params):
        return tree.unflatten({path: bool(pattern.fullmatch(path)) for path in tree.flatten(params)})

    return optax.add_decayed_weights(weight_decay, mask)


def matrices(name: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Those of {path: leaf} that the optimizer `name` orthogonalises: stacks of matrices."""
    return {path: leaf for path, leaf in leaves.items() if name == 'muon' and re.fullmatch(LAYER_MATRICES, path)}


class ByPath(NamedTuple):
    """States of two transformations over disjoint leaves."""

    matched: optax.OptState
    others: optax.OptState


def by_path(
    pattern: str, matched: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`matched` on the leaves whose whole path the regex matches, `others` on the rest. Either may be empty."""

    def cut(params):
        if params is None:
            return None, None
        leaves = tree.flatten(params)
        inside = {path: leaf for path, leaf in leaves.items() if re.fullmatch(pattern, path)}
        outside = {path: leaf for path, leaf in leaves.items() if path not in inside}
        return tree.unflatten(inside), tree.unflatten(outside)

    def init(params):
        inside, outside = cut(params)
        return ByPath(matched.init(inside), others.init(outside))

    def update(updates, state, params=None):
        (inside, outside), (params_inside, params_outside) = cut(updates), cut(params)
        inside, matched_state = matched.update(inside, state.matched, params_inside)
        outside, others_state = others.update(outside, state.others, params_outside)
        return tree.join(inside, outside), ByPath(matched_state, others_state)

    return optax.GradientTransformation(init, update)


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on every layer of leaves [N, ...] separately.

    The state is that of `tx` with the axis [N]. Segments of several sizes N have one such state per size, by its name.
    """

    def by_size(params):
        """{name of a size: the leaves of its segments}."""
        leaves = tree.flatten(params)
        sizes = sorted({leaf.shape[0] for leaf in leaves.values()})
        parts = [{path: leaf for path, leaf in leaves.items() if leaf.shape[0] == size} for size in sizes]
        return {f'segments_of_{size}': tree.unflatten(part) for size, part in zip(sizes, parts)}

    def init(params):
        states = {size: jax.vmap(tx.init)(part) for size, part in by_size(params).items()}
        return states if len(states) > 1 else next(iter(states.values()), optax.EmptyState())

    def update(updates, state, params=None):
        gradients, of = by_size(updates), by_size(params or {})
        if len(gradients) < 2:  # no size has a name in the state
            return jax.vmap(tx.update)(updates, state, params) if updates else (updates, state)
        done = {size: jax.vmap(tx.update)(part, state[size], of.get(size)) for size, part in gradients.items()}
        return tree.join(*(one for one, _ in done.values())), {size: new for size, (_, new) in done.items()}

    return optax.GradientTransformation(init, update)


def scale_by_muon(each: Each | None = None) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum, for a tree of stacked matrices [N, rows, columns].

    The result is scaled by 0.2 * sqrt(max(rows, columns)), which gives it the RMS of AdamW's updates, so that both can
    use one learning rate and one weight decay (Moonlight, arXiv 2502.16982, section 2.2).

    `each`: (function of a matrix, tree of stacks) -> tree of the results, of sharded stacks
    (`parallel.redistribute.for_each_matrix`). None: no stack is sharded.
    """
    each = each or (lambda function, stacks: jax.tree.map(jax.vmap(function), stacks))

    def init(params):
        for path, leaf in tree.flatten(params).items():
            if leaf.ndim != 3:
                raise InputError(
                    f'muon orthogonalises matrices, but {path} of one layer has the shape {leaf.shape[1:]}'
                )
        return optax.TraceState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        trace = jax.tree.map(lambda g, m: g + MUON_MOMENTUM * m, updates, state.trace)
        ahead = jax.tree.map(lambda g, m: g + MUON_MOMENTUM * m, updates, trace)
        orthogonal = each(orthogonalise, ahead)
        return jax.tree.map(lambda m: 0.2 * math.sqrt(max(m.shape[1:])) * m, orthogonal), optax.TraceState(trace)

    return optax.GradientTransformation(init, update)


def orthogonalise(matrix: jax.Array) -> jax.Array:
    """[rows, columns] float32 -> the same with all singular values near 1 (0.7 to 1.2); zeros stay zeros.

    Newton-Schulz iteration on the smaller side. All in float32, with the platform's default precision of products: a
    TPU multiplies in bfloat16, which the iteration tolerates.
    """
    a, b, c = NEWTON_SCHULZ
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / jnp.maximum(jnp.linalg.norm(x), 1e-30)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if rows > columns else x


def newton_schulz_flops(rows: int, columns: int) -> float:
    """FLOPs of the matrix products of `orthogonalise`: three per iteration, on the smaller side."""
    m, n = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4.0 * m * m * n + 2.0 * m**3)
