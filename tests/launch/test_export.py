"""The verb export passes its flags on; tests/training/test_export.py has what it writes."""

import pathlib

import pytest

from launch import cli, process_setup
from lmtrain.training import export


@pytest.fixture
def asked(monkeypatch):
    """What lmtrain.training.export.export is called with."""
    calls = []
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.setattr(export, 'export', lambda *words: calls.append(words) or ['step 3', 'written: out'])
    return calls


@pytest.mark.parametrize(
    ('words', 'wanted'),
    [
        (['--workdir=w', '--to=out'], (pathlib.Path('w'), 'out', 'hf', False, 'last', 0, '')),
        (
            ['--workdir=w', '--to=out', '--step=30', '--merge', '--license=mit'],
            (pathlib.Path('w'), 'out', 'hf', True, 30, 0, 'mit'),
        ),
        (
            ['--workdir=w', '--to=out', '--step=best', '--format=peft'],
            (pathlib.Path('w'), 'out', 'peft', False, 'best', 0, ''),
        ),
    ],
)
def test_flags_reach_the_function(asked, capsys, words, wanted):
    assert cli.main(['export', *words]) == 0
    assert asked == [wanted] and capsys.readouterr().out == 'step 3\nwritten: out\n'


def test_a_directory_must_be_named(asked, capsys):
    assert cli.main(['export', '--workdir=w']) == 2
    assert not asked and '--to is missing' in capsys.readouterr().err
