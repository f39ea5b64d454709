"""LICENSE, CHANGELOG.md, CITATION.cff and setup.py agree with the package."""

import importlib.metadata
import pathlib
import re

import lmtrain

ROOT = pathlib.Path(__file__).parents[2]


def test_version_is_the_same_everywhere():
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    assert re.search(r'^version: (.*)$', citation, re.MULTILINE)[1] == lmtrain.__version__
    assert importlib.metadata.version('lmtrain') == lmtrain.__version__  # of setup.py


def test_changelog_begins_with_the_changes_since_the_last_version():
    titles = re.findall(r'^## \[(.*)\]', (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert titles[0] == 'Unreleased'


def test_license_is_apache():
    text = (ROOT / 'LICENSE').read_text(encoding='utf-8')
    assert 'Apache License\n' in text and 'END OF TERMS AND CONDITIONS' in text
    assert 'license: Apache-2.0' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
