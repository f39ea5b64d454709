"""Rows whose answers a program verifies, generated from a seed: digits to sort, brackets to close.

'generated:sort' is a source of rows, as a file is. Settings follow its name: 'generated:brackets,rows=2000,wrong=0.5'.
A prompt belongs to the same split for every seed and number of rows, so that a held-out prompt is never trained on, in
none of the runs of a pipeline.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lmtrain.data.hash_rng import hash_unit
from lmtrain.errors import InputError, did_you_mean

PREFIX = 'generated:'
HELD_OUT = {'validation': 0.1, 'test': 0.1}  # shares of the prompts; the others are 'train'
DIGITS, PAIRS = '0123456789', {'(': ')', '[': ']', '{': '}'}
OPENING = 0.7  # probability that a bracket opens while one is open
ATTEMPTS = 20  # draws per row before the prompts are too few
REVERSED, READING, MISTAKES = 0.5, 0.25, 3  # of `rejected`: shares of two kinds, most mistakes of a text

Draw = Callable[[int], int]  # n -> an integer in [0, n)


class SourceSettings(NamedTuple):
    """What follows the name of a generated source.

    Attributes:
      rows: of all splits together, each with another prompt.
      length: most characters of the sorted or closed text, the fewest are two less; 0 is `GeneratedTask.length`.
      wrong: share of the rows whose `completion` is wrong (`wrong_answer`).
      seed: of the rows.
      split: 'train', 'validation', 'test'; '' is that of the config field that names the source, else all.
    """

    rows: int = 5000
    length: int = 0
    wrong: float = 0.0
    seed: int = 0
    split: str = ''


class GeneratedTask(NamedTuple):
    """A task.

    Attributes:
      problem: (draw, characters) -> (prompt, answer).
      alphabet: the characters of answers.
      length: the default.
      in_form: text -> a text of the same characters that has the form of an answer.
    """

    problem: Callable[[Draw, int], tuple[str, str]]
    alphabet: str
    length: int
    in_form: Callable[[str], str]


def generate(source: str, split: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, fields) of the rows of 'generated:NAME' or 'generated:NAME,setting=value,...'.

    Fields: `prompt`, its only right `answer`; for supervised training a `completion`, and its `label`, whether it is
    right; for preferences `chosen`, the answer, and `rejected`, a wrong one (`corrupt`).

    Args:
      split: of the config field that names the source; `SourceSettings.split` replaces it.

    Raises InputError for an unknown task or setting, or if there are fewer prompts than rows.

    >>> place, fields = next(generate('generated:sort,wrong=1'))
    >>> fields['prompt'], fields['answer'], fields['label']
    ('sort 591056 =', '015569', False)
    """
    name, settings = _parse(source)
    task, split = TASKS[name], settings.split or split
    rng = random.Random(f'{name} {settings.length} {settings.seed}')  # only random() is equal in all Python versions

    def draw(n: int) -> int:
        return int(rng.random() * n)

    prompts: set[str] = set()
    for _ in range(ATTEMPTS * settings.rows):
        if len(prompts) == settings.rows:
            return
        prompt, answer = task.problem(draw, max(1, settings.length - draw(3)))
        # Drawn for every row, so that the prompts do not depend on the share of wrong completions.
        is_wrong, wrong = rng.random() < settings.wrong, wrong_answer(answer, task, draw)
        if prompt in prompts:
            continue
        prompts.add(prompt)
        if split in ('', split_of(prompt)):
            completion = {'completion': wrong if is_wrong else answer, 'label': not is_wrong}
            pair = {'chosen': answer, 'rejected': corrupt(prompt, answer, task)}
            fields = {'prompt': prompt, 'answer': answer} | completion | pair
            yield f'{source} row {len(prompts)}', fields
    raise InputError(
        f'{source}: only {len(prompts)} different prompts were drawn for rows={settings.rows}: ask for fewer rows, or '
        f'set length above {settings.length}'
    )


def is_generated(source) -> bool:
    """Whether a source of config.task is generated and not a file.

    >>> is_generated('generated:sort'), is_generated('rows.jsonl'), is_generated(('rows.jsonl', 'label'))
    (True, False, False)
    """
    return isinstance(source, str) and source.startswith(PREFIX)


def split_of(prompt: str) -> str:
    """The split of a prompt, by its hash.

    >>> split_of('sort 8351 =')
    'train'
    """
    place = hash_unit('verifiable', prompt)
    for split, share in HELD_OUT.items():
        if place < share:
            return split
        place -= share
    return 'train'


