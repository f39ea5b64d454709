"""What a run would do and need, with its step compiled and nothing trained."""

from lmtrain import data, display, hlo
from lmtrain.assemble import assemble
from lmtrain.run import Run

DECODED = 3  # rows of the first batch that are shown
SHOWN = 400  # characters of each


def dry_run(config) -> str:
    """The page of `--dry_run`: parameters, arithmetic, the compiled step's own figures, the first batch decoded.

    Raises what `assemble` raises.
    """
    run = assemble(config)
    parts = [
        run.header(),
        display.parameters(run.shapes.trainable, run.shapes.frozen),
        compiled_figures(run),
        decoded(run),
    ]
    return '\n\n'.join(parts)


def compiled_figures(run: Run) -> str:
    """What the compiler says of the train step, beside the arithmetic."""
    compiled = list(run.train_steps().values())[-1]  # of the longest batches
    memory = compiled.memory_analysis()
    planned = run.flops_per_step.executed / run.mesh.size
    by_arithmetic = f'{display.unit(planned, "FLOP")} by arithmetic'
    try:
        flops = hlo.compiled_flops(compiled)
        products = f'{display.unit(flops, "FLOP")}, {flops / planned:.3f} of the {by_arithmetic}'
    except ValueError as error:  # a library's own kernel: the program does not say what it multiplies
        products = f'{by_arithmetic}; {error}'
    arguments, temporaries, outputs, in_place = (
        display.unit(getattr(memory, f'{kind}_size_in_bytes'), 'B') for kind in ('argument', 'temp', 'output', 'alias')
    )
    rows = [
        ('  arguments', arguments),
        ('  temporaries', temporaries),
        ('  outputs', f'{outputs}, {in_place} of them in place'),
        ('  products', products),
    ]
    return '\n'.join(['the compiled step, on each device', *display.table(rows)])


def decoded(run: Run) -> str:
    """The first rows of the first batch as text; what is learnt stands between markers where not all of it is."""
    batch = run.stream('train', shuffle=True).batch(0)
    lines = [f'the first batch, {data.batch_hash(batch)}: ' + marks(batch)]
    for row in range(min(DECODED, len(batch['tokens']))):
        lines.append(f'  row {row}  {row_text(run.corpus.tokenizer, batch, row)}')
    return '\n'.join(lines)


def marks(batch) -> str:
    """What the markers of `row_text` mean for this batch."""
    if 'select' in batch:
        return '[hidden>wanted] is predicted'
    return '| begins a document, ~ is padding, and every token predicts the next but where (...) stands around it'


def row_text(tokenizer, batch, row: int) -> str:
    """One row of a batch, its loss mask visible, cut to SHOWN characters."""
    tokens, positions, mask = (batch[column][row] for column in ('tokens', 'positions', 'loss_mask'))
    padding = batch['segment_ids'][row] == 0 if 'segment_ids' in batch else mask == 0
    wanted = {}
    if 'select' in batch:
        wanted = {
            int(at): int(t) for at, t, m in zip(batch['select'][row], batch['targets'][row], mask, strict=True) if m
        }
    pieces, run_of, learns = [], [], True

    def flush():
        text = tokenizer.decode(run_of)
        pieces.append(text if learns or not text else f'({text})')
        run_of.clear()

    for at, token in enumerate(tokens.tolist()):
        if padding[at]:
            break
        if at in wanted:
            flush()
            pieces.append(f'[{tokenizer.decode([token])}>{tokenizer.decode([wanted[at]])}]')
            continue
        here = 'select' in batch or mask[at] > 0
        if here != learns or positions[at] == 0:
            flush()
            learns = here
            pieces.append('|' if positions[at] == 0 else '')
        run_of.append(token)
    flush()
    pieces.append('~' * min(int(padding.sum()), 3))
    text = ''.join(pieces).replace('\n', '\\n')
    return text if len(text) <= SHOWN else text[:SHOWN] + ' ...'
