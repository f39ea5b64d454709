import datetime
import decimal
import gzip
import json
import subprocess

import pytest

from lmtrain.data.rows import read_rows, text_of
from lmtrain.errors import InputError

SQUAD = {
    'data': [
        {
            'paragraphs': [
                {
                    'context': 'Bees make honey.',
                    'qas': [
                        {'id': '1', 'question': 'What?', 'answers': [{'answer_start': 10, 'text': 'honey'}]},
                        {'id': '2', 'question': 'Who?', 'answers': [{'answer_start': 0, 'text': 'Bees'}]},
                    ],
                }
            ]
        }
    ]
}


def rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(name, str(tmp_path))


@pytest.mark.parametrize(
    ('name', 'content', 'expected', 'line'),
    [
        ('a.csv', 'text,label\n"two\nlines, quoted",x\nlast,y\n', {'text': 'last', 'label': 'y'}, ':4'),
        ('a.csv', '\ufefftext,label\r\nlast,y\r\n\r\n', {'text': 'last', 'label': 'y'}, ':2'),
        ('a.csv', 'text;label\ra;x\r"b\rc";y\r', {'text': 'b\nc', 'label': 'y'}, ':3'),
        ('a.csv', 'text,label\n"b\rc",y\n', {'text': 'b\rc', 'label': 'y'}, ':2'),
        ('a.tsv', 'text\tlabel\ra\tx', {'text': 'a', 'label': 'x'}, ':2'),
        ('a.tsv', 'text\tlabel\n"not quoted\tx\n', {'text': '"not quoted', 'label': 'x'}, ':2'),
        ('a.jsonl', '\n{"text": "a", "label": 3}\n', {'text': 'a', 'label': 3}, ':2'),
        ('a.jsonl.gz', gzip.compress(b'{"text": "a"}', mtime=0), {'text': 'a'}, ':1'),
        ('a.NDJSON.gz', gzip.compress(b'{"text": "a"}', mtime=0), {'text': 'a'}, ':1'),
        ('A.JSONL', '{"a": 1}\n{"a": 2}', {'a': 2}, ':2'),
        ('a.ndjson', '{"a": 1}\n{"a": 2}', {'a': 2}, ':2'),
        ('A.jsonl.GZ', gzip.compress(b'{"text": "a"}', mtime=0), {'text': 'a'}, ':1'),
        ('A.Csv', 'text,label\na,x\n', {'text': 'a', 'label': 'x'}, ':2'),
        ('a.json', '[{"a": 1}, {"a": 2}]', {'a': 2}, ': [1]'),
        ('a.json', '\n{"a": 1}\n{"a": 2}\n', {'a': 2}, ':3'),
        ('a.jsonl', '[{"a": 1}, {"a": 2}]\n', {'a': 2}, ': [1]'),
        ('a.jsonl', '\n[\n  {"a": 1},\n  {"a": 2}\n]\n', {'a': 2}, ': [1]'),
        ('a.conll', 'EU B-ORG\nrejects O\n\n-DOCSTART- O\n\nIt O', {'tokens': ['It'], 'tags': ['O']}, ':6'),
        ('a.annotated', 'EU\tB\n\t\nA b\tO\n', {'tokens': ['A b'], 'tags': ['O']}, ':3'),
        ('a.csv', 'text;label\n"a;b, c";x\n', {'text': 'a;b, c', 'label': 'x'}, ':2'),
        ('a.csv', 'text\tlabel\na, b\tx\n', {'text': 'a, b', 'label': 'x'}, ':2'),
        ('a.csv', 'text, label \n"a, b", x\n', {'text': 'a, b', 'label': 'x'}, ':2'),
        ('a.csv', 'a;b,c\nx;y,z\n', {'a;b': 'x;y', 'c': 'z'}, ':2'),
        ('a.csv', ',text,label,\n0,a,x,\n1,b\x00,y,,\n,,,\n  \n', {'text': 'b\x00', 'label': 'y'}, ':3'),
        ('a.conll', 'New\xa0York B\n\xa0 O\n', {'tokens': ['New\xa0York', '\xa0'], 'tags': ['B', 'O']}, ':1'),
    ],
)
def test_last_row_has_its_line_number(tmp_path, name, content, expected, line):
    last = rows(tmp_path, name, content)[-1]
    assert last.fields == expected
    assert last.place == str(tmp_path / name) + line


def test_long_csv_cells(tmp_path):
    text = 'word ' * 40_000
    assert rows(tmp_path, 'a.csv', f'text,label\n{text},1\n')[0].fields == {'text': text, 'label': '1'}


