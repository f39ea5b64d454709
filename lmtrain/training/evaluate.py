"""Evaluation of a language model: its loss on a split, in units that can be compared between tokenizers."""

import math
from typing import Any

import jax
import numpy as np

from lmtrain.errors import InputError
from lmtrain.training import sweep

LN2 = math.log(2)


def in_bits(sums: dict[str, float]) -> dict[str, float]:
    """Sums of an evaluation -> {'loss' (nats), 'perplexity', 'bits_per_token', 'bits_per_byte', 'targets', 'bytes'}.

    If no text is predicted (no 'bytes'), the means of what the objective gives: 'loss', 'accuracy', ..., 'targets'.

    Bits per byte divides all nats spent, those on end-of-text included, by the UTF-8 bytes of the text behind the
    targets (`Tokenizer.encode_with_bytes`), so it does not depend on the tokenizer. It is absent if there are none:
    targets that are special tokens alone. Raises ValueError if nothing was predicted.
    """
    if not sums['targets']:
        raise InputError('an evaluation over 0 targets says nothing')
    if 'bytes' not in sums:
        return {name: value / sums['targets'] for name, value in sums.items()} | {'targets': sums['targets']}
    loss = sums['nats'] / sums['targets']
    bits_per_byte = {'bits_per_byte': sums['nats'] / LN2 / sums['bytes']} if sums['bytes'] else {}
    return {
        'loss': loss,
        'perplexity': math.exp(min(loss, 700.0)),  # math.exp overflows above 709
        'bits_per_token': loss / LN2,
        **bits_per_byte,
        'targets': sums['targets'],
        'bytes': sums['bytes'],
    }


def change(before: dict[str, dict], after: dict[str, dict]) -> dict[str, Any]:
    """{'domains': {name of a text: {'before', 'after'}}}, what a run gained and forgot; {} where none was measured."""
    return {'domains': {name: {'before': before[name], 'after': after[name]} for name in after}} if after else {}


def evaluate(eval_step, params, streams, place, stopped=lambda: None) -> dict[str, Any] | None:
    """`in_bits` of one pass over the text of each source, weighted as in a batch of training.

    Args:
      eval_step: compiled (params, batch) -> sums.
      streams: {name of a source: (its share of the rows of a batch, its stream)}.
      place: puts a host batch on the devices.
      stopped: asked before each batch; as soon as it is true, None is returned.

    Returns:
      `in_bits`; with several sources the means over rows drawn with the shares, the counts of what was measured, and
      'sources': {name: its `in_bits`}. If sums have an axis [W] over the members of a sweep, `sweep.summary` of each.
    """
    shares, rows, sums = {}, {}, {}
    for name, (share, stream) in streams.items():
        total = _totals(eval_step, params, stream, place, stopped)
        if total is None:
            return None
        shares[name], rows[name], sums[name] = share, stream.num_rows, total
    result = _in_bits_of_members(_mixed(list(shares.values()), list(rows.values()), list(sums.values())))
    if len(sums) > 1:
        counts = {name: sum(float(np.mean(own[name])) for own in sums.values()) for name in ('targets', 'bytes')}
        result |= counts | {'sources': {name: _in_bits_of_members(own) for name, own in sums.items()}}
    return result


def _totals(eval_step, params, stream, place, stopped) -> dict[str, np.ndarray] | None:
    """The sums over a pass, added in float64 on the host."""
    totals: dict[str, float] = {}
    waiting = None
    for index in range(stream.steps_per_epoch + 1):
        if stopped():
            return None
        # The next batch is under way while the host waits for the last one.
        running = eval_step(params, place(stream.batch(index))) if index < stream.steps_per_epoch else None
        if jax.default_backend() == 'cpu':
            jax.block_until_ready(running)  # Gloo may take what `stopped` exchanges for a part of it
        if waiting is not None:
            for name, value in jax.device_get(waiting).items():
                totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
        waiting = running
    return totals


def _mixed(shares: list[float], rows: list[int], sums: list[dict]) -> dict[str, np.ndarray]:
    """The sums that a row drawn from the mixture is expected to have; of one source the sums themselves.

    sum_i share_i / rows_i * sums_i, whose ratios are the means over a long stream of the mixture.
    """
    if len(sums) == 1:
        return sums[0]
    scaled = [(share / count, own) for share, count, own in zip(shares, rows, sums, strict=True)]
    return {name: sum(scale * own[name] for scale, own in scaled) for name in sums[0]}


def _in_bits_of_members(sums: dict[str, np.ndarray]) -> dict[str, Any]:
    """`in_bits` of one run, or `sweep.summary` of that of each member."""
    if np.ndim(sums['targets']):
        each = zip(*(values.tolist() for values in sums.values()), strict=True)
        return sweep.summary([in_bits(dict(zip(sums, values, strict=True))) for values in each])
    return in_bits({name: float(value) for name, value in sums.items()})
