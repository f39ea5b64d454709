"""The parts of a page, which the templates lay out as HTML and as markdown."""

from typing import NamedTuple

from lmtrain.compare.pages import values
from lmtrain.compare.pages.plots import Panel

HIGHER, LOWER = ' ↑', ' ↓'  # after the title of a column: which direction is better


class Column(NamedTuple):
    """`numeric`: aligned at the right."""

    title: str
    numeric: bool = True


class Cell(NamedTuple):
    """`span`: (low, middle, high) in percent of the width of a small interval plot; `bar`: of a bar."""

    text: str
    strong: bool = False
    span: tuple[float, float, float] | None = None
    bar: float | None = None
    kind: str = ''  # of an arm


class Paragraph(NamedTuple):
    text: str
    type: str = 'text'


class Bullets(NamedTuple):
    lines: list[str]
    type: str = 'bullets'


class Facts(NamedTuple):
    """[(label, text)]."""

    facts: list[tuple[str, str]]
    type: str = 'facts'


class Table(NamedTuple):
    """`marked`: index of the row of the recommended arm; `summary`: if set, the table is folded under this title."""

    columns: list[Column]
    rows: list[list[Cell]]
    marked: int | None = None
    summary: str = ''
    type: str = 'table'


class Figures(NamedTuple):
    """Panels beside each other; `small`: several on a phone."""

    panels: list[Panel]
    small: bool = False
    type: str = 'figures'


class Section(NamedTuple):
    name: str  # of its anchor
    title: str
    blocks: list


def arm_cell(results: values.Results, arm: str, strong: bool = False) -> Cell:
    return Cell(arm, strong, kind=values.kind(results, arm))


def table(results: values.Results, arms: list[str], columns: list[tuple[str, list[Cell]]], **options) -> Table:
    """A table with a row for each arm, from (title, cells) of the columns after the first."""
    names = [arm_cell(results, arm) for arm in arms]
    rows = [list(row) for row in zip(names, *(cells for _, cells in columns))]
    return Table([Column('arm', numeric=False), *(Column(title) for title, _ in columns)], rows, **options)


def lowest(cells: list[tuple[float | None, str]]) -> list[Cell]:
    """Cells of (value, text); the lowest are strong, unless all are equal."""
    numbers = [value for value, _ in cells if value is not None]
    return [Cell(text, value is not None and value == min(numbers) < max(numbers)) for value, text in cells]