def test_json_in_the_other_form_than_its_name_is_noted(tmp_path):
    for name, content, form in (
        ('a.json', '{}\n{}\n', 'an object in every line'),
        ('a.jsonl', '[{}]', 'one JSON array'),
    ):
        (tmp_path / name).write_text(content)
        notes = []
        read_rows(name, str(tmp_path), notes=notes)
        assert [note.startswith(f'{tmp_path / name}: {form}') for note in notes] == [True]


def test_csv_separator_is_detected_and_noted(tmp_path):
    (tmp_path / 'a.csv').write_text('text;label\na;x\n')
    notes = []
    read_rows('a.csv', str(tmp_path), notes=notes)
    assert notes == [f"{tmp_path / 'a.csv'}: the cells are separated by ';'"]


QUOTED = 'He said "hi"', 'plain', 'a\tb', 'two\nlines', '"'
TSV = 'text\tlabel\n'


@pytest.mark.parametrize(
    ('content', 'texts'),
    [
        (TSV + '"He said ""hi"""\tx\nplain\tx\n"a\tb"\tx\n"two\nlines"\tx\n""""\tx\n', QUOTED),
        (TSV + '"He said ""hi"""\tx\n', QUOTED[:1]),
        (TSV + 'plain\tx\n"a\tb"\tx\n', ('plain', 'a\tb')),
        ('"text"\t"label"\n"plain"\t"x"\n', ('plain',)),
        # Here quotes are characters of a text.
        (TSV + '"He said ""hi"""\tx\n"open\tx\n', ('"He said ""hi"""', '"open')),
        (TSV + '"plain"\tx\nsaid "hi"\tx\n', ('"plain"', 'said "hi"')),
        (TSV + '"Yes," he said\tx\n"a"\tx\n', ('"Yes," he said', '"a"')),
        (TSV + '"Yes\tx\nplain\tx\nNo"\tx\n', ('"Yes', 'plain', 'No"')),
    ],
)
def test_quoted_cells_of_a_tsv(tmp_path, content, texts):
    """pandas and Excel quote cells of a .tsv, and GLUE does not."""
    (tmp_path / 'a.tsv').write_text(content)
    notes = []
    found = [row.fields['text'] for row in read_rows('a.tsv', str(tmp_path), notes=notes)]
    assert tuple(found) == texts
    is_noted = notes == [f'{tmp_path / "a.tsv"}: cells in quotes are read as in a .csv']
    assert is_noted == (content.count('"') > sum(text.count('"') for text in texts)) and is_noted == bool(notes)


COMMENTED = {
    'multiconer': ('# id 5f2a\tdomain=en\na _ _ O\n# _ _ B\n\n# id 6\tdomain=en\nb _ _ O\n', 2),
    'keys and values': ('# newdoc\n\n# sent_id = 3\n# text = a b\na x y O\n# x y B\n\n# id = 4\nb x y O\n', 4),
    'one column': ('#\n#id=1\n#key=2 c\na O\n# B\n\n#\n# id 2 c\nb O\n', 5),
    'tabs, and comments without one': ('# newpar\na\tO\n# two words\n#\tB\n\n# newpar\nb\tO\n# end', 4),
    'tabs': ('# id 1\na\tO\n#\tB\n\n# id 2\nb\tO\n', 2),
}


TABLES = {
    'a.csv': 'text,label\r\n"é,漢",b\r\n',
    'a.tsv': 'text\tlabel\r\né,漢\tb\r\n',
    'a.jsonl': '{"text": "é,漢", "label": "b"}\n',
    'a.json': '[{"text": "é,漢", "label": "b"}]',
}


@pytest.mark.parametrize('name', TABLES)
def test_utf16_tables_with_byte_order_mark(tmp_path, name):
    """The encoding of Excel and PowerShell."""
    for encoding in ('utf-16', 'utf-8-sig', 'utf-8'):
        (row,) = rows(tmp_path, name, TABLES[name].encode(encoding))
        assert row.fields == {'text': 'é,漢', 'label': 'b'}
    with pytest.raises(ValueError, match=rf'^\S*{name}: looks like UTF-16LE without a byte order mark\. Convert it'):
        rows(tmp_path, name, TABLES[name].encode('utf-16le'))


