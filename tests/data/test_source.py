import gzip
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.source import open_source

CACHE = Path('of', 'these', 'tests')  # config.data.cache; nothing is read from it


def read(path, text_field='text', document='file', root=''):
    return [each.text for each in open_source(str(path), root, CACHE, text_field, document).documents()]


def rows(*texts):
    return ''.join(json.dumps({'text': text}) + '\n' for text in texts).encode()


@pytest.mark.parametrize(
    'name, content, document, expected',
    [
        ('a.txt', b'one\ntwo\n', 'file', ['one\ntwo\n']),
        ('a.txt', b'one\ntwo', 'line', ['one', 'two']),
        ('a.txt', b'one\r\ntwo\r\n', 'line', ['one', 'two']),
        ('a.txt', b'\xef\xbb\xbfone\n', 'line', ['one']),
        ('a.txt', b'\xef\xbb\xbfone', 'file', ['one']),
        ('a.txt', b'a\x00b', 'file', ['a\x00b']),
        ('a.md', '# é\n'.encode(), 'file', ['# é\n']),
        ('a.py', b'x = 1\n\ny = 2\n', 'paragraph', ['x = 1', 'y = 2']),
        ('a.html', b'<p>', 'file', ['<p>']),
        ('a', b'no ending', 'line', ['no ending']),
        ('.hidden', b'text', 'file', ['text']),
        ('a.txt', 'é漢🙂\r\n'.encode('utf-16'), 'file', ['é漢🙂\r\n']),
        ('a.txt', b'\xfe\xff' + 'é漢🙂\none'.encode('utf-16be'), 'line', ['é漢🙂', 'one']),
        ('a.txt', 'é漢🙂\none'.encode('utf-32'), 'line', ['é漢🙂', 'one']),
        ('a.jsonl', rows('one', 'two').decode().encode('utf-16'), 'file', ['one', 'two']),
        ('a.txt', b'one\ntwo\n\n \nthree\n\n', 'paragraph', ['one\ntwo', 'three']),
        ('a.txt', b'\none\n \n\ntwo\n', 'line', ['one', 'two']),
        ('a.jsonl', rows('one', 'two\nlines'), 'file', ['one', 'two\nlines']),
        ('a.jsonl', b'\n' + rows('one').rstrip() + b'\r\n\n', 'file', ['one']),
        ('a.jsonl', b'{"text": "a", "x": NaN, "text": "b"}', 'file', ['b']),
        ('a.jsonl.gz', gzip.compress(rows('one', 'two'), mtime=0), 'file', ['one', 'two']),
        ('a.ndjson.gz', gzip.compress(rows('one', 'two'), mtime=0), 'file', ['one', 'two']),
        ('A.JSONL', rows('one', 'two'), 'file', ['one', 'two']),
        ('A.JSONL.GZ', gzip.compress(rows('one', 'two'), mtime=0), 'file', ['one', 'two']),
        ('a.ndjson', rows('one', 'two'), 'file', ['one', 'two']),
        ('a.json', rows('one', 'two'), 'file', ['one', 'two']),
        ('a.Json', b'[{"text": "one"},\n {"text": "two"}]', 'file', ['one', 'two']),
        (
            'a.pgn',
            b'[Event "x"]\n[Site "y"]\n\n1. e4 e5 2. Nf3 {good\n[%clk 0:01]} Nc6 1-0\n\n\n'
            b'[Event "z"]\n\n1. d4 $1 d5 1/2-1/2\n',
            'file',
            ['e4 e5 Nf3 Nc6 1-0', 'd4 d5 1/2-1/2'],
        ),
        (
            'a.pgn',
            b'[Event "x"]\n\n1. e4! e5?? ; 1... c5 (best) {\n% 2. a3\n(2. f4 {no :) } exf4 (2... d5) 3. Nf3) 2. Nf3!?'
            b' Nc6 {; (} 3. Bb5+ *\n',
            'file',
            ['e4 e5 Nf3 Nc6 Bb5+ *'],
        ),
    ],
)
def test_documents_of_one_file(name, content, document, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name, document=document) == expected


