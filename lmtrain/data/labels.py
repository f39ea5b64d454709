"""Names of classes: from the labels of rows to the ids that a head predicts, and how often each occurs."""

import collections
import decimal
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain.errors import InputError

NUMBER = r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|true|false'  # csv and parquet write truth values as numbers too
SHOWN = 12  # classes that are listed with their counts


class Classes(NamedTuple):
    """The classes of a task in the order of their ids.

    Attributes:
      of_base: whether they are the classes of the base in its order, so that its head is kept.
      notes: lines for the user about this choice.
    """

    names: tuple[str, ...]
    of_base: bool
    notes: tuple[str, ...]


def resolve_classes(labels: Iterable[tuple[str, Any]], names: Sequence[str], base: Sequence[str]) -> Classes:
    """The classes of training rows.

    The order is `names` if it is not empty; else that of `base` if it has the same names (up to letter case and blanks
    at the ends), or if the labels are class ids of the base; else sorted.

    Args:
      labels: (place, label) of each row.
      names: config.task.labels, or ().
      base: the classes of the base's own head, or (). transformers calls them LABEL_0, LABEL_1, ... if nobody named
        them: then they stand for the ids 0, 1, ..., or for as many `names` in their order.

    Raises InputError naming the place of a label that is neither a name nor a number.
    """
    names, base = tuple(names), tuple(base)
    unnamed = base == tuple(f'LABEL_{i}' for i in range(len(base)))
    if names:
        same = len(names) == len(base) if unnamed else [*map(_folded, names)] == [*map(_folded, base)]
        return Classes(names, bool(base) and same, () if same or not base else (_new_head(names, base, unnamed),))
    names = class_names(labels)
    if not base:
        return Classes(names, False, ())
    ids = {str(i) for i in range(len(base))}
    if set(names) <= ids and (unnamed or not _numbered(base)):
        if unnamed:
            return Classes(tuple(map(str, range(len(base)))), True, ())
        meanings = ', '.join(f'{i} is {name!r}' for i, name in enumerate(base[:SHOWN]))
        return Classes(base, True, (f'labels are class ids of the base: {meanings}',))
    folded = {_folded(name): name for name in names}
    if len(folded) == len(names) == len(base) and folded.keys() == set(map(_folded, base)):
        return Classes(tuple(folded[_folded(name)] for name in base), True, ())
    return Classes(names, False, (_new_head(names, base, unnamed),))


def _new_head(names: Sequence[str], base: Sequence[str], unnamed: bool) -> str:
    """The note that the head of the base is not used, and how it would be."""
    reordered = sorted(map(_folded, names)) == sorted(map(_folded, base))
    difference = 'are in another order' if reordered else 'differ'
    way = 'leave task.labels empty' if reordered else f'task.labels = {tuple(base[:SHOWN])} keeps it'
    if unnamed:
        way = f'task.labels names its {len(base)} classes in their order' if len(names) == len(base) else ''
    elif len(base) > SHOWN:
        way = ''
    return f'the classes of the base {difference}: its head is replaced by a new one' + (f' ({way})' if way else '')


def _folded(name: str) -> str:
    return name.strip().casefold()