@pytest.mark.parametrize(('content', 'comments'), COMMENTED.values(), ids=COMMENTED)
def test_conll_comments_are_skipped_and_counted(tmp_path, content, comments):
    (tmp_path / 'a.conll').write_text(content)
    notes = []
    result = read_rows('a.conll', str(tmp_path), notes=notes)
    assert [row.fields['tokens'] for row in result] == [['a', '#'], ['b']]
    assert result[0].fields['tags'] == ['O', 'B']
    assert notes == [f'{tmp_path / "a.conll"}: {comments} comment lines (# ...) skipped']


def test_conll_u_is_read_after_the_advised_command(tmp_path):
    """The lines of Universal Dependencies: comments, a word of two words, an empty node."""
    lines = ['# newpar', '# text = vám', '1-2\tvám', '1\tva\t_\tPRON', '2\tám\t_\tAUX', '2.1\tx\t_\tVERB', '', '']
    lines = ['\t'.join((line.split('\t') + ['_'] * 9)[:10]) if '\t' in line else line for line in lines]
    (tmp_path / 'u.conll').write_text('\n'.join(lines), encoding='utf-8')
    with pytest.raises(InputError) as error:
        read_rows('u.conll', str(tmp_path))
    command = str(error.value).rpartition('such as: ')[2].replace('FILE', 'u.conll')
    subprocess.run(f'{command} > cut.conll', shell=True, check=True, cwd=tmp_path)
    (row,) = read_rows('cut.conll', str(tmp_path))
    assert row.fields == {'tokens': ['va', 'ám'], 'tags': ['PRON', 'AUX']}


@pytest.mark.parametrize('content', ['# O\nb B\n', '#\tO\nb\tB\n', '#b O\nb B\n', '# _ O\nb _ B\n'])
def test_conll_word_may_begin_with_hash(tmp_path, content):
    (row,) = rows(tmp_path, 'a.conll', content)
    assert row.fields['tags'] == ['O', 'B'] and row.fields['tokens'][0].startswith('#')


def test_conll_numbers_may_be_words(tmp_path):
    assert rows(tmp_path, 'a.conll', '1 O\n2 O\n3 O\n')[0].fields['tokens'] == ['1', '2', '3']
    assert rows(tmp_path, 'a.conll', '1 CD O\n2 CD O\n3 CD O\n\na DT B\n')[0].fields['tokens'] == ['1', '2', '3']


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({'text': ['a', 'b'], 'label': [1, 0]}), tmp_path / 'a.parquet')
    result = read_rows('a.parquet', str(tmp_path))
    assert [row.fields for row in result] == [{'text': 'a', 'label': 1}, {'text': 'b', 'label': 0}]
    assert result[1].place.endswith('a.parquet: row 2')


def test_parquet_calls_and_schemas_have_their_own_keys(tmp_path):
    """A column of objects gives each of them the keys of all rows, with null."""
    import pyarrow as pa
    import pyarrow.parquet

    def example(name, arguments, label):
        calls = [{'function': {'name': name, 'arguments': arguments}}]
        schema = {'name': name, 'parameters': {key: {'type': 'string'} for key in arguments}}
        messages = [{'content': None, 'tool_calls': calls}, {'content': 'b', 'tool_calls': None}]
        return {'messages': messages, 'tools': [schema], 'label': label}

    examples = [example('weather', {'city': 'Paris'}, None), example('sum', {'expr': ['1', None]}, {'x': 1})]
    pyarrow.parquet.write_table(pa.Table.from_pylist(examples), tmp_path / 'a.parquet')
    assert [row.fields for row in read_rows('a.parquet', str(tmp_path))] == examples
    # Nulls of JSON are written by the user.
    examples[0]['messages'][0]['tool_calls'][0]['function']['arguments']['expr'] = None
    assert rows(tmp_path, 'a.jsonl', json.dumps(examples[0]))[0].fields == examples[0]


def test_parquet_text_that_is_not_utf8_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    texts = pa.array([b'ok', 'café'.encode('latin1')], pa.binary()).view(pa.string())
    pyarrow.parquet.write_table(pa.table({'text': texts}), tmp_path / 'a.parquet')
    with pytest.raises(InputError, match=r"a\.parquet: a text after row 0 is not UTF-8 \(b'caf\\xe9'"):
        read_rows('a.parquet', str(tmp_path))


@pytest.mark.parametrize(
    ('value', 'found'),
    [
        (b'a', r'bytes: store the column as text \(UTF-8\) and not as binary'),
        (datetime.datetime(2026, 1, 31), 'a date'),
        (datetime.date(2026, 1, 31), 'a date'),
        (datetime.timedelta(1), 'of type timedelta'),
        (decimal.Decimal('0.5'), 'a number'),
        (0.5, 'a number'),
        (True, 'true or false'),
    ],
)
def test_columns_of_parquet_that_are_no_text_are_named(tmp_path, value, found):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({'text': [value]}), tmp_path / 'a.parquet')
    (row,) = read_rows('a.parquet', str(tmp_path))
    with pytest.raises(InputError, match=f"a.parquet: row 1: 'text' must be text, not {found}$"):
        text_of(row, 'text')


