"""Text with the origin of each character (dynamic taint tracking).

A chat template writes special tokens by their names, and so may the content of a message. After rendering, only their
origin distinguishes the two. `Traced` is a str with one byte of flags per character, so a template can inspect, cut,
strip and join the real content. An operation that is not tracked returns a plain str, whose characters have no flag. A
character therefore has the flag TEMPLATE only if it is known to be from the template.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

# Flags of a character.
TEMPLATE = 1  # a literal of the template, the name of a special token, or a role
CONTENT = 2  # a text of the row
ANSWER = 4  # a text of a trained answer
GENERATION = 8  # inside {% generation %}, and trained
CALLS, TOOLS, SYSTEM, RESULT = 16, 32, 64, 128  # kinds of content other than texts of users and answers


class Traced(str):
    """A str with the origin of each character: a byte of flags, 0 if unknown.

    Example: `Traced('<s>', TEMPLATE) + 'hi'` has the origins `b'\\1\\1\\1\\0\\0'`.
    """

    __slots__ = ('_origin',)  # the sandbox hides attributes that begin with an underscore

    def __new__(cls, text: str = '', origin: bytes | int = 0):
        self = super().__new__(cls, text)
        self._origin = bytes([origin]) * len(self) if isinstance(origin, int) else origin
        return self

    def __str__(self):
        return self

    def __getitem__(self, key):
        part = slice(key, key + 1 or None) if isinstance(key, int) else key
        return Traced(super().__getitem__(key), self._origin[part])

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))

    def __add__(self, other):
        if not isinstance(other, str) or hasattr(other, '__html__'):  # Markup escapes the other operand
            return NotImplemented
        return concat((self, other))

    def __radd__(self, other):
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count):
        return Traced(super().__mul__(count), self._origin * count)

    __rmul__ = __mul__

    def join(self, parts):
        parts = list(parts)
        separated = itertools.chain.from_iterable((self, part) for part in parts)
        return concat(list(separated)[1:])

    def _cut(self, pieces: Iterable[str]) -> list:
        """The pieces with their origin; they occur in this text in this order."""
        cut, at = [], 0
        for piece in pieces:
            at = self.index(piece, at)
            cut.append(self[at : at + len(piece)])
            at += len(piece)
        return cut

    def split(self, sep=None, maxsplit=-1):
        return self._parts(super().split(sep, maxsplit), sep)

    def rsplit(self, sep=None, maxsplit=-1):
        return self._parts(super().rsplit(sep, maxsplit), sep)

    def _parts(self, pieces: list[str], sep: str | None) -> list:
        if sep is None:
            return self._cut(pieces)
        ends = itertools.accumulate(len(piece) + len(sep) for piece in pieces)
        return [self[end - len(sep) - len(piece) : end - len(sep)] for piece, end in zip(pieces, ends)]

    def splitlines(self, keepends=False):
        return self._cut(super().splitlines(keepends))

    def partition(self, sep):
        return tuple(self._cut(super().partition(sep)))

    def rpartition(self, sep):
        before, between, _ = super().rpartition(sep)
        at = len(before)
        return self[:at], self[at : at + len(between)], self[at + len(between) :]

    def lstrip(self, chars=None):
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars=None):
        return self[: len(super().rstrip(chars))]

    def strip(self, chars=None):
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix):
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix):
        return self[: len(super().removesuffix(suffix))]

    def replace(self, old, new, count=-1):
        return Traced(new, origin_of(new)).join(self.split(old, count)) if old else super().replace(old, new, count)

    def _cased(self, text: str):
        # A change of case lengthens some characters and shortens none: with equal length, positions are equal too.
        return Traced(text, self._origin if len(text) == len(self) else 0)

    def upper(self):
        return self._cased(super().upper())

    def lower(self):
        return self._cased(super().lower())

    def capitalize(self):
        return self._cased(super().capitalize())

    def title(self):
        return self._cased(super().title())


class JsonText(dict):
    """An object that a JSON text holds: a template may read its entries, or write the text itself.

    Published templates do either: Qwen 2.5 and Llama 3 write `arguments | tojson`, DeepSeek V3 `'...' + arguments`.

    >>> call = JsonText({'city': 'Paris'}, '{"city":"Paris"}')
    >>> call['city'], 'weather' + call
    ('Paris', 'weather{"city":"Paris"}')
    """

    __slots__ = ('_text',)  # no other name: a template reads `arguments.text` as an entry

    def __init__(self, value: Mapping, text: str):
        super().__init__(value)
        self._text = text

    def __str__(self):
        return self._text

    def __add__(self, other):
        return self._text + other

    def __radd__(self, other):
        return other + self._text


def origin_of(text: str) -> bytes:
    """The flags of each character."""
    return text._origin if isinstance(text, Traced) else bytes(len(text))


def concat(parts: Iterable[str]) -> Traced:
    """The parts as one text."""
    parts = list(parts)
    return Traced(''.join(parts), b''.join(map(origin_of, parts)))


def traced(value: Any, flags: int) -> Any:
    """A JSON value with `flags` on the characters of its texts; keys are unchanged."""
    if isinstance(value, JsonText):
        return JsonText(traced(dict(value), flags), Traced(str(value), flags))
    if isinstance(value, Mapping):
        return {key: traced(each, flags) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [traced(each, flags) for each in value]
    return Traced(value, flags) if isinstance(value, str) else value


def flags_of(value: Any) -> int:
    """All flags of the texts in a JSON value."""
    if isinstance(value, JsonText):
        return flags_of(str(value))
    if isinstance(value, Mapping):
        return flags_of(list(value.values()))
    if isinstance(value, list | tuple):
        return functools.reduce(int.__or__, map(flags_of, value), 0)
    return functools.reduce(int.__or__, set(origin_of(value)), 0) if isinstance(value, str) else 0
