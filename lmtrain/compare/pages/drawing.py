"""SVG figures by matplotlib in the colours of the page, which follow its light or dark scheme."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

# The colours that a figure is drawn in, and those of the dark scheme; the page defines a CSS variable for each.
# Prompted and trained arms differ in hue, by Okabe and Ito's blue and vermilion, and in the shape of their markers.
COLOURS = {
    'ink': ('#1b1f24', '#e8eaed'),
    'dim': ('#5c6570', '#a3abb5'),
    'faint': ('#c3c9d0', '#4a525c'),
    'grid': ('#e3e6ea', '#2c3138'),
    'surface': ('#fefefe', '#16191d'),
    'prompt': ('#0067a5', '#5ab4ee'),
    'train': ('#c44a00', '#f5924a'),
}
INK, DIM, FAINT, GRID, SURFACE = (COLOURS[name][0] for name in ('ink', 'dim', 'faint', 'grid', 'surface'))
MARKERS = {'prompt': 'o', 'train': 's'}
NAME = 16  # characters
FONT = 11  # CSS pixels at the natural size of a figure


def colour(kind: str) -> str:
    """Of an arm of a kind."""
    return COLOURS[kind][0] if kind in MARKERS else INK


def variables(dark: bool) -> str:
    """CSS that sets the variable of each colour."""
    return ' '.join(f'--{name}: {pair[dark]};' for name, pair in COLOURS.items())


def axes(width: float, height: float, *, left: float = 40, right: float = 8, top: float = 22, bottom: float = 34):
    """Axes without a frame, of a figure of `width` x `height` CSS pixels with margins in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: half a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    figure.patch.set_visible(False)
    result = figure.add_subplot()
    result.patch.set_visible(False)
    result.spines[['top', 'right', 'left']].set_visible(False)
    result.spines['bottom'].set_color(FAINT)
    result.tick_params(colors=DIM, labelsize=FONT - 1, length=3, pad=3)
    result.tick_params(axis='y', length=0)
    result.tick_params(which='minor', length=0)
    result.grid(axis='y', color=GRID, linewidth=0.8)
    result.set_axisbelow(True)
    return result


def caption(ax, text: str) -> None:
    """A title at the left."""
    ax.set_title(text, loc='left', fontsize=FONT + 0.5, color=INK, fontweight='bold', x=0)


def note(ax, text: str, loc: str = 'left') -> None:
    """A label of the x axis."""
    ax.set_xlabel(text, color=DIM, fontsize=FONT - 1, loc=loc, labelpad=2)


def short(name: str) -> str:
    """The name of an arm in a plot; the tables have the whole one."""
    return name if len(name) <= NAME else f'{name[: NAME - 1]}…'


def point_at(ax, x: float, y: float, text: str, offset: tuple[float, float]) -> None:
    """A text at the right of a point of the data, with a thin line to it."""
    line = {'arrowstyle': '-', 'color': FAINT, 'linewidth': 0.8, 'shrinkA': 1, 'shrinkB': 2}
    style = {'textcoords': 'offset points', 'va': 'center', 'fontsize': FONT - 1, 'color': INK}
    ax.annotate(text, (x, y), offset, arrowprops=line, annotation_clip=False, **style)


class Label(NamedTuple):
    """A text beside the point (x, y) of the data, in a colour. `required`: it is written even if it covers another."""

    x: float
    y: float
    text: str
    colour: str
    required: bool


