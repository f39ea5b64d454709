"""The plot of a run: training and validation loss (or reward) over steps, with the baselines of the same text."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmtrain.report import evaluations

OFF_SCALE = 3.0  # heights of the curves: farther baselines are not part of the plot

COLOURS = ('#d1491b', '#2e8b57', '#8e5ea2', '#c9a227', '#3aa6b9', '#7f7f7f', '#b5446e')
MARKER = {'marker': 'o', 'markersize': 4, 'clip_on': False}


def plot(
    lines: list[dict[str, Any]],
    baselines: Mapping[str, float],
    path: pathlib.Path,
    swept: Mapping[str, Any] | None = None,
    train_split: Mapping[str, int] | None = None,
) -> bool:
    """Plots training and validation loss over steps into `path`; False, without a file, for under two training points.

    The unit is bits per byte if an evaluation gives the ratio of tokens to bytes, else nats per token. Of a policy,
    whose loss says little, it is the reward.

    Args:
      lines: of metrics.jsonl.
      baselines: {name: bits per byte}.
      swept: 'sweep' of results.json, of a sweep: each learning rate has its own validation curve.
      train_split: 'tokens' and 'bytes' of the training text, whose tokens are longer if the tokenizer is learned from
        it; None takes their ratio from the last evaluation.
    """
    rewarded = evaluations.of_policy(lines)
    measure = 'reward' if rewarded else 'loss'
    train = _training(lines, measure)
    if len(train) < 2:
        return False
    import matplotlib  # late: half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = f'validation_{measure}'
    evaluated = [line for line in lines if name in line and (rewarded or 0 < float(line[name]) < math.inf)]
    unit = 'bits_per_byte' if evaluated and 'validation_bits_per_byte' in evaluated[-1] else measure
    scale = evaluated[-1][f'validation_{unit}'] / evaluated[-1][name] if evaluated and not rewarded else 1.0
    if train_split and unit == 'bits_per_byte':
        scale = train_split['tokens'] / train_split['bytes'] / math.log(2)
    steps, losses = [step for step, _ in train], [loss * scale for _, loss in train]
    smooth = _smooth(losses)
    validation = [line[f'validation_{unit}'] for line in evaluated]
    references = sorted(baselines.items(), key=lambda item: item[1]) if evaluated else []
    by_rate = _by_rate(evaluated, f'validation_{unit}', swept) if swept else {}
    drawn = validation + [value for values in by_rate.values() for value in values if math.isfinite(value)]
    low, high = _value_range(losses, smooth, drawn, [value for _, value in references])
    with matplotlib.rc_context({'font.size': 10, 'font.family': 'DejaVu Sans'}):
        figure = Figure(figsize=(8, 4.5), dpi=150, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(steps, losses, color='#bcd6ee', linewidth=0.7)
        axes.plot(steps, smooth, color='#1f5fa8', linewidth=1.8, label='training' + ', best rate' * bool(by_rate))
        if evaluated:
            _draw_validation(axes, evaluated, validation, by_rate)
        axes.set_ylim(low, high)
        if rewarded:
            axes.set_xlim(0, steps[-1])  # a policy is evaluated before its first step
        else:
            _scale_steps(axes, steps, smooth, high)
        _draw_baselines(axes, references, low, high)
        _label(axes, {'bits_per_byte': 'bits per byte', 'reward': 'mean reward'}.get(unit, 'loss, nats'), rewarded)
        figure.savefig(path)
    return True


def _training(lines: list[dict[str, Any]], measure: str) -> list[tuple[int, float]]:
    """[(step, reward, or loss in nats)] of the training lines, of the finite ones."""
    values = [
        (line['step'], float(line['reward'] if measure == 'reward' else line.get('nats', line['loss'])))
        for line in lines
        if {'loss', measure} <= line.keys()
    ]
    return [(step, value) for step, value in values if math.isfinite(value)]


def _label(axes, unit: str, rising: bool) -> None:
    """Labels, grid and legend; `rising`: the curves end at the top, so the legend is at the lower right."""
    axes.set_xlabel('step')
    axes.set_ylabel(unit)
    axes.grid(color='#e8e8e8', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(loc='lower right' if rising else 'lower left', facecolor='white', edgecolor='none', framealpha=1.0)


def _draw_validation(axes, lines: list[dict[str, Any]], values: list[float], by_rate: Mapping[float, list[float]]):
    """The validation curve, with a ring at the best step by loss; of a sweep one for each learning rate."""
    at = [line['step'] for line in lines]
    for colour, (rate, of_rate) in zip(itertools.cycle(COLOURS), by_rate.items()):
        axes.plot(at, of_rate, color=colour, linewidth=1.2, label=f'validation, rate {rate:g}', **MARKER)
    if by_rate:
        return
    best = at.index(evaluations.best(evaluations.losses(lines)))
    label = f'validation, best at step {at[best]:,}' if len(at) > 1 else 'validation'
    axes.plot(at, values, color=COLOURS[0], linewidth=1.5, label=label, **MARKER)
    axes.plot(at[best], values[best], color=COLOURS[0], **MARKER | {'markersize': 9, 'fillstyle': 'none'})


def _by_rate(lines: list[dict[str, Any]], name: str, swept: Mapping[str, Any]) -> dict[float, list[float]]:
    """{learning rate: the mean of a value over its members, for each line}; {} if a sweep has one rate."""
    members = evaluations.by_rate([row['learning_rate'] for row in swept['members']])
    listed = [line[f'{name}_members'] for line in lines if f'{name}_members' in line]
    if len(members) == 1 or len(listed) < len(lines):
        return {}
    return {
        rate: [sum(float(values[index]) for index in indices) / len(indices) for values in listed]
        for rate, indices in members.items()
    }


def _value_range(
    losses: list[float], smooth: list[float], validation: list[float], baselines: list[float]
) -> tuple[float, float]:
    """The limits of the loss axis, without the steep first tenth of training and baselines that are far off."""
    low = min(smooth + losses[len(losses) // 10 :] + validation)
    high = max([smooth[len(smooth) // 10], *validation])
    span = OFF_SCALE * (high - low)
    near = [value for value in baselines if low - span <= value <= high + span]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _scale_steps(axes, steps: list[int], smooth: list[float], high: float) -> None:
    """Scales the step axis: logarithmic if it spans a factor of 10, from where the curve enters the plot."""
    from matplotlib.ticker import LogLocator, NullFormatter

    first = next((step for step, loss in zip(steps, smooth, strict=True) if loss <= high), steps[0])
    logarithmic = steps[-1] >= 10 * max(first, 1)
    if logarithmic:
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.set_xlim(max(first, 1) if logarithmic else 0, steps[-1])


def _draw_baselines(axes, baselines: Sequence[tuple[str, float]], low: float, high: float) -> None:
    """Horizontal lines, labelled at the right of the plot with a distance of at least 5 % of its height.

    One outside of the plot is labelled with an arrow at the edge.
    """
    span = high - low
    height = -math.inf
    for name, value in baselines:
        arrow = ' ↑' if value > high else ' ↓' if value < low else ''
        if not arrow:
            axes.axhline(value, color='#808080', linewidth=1, linestyle=(0, (4, 3)))
        height = max(min(max(value, low), high), height + 0.05 * span)
        place = {'xy': (1.01, height), 'xycoords': ('axes fraction', 'data'), 'va': 'center'}
        axes.annotate(f'{name} {value:.2f}{arrow}', color='#606060', **place)


def _smooth(values: list[float]) -> list[float]:
    """Exponential average over a fiftieth of the values; over fewer at the beginning, where they fall steeply."""
    smooth = values[:1]
    for index, value in enumerate(values[1:], 1):
        window = max(1.0, min(len(values) / 50, index / 20))
        smooth.append(smooth[-1] + (value - smooth[-1]) / window)
    return smooth
