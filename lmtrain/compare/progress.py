"""The progress of a comparison on a terminal: arms, finished trials, the best so far, the time left; 80 columns."""

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from lmtrain.compare.arms import Arm
from lmtrain.compare.trials import Comparison, Trial, listed
from lmtrain.report import terminal

WIDTH = 80
LEAST = 8  # columns of a name that is shortened


class Display:
    """A table that is redrawn in place on a terminal; in a file one line for each finished trial.

    Accuracies are those on the selection rows: the test rows are read when all trials have chosen.
    """

    def __init__(
        self,
        comparison: Comparison,
        arms: Sequence[Arm],
        count: int,
        notes: Sequence[str],
        stream: TextIO | None = None,
    ):
        self._stream = stream or sys.stdout
        self._terminal, self._colour = self._stream.isatty(), terminal.has_colour(self._stream)
        self._arms, self._sizes, self._plans = arms, comparison.sizes, comparison.plans
        self._counts = {arm.name: 0 for arm in arms} | _per_arm(comparison, arms)
        self._records: list[tuple[Trial, dict[str, Any]]] = []
        self._count, self._running, self._lines = count, '', 0
        self._start, self._started, self._spent, self._fresh = 0.0, time.monotonic(), 0.0, 0
        for note in notes:
            self._write(terminal.remark(note) + '\n')
        for arm in arms:
            if reason := self._plans[arm.name].reason:
                self._write(terminal.note('skipped', f'{arm.name}: {reason}') + '\n')

    def begin(self, trial: Trial) -> None:
        """Before a trial runs."""
        self._running, self._start = f'{trial.arm.name}, {trial.size} rows, seed {trial.seed}', time.monotonic()
        self._draw()

    def end(self, trial: Trial, record: dict[str, Any]) -> None:
        """After it, or if it was finished before."""
        self._records.append((trial, record))
        if self._running:
            self._spent, self._fresh = self._spent + time.monotonic() - self._start, self._fresh + 1
            if not self._terminal:
                self._write(self._line(trial, record) + '\n')
        self._running = ''
        self._draw()

    def close(self) -> None:
        """After the last trial."""
        self._draw()
        self._write('each trial is tested now, once\n')

    def _line(self, trial: Trial, record: dict[str, Any]) -> str:
        result = f'{100 * record["selection"]["accuracy"]:.1f} %' if record['status'] == 'done' else record['reason']
        text = f'{len(self._records):>4}/{self._count} {trial.arm.name}, {trial.size} rows, seed {trial.seed}: {result}'
        left = f'  {self._left()}' if self._left() else ''
        text = text[: WIDTH - max(12, len(left))] + left
        return text + self._best(WIDTH - len(text))

    def _left(self) -> str:
        rest = self._count - len(self._records)
        return f'{terminal.duration(rest * self._spent / self._fresh)} left' if self._fresh and rest else ''

    def _best(self, room: int) -> str:
        """', best: NAME 50.8 %', the most accurate arm at the largest size that has finished trials; '' without room.

        Args:
          room: columns. A longer name is shortened.
        """
        done = [(trial, record) for trial, record in self._records if record['status'] == 'done']
        size = max((trial.size for trial, _ in done), default=0)
        per_arm: dict[str, list[float]] = {}
        for trial, record in done:
            if trial.size in (size, 0):
                per_arm.setdefault(trial.arm.name, []).append(record['selection']['accuracy'])
        if not per_arm:
            return ''
        means = {name: sum(own) / len(own) for name, own in per_arm.items()}
        name = max(means, key=means.__getitem__)
        before, after, about = ', best: ', f' {100 * means[name]:.1f} %', ' on selection rows'
        free = room - len(before) - len(after)
        if len(name) > free:
            name = f'{name[: free - 3]}...' if free >= LEAST else ''
        return f'{before}{name}{after}{about if len(name) + len(about) <= free else ""}' if name else ''

    def _draw(self) -> None:
        if not self._terminal:
            return
        lines = self._table()
        back = f'\x1b[{self._lines}F\x1b[J' if self._lines else ''
        self._lines = len(lines)
        self._write(back + '\n'.join(line[:WIDTH] for line in lines) + '\n')

    def _table(self) -> list[str]:
        sizes = self._sizes[-4:]  # the largest, which fit
        rows = [('arm', 'trials', *(f'{size} rows' for size in sizes))]
        for arm in self._arms:
            own = [(trial, record) for trial, record in self._records if trial.arm.name == arm.name]
            state = 'skipped' if self._plans[arm.name].reason else f'{len(own)}/{self._counts[arm.name]}'
            rows.append((arm.name[:24], state, *(self._accuracy(own, size) for size in sizes)))
        left = ', '.join(filter(None, [f'{len(self._records)} of {self._count} trials', self._left()]))
        left += self._best(WIDTH - len(left))
        running = [f'running: {self._running}'] if self._running else []
        lines = terminal.table(rows, right=tuple(range(1, len(rows[0]))))
        return ['accuracy in % on the selection rows, mean over seeds', *lines, left, *running]

    def _accuracy(self, own: Sequence[tuple[Trial, dict[str, Any]]], size: int) -> str:
        done = [record for trial, record in own if record['status'] == 'done' and trial.size in (size, 0)]
        failed = any(record['status'] != 'done' for trial, record in own if trial.size == size)
        if not done:
            return 'failed' if failed else ''
        return f'{100 * sum(record["selection"]["accuracy"] for record in done) / len(done):.1f}'

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _per_arm(comparison: Comparison, arms: Sequence[Arm]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for trial in listed(comparison, list(arms)):
        counts[trial.arm.name] = counts.get(trial.arm.name, 0) + 1
    return counts
