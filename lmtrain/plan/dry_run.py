"""What a run would do and need, with its step compiled and nothing trained."""

import pathlib
import tempfile
import textwrap

from lmtrain import data
from lmtrain.cost import hlo
from lmtrain.report import terminal
from lmtrain.tasks.prepare import Task
from lmtrain.training.build import build, stand_in
from lmtrain.training.run import Run

DECODED = 3  # rows of the first batch that are shown


def dry_run(config) -> str:
    """The page of `--dry_run`: parameters, arithmetic, the compiled step's own figures, the first batch decoded.

    A text or tokenizer that is missing has a stand-in of its shape, and the page says so first.
    Raises what `assemble` raises.
    """
    try:
        return _page(build(config), [])
    except FileNotFoundError as error:
        if config.task.name != 'text' or config.adapt.prompt.text or config.init.base:
            raise
        missing = error
    with tempfile.TemporaryDirectory() as folder:
        words = f'{missing.strerror}: {missing.filename}' if missing.filename else str(missing)
        note = f'A stand-in takes the place of the data, of its shape alone: {words}'
        return _page(build(stand_in(config, pathlib.Path(folder))), textwrap.wrap(note, 80))


def _page(run: Run, notes: list[str]) -> str:
    parts = [
        *(['\n'.join(notes)] if notes else []),
        run.header(stand_in=bool(notes)),
        terminal.parameters(run.shapes.trainable, run.shapes.frozen),
        compiled_figures(run),
        decoded(run),
    ]
    return '\n\n'.join(parts)


def compiled_figures(run: Run) -> str:
    """What the compiler says of the train step, beside the arithmetic."""
    compiled = list(run.train_steps().values())[-1]  # of the longest batches
    memory = compiled.memory_analysis()
    planned = run.flops_per_step.executed / run.mesh.size
    by_arithmetic = f'{terminal.unit(planned, "FLOP")} by arithmetic'
    try:
        flops = hlo.compiled_flops(compiled)
        products = f'{terminal.unit(flops, "FLOP")}, {flops / planned:.3f} of the {by_arithmetic}'
    except ValueError as error:  # a library's own kernel: the program does not say what it multiplies
        products = f'{by_arithmetic}; {error}'
    arguments, temporaries, outputs, in_place = (
        terminal.unit(getattr(memory, f'{kind}_size_in_bytes'), 'B') for kind in ('argument', 'temp', 'output', 'alias')
    )
    rows = [
        ('  arguments', arguments),
        ('  temporaries', temporaries),
        ('  outputs', f'{outputs}, {in_place} of them in place'),
        ('  products', products),
    ]
    return '\n'.join(['the compiled step, on each device', *terminal.table(rows)])


def decoded(run: Run) -> str:
    """The first rows of the first batch as text, what is learned marked."""
    batch = run.stream('train', shuffle=True).batch(0)
    corpus = run.corpus
    labels = corpus.labels if isinstance(corpus, Task) else ()
    lines = [f'the first batch, {data.batch_hash(batch)}: {data.legend(batch)}']
    for row in range(min(DECODED, len(batch['tokens']))):
        lines.append(f'  row {row}  {data.render_row(corpus.tokenizer, batch, row, labels)}')
    return '\n'.join(lines)
