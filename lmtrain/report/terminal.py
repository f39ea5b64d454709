"""What a person sees of a run: the header, the tables, the live line and the evaluation, as text."""

import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from typing import Any, TextIO

from lmtrain import tree

COUNTS = ('', 'k', 'M', 'B', 'T')
SI = ('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')
STYLES = {'bold': '1', 'dim': '2', 'accent': '36', 'bad': '31'}
ASCII = str.maketrans({'━': '-', '█': '#'} | dict.fromkeys(' ▏▎▍▌▋▊▉'[1:]))  # where the terminal knows no more
GAP = '  '


def number(value: float, prefixes: tuple[str, ...] = COUNTS, significant: int = 3) -> str:
    """Two or three significant digits: 950, 12.3k, 124M; 'B' is 10^9 of things, and with `SI` 'G' of units."""
    if not math.isfinite(value):
        return str(value)
    power = 0
    # 999.5 would be printed with four digits.
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if abs(value) >= 99.95 or (power == 0 and value == int(value)) else 1 if abs(value) >= 9.995 else 2
    return f'{value:.{max(0, digits + significant - 3)}f}{prefixes[power]}'


def unit(value: float, name: str, significant: int = 3) -> str:
    """3.41 TFLOP/s, 3.10 GB."""
    text = number(value, SI, significant)
    prefix = text[-1] if text[-1].isalpha() and math.isfinite(value) else ''
    return f'{text.removesuffix(prefix)} {prefix}{name}'


def duration(seconds: float) -> str:
    """42s, 4m 05s, 1h 03m, 2d 04h."""
    if not math.isfinite(seconds):
        return '?'
    whole = round(seconds)
    for size, name, smaller, small in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm'), (60, 'm', 1, 's')):
        if whole >= size:
            return f'{whole // size}{name} {whole % size // smaller:02d}{small}'
    return f'{whole}s'


def percent(share: float) -> str:
    return f'{100 * share:.0f}%' if share >= 0.0995 or share == 0 else f'{100 * share:.1f}%'


def style(text: str, name: str, on: bool = True) -> str:
    """`text` in an ANSI style, where that is `on`."""
    return f'\x1b[{STYLES[name]}m{text}\x1b[0m' if on else text


