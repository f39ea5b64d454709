"""Evaluation: the loss of a model on a split, in units that can be compared between tokenizers."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from lmtrain import data
from lmtrain.errors import InputError
from lmtrain.runtime import progress
from lmtrain.training import sweep
from lmtrain.training.run import Run

LN2 = math.log(2)


def in_bits(sums: dict[str, float]) -> dict[str, float]:
    """Sums of an evaluation -> {'loss' (nats), 'perplexity', 'bits_per_token', 'bits_per_byte', 'targets', 'bytes'}.

    If no tokens are predicted (no 'bytes'), the means of the objective's values: 'loss', 'accuracy', ..., 'targets'.

    Bits per byte divides all nats, those of end-of-text included, by the UTF-8 bytes of the targets
    (`Tokenizer.encode_with_bytes`), so it does not depend on the tokenizer. It is absent if all targets are special
    tokens, which have no bytes. Raises InputError if there are no targets.
    """
    if not sums['targets']:
        raise InputError('there are no targets to evaluate')
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
    """{'domains': {source: {'before', 'after'}}}, the evaluations before and after a run."""
    return {'domains': {name: {'before': before[name], 'after': after[name]} for name in after}}


def passes(run: Run, split: str, max_batches: int = 0) -> dict[str, tuple[float, Any]]:
    """{source: (its share of the rows of a training batch, one pass over its rows of `split`)}.

    Args:
      max_batches: limit for all sources together, divided by their shares, at least one batch each; 0 is no limit.
    """
    names = run.corpus.names
    if len(names) == 1:
        return {names[0]: (1.0, run.stream(split, limit=max_batches))}
    parts = {}
    for index, (name, share) in enumerate(zip(names, run.corpus.shares(split), strict=True)):
        if share:
            limit = max(1, round(max_batches * share)) if max_batches else 0
            alone = dataclasses.replace(run, corpus=run.corpus.single_source(index))
            parts[name] = share, alone.stream(split, limit=limit)
    return parts


def domains(run: Run) -> dict[str, Any]:
    """{source: its validation stream} of data.source and each of config.evaluate.sources, without a mixture.

    Raises InputError if a source would train a tokenizer of its own.
    """
    settings, streams = run.config.data.to_dict() | {'mix': ()}, {}
    base = run.initial.base
    if base and settings['tokenizer'] == 'base':
        settings['tokenizer'] = str(base.tokenizer.absolute())
    for source in (run.config.data.source, *run.config.evaluate.sources):
        corpus = data.prepare(**settings | {'source': source}, vocab_limit=run.config.model.vocab_size)
        if corpus.tokenizer.hash != run.corpus.tokenizer.hash:
            raise InputError(
                f'evaluate.sources has {source!r}, for which data.tokenizer = {settings["tokenizer"]!r} is learnt '
                "anew: take the base's ('base') or a file"
            )
        streams[source] = dataclasses.replace(run, corpus=corpus).stream('validation')
    return streams


def evaluate(eval_step, params, streams, place, stopped=lambda: None) -> dict[str, Any] | None:
    """`in_bits` of one pass over each source, weighted as in a training batch.

    Args:
      eval_step: compiled (params, batch) -> sums.
      streams: {source: (its share of the rows of a batch, its stream)}, see `passes`.
      place: puts a host batch on the devices.
      stopped: called before each batch; the evaluation returns None if it returns True.

    Returns:
      `in_bits`. With several sources: the means over rows drawn with the shares, the counts over all sources, and
      'sources': {source: its `in_bits`}. If sums have an axis [W] over the members of a sweep: `sweep.summary`.
    """
    shares, rows, sums = {}, {}, {}
    for name, (share, stream) in streams.items():
        total = _totals(eval_step, params, stream, place, stopped)
        if total is None:
            return None
        shares[name], rows[name], sums[name] = share, stream.num_rows, total
    if len(sums) == 1:
        return _in_bits_of_members(*sums.values())
    result = _in_bits_of_members(_mix(list(shares.values()), list(rows.values()), list(sums.values())))
    counts = {name: sum(float(np.mean(own[name])) for own in sums.values()) for name in ('targets', 'bytes')}
    return result | counts | {'sources': {name: _in_bits_of_members(own) for name, own in sums.items()}}


def _totals(eval_step, params, stream, place, stopped) -> dict[str, np.ndarray] | None:
    """The sums over a pass, added in float64 on the host; None if it was stopped."""
    totals: dict[str, float] = {}
    previous = None
    with progress.phase('evaluating', stream.steps_per_epoch + 1, brief=True) as phase:
        for index in range(stream.steps_per_epoch + 1):
            if stopped():
                return None
            # The devices compute this batch while the host reads the sums of the previous one.
            running = eval_step(params, place(stream.batch(index))) if index < stream.steps_per_epoch else None
            if jax.default_backend() == 'cpu':
                jax.block_until_ready(running)  # Gloo may confuse its collectives with the one in `stopped`
            if previous is not None:
                for name, value in jax.device_get(previous).items():
                    totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
            previous, phase.done = running, index + 1
    return totals


def _mix(shares: list[float], rows: list[int], sums: list[dict]) -> dict[str, np.ndarray]:
    """The expected sums of a row drawn from the mixture.

    sum_i share_i / rows_i * sums_i, whose ratios are the means over a long stream of the mixture.
    """
    scaled = [(share / count, own) for share, count, own in zip(shares, rows, sums, strict=True)]
    return {name: sum(scale * own[name] for scale, own in scaled) for name in sums[0]}


def _in_bits_of_members(sums: dict[str, np.ndarray]) -> dict[str, Any]:
    """`in_bits` of one run, or `sweep.summary` over the members of a sweep."""
    if np.ndim(sums['targets']):
        each = zip(*(values.tolist() for values in sums.values()), strict=True)
        return sweep.summary([in_bits(dict(zip(sums, values, strict=True))) for values in each])
    return in_bits({name: float(value) for name, value in sums.items()})
