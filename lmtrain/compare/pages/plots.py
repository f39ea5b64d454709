"""The plots of a comparison, as small SVG panels: Pareto fronts, accuracy over rows, sensitivity, break-even."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lmtrain.compare.pages import drawing, pareto, values
from lmtrain.compare.pages.drawing import DIM, FAINT, INK, MARKERS, SURFACE, colour
from lmtrain.compare.pages.values import Results
from lmtrain.report import terminal

PANEL = (344, 264)  # CSS pixels: three beside each other on a wide page, one on a phone
WIDE = 400
SMALL = (176, 140)


class Panel(NamedTuple):
    """A figure: `name` of its file and ids, `text` for readers who do not see it."""

    name: str
    svg: str
    text: str


def fronts(results: Results, size: int, costs: Sequence[tuple[str, str, str]]) -> list[Panel]:
    """Accuracy against each cost with at least two different values.

    Args:
      costs: (field of `pareto.points`, label, unit; '' for a count).
    """
    panels = []
    for field, title, unit in costs:
        points = pareto.points(results, size, field)
        if len({point.cost for point in points}) > 1:
            panels.append(_front(results, points, field, title, unit))
    return panels


def _front(results: Results, points: list[pareto.Point], field: str, title: str, unit: str) -> Panel:
    ax = drawing.axes(*PANEL)
    drawing.caption(ax, title)
    ranks = pareto.classes(results, points)
    place = _cost_axis(ax, [point.cost for point in points], unit, every=field == 'rows')
    best = sorted((point for point in points if ranks[point] == pareto.FRONT), key=lambda point: point.cost)
    steps = [place(point.cost) for point in best], [100 * point.accuracy for point in best]
    ax.step(*steps, where='post', color=FAINT, linewidth=1.2, zorder=1)
    shown = points if field != 'rows' else best  # the others of all sizes are in the plots of accuracy over rows
    spans = {point: [100 * end for end in point.interval] for point in shown if point.interval}
    shades = {
        point: FAINT if rank == pareto.DOMINATED else colour(values.kind(results, point.arm))
        for point, rank in ranks.items()
    }
    for point, span in spans.items():
        ax.plot([place(point.cost)] * 2, span, color=shades[point], linewidth=1, alpha=0.55, zorder=2)
    for point in sorted(points, key=lambda point: (ranks[point] == pareto.FRONT, ranks[point] == pareto.CLOSE)):
        fill = shades[point] if ranks[point] == pareto.FRONT else SURFACE
        style = {'markersize': 6.5, 'markerfacecolor': fill, 'markeredgecolor': shades[point], 'markeredgewidth': 1.3}
        marker = MARKERS[values.kind(results, point.arm)]
        ax.plot(place(point.cost), 100 * point.accuracy, marker=marker, zorder=3, clip_on=False, **style)
    _accuracy_axis(ax, [*itertools.chain(*spans.values()), *(100 * point.accuracy for point in points)])
    drawing.note(ax, '← less is better')
    first = [point for before, point in zip([None, *best], best) if before is None or before.arm != point.arm]
    named = first[::-1] + [point for point in shown if ranks[point] == pareto.CLOSE]
    labels = [
        drawing.Label(
            place(point.cost),
            100 * point.accuracy,
            drawing.short(point.arm),
            INK if point in best else DIM,
            required=point in best,
        )
        for point in named
    ]
    lines = [[(place(point.cost), end) for end in span] for point, span in spans.items()]
    lines += [[(x, y), (end, y)] for (x, end), y in zip(itertools.pairwise(steps[0]), steps[1])]
    drawing.place_labels(ax, labels, [(place(point.cost), 100 * point.accuracy) for point in points], lines)
    names = values.listed(list(dict.fromkeys(point.arm for point in best)))
    return Panel(
        f'front-{field}', drawing.svg(ax, f'front-{field}'), f'Accuracy against {title}; on the front: {names}.'
    )


def _cost_axis(ax, costs: list[float], unit: str, every: bool) -> Callable[[float], float]:
    """Scales x logarithmically, with a place at the left for 0; returns the function from a cost to its place.

    Args:
      every: whether each cost has a tick; else there are ticks at powers of ten.
    """
    positive = sorted({cost for cost in costs if cost > 0}) or [1.0]
    low, high = math.log10(positive[0]), math.log10(positive[-1])
    width = max(high - low, 0.3)
    zero = low - 0.2 * width

    def place(cost: float) -> float:
        return math.log10(cost) if cost > 0 else zero

    powers = [10.0**power for power in range(math.ceil(low - 0.05 * width), math.floor(high + 0.05 * width) + 1)]
    ticks = positive if every else powers if len(powers) > 1 else [positive[0], positive[-1]]
    ticks = ticks[:: math.ceil(len(ticks) / 5)]  # at most five
    has_zero = 0 in costs
    ticks = [0.0, *ticks] if has_zero else ticks
    ax.set_xticks([place(cost) for cost in ticks], [_tick(cost, unit) for cost in ticks])
    ax.set_xlim((zero if has_zero else low) - 0.08 * width, high + 0.14 * width)
    return place


def _tick(cost: float, unit: str) -> str:
    if not cost:
        return '0'
    if unit == 's':
        return values.seconds(cost)
    return _short(cost, terminal.SI if unit else terminal.COUNTS)


def _short(value: float, prefixes: tuple[str, ...] = terminal.COUNTS) -> str:
    """A number without zeros at its end.

    >>> _short(1000), _short(1500), _short(96)
    ('1k', '1.5k', '96')
    """
    digits, prefix = re.fullmatch(r'(.*?)([a-zA-Z]*)', terminal.number(value, prefixes)).groups()
    return (digits.rstrip('0').rstrip('.') if '.' in digits else digits) + prefix


def _accuracy_axis(ax, heights: list[float]) -> None:
    """Scales y to heights in percent; the labels of the ticks have the sign of percent."""
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 5.0
    ax.set_ylim(max(-2.0, low - margin), min(102.0, high + margin))
    ax.yaxis.set_major_locator(_locator(5))
    ax.yaxis.set_major_formatter(lambda value, _: f'{value:g} %')


def _locator(bins: int):
    from matplotlib.ticker import MaxNLocator  # late: half a second

    return MaxNLocator(bins, steps=[1, 2, 5, 10])


def efficiency(results: Results) -> list[Panel]:
    """Accuracy over the number of training rows: one panel for each arm, the others grey behind it."""
    curves: dict[str, list[dict]] = {}
    for entry in results.get('summary') or []:
        if entry.get('accuracy') is not None:
            curves.setdefault(entry['arm'], []).append(entry)
    sizes = [size for size in values.sizes(results) if size]
    if len(sizes) < 2:
        return []
    heights = [100 * end for curve in curves.values() for entry in curve for end in values.ends(entry)]
    order = sorted(curves, key=lambda arm: -max(curves[arm], key=lambda entry: entry['size'])['accuracy'])
    return [_curve(results, arm, curves, sizes, heights) for arm in order]


def _curve(results: Results, arm: str, curves: dict[str, list[dict]], sizes: list[int], heights: list[float]) -> Panel:
    ax = drawing.axes(*SMALL, bottom=20)
    drawing.caption(ax, drawing.short(arm))
    shade, texts = colour(values.kind(results, arm)), []
    for name in sorted(curves, key=lambda name: name == arm):
        curve = sorted(curves[name], key=lambda entry: entry['size'])
        if curve[0]['size'] == 0:  # reads no rows: the same at every size
            curve = [curve[0] | {'size': size} for size in (sizes[0], sizes[-1])]
        x = [math.log2(entry['size']) for entry in curve]
        y = [100 * entry['accuracy'] for entry in curve]
        if name != arm:
            ax.plot(x, y, color=FAINT, linewidth=0.7, alpha=0.7, zorder=1)
            continue
        ends = [[100 * end for end in values.ends(entry)] for entry in curve]
        ax.fill_between(x, *zip(*ends), color=shade, alpha=0.18, linewidth=0, zorder=2)
        marker = {'marker': MARKERS[values.kind(results, arm)], 'markersize': 3.5, 'clip_on': False}
        ax.plot(x, y, color=shade, linewidth=1.6, zorder=3, **marker)
        texts = [f'{values.percent(entry["accuracy"])} at {entry["size"]:,}' for entry in curve]
    _accuracy_axis(ax, heights)
    ax.yaxis.set_major_locator(_locator(3))
    shown = sizes[:: max(1, math.ceil(len(sizes) / 4))]
    ax.set_xticks([math.log2(size) for size in shown], [_short(size) for size in shown])
    ax.set_xlim(math.log2(sizes[0]) - 0.4, math.log2(sizes[-1]) + 0.4)
    ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]])
    index = list(curves).index(arm)
    return Panel(f'rows-{index}', drawing.svg(ax, f'rows-{index}'), f'{arm}: {values.listed(texts)} rows.')


def sensitivity(results: Results, arms: Mapping[str, Mapping]) -> list[Panel]:
    """The spread of the accuracy of prompted arms over demonstrations, orders and templates.

    Args:
      arms: of results['sensitivity'], with a mean.
    """
    ax = drawing.axes(WIDE, 44 + 34 * len(arms), left=16 + 6 * max(len(drawing.short(arm)) for arm in arms), top=6)
    ax.grid(axis='y', visible=False)
    ax.grid(axis='x', color=drawing.GRID, linewidth=0.8)
    order, texts = sorted(arms, key=lambda arm: arms[arm]['mean']), []
    for height, arm in enumerate(order):
        spread, shade = arms[arm], colour(values.kind(results, arm))
        quantiles = sorted((float(name), 100 * value) for name, value in (spread.get('quantiles') or {}).items())
        if ends := [100 * spread[end] for end in ('worst', 'best') if spread.get(end) is not None]:
            ax.plot(ends, [height] * len(ends), color=FAINT, linewidth=1.2, marker='|', markersize=8, zorder=1)
            texts.append(f'{arm} from {ends[0]:.1f} to {ends[-1]:.1f} %')
        for outer, width in ((0, 3.5), (1, 8)):
            if len(quantiles) > 2 * outer + 1:
                span = [quantiles[outer][1], quantiles[-1 - outer][1]]
                ax.plot(span, [height] * 2, color=shade, linewidth=width, alpha=0.35, solid_capstyle='butt', zorder=2)
        ax.plot(100 * spread['mean'], height, marker='o', markersize=6.5, color=shade, zorder=4)
    ax.set_yticks(range(len(order)), map(drawing.short, order))
    ax.tick_params(axis='y', labelcolor=INK)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.xaxis.set_major_locator(_locator(6))
    ax.xaxis.set_major_formatter(lambda value, _: f'{value:g} %')
    drawing.note(ax, 'accuracy, more is better →', loc='right')
    return [Panel('sensitivity', drawing.svg(ax, 'sensitivity'), f'Spread of accuracy: {"; ".join(texts)}.')]


def break_even(results: Results, entries: Sequence[dict], anchor: str) -> list[Panel]:
    """The number of queries at which two arms cost the same, over the ratio of prices.

    Args:
      entries: of results['break_even'], all with the arm `anchor`.
    """
    lines = {}
    for entry in entries:
        curve = sorted((ratio, count) for ratio, count in entry.get('curve') or [] if min(ratio, count or 0) > 0)
        if len(curve) > 1:
            lines[entry['prompt'] if entry['trained'] == anchor else entry['trained']] = curve
    if not lines:
        return []
    ax = drawing.axes(WIDE, PANEL[1], right=24 + 6 * max(len(drawing.short(name)) for name in lines))
    name = drawing.short(anchor)
    title = f'Queries until {name} is cheaper than'
    if values.is_prompt(results, anchor):
        title = f'Queries until it is cheaper than {name}'
    drawing.caption(ax, title)
    ends, texts = [], []
    for name, curve in lines.items():
        ax.plot(*zip(*curve), color=colour(values.kind(results, name)), linewidth=1.6)
        ends.append(math.log10(curve[-1][1]))
        texts.append(f'{name} {values.count(curve[0][1])} to {values.count(curve[-1][1])} queries')
    ax.set_xscale('log')
    ax.set_yscale('log')
    ax.minorticks_off()
    ax.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
    low, high = (math.log10(limit) for limit in ax.get_ylim())
    pixels = ax.get_window_extent().height / (high - low)
    heights = drawing.spread_out([end * pixels for end in ends], 14)
    for (name, curve), height, end in zip(lines.items(), heights, ends):
        drawing.point_at(ax, *curve[-1], drawing.short(name), (14, height - end * pixels))
    ax.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    ax.yaxis.set_major_formatter(lambda value, _: terminal.number(value, significant=1))
    drawing.note(ax, 'price of a FLOP of creation, in FLOPs of queries')
    return [Panel('break-even', drawing.svg(ax, 'break-even'), f'{title}: {"; ".join(texts)}.')]
