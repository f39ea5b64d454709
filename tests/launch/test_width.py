"""Pages of commands fit a terminal of 80 columns; those of README and docs are measured where they are run."""

import pytest

from launch import cli, process_setup, recipe

PAGES = [[], ['configs'], *([verb, '--help'] for verb in cli.VERBS)]
PAGES += [['show', f'--config={path.stem}'] for path in recipe.files()]


@pytest.mark.parametrize('words', PAGES, ids=' '.join)
def test_page_fits_80_columns(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out and not [line for line in (out + err).splitlines() if len(line) > 80]
