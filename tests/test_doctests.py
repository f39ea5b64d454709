"""The examples in docstrings print what they say; those of lmtrain.api, which train, are in test_api.py."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULES = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    for folder in ('lmtrain', 'launch', 'configs')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if path.parent.name != 'api' and '>>>' in path.read_text(encoding='utf-8')
]


@pytest.mark.parametrize('name', MODULES)
def test_examples_of_docstrings(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted and not results.failed
