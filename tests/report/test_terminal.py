import io
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.report import terminal

RESULTS = {'loss': 3.14159, 'perplexity': 23.14, 'bits_per_token': 4.532, 'bits_per_byte': 1.752}
BASELINES = {'unigram': 3.312, 'bigram': 1.862, 'xz': 1.84}


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0, '0'),
        (0.5, '0.50'),
        (7, '7'),
        (950, '950'),
        (999.6, '1.00k'),
        (1000, '1.00k'),
        (12_345, '12.3k'),
        (99_960, '100k'),
        (124_439_808, '124M'),
        (2.6e9, '2.60B'),
        (9.9e15, '9900T'),
        (-1500, '-1.50k'),
        (float('nan'), 'nan'),
    ],
)
def test_numbers(value, text):
    assert terminal.number(value) == text


def test_units():
    assert terminal.unit(3.41e12, 'FLOP/s') == '3.41 TFLOP/s'
    assert terminal.unit(512, 'B') == '512 B'
    assert terminal.unit(1.1e9, 'B') == '1.10 GB'
    assert terminal.unit(float('inf'), 'B') == 'inf B'


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0.2, '0s'),
        (42, '42s'),
        (59.7, '1m 00s'),
        (245, '4m 05s'),
        (3780, '1h 03m'),
        (86400 * 2 + 3600 * 4, '2d 04h'),
        (float('inf'), '?'),
    ],
)
def test_durations(seconds, text):
    assert terminal.duration(seconds) == text


@given(st.floats(1e-3, 1e17))
def test_numbers_are_short_and_accurate(value):
    text = terminal.number(value, terminal.SI)
    digits, prefix = re.fullmatch(r'([\d.]+)([kMGTPEZY]?)', text).groups()
    assert len(text) <= 5
    assert float(digits) * 1000 ** terminal.SI.index(prefix) == pytest.approx(value, rel=6e-3, abs=5.1e-3)


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


def test_colour_only_on_terminals(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert terminal.has_colour(Terminal()) and not terminal.has_colour(io.StringIO())
    monkeypatch.setenv('NO_COLOR', '1')
    assert not terminal.has_colour(Terminal())


FACTS = {
    'split': 'auto',
    'sources': [
        {'name': 'notes', 'weight': 1.0, 'files': 3, 'divided': 'tails', 'bytes': 9640, 'documents': 3, 'skipped': {}},
        {'name': 'python', 'weight': 0.5, 'files': 2, 'divided': 'document', 'bytes': 1_000_000, 'documents': 1234},
    ],
    'splits': {
        'train': {'documents': 1000, 'bytes': 900_000, 'tokens': 312_000},
        'validation': {'documents': 1, 'bytes': 100_000, 'tokens': 17_000},
    },
}
SKIPPED = {'.png': 3, '.md': 1200, 'empty': 2, 'no ending': 9, '.pdf': 1, '.zip': 1}


def test_header_lists_sources_and_skipped_files():
    FACTS['sources'][1]['skipped'] = SKIPPED
    assert terminal.text(FACTS).splitlines() == [
        '  data       notes: weight 1: 3 files, 3 documents, 9.64 kB; the tail of each',
        '             document is held out',
        '  data       python: weight 0.5: 1,234 documents, 1.00 MB; whole documents are',
        '             held out',
        '  train      900 kB (90.0%), 312k tokens, 1,000 documents',
        '  validation 100 kB (10.0%), 17.0k tokens, 1 document',
        '  skipped    python: 1,200 .md, 9 no ending, 3 .png, 2 empty, 2 other files',
    ]
    alone = FACTS | {
        'sources': [FACTS['sources'][0] | {'files': 1, 'documents': 1, 'divided': 'tail', 'skipped': {'.md': 2}}]
    }
    lines = terminal.text(alone).splitlines()
    assert lines[0] == '  data       1 file, 1 document, 9.64 kB; the end of the text is held out'
    assert lines[-1] == '  skipped    2 .md' and all(len(line) <= 80 for line in lines)
    table = FACTS | {'sources': [alone['sources'][0] | {'name': 'my/Reviews.CSV'}]}
    assert terminal.text(table).splitlines()[1:3] == [
        '  data       my/Reviews.CSV is read as plain text; rows with labels:',
        '             --config=configs/classify.py',
    ]


def test_parameter_table():
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp'))
    trainable = {'layers': {'kernel': jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=cut)}}
    frozen = {'embed': {'embedding': jax.ShapeDtypeStruct((16, 4), jnp.bfloat16)}}
    rows = [re.split(r'  +', row) for row in terminal.parameters(trainable, frozen).splitlines()]
    assert rows[0] == ['path', 'shape', 'dtype', 'sharding', 'train', 'count']
    assert rows[2] == ['embed/embedding', '16 x 4', 'bfloat16', 'replicated', 'no', '64']
    assert rows[3] == ['layers/kernel', '4 x 8', 'float32', '-, fsdp', 'yes', '32']
    assert rows[-1] == ['total', '96']


