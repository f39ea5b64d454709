"""Batch sizes, remat policies and meshes of a run on a target, ranked by arithmetic; the compiler judges the best."""

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
from lmtrain.training import build
from lmtrain.training.run import Run

ROWS = (1, 2, 4, 8, 16)  # of each group of devices that share rows
REMAT = ('none', 'dots', 'full')
TENSOR, DATA = (1, 2, 4, 8), (1, 2, 4, 8, 16)
FOUND, TRIED = 3, 12  # compiled until so many are found that fit, or so many were tried
SHOWN = 6  # where nothing is compiled
ROOM = 0.9  # share of a device's memory that theory may fill


class Candidate(NamedTuple):
    """One way to run a config; `speed` is tokens/s where all overlaps, `memory` bytes on a device, by arithmetic."""

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
    """All that fit by arithmetic, the fastest first; of equal ones that whose parts add up to less.

    Raises ValueError where no mesh can be planned at all.
    """
    rest = target.chips // max(config.mesh.sequence, 1)  # positions stay divided as the config has them
    sizes = [(data, tensor) for data in DATA for tensor in TENSOR if rest % (tensor * data) == 0]
    found, refused = [], []
    for data, tensor in sizes:
        try:
            found += _on_mesh(config, target, (data, rest // tensor // data, tensor))
        except ValueError as error:  # a mesh that does not divide the model is no candidate
            refused.append(error)
    if len(refused) == len(sizes):
        raise refused[0]
    return sorted(found, key=lambda one: (-one.speed, sum(one.bound) / one.batch_size))


def _on_mesh(config, target: Target, mesh: tuple[int, int, int]) -> Iterator[Candidate]:
    """The candidates of one mesh. Raises ValueError where the model does not divide over it."""
    groups = mesh[0] * mesh[1]
    first = Candidate(mesh, config.model.remat, groups, 0.0, 0, None)
    with forecast.planned(first.of(config), target) as run:
        for remat, rows in itertools.product(REMAT, ROWS):
            one = _changed(run, remat, rows * groups)
            memory = one.memory()['total']
            if memory <= ROOM * target.chip.memory:
                bound = forecast.bound(one, target, traffic.minimum(one))
                yield Candidate(mesh, remat, rows * groups, one.tokens_per_step / max(bound), memory, bound)


def _changed(run: Run, remat: str, batch_size: int) -> Run:
    """The run with another policy and batch, nothing traced again."""
    config = run.config.copy_and_resolve_references()
    config.model.remat, config.data.batch_size = remat, batch_size
    run = run._replace(config=config, model=dataclasses.replace(run.model, remat=remat))
    return run._replace(flops_per_step=build.flops_per_step(run))


def page(config, target: Target) -> str:
    """The page of `lmtrain plan --search`. Raises ValueError where nothing fits, or there is nothing to rank by."""
    if not target.chip or config.task.name != 'text':
        raise InputError(
            '--search ranks by the data sheet of chips and by whole text: name chips, and a recipe of text'
        )
    ranked = candidates(config, target)
    if not ranked:
        raise InputError(f'nothing fits on {target.name}: take more chips, or lower data.seq_len')
    rows = [('', 'data x fsdp x tensor', 'remat', 'rows', 'tokens/s', 'bound by', 'theory', 'compiler', 'fits')]
    title = f'the best of {len(ranked)} that fit by arithmetic, tokens/s where all overlaps'
    told = dict.fromkeys(ranked[:SHOWN], ('', ''))
    if target.topology:
        told = judged(config, target, ranked)
        fit = sum(verdict == 'yes' for _, verdict in told.values())
        title += f'; {len(told)} compiled, of which {fit} fit'
    for one, verdict in told.items():
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


def judged(config, target: Target, ranked: list[Candidate]) -> dict[Candidate, tuple[str, str]]:
    """{candidate: (bytes, 'yes' or 'no')} by the compiler, the fastest first.

    Passed over is what by theory needs no less than another of its remat policy that did not fit.
    """
    told, limits = {}, {}
    for one in ranked:
        found = sum(verdict == 'yes' for _, verdict in told.values())
        if found == FOUND or len(told) == TRIED:
            break
        if one.memory >= limits.get(one.remat, math.inf):
            continue
        print(f'compiling {len(told) + 1}, {found} of {FOUND} found ...', file=sys.stderr, flush=True)
        with forecast.planned(one.of(config), target) as run:
            compiled = forecast.compiled(run)
        if compiled.too_large or compiled.total > target.chip.memory:
            limits[one.remat] = one.memory
            told[one] = ('too large', 'no')
        else:
            told[one] = (terminal.unit(compiled.total, 'B'), 'yes')
    return told