def wrong_answer(answer: str, task: GeneratedTask, draw: Draw) -> str:
    """The answer in reverse: a model that reads both learns the skill, and which of them to write is left to a policy.

    If it reads the same in reverse, one character is replaced.
    """
    wrong = answer[::-1]
    while wrong == answer:
        at = draw(len(answer))
        wrong = answer[:at] + task.alphabet[draw(len(task.alphabet))] + answer[at + 1 :]
    return wrong


def corrupt(prompt: str, answer: str, task: GeneratedTask) -> str:
    """A wrong answer, which depends on the prompt alone.

    A reward model that has read one kind of mistake scores the others as if they were right, and a policy writes them:
    after reversed answers alone, other digits in the right order. So there are three kinds: REVERSED of them are as
    `wrong_answer`; READING have 1 to MISTAKES characters of another prompt and the form of an answer; in the others 1
    to MISTAKES edits drop, repeat or replace a character, swap it with the next one, or end the answer before it.

    >>> corrupt('sort 591056 =', '015569', TASKS['sort'])
    '001559'
    """
    rng = random.Random(f'rejected {prompt}')

    def draw(n: int) -> int:
        return int(rng.random() * n)

    place, wrong = rng.random(), answer
    if place < REVERSED:
        return wrong_answer(answer, task, draw)
    while wrong in ('', answer):  # an empty side of a pair is left out
        wrong = answer
        for _ in range(1 + draw(MISTAKES)):
            wrong = _edit(wrong, task.alphabet, 0 if place < REVERSED + READING else draw(5), draw)
        if place < REVERSED + READING:
            wrong = task.in_form(wrong)
    return wrong


def _edit(text: str, alphabet: str, kind: int, draw: Draw) -> str:
    """A text with one mistake: 0 replaces a character, 1 drops, 2 repeats, 3 swaps, 4 ends."""
    at = draw(max(1, len(text)))
    before, one, after = text[:at], text[at : at + 1], text[at + 1 :]
    return (
        before + alphabet[draw(len(alphabet))] + after,
        before + after,
        before + one + one + after,
        before + after[:1] + one + after[1:],
        before,
    )[kind]


def _sort(draw: Draw, length: int) -> tuple[str, str]:
    digits = ''.join(DIGITS[draw(10)] for _ in range(length))
    return f'sort {digits} =', ''.join(sorted(digits))


def _brackets(draw: Draw, length: int) -> tuple[str, str]:
    """A prefix of a balanced text with at least one open bracket, and the shortest text that closes it."""
    text, unclosed = '', []
    for _ in range(length):
        if len(unclosed) > 1 and draw(1000) >= OPENING * 1000:
            text += PAIRS[unclosed.pop()]
        else:
            unclosed.append(tuple(PAIRS)[draw(len(PAIRS))])
            text += unclosed[-1]
    return f'close {text} =', ''.join(PAIRS[bracket] for bracket in reversed(unclosed))


TASKS = {
    'sort': GeneratedTask(_sort, DIGITS, 6, lambda text: ''.join(sorted(text))),
    'brackets': GeneratedTask(_brackets, ''.join((*PAIRS, *PAIRS.values())), 9, lambda text: text),
}


def _parse(source: str) -> tuple[str, SourceSettings]:
    name, *parts = source.removeprefix(PREFIX).split(',')
    if name not in TASKS:
        known = ', '.join(PREFIX + task for task in TASKS)
        raise InputError(f'{source!r}: lmtrain generates {known}{did_you_mean(name, TASKS)}')
    values = {}
    for part in parts:
        field, _, text = (piece.strip() for piece in part.partition('='))
        if field not in SourceSettings._fields:
            known = ', '.join(SourceSettings._fields)
            raise InputError(f'{source!r}: {field!r} is none of {known}{did_you_mean(field, SourceSettings._fields)}')
        try:
            values[field] = type(SourceSettings._field_defaults[field])(text)
        except ValueError:
            raise InputError(f'{source!r}: {field} must be a number, not {text!r}') from None
    settings = SourceSettings(**values)
    expected = {
        'rows': ('at least 1', settings.rows >= 1),
        'length': ('at least 1, or 0 for the default', settings.length >= 0),
        'wrong': ('in [0, 1]', 0 <= settings.wrong <= 1),
        'split': ('train, validation or test', settings.split in ('', 'train', *HELD_OUT)),
    }
    for field, (text, right) in expected.items():
        if not right:
            raise InputError(f'{source!r}: {field} must be {text}, not {getattr(settings, field)!r}')
    return name, settings._replace(length=settings.length or TASKS[name].length)