def test_parameter_table_of_long_paths_fits_80_columns(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    path = 'layers/' + 'x' * 60
    frozen = {'layers': {'x' * 60: jax.ShapeDtypeStruct((32, 4096, 14336), jnp.bfloat16)}}
    lines = terminal.parameters({}, frozen).splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == 'path' and path in lines
    assert lines[lines.index(path) + 1].split() == '32 x 4096 x 14336 bfloat16 replicated no 1,879,048,192'.split()


def test_evaluation_with_baselines():
    text = terminal.evaluation_line(RESULTS, BASELINES)
    assert text.endswith('1.752 bits/byte (xz 1.84, bigram 1.86, unigram 3.31)') and len(text) <= 102
    assert terminal.evaluation_line(RESULTS, {}).endswith('1.752 bits/byte')
    ended = {'validation': RESULTS, 'baselines': BASELINES}
    block = terminal.evaluation(ended).splitlines()
    assert [row.split()[0] for row in block[3:]] == ['this', 'xz', 'bigram', 'unigram']
    assert block[-1].count('█') == 40 and max(map(len, block)) <= 80
    assert '\x1b[' in terminal.evaluation(ended, colour=True)


def test_scores_of_a_task_have_the_number_of_rows_they_were_measured_on():
    ended = {'validation': {'loss': 0.2319, 'accuracy': 1.0, 'targets': 3.0}, 'unit': 'pair'}
    assert terminal.evaluation(ended).splitlines()[1] == '  loss 0.2319, accuracy 1.0000  (3 pairs)'
    assert terminal.evaluation({'validation': ended['validation']}).splitlines()[1] == '  loss 0.2319, accuracy 1.0000'


def test_end_of_a_sweep_has_its_rates_and_remarks():
    intervals = [
        {'learning_rate': 0.001, 'members': 3, 'loss': [3.21, 3.1, 3.32]},
        {'learning_rate': 0.01, 'members': 1, 'loss': [2.5, None, None]},
    ]
    ended = {'validation': RESULTS, 'sweep': {'intervals': intervals}, 'remarks': {'best': 'word ' * 30}}
    lines = terminal.evaluation(ended).splitlines()
    assert lines[4:7] == [
        '  learning rate  members  mean loss  95 % interval',
        '          0.001        3     3.2100  3.1000 to 3.3200',
        '           0.01        1     2.5000  (one member)',
    ]
    assert lines[7].startswith('  best       word word') and max(map(len, lines)) <= 80


def test_bars_say_which_direction_is_better_and_an_outlier_is_cut():
    block = terminal.evaluation({'validation': RESULTS, 'baselines': BASELINES | {'xz': 50.0}}).splitlines()
    assert block[2] == '  bits per byte, lower is better'
    bars = {row.split()[0]: row.split()[-1] for row in block[3:]}
    assert bars['xz'].endswith('█>') and len(bars['xz']) == 40
    assert bars['this'].count('█') == 13  # a third of the width, and not 40 * 1.752 / 50


def test_header_fits_80_columns():
    text = 'classes: ' + ', '.join(f'class-{i} {i}' for i in range(12))
    lines = terminal.note('rows', text).split('\n')
    assert len(lines) > 1 and max(map(len, lines)) <= 80
    assert lines[0].startswith('  rows       classes: class-0 0,') and all(line[:13].isspace() for line in lines[1:])
    assert ' '.join(line[13:] for line in lines) == text