BAD = [
    # name, content, document, error message
    ('a.txt', b'', 'file', 'a.txt is empty'),
    ('a.txt', b'abc\xc0', 'file', 'not UTF-8 at byte 3'),
    ('a.txt', b'abc\xe0\x80\x80', 'file', 'not UTF-8 at byte 3'),  # overlong
    ('a.txt', b'ab\xed\xa0\x80', 'file', 'not UTF-8 at byte 2'),  # half a surrogate pair
    ('a.txt', 'abé'.encode()[:-1], 'file', 'not UTF-8 at byte 2'),  # cut at its end
    (
        'a.txt',
        'caf\xe9'.encode('latin1'),
        'file',
        r'a\.txt:1: not UTF-8 at byte 3 .* iconv -f ENCODING -t utf-8 .*a\.txt',
    ),
    ('a.md', 'a\nb\ncaf\xe9'.encode('cp1252'), 'file', r'a\.md:3: not UTF-8 at byte 7 '),
    ('a.txt', 'こんにちは'.encode('shift_jis'), 'file', 'where ENCODING is that of the file'),
    ('a.txt', 'plain'.encode('utf-16le'), 'file', 'looks like UTF-16LE without a byte order mark.* iconv -f utf-16le'),
    ('a.txt', 'plain'.encode('utf-16be'), 'line', 'looks like UTF-16BE without a byte order mark.* iconv -f utf-16be'),
    ('a.jsonl', rows('one').decode().encode('utf-16le'), 'file', 'looks like UTF-16LE'),
    (
        'a.txt',
        'cut'.encode('utf-16')[:-1],
        'file',
        'begins with the byte order mark of UTF-16, but is not',
    ),
    (
        'a.bin',
        np.arange(100, dtype=np.int32).tobytes(),
        'line',
        'a.bin: 301 of its first 400 bytes are NUL: it is not',
    ),
    ('a.txt.gz', gzip.compress(b'text', mtime=0), 'line', 'It is gzip: unpack it with gunzip'),
    ('a.docx', b'PK\x03\x04\x14\xff', 'file', 'It is a zip archive, as .docx'),
    ('a', b'%PDF-1.7\n%\xe2\xe3', 'file', r'a:2: not UTF-8 at byte 10 .* It is PDF: extract its text'),
    ('a.txt', b'one\ntwo\xff\n', 'line', 'not UTF-8 at byte 7'),
    ('a.jsonl', rows('one') + b'\xff\n', 'file', 'not UTF-8 at byte 16'),
    ('a.jsonl', rows('one') + b'{"text": \n', 'file', 'a.jsonl:2: invalid JSON'),
    ('a.jsonl', b'[' * 100_000, 'file', 'a.jsonl:1: invalid JSON'),
    ('a.jsonl', b'{"text": ' + b'1' * 5000 + b'}', 'file', 'a.jsonl:1: invalid JSON'),
    ('a.jsonl', b'["text"]', 'file', 'a.jsonl:1: expected a JSON object .*, not an array'),
    ('a.jsonl', b'"text"', 'file', 'a.jsonl:1: expected a JSON object .*, not text'),
    ('a.jsonl', b'{"body": "x", "id": 3}', 'file', "a.jsonl:1: no field 'text'; the fields there are: 'body', 'id'"),
    ('a.jsonl', b'{}', 'file', 'the fields there are: none'),
    ('a.jsonl', b'{"body": "x", "id": 4}', 'file', 'Set data.text_field to one of them$'),
    ('a.jsonl', b'{"messages": []}', 'file', r'conversations \(messages\): --config=configs/instruct.py'),
    ('a.jsonl', rows('one') + b'{"text": 5}', 'file', "a.jsonl:2: 'text' must be text, not a number"),
    ('a.jsonl', b'{"text": []}', 'file', 'must be text, not an array'),
    ('a.jsonl', b'{"text": true}', 'file', 'must be text, not true or false'),
    ('a.jsonl', b'{"text": "\\ud800"}', 'file', 'has half of a surrogate pair at character 0'),
    ('a.jsonl.gz', gzip.compress(rows('one'), mtime=0)[:-5], 'file', 'a.jsonl.gz: truncated or damaged after'),
    ('a.jsonl.gz', rows('one'), 'file', 'a.jsonl.gz: it is not compressed .*: remove .gz'),
    ('a.jsonl.gz', gzip.compress(rows('one'), mtime=0)[:12] + b'\xff\xff\xff\xff', 'file', 'truncated or damaged'),
    ('a.json', b'{"text": "one"}', 'file', r'a\.json: expected an array of objects, .* name it \.txt$'),
    ('a.json', b'one', 'file', r'a\.json: invalid JSON.* name it \.txt$'),
    (
        'a.json',
        b'[{"body": "one"}]',
        'file',
        r"a\.json: \[0\]: no field 'text'; .* Set data.text_field to one of them$",
    ),
    ('a.parquet', b'PAR1 not at all', 'file', 'a.parquet: not a parquet file'),
    ('a.txt', b'text', 'chapter', "data.document is 'chapter'; it is one of 'file', 'line', 'paragraph'"),
]


