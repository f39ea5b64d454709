"""Ranks batch sizes, remat policies and meshes of a run on a target by arithmetic, and compiles the best ones."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

from lmtrain.cost import traffic
from lmtrain.cost.hardware import Target
from lmtrain.errors import InputError
from lmtrain.plan import compiled as forecast
from lmtrain.report import terminal
from lmtrain.tasks import TASKS
from lmtrain.training.run import Run

ROWS = (1, 2, 4, 8, 16)  # per group of devices that share rows
REMAT = ('none', 'dots', 'full')
TENSOR, DATA = (1, 2, 4, 8), (1, 2, 4, 8, 16)
FITTING, COMPILED = 3, 12  # stop after this many that fit, or this many compilations
SHOWN = 6  # rows of the table if nothing is compiled
SHARE = 0.9  # largest share of a device's memory by theory


class Candidate(NamedTuple):
    """One way to run a config; by arithmetic `speed` (tokens/s if everything overlaps) and `memory` (bytes/device)."""

    mesh: tuple[int, int, int]  # data, fsdp, tensor
    remat: str
    batch_size: int
    speed: float
    memory: int
    bound: forecast.Bound

    def of(self, config):
        """The config with these values."""
        config = config.copy_and_resolve_references()
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = self.mesh
        config.model.remat, config.data.batch_size = self.remat, self.batch_size
        config.optimizer.accumulate = 1
        return config


def candidates(config, target: Target) -> list[Candidate]:
    """All that fit by arithmetic, the fastest first; among equal ones, the smaller sum of bounds first.

    Raises InputError if no mesh can be planned.
    """
    rest = target.chips // max(config.mesh.sequence, 1)  # the sequence axis of the config is kept
    sizes = [(data, tensor) for data in DATA for tensor in TENSOR if rest % (tensor * data) == 0]
    results, refused = [], []
    for data, tensor in sizes:
        try:
            results += _on_mesh(config, target, (data, rest // tensor // data, tensor))
        except ValueError as error:  # this mesh does not divide the model
            refused.append(error)
    if len(refused) == len(sizes):
        raise refused[0]
    return sorted(results, key=lambda one: (-one.speed, sum(one.bound) / one.batch_size))


def _on_mesh(config, target: Target, mesh: tuple[int, int, int]) -> Iterator[Candidate]:
    """The candidates of one mesh. Raises InputError if the model does not divide over it."""
    groups = mesh[0] * mesh[1]
    first = Candidate(mesh, config.model.remat, groups, 0.0, 0, None)
    with forecast.planned(first.of(config), target) as run:
        for remat, rows in itertools.product(REMAT, ROWS):
            one = _changed(run, remat, rows * groups)
            memory = one.memory()['total']
            if memory <= SHARE * target.chip.memory:
                bound = forecast.bound(one, target, traffic.minimum(one))
                yield Candidate(mesh, remat, rows * groups, one.tokens_per_step / max(bound), memory, bound)


def _changed(run: Run, remat: str, batch_size: int) -> Run:
    """The run with another policy and batch size, without tracing again."""
    config = run.config.copy_and_resolve_references()
    config.model.remat, config.data.batch_size = remat, batch_size
    return dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, remat=remat))


def page(config, target: Target) -> str:
    """The page of `lmtrain plan --search`. Raises InputError if nothing fits, or the target has no data sheet."""
    if not target.chip or TASKS[config.task.name].reads_rows:
        raise InputError(
            '--search ranks by the data sheet of chips, for runs on text: name chips, and a recipe of text'
        )
    ranked = candidates(config, target)
    if not ranked:
        raise InputError(f'nothing fits on {target.name}: take more chips, or lower data.seq_len')
    rows = [('', 'data x fsdp x tensor', 'remat', 'rows', 'tokens/s', 'bound by', 'theory', 'compiler', 'fits')]
    title = f'the best of {len(ranked)} that fit by arithmetic, tokens/s where all overlaps'
    verdicts = dict.fromkeys(ranked[:SHOWN], ('', ''))
    if target.topology:
        verdicts = compile_best(config, target, ranked)
        fit = sum(verdict == 'yes' for _, verdict in verdicts.values())
        title += f'; {len(verdicts)} compiled, of which {fit} fit'
    for one, verdict in verdicts.items():
        cells = (
            ' x '.join(map(str, one.mesh)),
            one.remat,
            f'{one.batch_size:,}',
            terminal.number(one.speed),
            one.bound.limit,
            terminal.unit(one.memory, 'B'),
        )
        rows.append((f'  {ranked.index(one) + 1}', *cells, *verdict))
    return '\n'.join([title, *terminal.table(rows, right=(3, 4, 6, 7))])


def compile_best(config, target: Target, ranked: list[Candidate]) -> dict[Candidate, tuple[str, str]]:
    """{candidate: (bytes, 'yes' or 'no')} by the compiler, the fastest first.

    Skips a candidate that by theory needs at least as much as one of its remat policy that did not fit.
    """
    verdicts, limits = {}, {}
    for one in ranked:
        fitting = sum(verdict == 'yes' for _, verdict in verdicts.values())
        if fitting == FITTING or len(verdicts) == COMPILED:
            break
        if one.memory >= limits.get(one.remat, math.inf):
            continue
        print(f'compiling {len(verdicts) + 1}, {fitting} of {FITTING} found ...', file=sys.stderr, flush=True)
        with forecast.planned(one.of(config), target) as run:
            compiled = forecast.compiled(run)
        if compiled.too_large or compiled.total > target.chip.memory:
            limits[one.remat] = one.memory
            verdicts[one] = ('too large', 'no')
        else:
            verdicts[one] = (terminal.unit(compiled.total, 'B'), 'yes')
    return verdicts
