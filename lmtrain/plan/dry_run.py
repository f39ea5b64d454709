"""The page of `--dry_run`: what a run would do and need, with its step compiled and nothing trained."""

import math
import pathlib
import tempfile
import textwrap

import jax

from lmtrain import data
from lmtrain.cost import hlo
from lmtrain.report import summary, terminal
from lmtrain.tasks import TASKS
from lmtrain.training import init_from, reference
from lmtrain.training.build import build
from lmtrain.training.checks import check_read, check_settings
from lmtrain.training.resolve import resolve, with_stand_in_text
from lmtrain.training.run import Run

DECODED = 3  # rows of the first batch to print


def dry_run(config, *, exists: bool = False) -> str:
    """The header of the run, whether it can be exported, the compiled step, the first batch decoded, and parameters.

    A text or tokenizer that is missing is replaced by a placeholder of the same shape; the page begins with a note.

    Args:
      exists: whether the folder of the run does: it goes on as it began, and may have settings that are new errors.

    Raises what `build` raises.
    """
    _check(config, exists)
    try:
        return _page(build(*resolve(config)), [])
    except FileNotFoundError as error:
        if not _has_stand_in(config):
            raise
        missing = error
    with tempfile.TemporaryDirectory() as folder:
        reason = f'{missing.strerror}: {missing.filename}' if missing.filename else str(missing)
        note = f'Placeholder data of the same shape replaces the data: {reason}'
        return _page(build(*resolve(with_stand_in_text(config, pathlib.Path(folder)))), textwrap.wrap(note, 80))


def _has_stand_in(config) -> bool:
    """Whether a placeholder text gives the same programs: they depend on no row and no text."""
    return not TASKS[config.task.name].reads_rows and not config.adapt.prompt.text


def _check(config, exists: bool = False) -> None:
    """Raises what `training.train` raises about the settings of a run."""
    check_settings(config)
    if not exists and 'compare' not in config:  # whose settings are of several objectives
        check_read(config)


def check(config) -> None:
    """Raises what `dry_run` raises about the settings of a config, on any machine. No text is read.

    What a recipe leaves to its user (a base, files of rows) is not missing yet, and a mesh of more devices than there
    are here is not built.
    """
    _check(config)
    devices = math.prod(size for size in config.mesh.values() if size != -1)
    unnamed = config.data.tokenizer == 'base' and not config.init.base
    if unnamed or 'compare' in config or not 0 < devices <= jax.device_count():
        return
    if _has_stand_in(config):
        with tempfile.TemporaryDirectory() as folder:
            config = with_stand_in_text(config, pathlib.Path(folder))
            build(*resolve(config), jax.devices()[:devices])
    elif config.task.train:
        build(*resolve(config), jax.devices()[:devices])
    else:
        resolve(config)


def first_batch(config) -> str:
    """The first batch of a config, decoded. Raises what `build` raises."""
    return decoded(build(*resolve(config)))


def _page(run: Run, notes: list[str]) -> str:
    about = [('reference', reference.note(run))] if run.reference_flops else []
    about += [('exportable', init_from.exportable(run.config))]
    parts = [
        *(['\n'.join(notes)] if notes else []),
        '\n'.join([summary.header(run, stand_in=bool(notes)), *(terminal.note(*line) for line in about)]),
        compiled_figures(run),
        decoded(run),
        terminal.parameters(run.shapes.trainable, run.shapes.frozen),
    ]
    return '\n\n'.join(parts)


def compiled_figures(run: Run) -> str:
    """The compiler's figures for the train step, and those by arithmetic."""
    compiled = list(run.train_steps().values())[-1]  # of the longest batches
    memory = compiled.memory_analysis()
    planned = run.flops_per_step.executed / run.mesh.size
    by_arithmetic = f'{terminal.unit(planned, "FLOP")} by arithmetic{", on average" * run.is_padded}'
    try:
        flops = hlo.compiled_flops(compiled)
        products = f'{terminal.unit(flops, "FLOP")}, {flops / planned:.3f} of the {by_arithmetic}'
    except ValueError as error:  # a library's kernel: the program does not contain its matrix products
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
    longest = f' of the longest batches ({run.longest:,} tokens a row)' * run.is_padded
    return '\n'.join([f'the compiled step{longest}, on each device', *terminal.table(rows)])


def decoded(run: Run) -> str:
    """The first rows of the first batch as text, with targets marked and without control characters."""
    batch = run.stream('train', shuffle=True).batch(0)
    corpus = run.corpus
    labels = corpus.labels if run.task.reads_rows else ()
    lines = [textwrap.fill(f'the first batch, {data.batch_hash(batch)}: {run.task.legend(batch)}', 80)]
    for row in range(min(DECODED, len(batch['tokens']))):
        text = terminal.printable(run.task.render(corpus.tokenizer, batch, row, labels))
        options = {'drop_whitespace': False, 'replace_whitespace': False, 'break_on_hyphens': False}
        lines.append(textwrap.fill(f'  row {row}  {text}', 80, subsequent_indent=' ' * 9, **options))
    return '\n'.join([terminal.printable(lines[0]), *lines[1:]])
