"""Memory, time and cost of a run on machines that are not present: its train step, compiled ahead of time."""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from lmtrain import cost, tree
from lmtrain.cost import hlo, traffic
from lmtrain.cost.hardware import Target
from lmtrain.errors import InputError
from lmtrain.parallel import collectives, sharding
from lmtrain.report import terminal
from lmtrain.runtime import progress
from lmtrain.tasks import TASKS
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve, with_stand_in_text
from lmtrain.training.run import Run

COMPILING = 'compiling the train step'
# Share of a device's memory above which a plan is tight. The rest is for what no compiler counts: fragments between
# buffers, the runtime's own memory, a second batch.
TIGHT = 0.9


class Compiled(NamedTuple):
    """The compiler's figures for the step of the longest batches on one device: bytes and FLOPs.

    `parameters` and `moments` are parts of `arguments`. `too_large` is the compiler's message if the program does not
    fit; all other fields are empty then.
    """

    parameters: int = 0
    moments: int = 0
    arguments: int = 0
    temporaries: int = 0
    total: int = 0
    flops: float = 0.0
    exchanged: dict[tuple[str, str], float] = {}
    too_large: str = ''


class Bound(NamedTuple):
    """Lower bounds of the seconds of a step. At best the three overlap; at worst they are sequential."""

    compute: float
    memory: float
    network: float

    @property
    def limit(self) -> str:
        return max(zip(self, self._fields, strict=True))[1]


@contextlib.contextmanager
def planned(config, target: Target) -> Iterator[Run]:
    """The run for the target's devices, with placeholder text: only its shapes matter.

    The rows of other tasks are read, since their lengths determine the compiled programs. A GPU's attention kernel is
    not compiled: simulated devices use XLA's attention instead. Raises what `build` raises, and InputError if the
    target's GPUs do not support the kernel.
    """
    kernel = config.model.attention if target.chip and target.chip.capability else ''
    if kernel == sharding.PLATFORM_KERNELS['gpu']:
        config = config.copy_and_resolve_references()
        config.model.attention = 'auto'
        config.lock()
    with tempfile.TemporaryDirectory() as folder:
        if not TASKS[config.task.name].reads_rows and not config.adapt.prompt.text:
            config = with_stand_in_text(config, pathlib.Path(folder))
        memory = int(target.chip.memory) if target.chip else 0
        run = build(*resolve(config), target.devices(), memory)
        if kernel == sharding.PLATFORM_KERNELS['gpu']:
            why = unsupported(run, kernel, target)
            if why:
                raise InputError(f"model.attention={kernel!r} {why}; choose model.attention='auto' or 'xla'")
        yield run


def unsupported(run: Run, kernel: str, target: Target) -> str:
    """The reason that the step cannot use an attention kernel of the target's GPUs, or ''."""
    params = run.initial.member_shapes.params
    return collectives.unsupported_on(
        kernel, run.config.data.seq_len, run.model, params, run.mesh, target.chip.capability
    )


def compiled(run: Run) -> Compiled:
    """Compiles the train step."""
    *_, lowered = run.lowered().values()
    try:
        program, text = hlo.partitioned(lowered)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return Compiled(too_large=str(error).partition('\n')[0])
    memory = program.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    state, *_ = program.input_shardings[0]
    return Compiled(
        parameters=_held(run.shapes.trainable, state.trainable) + _held(run.shapes.frozen, state.frozen),
        moments=_held(run.shapes.opt_state, state.opt_state),
        arguments=arguments,
        temporaries=temporaries,
        total=arguments + temporaries + new,
        flops=hlo.text_flops(text),
        exchanged=traffic.audit(text, run.mesh),
    )


def _held(leaves, on) -> int:
    """Bytes on one device of leaves with the shardings of a compiled program."""
    sharded = jax.tree.map(lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on), leaves, on)
    return cost.shard_bytes(sharded)


def arguments(run: Run) -> int:
    """Bytes of state and batch on one device, from shapes and shardings."""
    *_, batch = run.batch_shapes().values()
    return cost.shard_bytes((run.shapes, batch))


def bound(run: Run, target: Target, exchanged: dict[tuple[str, str], float]) -> Bound | None:
    """Lower bounds of the time of a step by the target's data sheet; None for simulated devices.

    Memory traffic: state and gradients are read and written once, weights are read in every pass of every micro-batch,
    activations for the backward pass are written and read.
    """
    if not target.chip:
        return None
    chip, memory, config = target.chip, run.memory, run.config
    passes = (3 if config.model.remat != 'none' else 2) * config.optimizer.accumulate
    weights = tree.count(run.shapes.params) / run.mesh.shape['tensor'] * (2 if config.model.dtype == 'bfloat16' else 4)
    state = sum(memory[part] for part in ('parameters', 'gradients', 'moments'))
    moved = 2 * state + passes * weights + 2 * config.optimizer.accumulate * memory['activations']
    return Bound(
        run.flops_per_step.executed / run.mesh.size / cost.peak_flops(chip.kind, config.model.dtype),
        moved / chip.bandwidth,
        sum(exchanged.values()) / chip.link,
    )


