import pwd
from pathlib import Path

import pytest

from lmtrain.errors import InputError
from lmtrain.files import (
    describe_files,
    flatten_fields,
    list_files,
    local_path,
    read_json,
    read_json_lines,
    read_json_object,
    sha256,
    user_cache,
    write_atomic,
    write_json,
)


@pytest.fixture
def homeless(monkeypatch):
    """No HOME and no user in passwd, same as in a container of `docker run -u 12345`."""

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
def test_local_path_expands_home(path, root, expected, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert local_path(path, '--workdir', root) == Path(expected.replace('HOME', str(tmp_path)))


@pytest.mark.parametrize('url', ['gs://bucket/run', 's3://bucket/run', 'https://a.b/c', 'file:///tmp/a'])
def test_local_path_rejects_urls(url):
    with pytest.raises(InputError, match=r'--workdir=.* is a URL; .* mount the bucket .* or download'):
        local_path(url, '--workdir')
    with pytest.raises(InputError, match=r'--workdir=.* is a URL'):
        local_path(Path(url), '--workdir')
    with pytest.raises(InputError, match=r'data\.root=.* is a URL'):
        local_path('a.txt', 'data.source', url)


def test_local_path_without_home_directory(homeless):
    with pytest.raises(InputError, match="--workdir='~/a': HOME is not set .*: write the whole path"):
        local_path('~/a', '--workdir')
    assert local_path('a', '--workdir') == Path('a')
    assert user_cache() is None


def test_user_cache(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert user_cache() == tmp_path / '.cache'
    monkeypatch.setenv('XDG_CACHE_HOME', '/elsewhere')
    assert user_cache() == Path('/elsewhere')
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    assert user_cache() == tmp_path / '.cache'


def test_write_atomic_keeps_old_file_if_writing_fails(tmp_path):
    path = tmp_path / 'a.bin'
    write_atomic(path, b'old')

    def chunks():
        yield b'new'
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space'):
        write_atomic(path, chunks())
    assert path.read_bytes() == b'old'
    write_atomic(path, [b'ne', b'w'])
    assert path.read_bytes() == b'new'
    assert list_files(tmp_path) == ['a.bin']  # the temporary file of the failed attempt was reused


def test_describe_files(tmp_path):
    (tmp_path / 'a').write_bytes(b'1')
    (tmp_path / 'b').write_bytes(b'22')
    assert describe_files(tmp_path, ['b', 'a'], lambda path: path.stat().st_size) == {'b': 2, 'a': 1}


def test_sha256_and_list_files(tmp_path):
    (tmp_path / 'b' / 'c').mkdir(parents=True)
    (tmp_path / 'b' / 'c' / 'x').write_bytes(b'abc')
    (tmp_path / 'a').symlink_to('missing')
    assert list_files(tmp_path) == ['a', 'b/c/x']
    assert sha256(tmp_path / 'b' / 'c' / 'x').startswith('ba7816bf8f01cfea')  # FIPS 180-2, appendix B.1


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"a": \n}', r"a\.json: invalid JSON, Expecting value at line 2, column 1: '}'"),
        (b'{"a": ]', r"a\.json: invalid JSON, Expecting value at column 7: '{\"a\": ]'"),
        (b'{"a": "\xff"}', r"a\.json: invalid JSON \('utf-8' codec can't decode"),
        (b'[' * 100_000, r'a\.json: invalid JSON \(maximum recursion'),
        (b'1' * 5000, r'a\.json: invalid JSON \(Exceeds the limit'),
        (b'[1]', r"a\.json: expected a JSON object \{...\}, not an array: b'\[1\]'"),
    ],
)
def test_read_json_object_names_file_and_reason(content, message, tmp_path):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json_object(tmp_path / 'a.json')


def test_write_json_is_read_back(tmp_path):
    write_json(tmp_path / 'a.json', {'b': [1, 'ü']}, indent=1)
    assert read_json(tmp_path / 'a.json') == {'b': [1, 'ü']}


def test_json_lines_skip_an_incomplete_last_line(tmp_path):
    path = tmp_path / 'a.jsonl'
    assert read_json_lines(path) == []
    path.write_text('{"step": 1}\n')
    with path.open('ab') as file:
        file.write(b'{"step": 2')
    assert read_json_lines(path) == [{'step': 1}]
    with path.open('ab') as file:
        file.write(b'\n')
    with pytest.raises(InputError, match=r'a\.jsonl:2: invalid JSON'):
        read_json_lines(path)


def test_flatten_fields_keeps_order_and_empty_sections():
    fields = flatten_fields({'b': {'y': 1, 'x': {'z': None}}, 'a': {}})
    assert list(fields.items()) == [('b.y', 1), ('b.x.z', None), ('a', {})]
