import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from lmtrain.data import cache
from lmtrain.data.cache import MANIFEST, build, directory_of, key


def counting(calls):
    def write(directory):
        calls.append(directory)
        (directory / 'deep').mkdir()
        (directory / 'a.bin').write_bytes(b'a' * 100_000)
        (directory / 'deep' / 'b.bin').write_bytes(b'b')

    return write


def test_made_once(tmp_path):
    calls = []
    for _ in range(3):
        assert build(tmp_path / 'c' / 'x', counting(calls)) == tmp_path / 'c' / 'x'
    assert len(calls) == 1 and not calls[0].exists()  # it was made elsewhere and renamed


def flip(place):
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)


@pytest.mark.parametrize(
    'damage',
    [
        lambda place: flip(place / 'a.bin'),
        lambda place: (place / 'a.bin').write_bytes(b'a' * 99_999),
        lambda place: (place / 'deep' / 'b.bin').unlink(),
        lambda place: (place / 'more').write_bytes(b''),
        lambda place: (place / MANIFEST).unlink(),
        lambda place: (place / MANIFEST).write_text('{"a'),
        lambda place: (place / MANIFEST).write_text('[]'),
    ],
)
def test_damage_is_seen_and_mended_with_a_line(damage, tmp_path, capsys):
    calls = []
    place = build(tmp_path / 'x', counting(calls))
    damage(place)
    build(place, counting(calls))
    assert len(calls) == 2 and (place / 'a.bin').read_bytes() == b'a' * 100_000
    assert 'is damaged' in capsys.readouterr().err


def test_large_files_are_looked_at_in_windows(tmp_path, monkeypatch):
    monkeypatch.setattr('lmtrain.data.cache.WHOLE', 1000)
    calls = []
    place = build(tmp_path / 'x', counting(calls))
    (place / 'a.bin').write_bytes(b'\0' * 100_000)  # of the right size: a hole where text was
    build(place, counting(calls))
    assert len(calls) == 2


def test_a_failure_leaves_nothing_and_what_a_killed_process_left_is_cleared(tmp_path):
    def fail(directory):
        (directory / 'half').write_bytes(b'x')
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space left'):
        build(tmp_path / 'x', fail)
    (tmp_path / 'x.dead.tmp').mkdir()
    assert not (tmp_path / 'x').exists()
    build(tmp_path / 'x', counting([]))
    assert {path.name for path in tmp_path.iterdir()} == {'x', 'locks'}


def _slowly(directory, log):
    def write(making):
        with open(log, 'a') as file:
            file.write(f'{os.getpid()}\n')
        time.sleep(0.3)
        (making / 'a').write_text('whole')

    assert (build(directory, write) / 'a').read_text() == 'whole'


def test_processes_that_ask_at_once_make_it_once(tmp_path):
    context = multiprocessing.get_context('spawn')
    asking = [context.Process(target=_slowly, args=(tmp_path / 'x', tmp_path / 'log')) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(250)
    assert [process.exitcode for process in asking] == [0, 0, 0]
    assert len((tmp_path / 'log').read_text().splitlines()) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='data.cache must be a directory that can be written'):
        build(tmp_path / 'file' / 'x', counting([]))


def test_keys_tell_all_parts_apart():
    assert len({key(1, 'a'), key('1', 'a'), key(1, ['a']), key([1, 'a']), key(1, None), key(1, 'a', {})}) == 6
    assert key({'a': 1, 'b': 2}) == key(json.loads('{"b": 2, "a": 1}'))


def test_the_default_directory_is_in_the_users_folder_of_caches(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert directory_of('') == tmp_path / 'lmtrain'
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert directory_of('~/kept') == tmp_path / 'home' / 'kept'


@pytest.mark.parametrize('place', ['/proc', None])
def test_without_a_directory_that_can_be_written_nothing_is_kept(place, monkeypatch, capsys):
    monkeypatch.setattr(cache.paths, 'caches', lambda: place and Path(place))
    cache._default.cache_clear()
    directory = directory_of('')
    assert directory == directory_of('') and (build(directory / 'x', counting([])) / MANIFEST).exists()
    said = capsys.readouterr().err
    assert said.startswith('tokenised text is not kept') and said.count('\n') == 1 and 'set data.cache' in said
    assert ('/proc/lmtrain: No such file' in said) == bool(place)
    shutil.rmtree(directory)


def test_a_directory_on_a_disk_that_is_read_only(tmp_path, monkeypatch, capsys):
    def refuse(dir):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(cache.paths, 'caches', lambda: tmp_path / 'caches')
    monkeypatch.setattr(cache.tempfile, 'TemporaryFile', refuse)
    cache._default.cache_clear()
    directory = directory_of('')
    assert not directory.is_relative_to(tmp_path)
    assert 'caches/lmtrain: Read-only file system): set data.cache' in capsys.readouterr().err
    cache._default.cache_clear()
    shutil.rmtree(directory)
