"""Files of rows: what is written is read back unchanged, and no column is lost."""

import csv
import datetime
import decimal
import io
import json

import pyarrow.parquet
import pytest

from lmtrain.data import row_files
from lmtrain.data.rows import read_rows

ROWS = [
    {'text': 'a, "b"\nc', 'n': 3, 'p': {'x': 0.25, 'y': 0.75}, 'tags': ['O', 'B-é']},
    {'text': ' d', 'late': True, 'p': None, 'mixed': {'a': 1}},
    {'text': '', 'mixed': 'plain'},
]


def table(rows):
    return list(csv.reader(io.StringIO(b''.join(row_files.encoded(rows, 'x.csv')).decode())))


def test_csv_has_a_column_for_each_name_and_each_entry_of_objects():
    header, *lines = table(ROWS)
    assert header == ['text', 'n', 'p.x', 'p.y', 'tags', 'late', 'mixed']
    assert lines[0] == ['a, "b"\nc', '3', '0.25', '0.75', '["O", "B-é"]', '', '']
    assert lines[1] == [' d', '', '', '', '', 'true', '{"a": 1}']  # a column that is not of objects alone is JSON
    assert lines[2] == ['', '', '', '', '', '', 'plain']


def test_jsonl_keeps_values():
    lines = b''.join(row_files.encoded(ROWS, 'x.jsonl')).decode().splitlines()
    assert [json.loads(line) for line in lines] == ROWS and 'B-é' in lines[0]


@pytest.mark.parametrize('name', ['rows.csv', 'rows.jsonl'])
def test_rows_that_were_read_are_written_unchanged(tmp_path, name):
    rows = [{'text': 'a;b', 'label': '01'}, {'text': 'two\nlines "x"', 'label': '1.0'}]
    (tmp_path / name).write_bytes(b''.join(row_files.encoded(rows, name)))
    assert [row.fields for row in read_rows(str(tmp_path / name), '')] == rows


def test_values_of_parquet_that_json_does_not_have_are_texts(tmp_path):
    day, price, raw = datetime.datetime(2026, 1, 31, 12), decimal.Decimal('12.50'), b'\xff'
    table_of_rows = pyarrow.table({'day': [day], 'price': [price], 'raw': [raw], 'days': [[day.date()]]})
    pyarrow.parquet.write_table(table_of_rows, tmp_path / 'a.parquet')
    rows = [row.fields for row in read_rows('a.parquet', str(tmp_path))]
    (line,) = b''.join(row_files.encoded(rows, 'x.jsonl')).decode().splitlines()
    texts = {'day': '2026-01-31 12:00:00', 'price': '12.50', 'raw': "b'\\xff'"}
    assert json.loads(line) == texts | {'days': ['2026-01-31']}
    assert table(rows) == [['day', 'price', 'raw', 'days'], [*texts.values(), '["2026-01-31"]']]


def test_half_of_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    """UTF-8 does not have it. JSON files may contain it, in fields that no model reads."""
    rows = [{'id': 'é', 'raw': 'x\ud800', 'all': ['\udc00']}, {'id': 'é', 'raw': 'b', 'all': []}]
    (tmp_path / 'a.jsonl').write_bytes(b''.join(row_files.encoded(rows, 'a.jsonl')))
    assert [row.fields for row in read_rows('a.jsonl', str(tmp_path))] == rows
    assert 'é' in (tmp_path / 'a.jsonl').read_text(encoding='utf-8')  # as any other row
    assert table(rows) == [['id', 'raw', 'all'], ['é', 'x\\ud800', '["\\udc00"]'], ['é', 'b', '[]']]


def test_other_endings_are_refused():
    with pytest.raises(ValueError, match='rows.xlsx: rows are written as .jsonl or .csv'):
        row_files.check_ending('rows.xlsx')


def test_names_that_rows_have_are_not_overwritten():
    rows = [{'prediction': 'a'}, {'prediction_2': 'b'}]
    assert row_files.free_names(['prediction', 'p'], rows) == {'prediction': 'prediction_3', 'p': 'p'}