@pytest.mark.parametrize('name, content, document, message', BAD, ids=[message for *_, message in BAD])
def test_broken_files_are_named(name, content, document, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, document=document)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'no\.txt: no such file or directory \(relative paths start at data.root'
    ):
        read('no.txt', root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'\*\.txt: no file matches this glob'):
        read(tmp_path / '*.txt')
    message = r"no file in this directory ends in .txt, .jsonl.* \(it has 1 .png, 1 no ending\).*/\*\*/\*.ENDING'"
    with pytest.raises(FileNotFoundError, match=message):
        (tmp_path / 'a.png').write_text('x')
        (tmp_path / 'Makefile').write_text('x')
        read(tmp_path)
    for name in ('gs://bucket/a.txt', 's3://bucket/*.jsonl', 'https://example.com/a.txt'):
        with pytest.raises(ValueError, match=f'.{re.escape(name)}. is a URL.* mount the bucket .*or download'):
            read(name)
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(ValueError, match=r'\*\.txt: each of its files is empty'):
        read(tmp_path / '*.txt')
    (tmp_path / 'a.txt').unlink()
    (tmp_path / 'link.txt').symlink_to(tmp_path / 'gone.txt')
    for source in ('link.txt', '*.txt', ''):
        with pytest.raises(FileNotFoundError, match=r'link\.txt is a link to .*gone\.txt, which does not exist'):
            read(tmp_path / source)


def test_linked_file_is_read_once(tmp_path):
    (tmp_path / 'a.txt').write_text('x')
    (tmp_path / 'b.txt').symlink_to(tmp_path / 'a.txt')
    source = open_source(str(tmp_path / '*.txt'), '', CACHE, 'text', 'file')
    assert [each.text for each in source.documents()] == ['x']
    assert source.skipped == {'second name of a file': 1}


@pytest.mark.parametrize('source', ['', '**/*.txt'])
def test_files_in_the_cache_are_rejected(tmp_path, source):
    (tmp_path / 'kept').mkdir()
    for name in ('a.txt', 'kept/b.txt'):
        (tmp_path / name).write_text(name)
    with pytest.raises(ValueError, match=r'kept/b\.txt is in data\.cache=.*: put data\.cache outside'):
        open_source(source or '.', str(tmp_path), tmp_path / 'kept', 'text', 'file')


def test_pipe_is_rejected(tmp_path):
    os.mkfifo(tmp_path / 'a.txt')
    with pytest.raises(ValueError, match='not a regular file'):
        read(tmp_path / 'a.txt')


