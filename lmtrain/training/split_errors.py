"""Standard errors of the measures of a split, from sums over the squares of its rows in the pass that measures it.

A measure is a ratio of sums over rows: a, the weighted sum of its values in a row, by d, the weights of the row (of
bits per byte by c, its bytes). Its standard error is that of a ratio of sums over independent rows (Cochran 1977,
Sampling Techniques, equation 6.13). A row of a text corpus is data.seq_len tokens; neighbours may be of one document.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.training.run import Run

SQUARES = ' of rows: '  # in the names of the sums of products of two row sums, such as 'loss of rows: ad'


Stratum = tuple[float, int, dict[str, float]]  # the weight of a row, the number of rows, their sums


class Recorder:
    """The function (params, batch) -> sums of `Run.eval_step`, which keeps the sums of squares that errors need."""

    def __init__(self, run: Run):
        """run: whose objective is evaluated. Rows must not be divided over devices (mesh.sequence)."""
        self.step = dataclasses.replace(run, objective=with_squares(run.objective), programs=None).eval_step()
        self.batches: list[dict[str, jax.Array]] = []

    def __call__(self, params, batch) -> dict[str, jax.Array]:
        sums = self.step(params, batch)
        self.batches.append(sums)
        return {name: value for name, value in sums.items() if SQUARES not in name}

    def with_errors(self, results: dict[str, Any], streams: Mapping[str, tuple[float, Any]]) -> dict[str, Any]:
        """The results of `evaluate.evaluate` with '<name>_stderr' of means and of bits per byte; None for one row.

        Args:
          streams: those that were evaluated (`evaluate.passes`), in this order. Of several, rows are drawn with the
            shares of the sources, and each source is a stratum.
        """
        batches, strata = jax.device_get(self.batches), {}
        for name, (share, stream) in streams.items():
            own, batches = batches[: stream.steps_per_epoch], batches[stream.steps_per_epoch :]
            sums = {key: float(np.sum([each[key] for each in own], dtype=np.float64)) for key in own[0]}
            strata[name] = share / stream.num_rows, stream.num_rows, sums
        if len(strata) > 1:
            sources = {name: own | _errors([strata[name]]) for name, own in results['sources'].items()}
            results = results | {'sources': sources}
        return results | _errors(list(strata.values()))


def with_squares(objective):
    """The objective with values whose weighted sums over a batch are sums over rows of products of their sums.

    Of a value v with the weights w, a is the sum of w v over a row, d that of w, and c that of the bytes of its
    targets: {'v of rows: aa', 'v of rows: ad', 'v of rows: ac', 'targets of rows: dd', 'bytes of rows: cc'}. The sum
    over a row of w (a v) is a^2, and so on: what reduces the values of a batch need not know about rows.
    """

    def squared(forward, batch):
        values, weights = objective(forward, batch)
        d = _of_rows(weights)
        squares = {f'targets{SQUARES}dd': jnp.broadcast_to(d, weights.shape)}
        c = _of_rows(batch['bytes'] * batch['loss_mask']) if 'bytes' in batch else None
        for name, value in values.items():
            squares[f'{name}{SQUARES}aa'] = _of_rows(value * weights) * value
            squares[f'{name}{SQUARES}ad'] = d * value
            if c is not None:
                squares[f'{name}{SQUARES}ac'] = c * value
        if c is not None:
            squares[f'bytes{SQUARES}cc'] = jnp.broadcast_to(c**2 / jnp.where(d > 0, d, 1.0), weights.shape)
        return values | squares, weights

    return squared


def _of_rows(values):
    """[B, 1, ...]: the sum of each row of [B, ...]."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)), keepdims=True)


def _errors(strata: Sequence[Stratum]) -> dict[str, float | None]:
    """{'<name>_stderr'} of the measures of `evaluate.in_bits`."""
    names = list(strata[0][2])
    if 'bytes' not in names:
        means = [name for name in names if f'{name}{SQUARES}aa' in names]
        return {f'{name}_stderr': _error(strata, name, 'targets', 'd') for name in means}
    nats = {'loss_stderr': _error(strata, 'nats', 'targets', 'd')}
    if not any(sums['bytes'] for *_, sums in strata):
        return nats
    error = _error(strata, 'nats', 'bytes', 'c')
    return nats | {'bits_per_byte_stderr': error and error / math.log(2)}


def _error(strata: Sequence[Stratum], name: str, base: str, letter: str) -> float | None:
    """The standard error of sum(weight * a) / sum(weight * b) over strata, b being d or c."""
    totals = [sum(weight * sums[each] for weight, _, sums in strata) for each in (name, base)]
    ratio, variance = totals[0] / totals[1], 0.0
    for weight, rows, sums in strata:
        if rows < 2:
            return None
        mean = (sums[name] - ratio * sums[base]) / rows
        squares = sums[f'{name}{SQUARES}aa'] - 2 * ratio * sums[f'{name}{SQUARES}a{letter}']
        squares += ratio**2 * sums[f'{base}{SQUARES}{2 * letter}'] - rows * mean**2
        variance += weight**2 * rows / (rows - 1) * max(squares, 0.0)
    return math.sqrt(variance) / totals[1]
