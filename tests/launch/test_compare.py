"""`lmtrain compare`: its flags; comparisons themselves are run in tests/compare."""

import json

import pytest

from launch import cli, process_setup


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)


def test_report_is_written_again(tmp_path, capsys):
    (tmp_path / 'runs/compare').mkdir(parents=True)
    (tmp_path / 'runs/compare/results.json').write_text(json.dumps({'arms': {}}))
    assert cli.main(['compare', '--report']) == 0
    assert capsys.readouterr().out == 'No recommendation: no arm has a result.\n\nruns/compare/report.html\n'
    assert (tmp_path / 'runs/compare/report.html').exists()


def test_report_of_a_folder_without_results(tmp_path, capsys):
    assert cli.main(['compare', '--report', '--workdir=nowhere']) == 2
    assert 'nowhere/results.json does not exist' in capsys.readouterr().err
