"""setup.py requires exactly the packages that the code imports, in ranges with the installed versions."""

import ast
import importlib.metadata
import pathlib
import sys

from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[2]
OWN = {'lmtrain', 'configs', 'launch', 'experiments'}
MODULES = {'absl': 'absl-py', 'ml_collections': 'ml-collections', 'orbax': 'orbax-checkpoint'}
UNSEEN = {'array_record', 'importlib_resources'}  # imported by TFDS


def asked() -> dict[str, list[Requirement]]:
    """{'': what lmtrain needs, extra: what the extra adds}."""
    call = next(node for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text())) if isinstance(node, ast.Call))
    words = {word.arg: word.value for word in call.keywords}
    lists = {'': ast.literal_eval(words['install_requires'])} | ast.literal_eval(words['extras_require'])
    return {extra: [Requirement(text) for text in texts] for extra, texts in lists.items()}


def imported() -> set[str]:
    """The packages, by their names on the index, that any module of ours imports."""
    names = set()
    for folder in ('lmtrain', 'configs', 'launch'):
        for path in (ROOT / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition('.')[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add(node.module.partition('.')[0])
    return {MODULES.get(name, name) for name in names - sys.stdlib_module_names - OWN}


def plain(name: str) -> str:
    return name.lower().replace('_', '-')


def test_requirements_are_the_imported_packages():
    needs = asked()
    optional = {
        plain(need.name) for extra in ('parquet', 'sentencepiece', 'lm-eval', 'gepa', 'hub') for need in needs[extra]
    }
    required = {plain(need.name) for need in needs['']}
    found = {plain(name) for name in imported()}
    assert found - optional == required - {plain(name) for name in UNSEEN}


def test_the_installed_versions_are_in_the_ranges():
    for need in asked()['']:
        installed = importlib.metadata.version(need.name)
        assert need.specifier.contains(installed), f'{need} does not admit the installed version {installed}'
        assert any(clause.operator == '<' for clause in need.specifier), f'{need} has no upper bound'
