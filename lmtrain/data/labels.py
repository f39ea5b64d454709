"""Names of classes: from the labels of rows to the numbers that a head predicts, and how often each occurs."""

import collections
import functools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lmtrain.errors import InputError

NUMBER = r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|true|false'  # JSON's truth values are numbers in csv and parquet
SHOWN = 12  # classes that are listed with their counts


class Classes(NamedTuple):
    """The classes of a task in the order of their numbers.

    Attributes:
      kept: whether they are the classes of the base in its order, so that its head goes on.
      notes: what a person should know about the choice.
    """

    names: tuple[str, ...]
    kept: bool
    notes: tuple[str, ...]


def choose(values: Iterable[tuple[str, Any]], wanted: Sequence[str], base: Sequence[str]) -> Classes:
    """The classes of training rows, given as (place, label).

    The order is `wanted` if it is given; else that of `base` if it has the same names (letter case and blanks at the
    ends aside), or if the rows number its classes from 0; else sorted.

    Args:
      wanted: config.task.labels, or ().
      base: the classes of the base's own head, or (). transformers calls them LABEL_0, LABEL_1, ... if nobody named
        them: the names of numbered classes 0, 1, ..., and of those that `wanted` names in that order.

    Raises ValueError naming the place of a label that is neither a name nor a number.
    """
    wanted, base = tuple(wanted), tuple(base)
    unnamed = base == tuple(f'LABEL_{i}' for i in range(len(base)))
    if wanted:
        kept = len(wanted) == len(base) if unnamed else [*map(_folded, wanted)] == [*map(_folded, base)]
        return Classes(wanted, bool(base) and kept, () if kept or not base else (_anew(wanted, base, unnamed),))
    names = classes(values)
    if not base:
        return Classes(names, False, ())
    numbers = {str(i) for i in range(len(base))}
    if set(names) <= numbers and (unnamed or not _numbered(base)):
        if unnamed:
            return Classes(tuple(map(str, range(len(base)))), True, ())
        meanings = ', '.join(f'{i} is {name!r}' for i, name in enumerate(base[:SHOWN]))
        return Classes(base, True, (f'labels are numbers of the classes of the base: {meanings}',))
    folded = {_folded(name): name for name in names}
    if len(folded) == len(names) == len(base) and folded.keys() == set(map(_folded, base)):
        return Classes(tuple(folded[_folded(name)] for name in base), True, ())
    return Classes(names, False, (_anew(names, base, unnamed),))


def _anew(names: Sequence[str], base: Sequence[str], unnamed: bool) -> str:
    same = sorted(map(_folded, names)) == sorted(map(_folded, base))
    what = 'in another order' if same else 'others'
    way = 'leave task.labels empty' if same else f'task.labels = {tuple(base[:SHOWN])} keeps it'
    if unnamed:
        way = f'task.labels names its {len(base)} classes in their order' if len(names) == len(base) else ''
    elif len(base) > SHOWN:
        way = ''
    return f'the classes of the base are {what}: its head is drawn anew' + (f' ({way})' if way else '')


def _folded(name: str) -> str:
    return name.strip().casefold()


def classes(values: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """The names of the classes among (place, label): whole numbers in their order (1.0 is 1), else sorted."""
    names = {_name(value, place) for place, value in values}
    whole = {_whole(name) for name in names}
    return tuple(sorted(names)) if '' in whole else tuple(sorted(whole, key=int))


def class_of(value: Any, names: tuple[str, ...], place: str) -> int:
    """The number of a class, given by its name, or by its number if no name is a number or a truth value.

    A label has the same meaning in all formats: 1, 1.0 and '1' name one class, and so do true and 'True'.

    Raises ValueError naming the place, the label and the classes.
    """
    name = _name(value, place)
    if name in names:
        return names.index(name)
    if value_of_name := _whole(name) or _truth(name):
        alike = [i for i, other in enumerate(names) if (_whole(other) or _truth(other)) == value_of_name]
        if len(alike) == 1:
            return alike[0]
    if (whole := _whole(name)) and not _numbered(names) and 0 <= int(whole) < len(names):
        return int(whole)
    known = ', '.join(map(repr, names[:SHOWN])) + ', ...' * (len(names) > SHOWN)
    raise InputError(f'{place}: the label {value!r} is none of the {len(names)} classes: {known}')


def _name(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and math.isfinite(value) or isinstance(value, str) and value.strip():
        return str(value)
    raise InputError(f'{place}: a label is a name or a number, here it is {value!r}')


def _whole(name: str) -> str:
    """'1' for '1' and '1.0'; '' for all else, '01' too, which is a name."""
    match = re.fullmatch(r'(-?[1-9]\d*|0)(\.0+)?', name, re.ASCII)
    return match[1] if match else ''


def _truth(name: str) -> str:
    """'true' for 'True', 'false' for 'FALSE'; '' for all else."""
    return name.lower() if name.lower() in ('true', 'false') else ''


@functools.lru_cache(maxsize=8)
def _numbered(names: tuple[str, ...]) -> bool:
    return any(re.fullmatch(NUMBER, name.strip(), re.ASCII | re.IGNORECASE) for name in names)


def counted(names: Sequence[str], numbers: Iterable[int]) -> list[str]:
    """Lines for a person: how often each class occurs, and which classes differ only in blanks or case."""
    counts = collections.Counter(numbers)
    if len(names) <= SHOWN:
        text = ', '.join(f'{_shown(name)} {counts[i]:,}' for i, name in enumerate(names))
    else:
        order = [i for i, _ in counts.most_common()] + [i for i in range(len(names)) if i not in counts]
        few = [f'{_shown(names[i])} {counts[i]:,}' for i in (*order[:3], *order[-3:])]
        text = f'{len(names)}, from {", ".join(few[:3])} to {", ".join(few[3:])}'
    lines = [f'classes: {text}']
    alike = collections.defaultdict(list)
    for name in names:
        alike[' '.join(name.split()).casefold()].append(name)
    for same in alike.values():
        if len(same) > 1:
            lines.append(f'WARNING: {len(same)} classes differ only in blanks or case: {", ".join(map(repr, same))}')
    return lines


def _shown(name: str) -> str:
    return name if name == ' '.join(name.split()) else repr(name)