def test_squad_has_one_row_per_question(tmp_path):
    result = rows(tmp_path, 'a.json', json.dumps(SQUAD))
    assert [row.fields['id'] for row in result] == ['1', '2']
    assert result[1].fields['context'] == 'Bees make honey.'
    assert result[1].place.endswith('a.json: data[0].paragraphs[0].qas[1]')


def test_path_with_label_reads_lines(tmp_path):
    (tmp_path / 'a.neg').write_text('bad film\n\nworse film\n')
    result = read_rows(('a.neg', 'negative'), str(tmp_path), 'said', 'mood')
    assert [row.fields for row in result] == [{'said': text, 'mood': 'negative'} for text in ('bad film', 'worse film')]
    assert result[1].place.endswith('a.neg:3')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        (
            'a.csv',
            'text;label\na;b;c\n',
            r"a\.csv:2: 3 fields, but the first line names 2: .* a cell that contains ';'",
        ),
        (
            'a.tsv',
            'text\tlabel\n"a\tb"\tx\n"c\tx\n',
            r'a\.tsv:2: 3 fields, but the first line names 2: .* Its quotes are read as text: .* written twice',
        ),
        ('a.csv', 'text,label\na,b\nc\n', r'a\.csv:3: 1 fields, but the first line names 2'),
        ('a.csv', 'text,text\na,b\n', r'a\.csv:1: a name occurs twice'),
        (
            'a.csv',
            'text,label\nx,y\n"open,b\nc,"d"\ne,f',
            r'a\.csv:3: invalid csv \(.*, in line 4\): a quoted cell ends',
        ),
        ('a.csv', 'text,label\n"open,b\nc,d\n', r'a\.csv:2: invalid csv \(unexpected end of data'),
        ('a.csv', 'text,label\n', r'a\.csv: it has no rows'),
        (
            'a.csv',
            'te\rxt,label\na,b\n',
            r'csv:1: invalid csv \(new-line character.*: a cell with a carriage return',
        ),
        ('a.csv', b'text\n\xff\n', r'a\.csv:2: not UTF-8 at byte 5'),
        ('a.jsonl', '{"a": 1}\n{"a": \n', r'a\.jsonl:2: invalid JSON'),
        ('a.jsonl', '{"a": "b\n', r'a\.jsonl:1: invalid JSON, Unterminated string starting at column 7'),
        ('a.jsonl', '[1]\n', r'a\.jsonl: \[0\]: expected an object .*, not a number'),
        ('a.jsonl', '["a", "b"]\n["c", "d"]\n', r'a\.jsonl:1: expected a JSON object .*, not an array'),
        ('a.json', '{"a": 1}\n{"a": \n', r'a\.json:2: invalid JSON'),
        ('a.json', '{\n"rows": []}', r'a\.json: expected an array of objects'),
        ('a.json', '{"rows": []}', r'a\.json: expected an array of objects'),
        ('a.json', '{"data": [{"paragraphs": [{}]}]}', r"a\.json: data\[0\]\.paragraphs\[0\]: no array 'qas'"),
        ('a.json', '[1]', r'a\.json: \[0\]: expected an object .*, not a number'),
        ('a.conll', 'EU B-ORG\nrejects\n', r"a\.conll:2: expected a word and its tag, not 'rejects'"),
        (
            'a.conll',
            '# text = a b\n1-2\tab' + '\t_' * 8 + '\n1\ta' + '\t_' * 8 + '\n',
            r"a\.conll:2: ten columns, .* this is CoNLL-U, .* such as: grep -vE '\^\[0-9\]\+\[-\.\]' FILE \| cut -f2,4",
        ),
        ('a.conll', '1\ta\tO\n2\tb\tO\n3\tc\tB\n', r'a\.conll:1: the first column numbers the words: .* cut -f2,3'),
        ('a.parquet', b'PAR1', r'a\.parquet: not a parquet file'),
        ('a.xml', '<a/>', r'a\.xml: expected a name that ends in \.jsonl'),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        rows(tmp_path, name, content)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; relative paths start at data.root, '"):
        read_rows('a.csv', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'no such file; relative paths start at the current directory'):
        read_rows('a-file-of-rows.csv', '')