def class_names(labels: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """The names of the classes among (place, label): integers in their order (1.0 is 1), else sorted.

    If a truth value has several spellings, the names are 'true' and 'false'; else they are as written.

    >>> class_names([('a.csv:2', 10), ('a.csv:3', 9.0), ('a.csv:4', '10')])
    ('9', '10')
    >>> class_names([('a.jsonl:1', True), ('a.jsonl:2', 'True'), ('a.jsonl:3', 'No')])
    ('No', 'true')
    """
    names = {name_of(value, place) for place, value in labels}
    truths = [truth for name in names if (truth := _truth(name))]
    if len(truths) > len(set(truths)):
        names = {_truth(name) or name for name in names}
    whole = {_whole(name) for name in names}
    return tuple(sorted(names)) if '' in whole else tuple(sorted(whole, key=int))


def class_id(value: Any, names: tuple[str, ...], place: str) -> int:
    """The id of a class, given by its name, or by its id if no name is a number or a truth value.

    A label has the same meaning in all formats: 1, 1.0 and '1' name one class, and so do true and 'True'.

    Raises InputError naming the place, the label and the classes.

    >>> class_id('good', ('bad', 'good'), ''), class_id(1.0, ('bad', 'good'), ''), class_id('1', ('3', '1'), '')
    (1, 1, 1)
    """
    if (named := named_class(value, names, place)) is not None:
        return named
    name = name_of(value, place)
    if (whole := _whole(name)) and not _numbered(names) and 0 <= int(whole) < len(names):
        return int(whole)
    known = ', '.join(map(repr, names[:SHOWN])) + (', ...' if len(names) > SHOWN else '')
    raise InputError(f'{place}: the label {value!r} is none of the {len(names)} classes: {known}')


def named_class(value: Any, names: tuple[str, ...], place: str) -> int | None:
    """The id of the class of which `value` is the name, in any format of `class_id`; None: of no class.

    Raises InputError naming the place of what is neither a name nor a number.

    >>> named_class(True, ('false', 'true'), ''), named_class(1, ('bad', 'good'), '')
    (1, None)
    """
    name = name_of(value, place)
    if name in names:
        return names.index(name)
    if value_of_name := _whole(name) or _truth(name):
        alike = [i for i, other in enumerate(names) if (_whole(other) or _truth(other)) == value_of_name]
        if len(alike) == 1:
            return alike[0]
    return None


def name_of(value: Any, place: str) -> str:
    """The name of a label: a text, a number as text, 'true' or 'false'. Raises InputError naming `place`."""
    if isinstance(value, decimal.Decimal):  # of a parquet file; converted here, since splits are hashes of whole rows
        value = int(value) if float(value).is_integer() else float(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and math.isfinite(value) or isinstance(value, str) and value.strip():
        return str(value)
    raise InputError(f'{place}: a label is a name or a number, here it is {value!r}: write it, or leave out the row')


def _whole(name: str) -> str:
    """'1' for '1' and '1.0'; else ''. '01' is a name."""
    match = re.fullmatch(r'(-?[1-9]\d*|0)(\.0+)?', name, re.ASCII)
    return match[1] if match else ''


def _truth(name: str) -> str:
    """'true' for 'True', 'false' for 'FALSE'; else ''."""
    return name.lower() if name.lower() in ('true', 'false') else ''


@functools.lru_cache(maxsize=8)
def _numbered(names: tuple[str, ...]) -> bool:
    return any(re.fullmatch(NUMBER, name.strip(), re.ASCII | re.IGNORECASE) for name in names)


def count_notes(names: Sequence[str], ids: Iterable[int]) -> list[str]:
    """Lines for the user: how often each class occurs, and which classes differ only in blanks or case.

    >>> count_notes(('b', 'a', 'c'), [0, 0, 1])
    ['classes: b 2, a 1, c 0']
    """
    counts = collections.Counter(ids)
    if len(names) <= SHOWN:
        text = ', '.join(f'{_shown(name)} {counts[i]:,}' for i, name in enumerate(names))
    else:
        order = [i for i, _ in counts.most_common()] + [i for i in range(len(names)) if i not in counts]
        few = [f'{_shown(names[i])} {counts[i]:,}' for i in (*order[:3], *order[-3:])]
        text = f'{len(names)}, from {", ".join(few[:3])} to {", ".join(few[3:])}'
    return [f'classes: {text}', *alike_notes(names)]


def alike_notes(names: Sequence[str]) -> list[str]:
    """Lines for the user: which classes differ only in blanks or case.

    >>> alike_notes(('a', 'b', 'B '))
    ["WARNING: 2 classes differ only in blanks or case: 'b', 'B '"]
    """
    alike = collections.defaultdict(list)
    for name in names:
        alike[' '.join(name.split()).casefold()].append(name)
    return [
        f'WARNING: {len(same)} classes differ only in blanks or case: {", ".join(map(repr, same))}'
        for same in alike.values()
        if len(same) > 1
    ]


def rare_notes(names: Sequence[str], splits: Mapping[str, Iterable[int]], unit: str = 'row') -> list[str]:
    """Lines for the user: which classes can hardly be learned, and which are not measured.

    Args:
      splits: {'train' and others: the class ids of its rows}. A split without rows measures nothing, and has no line.
      unit: noun for what has a class.

    >>> for line in rare_notes(('ok', 'superb'), {'train': [0, 0, 1], 'validation': [0], 'test': []}):
    ...     print(line)
    classes with at most 1 training row, which can hardly be learned: superb
    classes without a validation row, which are not measured there: superb
    """
    lines = []
    for split, ids in splits.items():
        counts = collections.Counter(ids)
        rare = [_shown(name) for i, name in enumerate(names) if counts[i] <= (split == 'train')]
        if counts and rare:
            text = f'without a {split} {unit}, which are not measured there'
            if split == 'train':
                text = f'with at most 1 training {unit}, which can hardly be learned'
            more = f' and {len(rare) - SHOWN} more' if len(rare) > SHOWN else ''
            lines.append(f'classes {text}: {", ".join(rare[:SHOWN])}{more}')
    return lines


def _shown(name: str) -> str:
    return name if name == ' '.join(name.split()) else repr(name)
