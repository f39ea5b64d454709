"""LICENSE, CHANGELOG.md, CITATION.cff and setup.py agree with the package."""

import importlib.metadata
import pathlib
import re

import lmtrain
from configs import base
from launch import recipe

ROOT = pathlib.Path(__file__).parents[2]


def test_version_is_the_same_everywhere():
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    assert re.search(r'^version: (.*)$', citation, re.MULTILINE)[1] == lmtrain.__version__
    assert importlib.metadata.version('lmtrain') == lmtrain.__version__  # of setup.py


def test_changelog_begins_with_the_changes_since_the_last_version():
    titles = re.findall(r'^## \[(.*)\]', (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert titles[0] == 'Unreleased'


def test_every_extra_is_documented():
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8').split('extras_require={')[1]
    extras = re.findall(r"^        '([\w-]+)': \[", setup, re.MULTILINE)
    page = (ROOT / 'docs' / 'runs.md').read_text(encoding='utf-8').split('| extra | needed by |')[1].split('\n\n')[0]
    documented = re.findall(r'`([\w-]+)`', ''.join(re.findall(r'^\| ([^|]+) \|', page, re.MULTILINE)))
    assert len(extras) > 10 and sorted(documented) == sorted(extras)


def test_settings_beside_those_of_other_frameworks_exist():
    page = (ROOT / 'docs' / 'methods.md').read_text(encoding='utf-8').split('\n## Names of settings in')[1]
    own = [
        cell for row in re.findall(r'^\|.*\| (.*) \|$', page, re.MULTILINE) for cell in re.findall(r'`([\w.]+)`', row)
    ]
    fields = dict(recipe.leaves(base.get_config()))
    assert len(own) > 30 and not [name for name in own if name not in fields]


def test_license_is_apache():
    text = (ROOT / 'LICENSE').read_text(encoding='utf-8')
    assert 'Apache License\n' in text and 'END OF TERMS AND CONDITIONS' in text
    assert 'license: Apache-2.0' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
