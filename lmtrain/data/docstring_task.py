"""A classification task from the embedded corpus: which package of the standard library does a docstring belong to?

The text to pretrain on has no module of these packages, so that a model has read none of the rows before.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from lmtrain.data import python_docs
from lmtrain.files import write_atomic

# Packages with many docstrings in every version of Python, and the modules that belong to them.
PACKAGES = {
    'asyncio': ('asyncio', '_asyncio'),
    'decimal': ('_pydecimal', 'decimal', '_decimal'),
    'email': ('email',),
    'http': ('http',),
    'importlib': ('importlib', '_frozen_importlib', '_frozen_importlib_external', '_imp', 'imp', 'zipimport'),
    'logging': ('logging',),
    'mailbox': ('mailbox',),
    'multiprocessing': ('multiprocessing', '_multiprocessing'),
    'unittest': ('unittest',),
    'xml': ('xml', 'pyexpat', '_elementtree'),
}
FILES = ('docstrings.jsonl', 'pretraining.jsonl')  # the rows; the documents
LONGEST = 100  # characters of a row; a docstring is cut after the last word that fits
SHORTEST = 6  # words of a row


def package_of(module: str) -> str | None:
    """The package of the task that a module belongs to; None for all others.

    >>> package_of('_pydecimal'), package_of('xml.dom.minidom'), package_of('json')
    ('decimal', 'xml', None)
    """
    top = module.partition('.')[0]
    return next((package for package, modules in PACKAGES.items() if top in modules), None)


def write(folder: Path) -> None:
    """Writes docstrings.jsonl (rows with `docstring`, `package` and `name`) and pretraining.jsonl (documents)."""
    folder.mkdir(parents=True, exist_ok=True)
    pretraining, rows = [], {}
    for module, text in python_docs.documents():
        package = package_of(module)
        if package is None:
            pretraining.append({'text': text})
            continue
        for name, docstring in docstrings(text):
            if row := _row(docstring, package):
                rows.setdefault(row, {'docstring': row, 'package': package, 'name': f'{module}.{name}'})
    for name, lines in zip(FILES, (list(rows.values()), pretraining)):
        content = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
        write_atomic(folder / name, content.encode('utf-8', 'replace'))


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """(name, docstring) of the classes and functions of a source file; of another text nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # invalid escapes of old code
        try:
            module = ast.parse(source)
        except SyntaxError:
            return
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
            text := ast.get_docstring(node)
        ):
            yield node.name, text


def _row(docstring: str, package: str) -> str:
    """The text of a row: the beginning of a docstring in one line; '' if it is too short or names the package."""
    words = docstring.split()
    text = ' '.join(words)
    if len(text) > LONGEST:
        text = text[: LONGEST + 1].rpartition(' ')[0]
    names = '|'.join(re.escape(name.strip('_')) for name in (package, *PACKAGES[package]))
    named = re.search(rf'({names})', text, re.IGNORECASE)
    return '' if named or len(text.split()) < SHORTEST else text
