"""Files that a verb writes."""

import json

import pytest

from launch import output_files


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='--to=.*: there is no directory .*no: create it'):
        output_files.check(str(tmp_path / 'no' / 'f.json'), 'to')
    with pytest.raises(IsADirectoryError, match='is a directory: name a file in it'):
        output_files.check(str(tmp_path), 'to')
    output_files.check(str(tmp_path / 'f.json'), 'to')
    output_files.check(None, 'to')


def test_a_file_is_written_whole_or_not_at_all(tmp_path, capsys):
    path = tmp_path / 'f.json'
    output_files.write(str(path), output_files.as_json({'a': 'é'}))
    assert json.loads(path.read_text(encoding='utf-8')) == {'a': 'é'} and 'é' in path.read_text(encoding='utf-8')
    assert capsys.readouterr().out == f'written: {path}\n'

    def broken():
        yield b'new'
        raise RuntimeError

    with pytest.raises(RuntimeError):
        output_files.write(str(path), broken())
    assert json.loads(path.read_text(encoding='utf-8')) == {'a': 'é'}
    output_files.write(None, b'')