def place_labels(ax, labels: Sequence[Label], points: Sequence, lines: Sequence) -> None:
    """Writes labels beside their points so that none covers another, a point or the frame, nor a line if possible.

    Each takes the best of eight places. A label that is not required takes a place at the right or the left of its
    point, where the reader cannot take it for that of another, and is left out if both are taken.

    Args:
      labels: earlier ones choose first.
      points: (x, y) of all points.
      lines: (x, y) of both ends of horizontal and vertical lines.
    """
    renderer = ax.figure.canvas.get_renderer()
    inside = ax.get_window_extent(renderer)
    taken = [(x - 3, y - 4, x + 3, y + 4) for x, y in ax.transData.transform(list(points))]
    strokes = [ax.transData.transform(ends).ravel() for ends in lines]
    for label in labels:
        probe = ax.text(0, 0, label.text, fontsize=FONT - 1)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        left, low = ax.transData.transform(label[:2])
        boxes = [_box(left, low, extent.width, extent.height, place) for place in PLACES]
        hard = [sum(_overlap(box, other) for other in taken) + _outside(box, inside) for box in boxes]
        soft = [sum(_overlap(box, (a - 1, b - 1, c + 1, d + 1)) for a, b, c, d in strokes) for box in boxes]
        best = min(range(len(PLACES) if label.required else 2), key=lambda place: (hard[place], soft[place]))
        if hard[best] and not label.required:
            continue
        taken.append(boxes[best])
        dx, dy = PLACES[best]
        style = {'ha': ('right', 'center', 'left')[dx + 1], 'va': ('top', 'center', 'bottom')[dy + 1]}
        style |= {'textcoords': 'offset points', 'fontsize': FONT - 1, 'color': label.colour}
        ax.annotate(label.text, label[:2], (GAP * dx, 5 * dy), annotation_clip=False, **style)


GAP = 7  # CSS pixels between a point and its label
PLACES = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


def _box(x: float, y: float, width: float, height: float, place: tuple[int, int]) -> tuple[float, float, float, float]:
    """The pixels of a label beside the point (x, y)."""
    dx, dy = place
    left = x + GAP * dx - width * (1 - dx) / 2
    low = y + 5 * dy - height * (1 - dy) / 2
    return left, low, left + width, low + height


def _overlap(one, other) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _outside(box, frame) -> float:
    """How far a box reaches over the frame, weighted so that it rather covers something inside."""
    over = (frame.x0 - box[0], box[2] - frame.x1, frame.y0 - box[1], box[3] - frame.y1)
    return sum(50.0 * max(0.0, amount) for amount in over)


def spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Moves heights downwards until neighbours are `distance` apart; keeps their order.

    >>> spread_out([1.0, 5.0, 5.0], 2.0)
    [1.0, 5.0, 3.0]
    """
    moved, highest = list(heights), math.inf
    for index in sorted(range(len(heights)), key=lambda index: -heights[index]):
        highest = moved[index] = min(heights[index], highest - distance)
    return moved


@contextlib.contextmanager
def settings():
    """Matplotlib's settings for all figures of a page: names of arms are no formulas, texts stay texts."""
    import matplotlib  # late: half a second

    names = {'svg.fonttype': 'none', 'svg.hashsalt': 'lmtrain', 'text.parse_math': False, 'font.family': 'DejaVu Sans'}
    with matplotlib.rc_context(names), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')  # the reader's browser has its own fonts
        yield


def svg(ax, name: str) -> str:
    """The figure of `ax` as an <svg> element. `name` begins its ids, which are unique in the page."""
    stream = io.StringIO()
    ax.figure.savefig(stream, format='svg', metadata={'Date': None}, transparent=True)
    text = stream.getvalue()
    text = re.sub(r'(?s)^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>', '', text)
    text = re.sub(r"font-family: 'DejaVu Sans'[^;]*; | transform=\"rotate\(-0 [^)]*\)\"", '', text)
    text = re.sub(r'\bid="|(?<=href=")#|(?<=url\()#', lambda match: f'{match[0]}{name}-', text)
    for key, (shade, _) in COLOURS.items():
        text = text.replace(shade, f'var(--{key}, {shade})')
    return re.sub(r'\n\s*', '\n', text).strip()


def standalone(text: str) -> str:
    """An SVG file of the element: with a background, and colours that follow the scheme of the reader."""
    style = (
        f'<style>:root {{ {variables(dark=False)} font-family: system-ui, sans-serif; background: var(--surface) }} '
    )
    style += f'@media (prefers-color-scheme: dark) {{ :root {{ {variables(dark=True)} }} }}</style>'
    head, _, rest = text.partition('>')
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>\n{style}{rest}\n'
