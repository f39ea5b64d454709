"""Ranks micro-batches, remat policies and meshes of a run on a target by arithmetic, and compiles the best ones."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmtrain.cost import traffic
from lmtrain.cost.hardware import Target
from lmtrain.errors import InputError
from lmtrain.plan import compiled as forecast
from lmtrain.report import terminal
from lmtrain.runtime import progress
from lmtrain.tasks import TASKS
from lmtrain.training.run import Run

REMAT = ('none', 'dots', 'full')
TENSOR, DATA = (1, 2, 4, 8), (1, 2, 4, 8, 16)
FITTING, COMPILED = 3, 12  # stop after this many that fit, or this many compilations
NEARLY = 0.95  # of the fastest plan's speed: a plan that is not tight precedes it from this share on


class Candidate(NamedTuple):
    """One way to run a config; by arithmetic `speed` (tokens/s if everything overlaps) and `memory` (bytes/device)."""

    mesh: tuple[int, int, int]  # data, fsdp, tensor
    remat: str
    accumulate: int
    speed: float
    memory: int
    bound: forecast.Bound

    def changes(self) -> dict[str, int | str]:
        """{field: its value} of this candidate."""
        axes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), self.mesh, strict=True))
        return axes | {'model.remat': self.remat, 'optimizer.accumulate': self.accumulate}

    def of(self, config):
        """The config with these values."""
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(self.changes())
        return config


def candidates(config, target: Target) -> list[Candidate]:
    """All with the batch size of the config that fit by arithmetic, the fastest first.

    Among equal ones, the smaller sum of bounds is first. Raises InputError if no mesh can be planned.
    """
    rest = target.chips // max(config.mesh.sequence, 1)  # the sequence axis of the config is kept
    sizes = [(data, tensor) for data in DATA for tensor in TENSOR if rest % (tensor * data) == 0]
    results, refused = [], []
    for data, tensor in sizes:
        try:
            results += _on_mesh(config, target, (data, rest // tensor // data, tensor))
        except ValueError as error:  # this mesh does not divide the model or the batch
            refused.append(error)
    if len(refused) == len(sizes):
        raise refused[0]
    return sorted(results, key=lambda one: (-one.speed, sum(one.bound)))


def _on_mesh(config, target: Target, mesh: tuple[int, int, int]) -> Iterator[Candidate]:
    """The candidates of one mesh. Raises InputError if the model or the batch does not divide over it."""
    first = Candidate(mesh, config.model.remat, 1, 0.0, 0, None)
    with forecast.planned(first.of(config), target) as run:
        rows = config.data.batch_size // (mesh[0] * mesh[1])  # of a device
        micro = [2**power for power in range(rows.bit_length()) if rows % 2**power == 0]
        for remat, accumulate in itertools.product(REMAT, micro):
            one = _changed(run, remat, accumulate)
            memory = one.memory['total']
            if not forecast.is_tight(memory, target):
                bound = forecast.bound(one, target, traffic.minimum(one))
                yield Candidate(mesh, remat, accumulate, one.tokens_per_step / max(bound), memory, bound)


def _changed(run: Run, remat: str, accumulate: int) -> Run:
    """The run with another policy and number of micro-batches, without tracing again."""
    config = run.config.copy_and_resolve_references()
    config.model.remat, config.optimizer.accumulate = remat, accumulate
    return dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, remat=remat))


def page(config, target: Target, command: Sequence[str] = ()) -> str:
    """The page of `lmtrain plan --search`: the fastest plans that fit, and the command of the first.

    Raises InputError if nothing fits, or the target has no data sheet.
    """
    if not target.chip or TASKS[config.task.name].reads_rows:
        raise InputError(
            '--search ranks by the data sheet of chips, for runs on text: name chips, and a recipe of text'
        )
    with progress.phase('ranking by arithmetic'):
        ranked = candidates(config, target)
    if not ranked:
        raise InputError(f'nothing fits on {target.name}: take more chips, or lower data.seq_len')
    fitting, compiled = compile_best(config, target, ranked)
    fitting = roomy_first(fitting, target)
    if not fitting:
        raise InputError(
            f'none of the {compiled} fastest that fit by arithmetic fits on {target.name} by the compiler: take more '
            'chips, or lower data.seq_len'
        )
    source = "the TPU's compiler" if target.topology else 'the CPU compiler, or theory if that is more'
    title = f'the fastest that fit, of {len(ranked)} by arithmetic and {compiled} compiled'
    spent = ', and so the time and the money' if config.plan.price else ', and so the time'
    notes = [
        terminal.note('batch', f'{config.data.batch_size:,} rows in all, in so many micro-batches ("micro")'),
        terminal.note('mesh', 'data x fsdp x tensor'),
        terminal.note('tokens/s', f'if everything overlaps{spent}'),
        terminal.note('memory', f'of a device, by {source}'),
    ]
    if any(forecast.is_tight(memory, target) for memory, _ in fitting.values()):
        notes.append(terminal.note('!', 'tight: less than a tenth of the memory is left'))
    words = [*command, *(f'--config.{field}={value}' for field, value in next(iter(fitting)).changes().items())]
    train = '\n'.join(['to train the first', '  ' + ' \\\n    '.join(words)])
    return '\n\n'.join(['\n'.join([title, *_table(config, target, fitting)]), '\n'.join(notes), train])


def roomy_first(fitting: dict[Candidate, tuple], target: Target) -> dict[Candidate, tuple]:
    """At most FITTING plans: those that are nearly as fast as the fastest and not tight, then the others."""
    limit = NEARLY * max((one.speed for one in fitting), default=0.0)
    behind = {one: forecast.is_tight(memory, target) or one.speed < limit for one, (memory, _) in fitting.items()}
    return {one: fitting[one] for one in sorted(fitting, key=behind.get)[:FITTING]}


def _table(config, target: Target, fitting: dict[Candidate, tuple[float, float | None]]) -> list[str]:
    """Lines of the plans; `fitting`: {candidate: (bytes of a device, seconds of the run)}."""
    price = config.plan.price
    head = ('', 'mesh', 'remat', 'micro', 'tokens/s', 'bound by', 'memory', 'used', 'time', 'money')
    rows = [head if price else head[:-1]]
    for number, (one, (memory, seconds)) in enumerate(fitting.items(), 1):
        mesh = 'x'.join(map(str, one.mesh))
        speed, size = terminal.number(one.speed), terminal.unit(memory, 'B')
        used = terminal.percent(memory / target.chip.memory) + '!' * forecast.is_tight(memory, target)
        time = terminal.duration(seconds) if seconds else 'budget'
        row = (f'  {number}', mesh, one.remat, f'{one.accumulate}', speed, one.bound.limit, size, used, time)
        money = (f'{price * target.chips * seconds / 3600:,.0f}' if seconds else 'budget',)
        rows.append(row + money if price else row)
    return terminal.table(rows, right=(3, 4, 6, 7, 8, 9))


def compile_best(
    config, target: Target, ranked: list[Candidate]
) -> tuple[dict[Candidate, tuple[float, float | None]], int]:
    """({candidate that fits: (bytes of a device, seconds of the run)}, number of compilations), the fastest first.

    Skips a candidate that by theory needs at least as much as one of its remat policy that did not fit. Goes on while
    all that fit are tight and one that is nearly as fast may not be.
    """
    fitting, limits, compiled = {}, {}, 0
    for one in ranked:
        slower = any(one.speed < NEARLY * other.speed for other in fitting)
        roomy = any(not forecast.is_tight(memory, target) for memory, _ in fitting.values())
        if len(fitting) >= FITTING and (roomy or slower) or compiled == COMPILED:
            break
        if one.memory >= limits.get(one.remat, math.inf):
            continue
        compiled += 1
        with progress.phase(f'compiling candidate {compiled}, {len(fitting)} of {FITTING} fit'):
            with forecast.planned(one.of(config), target) as run:
                memory = forecast.needed(run, target, forecast.compiled(run))
                seconds = run.total_steps and run.total_steps * run.tokens_per_step / one.speed
        if memory > target.chip.memory:
            limits[one.remat] = one.memory
        else:
            fitting[one] = memory, seconds
    return fitting, compiled
