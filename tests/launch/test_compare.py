"""`lmtrain compare`: its flags; comparisons themselves are run in tests/compare."""

import json

import pytest

from launch import cli, process_setup
from lmtrain.compare import comparison


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


@pytest.mark.parametrize(
    ('flags', 'full'),
    [
        ([], (3e-4, 1e-3, 3e-3)),
        (['--config.compare.seeds=1'], (3e-4, 1e-3, 3e-3)),
        (['--config.init.base=DIR'], (5e-5, 1e-4, 3e-4)),
        (['--config.task.train=rows.csv'], (5e-5, 1e-4, 3e-4)),
        (['--config=configs/compare.py'], (5e-5, 1e-4, 3e-4)),
    ],
)
def test_the_small_default_base_has_a_recipe_of_its_own(monkeypatch, flags, full):
    runs = []
    monkeypatch.setattr(comparison, 'run', lambda config, folder: runs.append((config, folder)))
    assert cli.main(['compare', *flags]) == 0
    [(config, folder)] = runs
    assert config.compare.arms.full.learning_rates == full
    assert folder.as_posix() == 'runs/compare'
