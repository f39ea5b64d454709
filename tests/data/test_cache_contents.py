"""What a cache directory holds, and what pruning removes and leaves."""

import fcntl
import os
import time

import pytest

from lmtrain.data import cache, cache_contents

DAY = 86_400
TOKENS, ROWS = f'tokens-{"a" * 32}', f'rows-{"b" * 32}'


def age(path, days):
    """Makes a file or directory, with all in it, look unused for so many days."""
    for each in [path, *path.rglob('*')]:
        os.utime(each, (time.time() - days * DAY,) * 2)


@pytest.fixture
def directory(tmp_path):
    """Tokens of today, rows of last week, a compiled program and files of others."""
    for name, days in ((TOKENS, 0), (ROWS, 7)):
        cache.build(tmp_path / name, lambda folder: (folder / 'part.bin').write_bytes(bytes(1000)) and None)
        age(tmp_path / name, days)
    (tmp_path / 'xla' / 'x86').mkdir(parents=True)
    (tmp_path / 'xla' / 'x86' / 'jit_step-0a-cache').write_bytes(bytes(50))
    age(tmp_path / 'xla', 40)
    (tmp_path / 'notes.txt').write_text('mine', encoding='utf-8')
    (tmp_path / 'tokens-mine').mkdir()
    age(tmp_path / 'notes.txt', 400)
    age(tmp_path / 'tokens-mine', 400)
    return tmp_path


def kinds(entries):
    return [entry.kind for entry in entries]


def test_entries(directory):
    entries = cache_contents.entries(directory)
    assert kinds(entries) == ['packed rows', 'tokens of texts', 'compiled programs']
    assert entries[0].size > 1000 and entries[2].size == 50
    assert [round((time.time() - entry.used) / DAY) for entry in entries] == [7, 0, 40]
    assert cache_contents.entries(directory / 'gone') == []


@pytest.mark.parametrize(
    ('days', 'expected'),
    [(60, []), (30, ['compiled programs']), (5, ['packed rows', 'compiled programs']), (0, None)],
)
def test_prune_removes_what_was_not_used(directory, days, expected):
    before = cache_contents.entries(directory)
    removed = cache_contents.prune(directory, days)
    assert kinds(removed) == (kinds(before) if expected is None else expected)
    assert cache_contents.entries(directory) == [entry for entry in before if entry not in removed]
    assert (directory / 'notes.txt').exists() and (directory / 'tokens-mine').exists()
    cache.build(directory / TOKENS, lambda folder: (folder / 'part.bin').write_bytes(b'x') and None)  # made again


def test_prune_leaves_what_is_being_written(directory):
    incomplete = directory / f'{ROWS}.0123abcd.tmp'
    incomplete.mkdir()
    with open(directory / 'locks' / ROWS, 'ab') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert kinds(cache_contents.prune(directory, 5)) == ['compiled programs']
    assert incomplete.exists()
    assert cache_contents.prune(directory, 100)[0].path == incomplete  # its process ended
    assert not incomplete.exists() and (directory / ROWS).exists()


def test_links_are_not_followed(directory, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'file').write_text('x', encoding='utf-8')
    (directory / f'task-{"c" * 32}').symlink_to(other)
    assert 'encoded rows of tasks' not in kinds(cache_contents.prune(directory, 0))
    assert (other / 'file').exists()
