"""Evaluation of a language model: its loss on a split, in units that can be compared between tokenizers."""

import math
from typing import Any

import jax
import numpy as np

from lmtrain import sweep

LN2 = math.log(2)


def in_bits(sums: dict[str, float]) -> dict[str, float]:
    """Sums of an evaluation -> {'loss' (nats), 'perplexity', 'bits_per_token', 'bits_per_byte', 'targets', 'bytes'}.

    If no text is predicted (no 'bytes'), the means of what the objective gives: 'loss', 'accuracy', ..., 'targets'.

    Bits per byte divides all nats spent, those on end-of-text included, by the UTF-8 bytes of the text behind the
    targets (`Tokenizer.encode_with_bytes`), so it does not depend on the tokenizer. It is absent if there are none:
    targets that are special tokens alone. Raises ValueError if nothing was predicted.
    """
    if not sums['targets']:
        raise ValueError('an evaluation over 0 targets says nothing')
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


def evaluate(eval_step, params, stream, place, max_batches: int = 0, stopped=lambda: None) -> dict[str, float] | None:
    """`in_bits` of one pass over `stream`, or over its first `max_batches`; sums are added in float64 on the host.

    `eval_step` is compiled (params, batch) -> sums; `place` puts a host batch on the devices. Where sums have an
    axis [W] over the members of a sweep, `sweep.summary` of each one's `in_bits`. None as soon as `stopped()`, which
    is asked before each batch.
    """
    batches = min(stream.steps_per_epoch, max_batches or stream.steps_per_epoch)
    totals: dict[str, float] = {}
    waiting = None
    for index in range(batches + 1):
        if stopped():
            return None
        # The next batch is under way while the host waits for the last one.
        running = eval_step(params, place(stream.batch(index))) if index < batches else None
        if jax.default_backend() == 'cpu':
            jax.block_until_ready(running)  # Gloo may take what `stopped` exchanges for a part of it
        if waiting is not None:
            for name, value in jax.device_get(waiting).items():
                totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
        waiting = running
    if totals['targets'].ndim:
        each = zip(*(values.tolist() for values in totals.values()), strict=True)
        return sweep.summary([in_bits(dict(zip(totals, values, strict=True))) for values in each])
    return in_bits({name: value.item() for name, value in totals.items()})