def test_directories_and_globs_are_read_in_order(tmp_path):
    (tmp_path / 'deep').mkdir()
    for name, text in {'b.txt': 'b', 'a.jsonl': '{"text": "a"}', 'deep/c d ü.txt': 'c', 'x.md': 'no'}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / 'around').symlink_to(tmp_path)  # a cycle
    assert read(tmp_path) == ['a', 'b', 'c']
    assert read('*.txt', root=str(tmp_path)) == ['b']
    assert read('deep/../b.txt', root=str(tmp_path)) == ['b']
    assert read('**/c*.txt', root=str(tmp_path / 'deep')) == ['c']


def test_json_is_text_in_a_glob_of_all_files(tmp_path):
    for name, text in {'main.py': 'x = 1', 'package.json': '{"name": "x"}', 'README.TXT': 'read'}.items():
        (tmp_path / name).write_text(text)
    assert read('*', root=str(tmp_path)) == ['read', 'x = 1', '{"name": "x"}']
    assert read('.', root=str(tmp_path)) == ['read']
    with pytest.raises(ValueError, match='expected an array of objects'):
        read('*.json', root=str(tmp_path))


def test_skipped_files_are_counted(tmp_path):
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'other').symlink_to('deep')
    names = {'a.md': 'a', 'deep/b.rst': 'b', 'c.py': '', 'd.png': 'd', 'deep/e.png': 'e', 'Makefile': 'm'}
    for name, text in names.items():
        (tmp_path / name).write_text(text)

    def opened(source):
        of = open_source(source, str(tmp_path), CACHE, 'text', 'file')
        return [each.text for each in of.documents()], of.skipped

    assert opened('.') == (['a', 'b'], {'.png': 2, 'empty': 1, 'links to directories': 1, 'no ending': 1})
    assert opened('*') == (['m', 'a', 'd'], {'directories': 2, 'empty': 1})
    assert opened('**/*.png') == (['d', 'e'], {'second name of a file': 1})
    assert opened('a.md') == (['a'], {})
    (tmp_path / 'f.txt').write_text('f')  # data in a known format, and a README
    skipped = {'.md': 1, '.png': 2, '.py': 1, '.rst': 1, 'links to directories': 1, 'no ending': 1}
    assert opened('.') == (['f'], skipped)


@pytest.mark.parametrize('source', ['.', '**/*.txt'])
def test_runs_in_the_folder_of_their_text_are_not_read(source, tmp_path):
    """Samples and logs of a run are no text of the next one; a run folder that is named is read."""
    for folder, names in {
        'runs/one': ['config.json', 'fingerprints.json', 'samples.txt', 'checkpoints/3/notes.txt'],
        'runs/which': ['config.json', 'trials/lora/log.txt'],
        'model': ['config.json', 'vocab.txt'],
    }.items():
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(name)
    (tmp_path / 'own.txt').write_text('own')
    opened = open_source(source, str(tmp_path), CACHE, 'text', 'file')
    assert [each.text for each in opened.documents()] == ['vocab.txt', 'own']
    assert opened.skipped['of runs'] >= 2
    assert read('runs/one/*.txt', root=str(tmp_path)) == ['samples.txt']


def test_hidden_files_of_a_directory_are_not_read(tmp_path):
    for name in ('.venv/lib/top_level.txt', '.notes.txt', 'a.md', 'deep/.ipynb_checkpoints/a-checkpoint.md'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    opened = open_source(str(tmp_path), '', CACHE, 'text', 'file')
    assert [each.text for each in opened.documents()] == ['a.md']
    assert opened.skipped == {'hidden': 3}


def test_root_is_not_a_glob(tmp_path):
    root = tmp_path / 'set[1]*'
    root.mkdir()
    (root / 'a[2].txt').write_text('a')
    (root / 'b.txt').write_text('b')
    for source, expected in {'*.txt': ['a', 'b'], 'a[2].txt': ['a'], '.': ['a', 'b'], 'a[[]2].*': ['a']}.items():
        assert read(source, root=str(root)) == expected
    assert read(root) == ['a', 'b']
    with pytest.raises(FileNotFoundError, match='c.txt: no such file or directory'):
        read('c.txt', root=str(root))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.just('text') | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
LINES = st.lists(st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode())).map(b'\n'.join)


