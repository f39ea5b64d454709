"""The verb cache: a table of what is cached, and pruning."""

import os

import pytest

from launch import cli


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = tmp_path / 'lmtrain' / f'rows-{"0" * 32}'
    folder.mkdir(parents=True)
    (folder / 'part.bin').write_bytes(bytes(2000))
    for path in (folder, folder / 'part.bin'):
        os.utime(path, (0, 0))
    return tmp_path / 'lmtrain'


def test_list_and_prune(directory, capsys):
    assert cli.main(['cache']) == 0
    first, head, line, total = capsys.readouterr().out.splitlines()
    assert first == str(directory) and head.split() == ['entries', 'size', 'last', 'used']
    assert line.split()[:5] == ['packed', 'rows', '1', '2.00', 'kB'] and total.split() == ['total', '1', '2.00', 'kB']
    assert cli.main(['cache', '--prune']) == 0
    assert capsys.readouterr().out.startswith('removed: 1 entry, 2.00 kB\n')
    assert not list(directory.glob('rows-*'))


def test_errors(directory, capsys):
    assert cli.main(['cache', '--cache=gone']) == 2
    assert capsys.readouterr().err == 'lmtrain cache: gone does not exist: nothing is cached\n'
    assert cli.main(['cache', '--days=-1']) == 2


def test_version(capsys):
    assert cli.main(['--version']) == 0
    assert capsys.readouterr().out.startswith('lmtrain 0.')
