import pwd
from pathlib import Path

import pytest

from lmtrain import files


@pytest.fixture
def homeless(monkeypatch):
    """No HOME, and no entry of the user in passwd: a container that runs as `docker run -u 12345`."""

    def missing(uid):
        raise KeyError(f'getpwuid(): uid not found: {uid}')

    monkeypatch.delenv('HOME')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', missing)


@pytest.mark.parametrize(
    ('path', 'root', 'expected'),
    [
        ('~/runs/a', '', 'HOME/runs/a'),
        ('~', '', 'HOME'),
        ('runs/~a', '', 'runs/~a'),
        ('runs/lr[1e-3]*?', '', 'runs/lr[1e-3]*?'),
        ('a b/ü\n', '', 'a b/ü\n'),
        ('/a', '~/texts', '/a'),
        ('a', '~/texts', 'HOME/texts/a'),
        ('~/a', 'texts', 'HOME/a'),
        ('a:b/c', '', 'a:b/c'),
    ],
)
def test_home_is_expanded(path, root, expected, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert files.local(path, '--workdir', root) == Path(expected.replace('HOME', str(tmp_path)))


@pytest.mark.parametrize('url', ['gs://bucket/run', 's3://bucket/run', 'https://a.b/c', 'file:///tmp/a'])
def test_urls_are_refused(url):
    for given in (url, Path(url)):
        with pytest.raises(ValueError, match=r'--workdir=.* is a URL; .* mount the bucket .* or download'):
            files.local(given, '--workdir')
    with pytest.raises(ValueError, match=r'data\.root=.* is a URL'):
        files.local('a.txt', 'data.source', url)


def test_home_of_nobody(homeless):
    with pytest.raises(ValueError, match="--workdir='~/a': HOME is not set .*: write the whole path"):
        files.local('~/a', '--workdir')
    assert files.local('a', '--workdir') == Path('a')
    assert files.caches() is None


def test_folder_of_caches(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert files.caches() == tmp_path / '.cache'
    monkeypatch.setenv('XDG_CACHE_HOME', '/elsewhere')
    assert files.caches() == Path('/elsewhere')
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    assert files.caches() == tmp_path / '.cache'
