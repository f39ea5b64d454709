"""A plot of the validation curves of many runs, over steps, seconds or FLOPs."""

import pathlib
from collections.abc import Sequence

from lmtrain.errors import InputError
from lmtrain.report import run_records, terminal
from lmtrain.report.run_records import Record

AXES = {'step': 'step', 'seconds': 'seconds of training', 'flops': 'FLOPs of the model'}
# {measure of an evaluation: its label}; a run is drawn by the first that it has.
UNITS = {
    'bits_per_byte': 'bits per byte\n(lower is better)',
    'reward': 'mean reward\n(higher is better)',
    'loss': 'validation loss{}\n(lower is better)',
}
COLOURS = ('#1f5fa8', '#d1491b', '#2e8b57', '#8e5ea2', '#c9a227', '#3aa6b9', '#7f7f7f', '#b5446e')
STYLES = ('-', (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
LIMIT = len(COLOURS) * len(STYLES)  # curves that can be told apart


def plot(records: Sequence[Record], path: pathlib.Path, x: str = 'step') -> list[str]:
    """Plots the validation curves into `path` (.png or .svg), with a panel for each measure.

    Bits per byte, the reward of policies, and the losses of each task among the other runs are measures.

    Args:
      x: 'step', 'seconds' or 'flops'.

    Returns:
      The names of the runs that were left out: they have no validation curve, or no times in timings.jsonl.

    Raises InputError if no run has a curve, or a panel has more than `LIMIT`.
    """
    panels: dict[tuple[str, str], dict[str, list]] = {}
    absent = []
    for record in records:
        each = ((unit, _points(pathlib.Path(record['folder']), unit, x)) for unit in UNITS)
        unit, points = next(((unit, points) for unit, points in each if points), ('', []))
        if not points:
            absent.append(record['name'])
            continue
        task = record.get('task.name', 'text') if unit == 'loss' else ''
        panels.setdefault((unit, task), {})[record['name']] = points
    if not panels:
        raise InputError('no run has a validation curve in metrics.jsonl: there is nothing to plot')
    if (count := max(map(len, panels.values()))) > LIMIT:
        raise InputError(f'{count} curves cannot be told apart: choose at most {LIMIT} with --filter')
    ordered = sorted(panels, key=lambda panel: [*UNITS].index(panel[0]))  # otherwise in the order of the runs
    labels = [UNITS[unit].format(f' of {task}' if task else '') for unit, task in ordered]
    _draw(dict(zip(labels, map(panels.get, ordered), strict=True)), path, AXES[x])
    return absent


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


def _draw(panels: dict[str, dict[str, list]], path: pathlib.Path, x_label: str) -> None:
    """Draws {label of the y axis: {name of a run: its points}}, one panel above the other."""
    import matplotlib  # late: half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    least = 4.5 if len(panels) == 1 else 3.0
    heights = [max(least, 0.9 + 0.21 * len(curves)) for curves in panels.values()]
    with matplotlib.rc_context({'font.size': 10, 'font.family': 'DejaVu Sans', 'svg.hashsalt': 'lmtrain'}):
        figure = Figure(figsize=(10, sum(heights)), dpi=150, layout='constrained')
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for axes, (label, curves) in zip(grid.flat, panels.items(), strict=True):
            _draw_panel(axes, curves)
            axes.set_xlabel(x_label)
            axes.set_ylabel(label)
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)


def _draw_panel(axes, curves: dict[str, list]) -> None:
    ends = sorted(curves, key=lambda name: curves[name][-1][1], reverse=True)  # the legend in the curves' order
    for index, name in enumerate(ends):
        colour, line = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS)]
        label = f'{terminal.printable(name)[-40:]}  {curves[name][-1][1]:.3f}'.replace('$', r'\$').lstrip('_')
        marker = {'marker': 'o', 'markersize': 3.5, 'linewidth': 1.6, 'linestyle': line}
        axes.plot(*zip(*curves[name], strict=True), color=colour, label=label, **marker)
    _scale_places(axes, [place for points in curves.values() for place, _ in points])
    values = [value for points in curves.values() for _, value in points]
    # The steep first tenth of long curves is left out.
    low, high = min(values), max(max(value for _, value in own[len(own) // 10 :]) for own in curves.values())
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.grid(color='#e8e8e8', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _scale_places(axes, places: Sequence[float]) -> None:
    """Scales the axis of steps, seconds or FLOPs: logarithmic if it spans a factor of 20; steps have whole ticks."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    positive = [place for place in places if place > 0]
    logarithmic = bool(positive) and max(positive) >= 20 * min(positive)
    if logarithmic:
        axes.set_xscale('log')
        axes.xaxis.set_minor_formatter(NullFormatter())
    if max(places) >= 1e6:
        return
    if logarithmic:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif all(float(place).is_integer() for place in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:,g}')
