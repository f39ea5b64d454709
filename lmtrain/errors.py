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


def did_you_mean(name: str, candidates: Iterable[str], least: float = 0.5) -> str:
    """The suffix `, did you mean 'x'?` for the most similar of `candidates`; '' if none has a similarity above `least`.

    Of dotted names the last part counts as much as the whole: a user who omits the section finds the field.

    >>> did_you_mean('isloate', ['mask_rate', 'isolate'])
    ", did you mean 'isolate'?"
    >>> did_you_mean('config.wdth', ['config.data.width_limit', 'config.model.width'])
    ", did you mean 'config.model.width'?"
    >>> did_you_mean('zebra', ['mask_rate', 'isolate'])
    ''
    """

    def similarity(candidate: str) -> tuple[float, float]:
        """(the better ratio of whole names and last parts, their sum)."""
        ratios = [ratio(name, candidate), ratio(name.rpartition('.')[2], candidate.rpartition('.')[2])]
        return max(ratios), sum(ratios)

    def ratio(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    best = max(candidates, key=lambda candidate: sum(similarity(candidate)), default='')
    return f', did you mean {best!r}?' if best and similarity(best)[0] > least else ''


def wrong_choice(field: str, value: object, choices: Iterable[str]) -> InputError:
    """The error for a value that is none of the choices of a field; it names all of them and suggests the nearest.

    The caller tests and raises, so that a right value costs no call.

    >>> print(wrong_choice('task.name', 'taging', ('text', 'tag')))
    task.name = 'taging' is none of text, tag, did you mean 'tag'?
    """
    choices = tuple(choices)
    known = ', '.join(choice or repr(choice) for choice in choices)
    return InputError(f'{field} = {value!r} is none of {known}{did_you_mean(str(value), choices)}')
