import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from lmtrain.data import cache
from lmtrain.data.cache import MANIFEST, build, cache_directory, key


def counting(calls):
    def write(directory):
        calls.append(directory)
        (directory / 'deep').mkdir()
        (directory / 'a.bin').write_bytes(b'a' * 100_000)
        (directory / 'deep' / 'b.bin').write_bytes(b'b')

    return write


def test_directory_is_built_once(tmp_path):
    calls = []
    for _ in range(3):
        assert build(tmp_path / 'c' / 'x', counting(calls)) == tmp_path / 'c' / 'x'
    assert len(calls) == 1 and not calls[0].exists()  # written under a temporary name and renamed


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
def test_damaged_directory_is_rebuilt_with_warning(damage, tmp_path, capsys):
    calls = []
    place = build(tmp_path / 'x', counting(calls))
    damage(place)
    build(place, counting(calls))
    assert len(calls) == 2 and (place / 'a.bin').read_bytes() == b'a' * 100_000
    assert 'is damaged' in capsys.readouterr().err


def test_large_files_are_hashed_in_windows(tmp_path, monkeypatch):
    monkeypatch.setattr('lmtrain.data.cache.FULL_HASH_LIMIT', 1000)
    calls = []
    place = build(tmp_path / 'x', counting(calls))
    (place / 'a.bin').write_bytes(b'\0' * 100_000)  # same size, other content
    build(place, counting(calls))
    assert len(calls) == 2


def test_failed_build_leaves_nothing_and_remnants_of_killed_processes_are_deleted(tmp_path):
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
    def write(temporary):
        with open(log, 'a') as file:
            file.write(f'{os.getpid()}\n')
        time.sleep(0.3)
        (temporary / 'a').write_text('whole')

    assert (build(directory, write) / 'a').read_text() == 'whole'


def test_concurrent_processes_build_once(tmp_path):
    context = multiprocessing.get_context('spawn')
    processes = [context.Process(target=_slowly, args=(tmp_path / 'x', tmp_path / 'log')) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / 'log').read_text().splitlines()) == 1


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='data.cache must be a directory that is writable'):
        build(tmp_path / 'file' / 'x', counting([]))


def test_key_depends_on_every_part_and_type():
    assert len({key(1, 'a'), key('1', 'a'), key(1, ['a']), key([1, 'a']), key(1, None), key(1, 'a', {})}) == 6
    assert key({'a': 1, 'b': 2}) == key(json.loads('{"b": 2, "a": 1}'))


def test_default_directory_is_in_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_directory('') == tmp_path / 'lmtrain'
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert cache_directory('~/kept') == tmp_path / 'home' / 'kept'


@pytest.mark.parametrize('place', ['/proc', None])
def test_temporary_directory_without_writable_user_cache(place, monkeypatch, capsys):
    monkeypatch.setattr(cache.files, 'user_cache', lambda: place and Path(place))
    cache._default_directory.cache_clear()
    directory = cache_directory('')
    assert directory == cache_directory('') and (build(directory / 'x', counting([])) / MANIFEST).exists()
    warning = capsys.readouterr().err
    assert warning.startswith('tokenised text is not kept') and warning.count('\n') == 1 and 'set data.cache' in warning
    assert ('/proc/lmtrain: No such file' in warning) == bool(place)
    shutil.rmtree(directory)


def test_temporary_directory_on_read_only_disk(tmp_path, monkeypatch, capsys):
    def read_only(dir):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(cache.files, 'user_cache', lambda: tmp_path / 'caches')
    monkeypatch.setattr(cache.tempfile, 'TemporaryFile', read_only)
    cache._default_directory.cache_clear()
    directory = cache_directory('')
    assert not directory.is_relative_to(tmp_path)
    assert 'caches/lmtrain: Read-only file system): set data.cache' in capsys.readouterr().err
    cache._default_directory.cache_clear()
    shutil.rmtree(directory)
