"""A plot of the validation curves of many runs, over steps, seconds or FLOPs."""

import pathlib
from collections.abc import Sequence

from lmtrain.errors import InputError
from lmtrain.report import run_records, terminal
from lmtrain.report.run_records import Record

AXES = {'step': 'step', 'seconds': 'seconds of training', 'flops': 'FLOPs of the model'}
# {measure of an evaluation: its label}, the first that all runs have.
UNITS = {
    'bits_per_byte': 'bits per byte (less is better)',
    'reward': 'mean reward (more is better)',
    'loss': 'validation loss, nats (less is better)',
}
COLOURS = ('#1f5fa8', '#d1491b', '#2e8b57', '#8e5ea2', '#c9a227', '#3aa6b9', '#7f7f7f', '#b5446e')
STYLES = ('-', (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
LIMIT = len(COLOURS) * len(STYLES)  # curves that can be told apart


def plot(records: Sequence[Record], path: pathlib.Path, x: str = 'step') -> list[str]:
    """Plots the validation curves into `path` (.png or .svg), in bits per byte if all runs have them, else the loss.

    Of policies alone it is the reward.

    Args:
      x: 'step', 'seconds' or 'flops'.

    Returns:
      The names of the runs that were left out: they have no validation curve, or no times in timings.jsonl.

    Raises InputError if no run has a curve, or there are more than `LIMIT`.
    """
    curves = {unit: {} for unit in UNITS}
    for record in records:
        for unit, of_unit in curves.items():
            of_unit[record['name']] = _points(pathlib.Path(record['folder']), unit, x)
    having = {unit: {name for name, points in of_unit.items() if points} for unit, of_unit in curves.items()}
    unit = next(unit for unit in UNITS if having[unit] == having['loss'])
    drawn = {name: points for name, points in curves[unit].items() if points}
    if not drawn:
        raise InputError('no run has a validation curve in metrics.jsonl: there is nothing to plot')
    if len(drawn) > LIMIT:
        raise InputError(f'{len(drawn)} curves cannot be told apart: choose at most {LIMIT} with --filter')
    _draw(drawn, path, AXES[x], UNITS[unit])
    return [name for name in curves[unit] if name not in drawn]


def _points(folder: pathlib.Path, unit: str, x: str) -> list[tuple[float, float]]:
    """[(x, value)] of a run; [] if its files are missing or broken."""
    try:
        curve = run_records.curve(folder, unit)
        if x == 'step' or not curve:
            return curve
        speeds = run_records.speeds(folder)
    except (InputError, OSError):
        return []
    if not speeds:
        return []
    import numpy as np  # late: the table needs none

    steps, seconds, flops = zip(*speeds, strict=True)
    known = seconds if x == 'seconds' else flops
    return [(float(np.interp(step, steps, known)), value) for step, value in curve if step >= steps[0]]


def _draw(curves: dict[str, list], path: pathlib.Path, x_label: str, y_label: str) -> None:
    import matplotlib  # late: half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(4.5, 0.9 + 0.21 * len(curves))
    with matplotlib.rc_context({'font.size': 10, 'font.family': 'DejaVu Sans', 'svg.hashsalt': 'lmtrain'}):
        figure = Figure(figsize=(10, height), dpi=150, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        ends = sorted(curves, key=lambda name: curves[name][-1][1], reverse=True)  # the legend in the curves' order
        for index, name in enumerate(ends):
            colour, line = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS)]
            label = f'{terminal.printable(name)[-40:]}  {curves[name][-1][1]:.3f}'.replace('$', r'\$').lstrip('_')
            marker = {'marker': 'o', 'markersize': 3.5, 'linewidth': 1.6, 'linestyle': line}
            axes.plot(*zip(*curves[name], strict=True), color=colour, label=label, **marker)
        places = [place for points in curves.values() for place, _ in points if place > 0]
        if places and max(places) >= 20 * min(places):
            axes.set_xscale('log')
        elif max(places, default=0) < 1e6:
            axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}' if value >= 1 else f'{value:g}')
        values = [value for points in curves.values() for _, value in points]
        # The steep first tenth of long curves is left out.
        low, high = min(values), max(max(value for _, value in own[len(own) // 10 :]) for own in curves.values())
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color='#e8e8e8', linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)
