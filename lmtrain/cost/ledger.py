"""The ledger of an arm: what it costs to create, to store, to query and to update, in one flat record.

Counts are exact and FLOPs are arithmetic; the caller measures seconds and gives peak bytes. A number that was not
measured, or has no meaning for the arm, is None.

    trainable_parameters
    stored_parameters      saved per task, as exported: trained leaves and all that adapters add; of a prompt 0
    stored_bytes           of them; of a prompt, its text
    cache_bytes            keys and values of the shared tokens, if they are cached
    train_flops            of the final run, with recomputation, frozen layers, virtual tokens, and what is computed
                           outside of its steps: rollouts with their scores, the pass of a cached reference model
    selection_flops        of everything that chose it: other members of a grid, search, calibration, and evaluation on
                           the selection rows, which for a policy is the sampling of completions
    tokens                 positions of train steps and of selection, without sampled ones
    device_seconds         to create it, selection included
    peak_bytes             of one device: arguments and temporaries of the compiled train step; of a prompt, an
                           estimate for a batch of queries that are scored (`memory.bytes_of_scoring`)
    query_tokens           of one query
    query_flops            if the whole prompt is read for every query
    query_flops_cached     if the shared tokens were encoded once before
    prefill_flops          the part of query_flops that reads the prompt and the choices
    decode_flops           the part that generates
    query_seconds          latency of one query, with an adapter merged if it can be
    query_seconds_cached   if the shared tokens were encoded once before
    update_seconds         from a new row to a changed answer
    joules, price          of creating it
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lmtrain import tree
from lmtrain.adapt import leaves as adapter_leaves
from lmtrain.adapt.leaves import kind_of
from lmtrain.cost.query import Query, cache_bytes, query_flops
from lmtrain.models import virtual_tokens

RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of the curve of `break_even`


class Prices(NamedTuple):
    """Prices, in one currency; 0 is unknown.

    Attributes:
      device_hour: of one device for an hour.
      kwh: of a kilowatt-hour, if energy is paid separately.
      watts: power of one device.
    """

    device_hour: float = 0.0
    kwh: float = 0.0
    watts: float = 0.0


class Spent(NamedTuple):
    """What the creation of an arm took, beside the training itself: search, calibration, evaluation on rows."""

    flops: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0  # of one device


NOTHING, UNKNOWN = Spent(), Prices()


def together(*parts: Spent) -> Spent:
    """The sum.

    >>> together(Spent(1.0, 2.0), Spent(3.0, 4.0, 5.0))
    Spent(flops=4.0, tokens=6.0, seconds=5.0)
    """
    return Spent(*map(sum, zip(*parts, strict=True)))


def of_training(
    model,
    params: Mapping,
    trainable: str,
    cost: Mapping[str, Any],
    query: Query,
    *,
    members: int = 1,
    selection: Spent = NOTHING,
    query_seconds: float | None = None,
    query_seconds_cached: float | None = None,
    update_seconds: float | None = None,
    prices: Prices = UNKNOWN,
) -> dict[str, Any]:
    """The ledger of a trained arm.

    Args:
      model, params: of one member; arrays or shapes, with the leaves of adapters.
      trainable: regex of the trained paths.
      cost: 'cost' of results.json, the sum over all starts and members of the run.
      members: of the sweep: the others were trained to select one, so their share is charged to the selection.
      selection: spent on selection outside of the run, such as evaluation on the selection rows.
      query_seconds, query_seconds_cached: latency of one query, measured.
      update_seconds: measured; None takes the seconds of the whole run, which must be repeated with the new row.
    """
    stored = stored_leaves(params, trainable)
    flops = cost['executed_flops'] / members
    seconds = cost['device_seconds'] + selection.seconds
    return {
        'trainable_parameters': tree.count(tree.split(params, trainable)[0]),
        'stored_parameters': tree.count(stored),
        'stored_bytes': tree.size(stored),
        'cache_bytes': _cache_bytes(model, params, query),
        'train_flops': flops,
        'selection_flops': (members - 1) * flops + selection.flops,
        'tokens': members * cost['tokens'] + selection.tokens,
        'device_seconds': seconds,
        'peak_bytes': cost.get('step_memory') or cost['peak_memory'],
        **_of_query(model, params, query),
        'query_seconds': query_seconds,
        'query_seconds_cached': query_seconds_cached,
        'update_seconds': cost['seconds'] if update_seconds is None else update_seconds,
        **money(seconds, prices),
    }


def of_prompt(
    model,
    params: Mapping,
    query: Query,
    *,
    text_bytes: int,
    selection: Spent = NOTHING,
    peak_bytes: int | None = None,
    query_seconds: float | None = None,
    query_seconds_cached: float | None = None,
    update_seconds: float | None = 0.0,
    prices: Prices = UNKNOWN,
) -> dict[str, Any]:
    """The ledger of a prompted arm, which trains nothing.

    Args:
      text_bytes: of what must be saved: instruction and demonstrations; of retrieval, the whole pool of rows.
      selection: spent on search, calibration and evaluation on the selection rows.
      peak_bytes: while the selection rows are scored.
      update_seconds: 0 if a new row is a demonstration at once; else the seconds of a new search.
    """
    return {
        'trainable_parameters': 0,
        'stored_parameters': 0,
        'stored_bytes': text_bytes,
        'cache_bytes': _cache_bytes(model, params, query),
        'train_flops': 0.0,
        'selection_flops': selection.flops,
        'tokens': selection.tokens,
        'device_seconds': selection.seconds,
        'peak_bytes': peak_bytes,
        **_of_query(model, params, query),
        'query_seconds': query_seconds,
        'query_seconds_cached': query_seconds_cached,
        'update_seconds': update_seconds,
        **money(selection.seconds, prices),
    }


def scoring(model, params: Mapping, query: Query, rows: int, *, seconds: float = 0.0) -> Spent:
    """What it takes to answer `rows` queries, with the shared tokens encoded once: one candidate of a search."""
    flops = query_flops(model, params, query)
    tokens = query.shared + rows * (query.tokens - query.shared)
    return Spent(flops.shared + rows * flops.cached, tokens, seconds)


def stored_leaves(params: Mapping, trainable: str) -> tree.Params:
    """Shapes of the leaves that a task saves beside its base: trained ones and all that adapters add, as exported.

    A network that computes virtual tokens is replaced by its output; LoRA's matrices stay as they are.
    """
    leaves = tree.flatten(jax.eval_shape(virtual_tokens.materialise, params))
    own = {path: leaf for path, leaf in leaves.items() if kind_of(path) or re.fullmatch(trainable, path)}
    return tree.unflatten(own)


def break_even(prompt: Mapping, trained: Mapping, *, cached: bool = False, ratio: float = 1.0) -> float | None:
    """The number of queries after which the trained arm has cost less than the prompt; None if there is none.

    An arm whose queries cost more has cost less for the first ones only, if at all: that is None as well.

    creation + queries x query, in FLOPs, is equal for both at

        queries = ratio x (creation of trained - creation of prompt) / (query of prompt - query of trained)

    Args:
      prompt, trained: ledgers.
      cached: whether the prompt's shared tokens were encoded once before.
      ratio: price of a FLOP of creation, in FLOPs of queries: above 1 if queries use cheaper or busier devices.

    >>> prompt = {'train_flops': 0, 'selection_flops': 10, 'query_flops': 5, 'query_flops_cached': 2}
    >>> trained = {'train_flops': 100, 'selection_flops': 30, 'query_flops': 1, 'query_flops_cached': 1}
    >>> break_even(prompt, trained), break_even(prompt, trained, cached=True)
    (30.0, 120.0)
    >>> break_even(trained, prompt)  # more expensive in every query
    """
    extra = creation_flops(trained) - creation_flops(prompt)
    field = 'query_flops_cached' if cached else 'query_flops'
    saved = prompt[field] - trained[field]
    if saved <= 0:
        return 0.0 if saved == 0 and extra < 0 else None
    return max(0.0, ratio * extra / saved)


def curve(prompt: Mapping, trained: Mapping, *, cached: bool = False, ratios: Sequence[float] = RATIOS) -> list:
    """[[ratio of prices, `break_even`], ...]."""
    return [[ratio, break_even(prompt, trained, cached=cached, ratio=ratio)] for ratio in ratios]


def creation_flops(ledger: Mapping) -> float:
    """FLOPs to create an arm, with everything that selected it."""
    return ledger['train_flops'] + ledger['selection_flops']


def _cache_bytes(model, params: Mapping, query: Query) -> int:
    """Of what is the same in every query: shared tokens and virtual tokens; of an encoder 0."""
    leaves = tree.flatten(jax.eval_shape(virtual_tokens.materialise, params))
    virtual = adapter_leaves.virtual_tokens(leaves) + adapter_leaves.extra_keys(leaves)
    return cache_bytes(model, virtual + query.shared) if model.causal else 0


def _of_query(model, params: Mapping, query: Query) -> dict[str, float]:
    flops = query_flops(model, params, query)
    return {
        'query_tokens': query.tokens,
        'query_flops': flops.whole,
        'query_flops_cached': flops.cached,
        'prefill_flops': flops.whole - flops.decode,
        'decode_flops': flops.decode,
    }


def money(device_seconds: float, prices: Prices) -> dict[str, float | None]:
    """{'joules', 'price'}, each None if its prices are unknown."""
    joules = device_seconds * prices.watts if prices.watts else None
    energy = joules / 3.6e6 * prices.kwh if joules and prices.kwh else 0.0
    known = prices.device_hour or prices.kwh and prices.watts
    return {'joules': joules, 'price': device_seconds / 3600 * prices.device_hour + energy if known else None}
