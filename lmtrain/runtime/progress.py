"""Progress of phases that take noticeable time (reading, tokenising, compiling, ...), on a terminal and in a log.

A phase of more than NOTICEABLE seconds prints a line when it starts and one when it ends. In between, a terminal shows
its progress in place, and a log gets a line every SILENT seconds.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TextIO

NOTICEABLE = 1.0  # seconds after which a phase is announced
SILENT = 4.0  # seconds without a line, in a log
TICK = 0.5  # seconds between two looks at the clock
ASCII = str.maketrans({'━': '-', '█': '#'} | dict.fromkeys('▏▎▍▌▋▊▉'))  # for streams without these characters


class Screen:
    """A stream whose last line is rewritten in place, if it is a terminal. Several threads may write."""

    def __init__(self, stream: TextIO):
        self.stream, self._line, self._lock = stream, '', threading.RLock()
        self.terminal = stream.isatty()

    def print(self, text: str) -> None:
        """Prints whole lines above the line that is rewritten."""
        with self._lock:
            self._write(f'\r\x1b[K{text}\n{self._line}' if self._line else f'{text}\n')

    def rewrite(self, line: str) -> None:
        """Replaces the last line; '' removes it. Only on a terminal."""
        with self._lock:
            if line or self._line:
                self._write(f'\r{line}\x1b[K')
            self._line = line

    def close(self) -> None:
        """Ends the last line; it stays visible."""
        with self._lock:
            if self._line:
                self._write('\n')
            self._line = ''

    def _write(self, text: str) -> None:
        encoding = getattr(self.stream, 'encoding', None) or 'utf-8'
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(ASCII).encode(encoding, 'replace').decode(encoding)
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            # A closed pipe or a full disk must not end the run.
            self.terminal, self._line = False, ''


_screens: list[Screen] = []  # the last one shows the phases; stderr if there is none
_running: list['Phase'] = []  # the last one is shown


@contextlib.contextmanager
def on(screen: Screen) -> Iterator[Screen]:
    """Shows phases on this screen and not on stderr."""
    _screens.append(screen)
    try:
        yield screen
    finally:
        _screens.remove(screen)


def busy() -> bool:
    """Whether a phase is running."""
    return bool(_running)


class Phase:
    """What `phase` yields. `done` counts the items that are finished; others only set it."""

    def __init__(self, name: str, total: int | None, brief: bool, clock: Callable[[], float]):
        self.name, self.total, self.done = name, total, 0
        self._brief, self._clock, self._began = brief, clock, clock()
        self._screen = _screens[-1] if _screens else Screen(sys.stderr)
        self._announced, self._printed = False, self._began

    def tick(self) -> None:
        """Shows the phase if it is due."""
        now = self._clock()
        if now - self._began < NOTICEABLE or _running[-1:] != [self]:
            return
        if not self._announced and not self._brief:
            self._screen.print(_fit(f'  {self.name} ...'))
            self._printed = now
        self._announced = True
        if self._screen.terminal:
            self._screen.rewrite(_fit(self._text(now)))
        elif now - self._printed >= SILENT:
            self._screen.print(_fit(self._text(now)))
            self._printed = now

    def end(self) -> None:
        """Removes the line of a terminal, and prints how long an announced phase took."""
        if not self._announced:
            return
        if self._screen.terminal:
            self._screen.rewrite('')
        if not self._brief:
            self._screen.print(_fit(f'  {self.name}: {_seconds(self._clock() - self._began)}'))

    def _text(self, now: float) -> str:
        count = ''
        if self.done:
            count = f' {100 * self.done / self.total:.0f}% of {self.total:,},' if self.total else f' {self.done:,},'
        return f'  {self.name}:{count} {_seconds(now - self._began)}'


def _seconds(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 120 else f'{seconds / 60:.0f} min'


def _fit(text: str) -> str:
    """The text in one line of at most 79 columns, or those of the terminal."""
    width = min(shutil.get_terminal_size().columns, 80) - 1
    return text if len(text) <= width else f'{text[: max(width - 4, 0)]} ...'


@contextlib.contextmanager
def phase(name: str, total: int | None = None, brief: bool = False, clock=time.monotonic) -> Iterator[Phase]:
    """Shows that `name` is in progress, if it takes noticeable time.

    Args:
      total: number of items, of which `Phase.done` are finished.
      brief: without the lines at start and end, for what other lines report.
    """
    one, ended = Phase(name, total, brief, clock), threading.Event()

    def watch():
        while not ended.wait(TICK):
            one.tick()

    thread = threading.Thread(target=watch, daemon=True)
    _running.append(one)
    thread.start()
    try:
        yield one
    finally:
        ended.set()
        thread.join()
        _running.remove(one)
        one.end()


def each(items: Iterable, name: str, total: int | None = None, brief: bool = False) -> Iterator:
    """The items, with the phase `name` from the first to the last.

    >>> list(each([1, 2], 'reading'))
    [1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with phase(name, total, brief) as one:
        for item in items:
            yield item
            one.done += 1
