"""Errors that a user can fix. Every other exception is a defect of lmtrain and keeps its traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value, file or command that a user can fix; the message names it, what was expected, and the way out.

    The command line prints the message alone and exits with 2.
    """


class MissingPackage(InputError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class NonFiniteOutput(InputError, FloatingPointError):
    """A model whose outputs are nan or infinite: its parameters are broken."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The suffix `, did you mean 'x'?` for the nearest of `words`; '' if none is near.

    >>> did_you_mean('corrput', ['corrupt', 'isolate'])
    ", did you mean 'corrupt'?"
    """
    near = difflib.get_close_matches(word, list(words), n=1)
    return f', did you mean {near[0]!r}?' if near else ''
