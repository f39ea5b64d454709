"""The live line of a run on a terminal, and its log in a file."""

import math
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, TextIO

from lmtrain.report.terminal import GAP, SI, duration, has_colour, number, percent, style, unit
from lmtrain.runtime import progress

LOG_WIDTH = 80  # columns of a line in a log


# Cells of the live line beside steps and progress: (rank, name of the value, label, format).
CELLS = (
    (0, 'loss', 'loss ', '{:.3f}'.format),
    (2, 'bits_per_byte', '', '{:.3f} bits/B'.format),
    (2, 'accuracy', '', '{:.0%} right'.format),
    (2, 'rewards/accuracies', '', '{:.0%} right'.format),  # of pairs
    (1, 'reward', 'reward ', '{:.3f}'.format),
    (2, 'kl', 'KL ', '{:.3g}'.format),
    (3, 'clip_fraction', 'clip ', percent),
    (3, 'entropy', 'entropy ', '{:.2f}'.format),
    (3, 'length', 'length ', '{:.0f}'.format),
    (4, 'learning_rate', 'lr ', lambda x: f'{x:.1e}'.replace('e-0', 'e-') if x else '0'),
    (5, 'grad_norm', 'grad ', lambda x: f'{x:.2f}' if x < 100 else number(x, SI)),
    (1, 'tokens_per_second', '', lambda x: f'{number(x).rjust(5)} tok/s'),
    (3, 'mfu', 'MFU ', percent),
    (3, 'flops_per_second', '', lambda x: unit(x, 'FLOP/s', 2)),  # without mfu
    (7, 'memory', '', lambda x: unit(x, 'B', 2)),
    (6, 'data_wait', 'wait ', '{:.0%}'.format),
    (1, 'skipped', 'skipped ', '{:.0f}'.format),  # if it is not 0, like the next
    (1, 'seconds_left', '', lambda x: f'{duration(x)} left'),
)


def fields(step: int, total: int | None, progress: float, values: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """The live line as (rank, label, value); on a narrow terminal, the highest rank is dropped first.

    Args:
      values: what `Writers.metrics` and `Meter.read` have, any of `CELLS`.
    """
    steps = f'{step:,}'.rjust(len(f'{total:,}')) + f'/{total:,}' if total else f'step {step:,}'
    known = {name: float(value) for name, value in values.items() if not isinstance(value, list)}
    shown = known.keys() - {name for name in ('skipped', 'seconds_left') if not known.get(name)}
    shown -= {'flops_per_second'} if 'mfu' in known else set()
    first = 0, '', f'{steps} {100 * min(progress, 1.0):2.0f}%'
    return [first, *((rank, label, show(known[name])) for rank, name, label, show in CELLS if name in shown)]


def fit(cells: list[tuple[int, str, str]], width: int, progress: float = 0.0, colour: bool = False, bar=True) -> str:
    """The line of `fields` in at most `width` columns, with a progress bar if `bar` and if there is space for one."""
    cells = list(cells)
    while (size := len(GAP.join(label + value for _, label, value in cells))) > width and len(cells) > 1:
        cells.remove(max(cells, key=lambda cell: cell[0]))
    if size > width:
        return cells[0][2][:width]
    texts = [style(label, 'dim', colour and bool(label)) + value for _, label, value in cells]
    bar_width = min(width - size - len(GAP), 30)
    if bar and bar_width >= 8:
        done = int(min(progress, 1.0) * bar_width)
        rest = ('━' if colour else ' ') * (bar_width - done)
        texts.insert(1, style('━' * done, 'accent', colour) + style(rest, 'dim', colour))
    return GAP.join(texts)


class Live:
    """The live line: rewritten in place on a terminal.

    In a log it is a line for each 5 % of the budget, and at least every 5 % of the time so far: 4 seconds at first, 10
    minutes at most. `empty` is whether no metrics were shown yet.

    Args:
      stream: a stream (stdout by default), or a `progress.Screen` that others write on too.
    """

    def __init__(self, total: int | None, stream: 'TextIO | progress.Screen | None' = None, clock=time.monotonic):
        self._screen = stream if isinstance(stream, progress.Screen) else progress.Screen(stream or sys.stdout)
        self._total, self._clock, self._colour = total, clock, has_colour(self._screen.stream)
        self._due, self._began, self._due_at, self._shown_at = 0.0, clock(), clock(), clock()
        self._step, self._progress, self._values, self.empty = 0, 0.0, {}, True
        self._ended, self._thread = threading.Event(), None

    def update(self, step: int, share: float, values: Mapping[str, Any]) -> None:
        """Shows the state after `step`, the share of the budget that is spent, and the metrics."""
        self._step, self._progress, self._values, self._measured_at = step, share, dict(values), self._clock()
        self.empty = False
        if self._screen.terminal:
            self._draw()
            if share >= 1.0:
                self.close()
        elif share >= self._due or self._clock() >= self._due_at:
            self._log()
        if self._thread is None and share < 1.0:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def at(self, step: int, share: float) -> None:
        """Notes that `step` was taken; its metrics are not known."""
        self._step, self._progress = step, share

    def tick(self) -> None:
        """Shows the present step if nothing was shown for a while: steps may be slow."""
        if progress.busy() or not self._values or self._progress >= 1.0:
            return
        if self._screen.terminal:
            if self._clock() - self._shown_at >= 1.0:
                self._draw()
        elif self._clock() >= self._due_at:
            self._log()

    def print(self, text: str) -> None:
        """Prints whole lines above the live line."""
        self._screen.print(text)

    def close(self) -> None:
        """Ends the live line; it stays visible."""
        self._ended.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        self._screen.close()

    def _watch(self) -> None:
        while not self._ended.wait(progress.TICK):
            self.tick()

    def _cells(self) -> list[tuple[int, str, str]]:
        values = self._values
        if values.get('seconds_left'):  # since the metrics were measured
            left = values['seconds_left'] - (self._clock() - self._measured_at)
            values = values | {'seconds_left': max(0.0, left)}
        return fields(self._step, self._total, self._progress, values)

    def _draw(self) -> None:
        # One column stays free: some terminals wrap when the last one is filled.
        width = shutil.get_terminal_size().columns - 1
        self._screen.rewrite(fit(self._cells(), width, self._progress, self._colour))
        self._shown_at = self._clock()

    def _log(self) -> None:
        self._screen.print(fit(self._cells(), LOG_WIDTH, bar=False))
        now = self._clock()
        self._due = (math.floor(self._progress * 20) + 1) / 20
        self._due_at = now + min(max(0.05 * (now - self._began), progress.SILENT), 600)
