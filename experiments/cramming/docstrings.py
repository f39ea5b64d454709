"""A classification task from the embedded corpus: which package of the standard library does a docstring belong to?"""

import collections
import json
import pathlib
import random
from collections.abc import Iterator

from lmtrain.data import docstring_task, python_docs

MIN_CHARACTERS = 40


def docstrings() -> Iterator[tuple[str, str]]:
    """(top-level package, docstring) of every class and function in the source of the standard library."""
    for module, text in python_docs.documents():
        if module == python_docs.TOPICS:
            continue
        for _, docstring in docstring_task.docstrings(text):
            if len(docstring) >= MIN_CHARACTERS:
                yield module.partition('.')[0], docstring


def rows(classes: int, per_class: int, seed: int) -> list[dict]:
    """Shuffled rows {'text', 'package'}: up to `per_class` of the `classes` packages with the most docstrings.

    A docstring that occurs in two packages is left out.
    """
    packages: dict[str, set[str]] = collections.defaultdict(set)
    for package, docstring in docstrings():
        packages[docstring].add(package)
    by_package: dict[str, list[str]] = collections.defaultdict(list)
    for docstring, names in packages.items():
        if len(names) == 1:
            by_package[next(iter(names))].append(docstring)
    rng, out = random.Random(seed), []
    for package in sorted(by_package, key=lambda name: (-len(by_package[name]), name))[:classes]:
        drawn = rng.sample(by_package[package], min(per_class, len(by_package[package])))
        out += [{'text': docstring, 'package': package} for docstring in drawn]
    rng.shuffle(out)
    return out


def write(folder: pathlib.Path, *, classes: int, per_class: int, test: int, seed: int) -> dict:
    """folder/train.jsonl and folder/test.jsonl, `test` rows; returns the sizes and the share of the largest class."""
    drawn = rows(classes, per_class, seed)
    for name, part in (('test', drawn[:test]), ('train', drawn[test:])):
        lines = ''.join(json.dumps(row) + '\n' for row in part)
        (folder / f'{name}.jsonl').write_text(lines, encoding='utf-8')
    counts = collections.Counter(row['package'] for row in drawn[:test])
    majority = max(counts.values()) / test
    return {'train': len(drawn) - test, 'test': test, 'classes': sorted(counts), 'majority': majority}
