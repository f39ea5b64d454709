"""The rows of public files as requests of lm-eval: (context, continuation), (text,) and (context, settings)."""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What an adapter of lm-eval reads of a request."""

    args: tuple


class Row(NamedTuple):
    """A question, its choices, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    gold: int


def multiple_choice(path: pathlib.Path, template: str, limit: int) -> list[Row]:
    """The first rows of a file with the fields `query`, `choices`, `gold`; `template` has {query}."""
    lines = path.read_text(encoding='utf-8').splitlines()[:limit]
    rows = [json.loads(line) for line in lines]
    return [Row(template.format(query=row['query']), tuple(row['choices']), int(row['gold'])) for row in rows]


def banking77(path: pathlib.Path) -> list[Row]:
    """Rows with all 77 intents as choices."""
    with path.open(encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    names = sorted({row['category'] for row in rows})
    choices = tuple(name.replace('_', ' ') for name in names)
    return [Row(f'{row["text"].strip()}\nIntent:', choices, names.index(row['category'])) for row in rows]


def with_shots(rows: Sequence[Row], shots: int) -> list[Row]:
    """The rows behind the first `shots`, which precede each of them: all contexts begin with the same text."""
    before = ''.join(f'{row.context} {row.choices[row.gold]}\n\n' for row in rows[:shots])
    return [row._replace(context=before + row.context) for row in rows[shots:]]


def log_likelihoods(rows: Sequence[Row]) -> list[Request]:
    return [Request((row.context, f' {choice}')) for row in rows for choice in row.choices]


def texts(path: pathlib.Path, limit: int) -> list[Request]:
    """The articles of a file of WikiText; a line with one `=` on each side is the title of an article.

    The placeholder <unk> becomes `unk`: transformers reads it as the special token that stories260K has of this name,
    and lmtrain as characters.
    """
    articles: list[str] = []
    for line in path.read_text(encoding='utf-8').replace('<unk>', 'unk').splitlines(keepends=True):
        words = line.split()
        if len(words) > 2 and words[0] == words[-1] == '=' and words[1] != '=':
            articles.append('')
        if articles:
            articles[-1] += line
    return [Request((article,)) for article in articles[:limit]]


def generations(rows: Sequence[Row], max_tokens: int) -> list[Request]:
    settings = {'until': ['\n'], 'do_sample': False, 'max_gen_toks': max_tokens}
    return [Request((row.context, settings)) for row in rows]


def compared(rows: Sequence[Row], ours: Sequence[tuple], theirs: Sequence[tuple]) -> dict[str, Any]:
    """Differences of two lists of answers to `log_likelihoods(rows)`."""
    at, same, right = 0, 0, [0, 0]
    for row in rows:
        span = slice(at, at := at + len(row.choices))
        best = [max(range(len(row.choices)), key=lambda i, own=side[span]: own[i][0]) for side in (ours, theirs)]
        same += best[0] == best[1]
        right = [total + (own == row.gold) for total, own in zip(right, best, strict=True)]
    return {
        'rows': len(rows),
        'same_predictions': same,
        'accuracy': [total / len(rows) for total in right],
        'largest_difference': max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)),
        'same_greedy': sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)) / len(ours),
    }
