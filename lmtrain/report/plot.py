"""The picture of a run: training and validation loss over steps, beside what others need for the same text."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any


def plot(lines: list[dict[str, Any]], baselines: Mapping[str, float], path: pathlib.Path) -> bool:
    """Draws training and validation loss over steps into `path`; False, and no file, under two training points.

    The unit is bits per byte where an evaluation tells how many tokens spell a byte, else nats per token.
    """
    train = [(line['step'], float(line.get('nats', line['loss']))) for line in lines if 'loss' in line]
    train = [(step, loss) for step, loss in train if math.isfinite(loss)]
    if len(train) < 2:
        return False
    import matplotlib  # late: half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    evaluated = [line for line in lines if 'validation_loss' in line and 0 < float(line['validation_loss']) < math.inf]
    unit = 'bits_per_byte' if evaluated and 'validation_bits_per_byte' in evaluated[-1] else 'loss'
    scale = evaluated[-1][f'validation_{unit}'] / evaluated[-1]['validation_loss'] if evaluated else 1.0
    steps, losses = [step for step, _ in train], [loss * scale for _, loss in train]
    smooth = _smooth(losses)
    with matplotlib.rc_context({'font.size': 10, 'font.family': 'DejaVu Sans'}):
        figure = Figure(figsize=(8, 4.5), dpi=150, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(steps, losses, color='#bcd6ee', linewidth=0.7)
        axes.plot(steps, smooth, color='#1f5fa8', linewidth=1.8, label='training')
        measured = [line[f'validation_{unit}'] for line in evaluated]
        if evaluated:
            points = [line['step'] for line in evaluated], measured
            axes.plot(
                *points, color='#d1491b', linewidth=1.5, marker='o', markersize=4, label='validation', clip_on=False
            )
        low, high = min(smooth + losses[len(losses) // 10 :] + measured), max([smooth[len(smooth) // 10], *measured])
        shown = sorted(baselines.items(), key=lambda item: item[1]) if evaluated else []
        if shown:
            low, high = min(low, shown[0][1]), max(high, shown[-1][1])
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
        # A logarithmic axis begins where the curve comes into sight: the steep first steps are above it.
        seen = next((step for step, loss in zip(steps, smooth, strict=True) if loss <= high + margin), steps[0])
        if steps[-1] >= 10 * max(seen, 1):
            axes.set_xscale('log')
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
        axes.set_xlim(max(seen, 1) if axes.get_xscale() == 'log' else 0, steps[-1])
        height = -math.inf
        for name, value in shown:
            axes.axhline(value, color='#808080', linewidth=1, linestyle=(0, (4, 3)))
            # Labels stand right of the plot, apart from each other.
            height = max(value, height + 0.05 * (high - low + 2 * margin))
            axes.annotate(
                f'{name} {value:.2f}', (1.01, height), xycoords=('axes fraction', 'data'), va='center', color='#606060'
            )
        axes.set_xlabel('step')
        axes.set_ylabel('bits per byte' if unit == 'bits_per_byte' else 'loss, nats')
        axes.grid(color='#e8e8e8', linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
        axes.legend(loc='lower left', facecolor='white', edgecolor='none', framealpha=1.0)
        figure.savefig(path)
    return True


def _smooth(values: list[float]) -> list[float]:
    """Exponential average over a fiftieth of the values; over less at the beginning, where they fall steeply."""
    smooth = values[:1]
    for index, value in enumerate(values[1:], 1):
        window = max(1.0, min(len(values) / 50, index / 20))
        smooth.append(smooth[-1] + (value - smooth[-1]) / window)
    return smooth