def needed(run: Run, target: Target, figures: Compiled) -> float:
    """Bytes on a device by the target's own compiler; without one, the larger of theory and the CPU compiler."""
    if figures.too_large:
        return math.inf
    theory = run.memory
    total = figures.total + theory.get('reference', 0)
    if not target.topology:
        return max(theory['total'], total)
    sampling = sum(theory.get(part, 0) for part in ('parameters', 'moments', 'reference'))
    return max(total, sampling + sum(run.rollout_bytes))


def is_tight(memory: float, target: Target) -> bool:
    """Whether a plan that needs so many bytes on a device leaves less than a tenth of its memory."""
    return memory > TIGHT * target.chip.memory


def that_fits(run: Run, target: Target, figures: Compiled) -> tuple[Run, Compiled, dict[str, Any]]:
    """(run, figures, {field: value} of its changes): more micro-batches of the same batch, then also remat='full'.

    Candidates are compiled in order if they fit by theory times a factor: the largest ratio of a compiler's figure to
    theory so far, doubled when a compiler fails without a figure. Without changes if nothing fits at this batch size
    on this mesh.
    """
    above = 1.0 if figures.too_large else needed(run, target, figures) / run.memory['total']
    parts = run.mesh.shape['data'] * run.mesh.shape['fsdp'] * run.config.optimizer.accumulate
    policies = dict.fromkeys((run.config.model.remat, 'full'))
    for remat, more in itertools.product(policies, range(1, run.config.data.batch_size // parts + 1)):
        micro = run.config.optimizer.accumulate * more
        if run.config.data.batch_size % (parts * more) or (remat, more) == (run.config.model.remat, 1):
            continue
        config = run.config.copy_and_resolve_references()
        config.optimizer.accumulate, config.model.remat = micro, remat
        model = dataclasses.replace(run.model, remat=remat)
        one = dataclasses.replace(run, config=config.lock(), model=model)
        if above * one.memory['total'] > target.chip.memory:
            continue
        again = compiled(one)
        if (memory := needed(one, target, again)) <= target.chip.memory:
            changed = {'model.remat': remat} if remat != run.config.model.remat else {}
            return one, again, {'optimizer.accumulate': micro} | changed
        above = 2 * above if again.too_large else max(above, memory / one.memory['total'])
    return run, figures, {}


def page(config, target: Target, command: Sequence[str] = ()) -> str:
    """The page of `lmtrain plan`, of the run with the changes that make it fit. It ends with its command.

    Raises what `build` raises.
    """
    with planned(config, target) as run:
        with progress.phase(COMPILING):
            figures = compiled(run)
        changes, before, fits = {}, '', not target.chip or needed(run, target, figures) <= target.chip.memory
        if not fits:
            before = verdict(run, target, figures)
            with progress.phase('compiling with more micro-batches'):
                run, figures, changes = that_fits(run, target, figures)
        parts = [heading(run, target, figures), memory_table(run, figures)]
        if changes:
            words = ', '.join(f'{field}={value}' for field, value in changes.items())
            parts[0] += '\n' + terminal.note('changed', f'{words}; the recipe as it is: {before}')
        if not figures.too_large:
            parts += [products(run, figures), exchanges(run, figures)]
        parts.append(outlook(run, target, figures.exchanged or traffic.minimum(run)))
        words = [*command, *(f'--config.{field}={value}' for field, value in changes.items())]
        if fits or changes:
            parts.append('\n'.join(['to train it', '  ' + ' \\\n    '.join(words)]))
        else:
            way_out = f'take more chips than {target.name}, or --search'
            parts.append(f'no number of micro-batches makes it fit:\n  {way_out}')
        return '\n\n'.join(parts)


def heading(run: Run, target: Target, figures: Compiled) -> str:
    """The model, the machine, the compiler, and whether the run fits."""
    axes = ' x '.join(f'{axis}={size}' for axis, size in run.mesh.shape.items() if size > 1) or 'one device'
    parameters, batch = terminal.number(tree.count(run.shapes.params)), terminal.number(run.tokens_per_step)
    rows = [
        ('  model', f'{parameters} parameters, {batch} tokens a step, remat {run.config.model.remat!r}'),
        ('  machine', f'{target.name}, {target.chips} devices: {axes}'),
    ]
    where = "the TPU's compiler" if target.topology else f'the CPU compiler, {target.chips} simulated devices'
    rows.append(('  compiled', f'{where}; attention {run.attention!r}'))
    if target.chip and target.chip.capability and run.model.attention == 'auto':
        why = unsupported(run, 'cudnn', target)
        rows.append(('  attention', f'on these GPUs by XLA: cudnn {why}' if why else 'on these GPUs by cudnn'))
    rows.append(('  fits', verdict(run, target, figures)))
    return '\n'.join(['the plan', *(terminal.note(name.strip(), text) for name, text in rows)])


def verdict(run: Run, target: Target, figures: Compiled) -> str:
    """Whether the run fits: 'yes: ...' or 'no: ...', or the bytes that simulated devices take."""
    if figures.too_large:
        return f'no: {figures.too_large}'
    if not target.chip:
        return f'{_bytes(figures.total)} a device, {_bytes(figures.total * target.chips)} of this machine in all'
    total, theory = needed(run, target, figures), run.memory['total']
    answer = 'no' if total > target.chip.memory else 'yes, but tight' if is_tight(total, target) else 'yes'
    text = f'{answer}: {_bytes(total)} of {_bytes(target.chip.memory)} a device'
    if target.topology:
        return f'{text}, {terminal.percent(total / target.chip.memory)}'
    return f'{text}, {"by theory alone" if total == theory else f"by the CPU compiler; {_bytes(theory)} by theory"}'


def _bytes(size: float) -> str:
    return terminal.unit(size, 'B')


def memory_table(run: Run, figures: Compiled) -> str:
    """Bytes on each device by kind: theory and compiler."""
    theory, held = run.memory, arguments(run)
    fits = not figures.too_large
    rows = [('', 'theory', 'compiler', 'ratio')]
    for part in ('parameters', 'moments'):
        size, by_compiler = theory[part], getattr(figures, part)
        ratio = f'{by_compiler / size:.3f}' if fits and size else ''
        rows.append((f'  {part}', _bytes(size), _bytes(by_compiler) if fits else '', ratio))
    ratio = f'{figures.arguments / held:.3f}' if fits else ''
    rows.append(('  state and batch', _bytes(held), _bytes(figures.arguments) if fits else '', ratio))
    others = [part for part in ('gradients', 'activations', 'reference', 'rollout') if part in theory]
    rows += [(f'  {part}', _bytes(theory[part]), '', '') for part in others]
    temporaries = theory['gradients'] + theory['activations']
    ratio = f'{figures.temporaries / temporaries:.2f}' if fits else ''
    rows.append(('  temporaries', _bytes(temporaries), _bytes(figures.temporaries) if fits else '', ratio))
    return '\n'.join(['memory of each device', *terminal.table(rows, right=(1, 2, 3))])


def products(run: Run, figures: Compiled) -> str:
    """FLOPs of a step on each device."""
    planned = run.flops_per_step.executed / run.mesh.size
    line = f'  {terminal.unit(planned, "FLOP")} by arithmetic, {terminal.unit(figures.flops, "FLOP")} compiled'
    apart = '' if run.attention == 'xla' else f", without those of attention's kernel ({run.attention})"
    return f'products of a step, on each device\n{line}, {figures.flops / planned:.3f} of it{apart}'


def exchanges(run: Run, figures: Compiled) -> str:
    """Bytes that each device receives in a step, and the minimum."""
    least = traffic.minimum(run)
    rows = [('', 'along', 'received', 'least')]
    for kind, axes in sorted(figures.exchanged.keys() | least.keys()):
        pair = (figures.exchanged.get((kind, axes), 0), least.get((kind, axes), 0))
        rows.append((f'  {kind}', axes, *map(_bytes, pair)))
    if least:
        both = sum(figures.exchanged.values()), sum(least.values())
        rows.append(('  in all', f'{both[0] / both[1]:.3f} of the least', *map(_bytes, both)))
    return '\n'.join(['bytes that each device receives in a step', *terminal.table(rows, right=(2, 3))])


def outlook(run: Run, target: Target, exchanged: dict[tuple[str, str], float]) -> str:
    """Step time, MFU, duration and money; a note if the target has no data sheet."""
    step = bound(run, target, exchanged)
    if not step:
        return 'time and money: not modelled for simulated devices'
    rows = [(f'  {name}', f'{1000 * seconds:,.4g} ms') for name, seconds in zip(step._fields, step, strict=True)]
    rows = [
        *rows,
        ('  bound by', step.limit),
    ]
    peak = target.chips * cost.peak_flops(target.chip.kind, run.config.model.dtype)
    price = run.config.plan.price
    cells = [('', 'all overlaps', 'nothing overlaps', f'at {run.config.plan.mfu:.0%} MFU')]
    useful = run.flops_per_step.total
    times = (max(step), sum(step), useful / peak / run.config.plan.mfu)
    cells.append(('  step', *(f'{1000 * time:,.4g} ms' for time in times)))
    cells.append(('  MFU', *(terminal.percent(useful / peak / time) for time in times)))
    cells.append(('  tokens/s', *(terminal.number(run.tokens_per_step / time) for time in times)))
    if run.total_steps:
        spent = [run.total_steps * time for time in times]
        cells.append((f'  {run.total_steps:,} steps', *map(terminal.duration, spent)))
        if price:
            cells.append(('  money', *(f'{price * target.chips * time / 3600:,.0f}' for time in spent)))
    lines = ["a step at the data sheet's speed", *terminal.table(rows, right=(1,)), '']
    return '\n'.join([*lines, 'estimated step time, MFU and cost', *terminal.table(cells, right=(1, 2, 3))])
