"""The live line of a run on a terminal, and its log in a file."""

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from lmtrain.report.terminal import GAP, SI, duration, has_colour, number, percent, style, unit

ASCII = str.maketrans({'━': '-', '█': '#'} | dict.fromkeys(' ▏▎▍▌▋▊▉'[1:]))  # for terminals without these characters


def fields(step: int, total: int | None, progress: float, values: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """The live line as (rank, label, value); on a narrow terminal, the highest rank is dropped first.

    Args:
      values: what `Writers.metrics` and `Meter.read` have, any of: loss, bits_per_byte, accuracy, learning_rate,
        grad_norm, tokens_per_second, mfu or flops_per_second, memory, data_wait, seconds_left, skipped.
    """
    steps = f'{step:,}'.rjust(len(f'{total:,}')) + f'/{total:,}' if total else f'step {step:,}'
    known = {name: float(value) for name, value in values.items() if not isinstance(value, list)}
    cells = [(0, '', f'{steps} {100 * min(progress, 1.0):2.0f}%')]

    def add(rank, name, label, show):
        if name in known:
            cells.append((rank, label, show(known[name])))

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
    return cells


def fit(cells: list[tuple[int, str, str]], width: int, progress: float = 0.0, colour: bool = False) -> str:
    """The line of `fields` in at most `width` columns, with a progress bar if there is space for one."""
    cells = list(cells)

    def length():
        return len(GAP.join(label + value for _, label, value in cells))

    while length() > width and len(cells) > 1:
        cells.remove(max(cells, key=lambda cell: cell[0]))
    texts = [style(label, 'dim', colour and bool(label)) + value for _, label, value in cells]
    bar_width = min(width - length() - len(GAP), 30)
    if bar_width >= 8:
        done = int(min(progress, 1.0) * bar_width)
        rest = ('━' if colour else ' ') * (bar_width - done)
        texts.insert(1, style('━' * done, 'accent', colour) + style(rest, 'dim', colour))
    return GAP.join(texts) if length() <= width else cells[0][2][:width]


class Live:
    """The live line: rewritten in place on a terminal; in a file a line for each 5 % of the budget or 10 minutes."""

    def __init__(self, total: int | None, stream: TextIO | None = None, clock=time.monotonic):
        self._total, self._stream, self._clock = total, stream or sys.stdout, clock
        self._terminal, self._colour = self._stream.isatty(), has_colour(self._stream)
        self._due, self._due_at, self._line = 0.0, clock(), ''

    def update(self, step: int, progress: float, values: Mapping[str, Any]) -> None:
        """Shows the state after `step`."""
        cells = fields(step, self._total, progress, values)
        if self._terminal:
            # One column stays free: some terminals wrap when the last one is filled.
            self._line = fit(cells, shutil.get_terminal_size().columns - 1, progress, self._colour)
            self._write(f'\r{self._line}\x1b[K')
            if progress >= 1.0:
                self.close()
        elif progress >= self._due or self._clock() >= self._due_at:
            self._write(GAP.join(label + value for _, label, value in cells) + '\n')
            self._due = (math.floor(progress * 20) + 1) / 20
            self._due_at = self._clock() + 600

    def print(self, text: str) -> None:
        """Prints whole lines above the live line."""
        self._write(f'\r\x1b[K{text}\n{self._line}' if self._line else f'{text}\n')

    def close(self) -> None:
        """Ends the live line; it stays visible."""
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
            # A closed pipe or a full disk must not end the run.
            self._terminal, self._line = False, ''