@settings(max_examples=200)
@given(
    content=LINES,
    name=st.sampled_from(['a.jsonl', 'a.jsonl.gz', 'a.txt', 'a.pgn']),
    document=st.sampled_from(['file', 'line', 'paragraph']),
)
def test_any_bytes_give_text_or_input_error(content, name, document, tmp_path):
    (tmp_path / name).write_bytes(content)
    begun = time.thread_time()  # CPU time of this thread
    try:
        assert all(
            isinstance(text, str) and text.encode() is not None for text in read(tmp_path / name, document=document)
        )
    except ValueError as error:
        assert name in str(error)
    assert time.thread_time() - begun < 2


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    path = tmp_path / 'a.parquet'
    parquet.write_table(pyarrow.table({'text': ['one', 'two'], 'n': [1, 2]}), path)
    assert read(path) == ['one', 'two']
    with pytest.raises(ValueError, match="no field 'body'; the fields there are: 'text', 'n'"):
        read(path, text_field='body')
    with pytest.raises(ValueError, match="row 1: 'n' must be text, not a number"):
        read(path, text_field='n')
    parquet.write_table(pyarrow.table({'text': ['one', None]}), path)
    assert read(path) == ['one', '']  # a blank document, as an empty text is
    (tmp_path / 'a.jsonl').write_bytes(rows('', None, 'two'))
    assert read(tmp_path / 'a.jsonl') == ['', '', 'two']


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / 'a.parquet').write_bytes(b'PAR1')
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    with pytest.raises(ImportError, match=r'-e .\.\[parquet\]'):
        read(tmp_path / 'a.parquet')


def test_tfds_dataset_prepared_by_tfds(tmp_path):
    """Its builder needs modules that the embedded corpus does not, which setup.py must require."""
    import tensorflow_datasets as tfds

    builder = tfds.builder('lm1b', data_dir=tmp_path, file_format='array_record')
    assert builder.code_path and set(builder.info.features) == {'text'}


def test_tfds_by_name(tmp_path):
    import tensorflow_datasets as tfds

    class TinyPoems(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')
        code_path = None

        def _info(self):
            features = tfds.features.FeaturesDict({'poem': tfds.features.Text(), 'n': tfds.features.Scalar(np.int64)})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {'train': self._generate_examples(20), 'test': self._generate_examples(3)}

        def _generate_examples(self, count):
            for n in range(count):
                yield n, {'poem': f'poem {n} of {count}', 'n': n}

    place = open_source('tfds:tiny_poems', '', tmp_path, 'poem', 'file')
    documents = list(place.documents())
    assert len(documents) == 23 and place.files
    assert {each.split for each in documents if each.text.endswith('of 3')} == {'test'}
    assert {each.split for each in documents if each.text.endswith('of 20')} == {''}
    with pytest.raises(ValueError, match="tfds:tiny_poems: .* no field 'text'; the fields there are: 'n', 'poem'"):
        list(open_source('tfds:tiny_poems', '', tmp_path, 'text', 'file').documents())
    with pytest.raises(ValueError, match="'n' must be text"):
        list(open_source('tfds:tiny_poems', '', tmp_path, 'n', 'file').documents())
    with pytest.raises(ValueError, match='tfds:no_such_dataset could not be prepared .* --file_format=array_record'):
        open_source('tfds:no_such_dataset', '', tmp_path, 'text', 'file')
