"""The calibration of a reward model: a table and a reliability diagram for report.md."""

import pathlib
from collections.abc import Mapping
from typing import Any

from lmtrain.report import terminal

FILE = 'calibration.png'


def section(calibration: Mapping[str, Any], folder: pathlib.Path) -> str:
    """The section of a report, in Markdown; writes the diagram into `folder`.

    Args:
      calibration: {'error': expected calibration error, 'bins': [{'pairs', 'confidence', 'accuracy'}]}, of pairs by
        the probability that the model gives to the side with the higher score.
    """
    bins = calibration['bins']
    _draw(bins, folder / FILE)
    rows = [f'| {each["confidence"]:.3f} | {each["accuracy"]:.3f} | {each["pairs"]:,} |' for each in bins]
    total = terminal.counted(sum(each['pairs'] for each in bins), 'pair')
    return '\n'.join(
        [
            f'Expected calibration error {calibration["error"]:.4f} over {total}. If a model is calibrated, the share '
            'of right choices is the predicted probability.',
            '',
            f'![share of right choices over predicted probability]({FILE})',
            '',
            '| predicted probability | share of right choices | pairs |',
            '|---|---|---|',
            *rows,
        ]
    )


def _draw(bins, path: pathlib.Path) -> None:
    import matplotlib  # late: half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = sum(each['pairs'] for each in bins)
    with matplotlib.rc_context({'font.size': 10, 'font.family': 'DejaVu Sans'}):
        figure = Figure(figsize=(5, 4.5), dpi=150, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot([0.5, 1], [0.5, 1], color='#808080', linewidth=1, linestyle=(0, (4, 3)), label='calibrated')
        axes.plot(*_points(bins), color='#1f5fa8', linewidth=1.5, label='validation pairs')
        axes.scatter(
            *_points(bins), [300 * each['pairs'] / total + 10 for each in bins], color='#1f5fa8', clip_on=False
        )
        axes.set_xlim(0.5, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel('predicted probability of the choice')
        axes.set_ylabel('share of right choices')
        axes.grid(color='#e8e8e8', linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(loc='lower right', frameon=False)
        figure.savefig(path)


def _points(bins) -> tuple[list[float], list[float]]:
    return [each['confidence'] for each in bins], [each['accuracy'] for each in bins]