def has_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours (no-color.org)."""
    return stream.isatty() and 'NO_COLOR' not in os.environ and os.environ.get('TERM') != 'dumb'


def table(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Lines with aligned columns; those in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        GAP.join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def parameters(trainable: tree.Params, frozen: tree.Params) -> str:
    """The table of parameters: path, shape, dtype, sharding, whether it learns, from trees of arrays or shapes."""
    rows = [('path', 'shape', 'dtype', 'sharding', 'learns', 'count')]
    learning, resting = tree.flatten(trainable), tree.flatten(frozen)
    for path, leaf in sorted((learning | resting).items()):
        spec = getattr(getattr(leaf, 'sharding', None), 'spec', ())
        axes = ', '.join('-' if axis is None else str(axis) for axis in spec) if any(spec) else 'replicated'
        shape = ' x '.join(map(str, leaf.shape)) or 'scalar'
        rows.append(
            (path, shape, str(leaf.dtype), axes, 'yes' if path in learning else 'no', f'{math.prod(leaf.shape):,}')
        )
    total = tree.count(trainable) + tree.count(frozen)
    rows.append(('total', '', '', '', '', f'{total:,}'))
    lines = table(rows, right=(5,))
    rule = '-' * max(map(len, lines))
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def header(
    *,
    trainable: int,
    total: int,
    rows: int,
    seq_len: int,
    accumulate: int,
    devices: int,
    device_kind: str,
    dtype: str,
    steps: int | None,
    hours: float | None,
    epoch_tokens: int | None,
    flops_per_step: float,
    memory: Mapping[str, int],
    replicas: int | None = None,
) -> str:
    """What is about to be run: five notes.

    Args:
      trainable, total: parameters. rows, seq_len: of the global batch. accumulate: micro-batches a step.
      devices: all of them. steps: planned, or None under a budget of `hours`.
      epoch_tokens: rows x seq_len of the steps of an epoch, which of a mixture is a pass over its first source; None
        if it is not known.
      flops_per_step: `cost.Flops.total`, all T keys counted. memory: `cost.bytes_per_device`.
      replicas: devices that share the rows (mesh.data x mesh.fsdp); None is all of them.
    """
    tokens = rows * seq_len
    batch = f'{rows:,} rows x {seq_len:,} tokens = {tokens:,} tokens a step'
    replicas = replicas or devices
    if accumulate > 1 or replicas > 1:
        split = [f'{accumulate} micro-batches' * (accumulate > 1), f'{replicas} devices' * (replicas > 1)]
        each = rows // (accumulate * replicas)
        batch += f', over {" x ".join(filter(None, split))}: {each:,} row{"s" * (each != 1)} each'
    if steps is None:
        plan = f'{hours:g} hours of wall clock ({duration(3600 * hours)}); {unit(flops_per_step, "FLOP")} a step'
    else:
        epochs = f' ({steps * tokens / epoch_tokens:.2g} epochs)' if epoch_tokens else ''
        plan = f'{steps:,} steps, {number(steps * tokens)} tokens{epochs}, {unit(steps * flops_per_step, "FLOP")}'
    learns = (
        'all of them learn'
        if trainable == total
        else f'{number(trainable)} of them learn ({percent(trainable / total)})'
    )
    parts = ', '.join(f'{name} {unit(size, "B")}' for name, size in memory.items() if name != 'total')
    lines = [
        ('parameters', f'{number(total)}, {learns}'),
        ('batch', batch),
        ('plan', plan),
        ('device', f'{devices} x {device_kind}, {dtype}'),
        ('memory', f'about {unit(memory["total"], "B")} a device: {parts}'),
    ]
    return '\n'.join(note(*line) for line in lines)


HELD_OUT = {
    'document': 'whole documents are held out',
    'tail': 'the end of the text is held out',
    'tails': 'the tail of each document is held out',
}


def sources(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """[(name of a source, what was read of it)], from `data.Corpus.facts`."""
    rows = []
    for source in facts['sources']:
        parts = [] if source['name'].split(':')[0] in ('python', 'tfds') else [counted(source['files'], 'file')]
        parts += [counted(source['documents'], 'document'), unit(source['bytes'], 'B')]
        weight = f'weight {source["weight"]:g}: ' * (len(facts['sources']) > 1)
        rows.append((source['name'], f'{weight}{", ".join(parts)}; {HELD_OUT[source["divided"]]}'))
    return rows


def left_out(facts: Mapping[str, Any], most: int = 1000) -> list[tuple[str, str]]:
    """[(name of a source, what was not read of it and why)], of the sources of which something was not.

    The `most` frequent kinds are named, the others counted together.
    """
    rows = []
    for source in facts['sources']:
        kinds = sorted(source['skipped'].items(), key=lambda kind: -kind[1])
        parts = [f'{count:,} {reason}' for reason, count in kinds[:most]]
        parts += [f'{sum(count for _, count in kinds[most:]):,} of other kinds'] * (len(kinds) > most)
        rows += [(source['name'], ', '.join(parts))] * bool(parts)
    return rows


def text(facts: Mapping[str, Any]) -> str:
    """The text of a run for its header: sources, splits and what was left out."""
    several = len(facts['sources']) > 1
    lines = [('data', f'{name}: {line}' if several else line) for name, line in sources(facts)]
    total = sum(split['bytes'] for split in facts['splits'].values())
    for name, split in facts['splits'].items():
        size = f'{unit(split["bytes"], "B")} ({100 * split["bytes"] / total:.1f}%)'
        lines.append((name, f'{size}, {number(split["tokens"])} tokens, {counted(split["documents"], "document")}'))
    lines += [('left out', f'{name}: {line}' if several else line) for name, line in left_out(facts, most=4)]
    return '\n'.join(note(*line) for line in lines)


def note(name: str, text: str) -> str:
    """A line of the header, wrapped at 80 columns: a name and a text about it."""
    options = {'break_long_words': False, 'break_on_hyphens': False}
    return textwrap.fill(text, 80, initial_indent=f'  {name:<11}', subsequent_indent=' ' * 13, **options)


def counted(count: int, noun: str) -> str:
    """'1 file', '1,200 files'."""
    return f'{count:,} {noun}{"s" * (count != 1)}'


def evaluation_line(results: Mapping[str, float], baselines: Mapping[str, float]) -> str:
    """One line on an evaluation (`evaluate.in_bits`) beside what others need for the same text, in bits per byte."""
    if 'bits_per_byte' not in results:
        return ', '.join(f'{name.replace("_", " ")} {results[name]:.4f}' for name in measures(results))
    others = ', '.join(f'{name} {value:.2f}' for name, value in sorted(baselines.items(), key=lambda item: item[1]))
    line = (
        f'loss {results["loss"]:.4f}, perplexity {results["perplexity"]:.4g}, '
        f'{results["bits_per_token"]:.2f} bits/token, {results["bits_per_byte"]:.3f} bits/byte'
    )
    return f'{line} ({others})' if others else line


def measures(results: Mapping[str, Any]) -> list[str]:
    """The names of what was measured of a task, the loss first; counts and lists are none."""
    counts = ('loss', 'targets', 'bytes')
    return ['loss', *(name for name, x in results.items() if isinstance(x, float) and name not in counts)]


def evaluation(results: Mapping[str, float], baselines: Mapping[str, float], title: str, colour: bool = False) -> str:
    """The same as a block with a bar per contestant, the shortest first."""
    if 'bits_per_byte' not in results:
        return '\n'.join([style(title, 'bold', colour), f'  {evaluation_line(results, baselines)}'])
    lines = [
        style(title, 'bold', colour),
        f'  loss {results["loss"]:.4f} nats   perplexity {results["perplexity"]:.4g}   '
        f'{results["bits_per_token"]:.3f} bits/token',
        '  bits per byte',
    ]
    contest = sorted({**baselines, 'this model': results['bits_per_byte']}.items(), key=lambda item: item[1])
    for name, value in contest:
        bar = bars(value / contest[-1][1], 40)
        line = f'    {name:<12}{value:6.3f}  {bar}'
        lines.append(style(line, 'accent', colour) if name == 'this model' else line)
    return '\n'.join(lines)


def bars(share: float, width: int) -> str:
    """A bar of `share` of `width` characters, to an eighth of one."""
    eighths = round(share * width * 8)
    return '█' * (eighths // 8) + ' ▏▎▍▌▋▊▉'[eighths % 8].strip()


def fields(step: int, total: int | None, progress: float, values: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """The live line as (rank, label, value): where room is short, the highest rank goes first.

    `values` holds what `Writers.metrics` and `Meter.read` know: loss, bits_per_byte, learning_rate, grad_norm,
    tokens_per_second, mfu or flops_per_second, memory, data_wait, seconds_left, skipped. What is missing is left out.
    """
    steps = f'{step:,}'.rjust(len(f'{total:,}')) + f'/{total:,}' if total else f'step {step:,}'
    known = {name: float(value) for name, value in values.items() if not isinstance(value, list)}
    found = [(0, '', f'{steps} {100 * min(progress, 1.0):2.0f}%')]

    def add(rank, name, label, show):
        if name in known:
            found.append((rank, label, show(known[name])))

    add(0, 'loss', 'loss ', lambda x: f'{x:.3f}')
    add(2, 'bits_per_byte', '', lambda x: f'{x:.3f} bits/B')
    add(2, 'accuracy', '', lambda x: f'{100 * x:.0f}% right')
    add(4, 'learning_rate', 'lr ', lambda x: f'{x:.1e}'.replace('e-0', 'e-') if x else '0')
    add(5, 'grad_norm', 'grad ', lambda x: f'{x:.2f}' if x < 100 else number(x, SI))
    add(1, 'tokens_per_second', '', lambda x: f'{number(x).rjust(5)} tok/s')
    if 'mfu' in known:
        add(3, 'mfu', 'MFU ', percent)
    else:
        add(3, 'flops_per_second', '', lambda x: unit(x, 'FLOP/s', 2))
    add(7, 'memory', '', lambda x: unit(x, 'B', 2))
    add(6, 'data_wait', 'wait ', lambda x: f'{100 * x:.0f}%')
    if known.get('skipped'):
        add(1, 'skipped', 'skipped ', lambda x: f'{x:.0f}')
    if known.get('seconds_left'):
        add(1, 'seconds_left', '', lambda x: f'{duration(x)} left')
    return found


def fit(found: list[tuple[int, str, str]], width: int, progress: float = 0.0, colour: bool = False) -> str:
    """The line of `fields` in at most `width` columns; a wide one gets a bar of progress."""
    found = list(found)

    def length():
        return len(GAP.join(label + value for _, label, value in found))

    while length() > width and len(found) > 1:
        found.remove(max(found, key=lambda field: field[0]))
    cells = [style(label, 'dim', colour and bool(label)) + value for _, label, value in found]
    room = min(width - length() - len(GAP), 30)
    if room >= 8:
        done = int(min(progress, 1.0) * room)
        rest = ('━' if colour else ' ') * (room - done)
        cells.insert(1, style('━' * done, 'accent', colour) + style(rest, 'dim', colour))
    return GAP.join(cells) if length() <= width else found[0][2][:width]


class Live:
    """The live line: rewritten in place on a terminal; elsewhere a line for each 5 % of the budget or 10 minutes."""

    def __init__(self, total: int | None, stream: TextIO | None = None, clock=time.monotonic):
        self._total, self._stream, self._clock = total, stream or sys.stdout, clock
        self._terminal, self._colour = self._stream.isatty(), has_colour(self._stream)
        self._due, self._due_at, self._line = 0.0, clock(), ''

    def update(self, step: int, progress: float, values: Mapping[str, Any]) -> None:
        """Shows the state after `step`."""
        found = fields(step, self._total, progress, values)
        if self._terminal:
            # One column stays free: some terminals wrap when the last one is filled.
            self._line = fit(found, shutil.get_terminal_size().columns - 1, progress, self._colour)
            self._write(f'\r{self._line}\x1b[K')
            if progress >= 1.0:
                self.close()
        elif progress >= self._due or self._clock() >= self._due_at:
            self._write(GAP.join(label + value for _, label, value in found) + '\n')
            self._due = (math.floor(progress * 20) + 1) / 20
            self._due_at = self._clock() + 600

    def say(self, text: str) -> None:
        """Prints whole lines above the live one."""
        self._write(f'\r\x1b[K{text}\n{self._line}' if self._line else f'{text}\n')

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._line:
            self._write('\n')
        self._line = ''

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(ASCII).encode(encoding, 'replace').decode(encoding)
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # A closed pipe, or a full disk behind it: nobody reads, and the run is worth more than its line.
            self._terminal, self._line = False, ''
