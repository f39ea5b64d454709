import gzip
import tracemalloc

import pytest

from lmtrain.data import text_files
from lmtrain.data.text_files import decode, raw_lines, text_lines
from lmtrain.errors import InputError


def read(path):
    return [text for _, text in text_lines(path)]


def test_decode_names_line_and_byte_behind_an_offset(tmp_path):
    assert decode(b'\xc3\xa9', tmp_path / 'a.txt', 100, 7) == 'é'
    with pytest.raises(InputError, match=r'a\.txt:8: not UTF-8 at byte 102 \(ff'):
        decode(b'a\n\xff', tmp_path / 'a.txt', 100, 7)


def test_raw_lines_have_number_and_offset(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'one\r\n\ntwo')
    assert list(raw_lines(tmp_path / 'a.txt')) == [(1, 0, b'one'), (2, 5, b''), (3, 6, b'two')]


def test_limits_of_line_and_unpacked_size(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, 'LINE_LIMIT', 1 << 20)
    monkeypatch.setattr(text_files, 'GZ_FLOOR', 1 << 20)
    (tmp_path / 'a.txt').write_bytes(b'short\n' + b'x' * (2 << 20))
    with pytest.raises(ValueError, match=r'a\.txt:2: this line is longer than 1 MiB'):
        read(tmp_path / 'a.txt')
    (tmp_path / 'bomb.jsonl.gz').write_bytes(gzip.compress(b'\n' * (8 << 20)))
    with pytest.raises(ValueError, match=r'bomb\.jsonl\.gz: unpacks to more than 200 times its size'):
        read(tmp_path / 'bomb.jsonl.gz')
    (tmp_path / 'plain.jsonl.gz').write_bytes(b'{"text": "a"}')
    with pytest.raises(ValueError, match=r'plain\.jsonl\.gz: it is not compressed .*: remove \.gz from its name'):
        read(tmp_path / 'plain.jsonl.gz')
    (tmp_path / 'line.jsonl.gz').write_bytes(gzip.compress(b'x' * (16 << 20)))
    tracemalloc.start()
    with pytest.raises(ValueError, match='longer than 1 MiB'):
        read(tmp_path / 'line.jsonl.gz')
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_million_empty_lines(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(b'\n' * 1_000_000 + b'one')
    assert sum(map(len, read(tmp_path / 'a.jsonl'))) == 3
