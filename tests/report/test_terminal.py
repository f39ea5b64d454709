"""What a person sees, at every width and on every kind of stream."""

import io
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.report import terminal

VALUES = {
    'loss': 3.14159,
    'bits_per_byte': 1.8119,
    'learning_rate': 9.12e-4,
    'grad_norm': 0.531,
    'tokens_per_second': 12345.6,
    'flops_per_second': 3.41e12,
    'memory': 3.1e9,
    'data_wait': 0.0041,
    'seconds_left': 245.0,
    'skipped': 0,
}
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


# The live line


def line(width, values=VALUES, total=5000, **options):
    return terminal.fit(terminal.fields(1240, total, 0.248, values), width, 0.248, **options)


def test_full_line_fits_120_columns():
    assert line(119).startswith(
        '1,240/5,000 25%  loss 3.142  1.812 bits/B  lr 9.1e-4  grad 0.53  12.3k tok/s  3.4 TFLOP/s  3.1 GB  wait 0%'
    )
    assert line(119).endswith('4m 05s left')


def test_line_fits_terminal_of_every_width():
    for width in range(1, 200):
        assert len(line(width)) <= width, width
        assert len(re.sub(r'\x1b\[\d*m', '', line(width, colour=True))) <= width, width


def test_low_priority_fields_are_dropped_first():
    assert [name in line(100) for name in ('loss', 'tok/s', 'left', 'bits/B', 'TFLOP/s', ' GB')] == [True] * 5 + [False]
    assert [name in line(60) for name in ('loss', 'tok/s', 'left', 'bits/B', 'grad', 'wait')] == [True] * 3 + [
        False
    ] * 3
    assert line(30).startswith('1,240/5,000 25%  loss')
    assert '━' in line(160) and '━' not in line(110)


def test_mfu_replaces_flops_and_skipped_is_shown():
    assert 'MFU 41%' in line(119, VALUES | {'mfu': 0.412}) and 'FLOP/s' not in line(119, VALUES | {'mfu': 0.412})
    assert 'skipped 3' in line(70, VALUES | {'skipped': 3})
    assert 'skipped' not in line(119)
    assert line(119, total=None).startswith('step 1,240 25%')
    assert 'loss nan' in line(119, VALUES | {'loss': float('nan'), 'seconds_left': float('inf')})


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


def test_last_column_stays_free(monkeypatch):
    monkeypatch.setenv('COLUMNS', '90')
    monkeypatch.setenv('NO_COLOR', '1')
    screen = Terminal()
    terminal.Live(5000, screen).update(1240, 0.248, VALUES)
    assert screen.getvalue() == f'\r{line(89)}\x1b[K'  # some terminals wrap when the last column is filled


def test_terminal_line_is_rewritten(monkeypatch):
    monkeypatch.setenv('COLUMNS', '90')
    screen = Terminal()
    live = terminal.Live(100, screen)
    for step in range(1, 101):
        live.update(step, step / 100, VALUES)
        if step == 50:
            live.say('half')
    live.close()
    shown = [part.split('\r')[-1] for part in screen.getvalue().split('\n')]
    assert len(shown) == 3 and shown[0] == '\x1b[Khalf'
    assert '100/100 100%' in shown[1] and shown[2] == ''


def test_messages_appear_above_the_live_line(monkeypatch):
    monkeypatch.setenv('COLUMNS', '90')
    screen = Terminal()
    live = terminal.Live(2, screen)
    live.update(1, 0.5, VALUES)
    live.say('one')
    assert '1/2 50%' in screen.getvalue().split('one\n')[1]
    live.update(2, 1.0, VALUES)
    live.say('two')
    live.close()
    assert screen.getvalue().endswith('\x1b[K\ntwo\n')


def test_log_file_gets_a_line_per_5_percent_or_10_minutes():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    stream, clock = io.StringIO(), Clock()
    live = terminal.Live(1000, stream, clock)
    for step in range(1, 1001):
        live.update(step, step / 1000, VALUES)
    live.close()
    assert len(stream.getvalue().splitlines()) == 21
    assert '\r' not in stream.getvalue() and '\x1b' not in stream.getvalue()
    clock.now = 700.0
    live.update(1000, 0.1, VALUES)
    assert len(stream.getvalue().splitlines()) == 22


def test_closed_pipe_does_not_end_the_run():
    class Closed(Terminal):
        def write(self, text):
            raise BrokenPipeError

    live = terminal.Live(10, Closed())
    live.update(1, 0.1, VALUES)
    live.say('nobody reads')
    live.close()


def test_terminal_without_unicode():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding='ascii')
    terminal.Live(10, stream).say(terminal.evaluation(RESULTS, BASELINES, 'validation'))
    assert b'####' in raw.getvalue()


def test_colour_only_on_terminals(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert terminal.has_colour(Terminal()) and not terminal.has_colour(io.StringIO())
    monkeypatch.setenv('NO_COLOR', '1')
    assert not terminal.has_colour(Terminal())


# Blocks


def header(**changes):
    known = {
        'trainable': 590_000,
        'total': 27_300_000,
        'rows': 32,
        'seq_len': 256,
        'accumulate': 4,
        'devices': 8,
        'device_kind': 'cpu',
        'dtype': 'float32',
        'steps': 5000,
        'hours': None,
        'epoch_tokens': 20_480_000,
        'flops_per_step': 1e12,
        'memory': {'parameters': 1e8, 'activations': 2e9, 'total': 2.1e9},
    }
    text = terminal.header(**known | changes)
    assert max(map(len, text.splitlines())) <= 80
    return ' '.join(text.split())


def test_header():
    text = header()
    assert '27.3M, 590k of them learn (2.2%)' in text
    assert '32 rows x 256 tokens = 8,192 tokens a step, over 4 micro-batches x 8 devices: 1 row each' in text
    assert '5,000 steps, 41.0M tokens (2 epochs), 5.00 PFLOP' in text
    assert 'about 2.10 GB a device: parameters 100 MB, activations 2.00 GB' in text
    assert 'all of them learn' in header(trainable=27_300_000)
    assert '0.5 hours of wall clock (30m 00s); 1.00 TFLOP a step' in header(steps=None, hours=0.5)
    assert 'over' not in header(accumulate=1, devices=1)
    assert 'over 4 micro-batches x 2 devices: 4 rows each' in header(replicas=2) and '8 x cpu' in header(replicas=2)


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
        '  left out   python: 1,200 .md, 9 no ending, 3 .png, 2 empty, 2 of other kinds',
    ]
    alone = FACTS | {
        'sources': [FACTS['sources'][0] | {'files': 1, 'documents': 1, 'divided': 'tail', 'skipped': {'.md': 2}}]
    }
    lines = terminal.text(alone).splitlines()
    assert lines[0] == '  data       1 file, 1 document, 9.64 kB; the end of the text is held out'
    assert lines[-1] == '  left out   2 .md' and all(len(line) <= 80 for line in lines)


def test_parameter_table():
    mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp'))
    trainable = {'layers': {'kernel': jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=cut)}}
    frozen = {'embed': {'embedding': jax.ShapeDtypeStruct((16, 4), jnp.bfloat16)}}
    rows = [re.split(r'  +', row) for row in terminal.parameters(trainable, frozen).splitlines()]
    assert rows[0] == ['path', 'shape', 'dtype', 'sharding', 'learns', 'count']
    assert rows[2] == ['embed/embedding', '16 x 4', 'bfloat16', 'replicated', 'no', '64']
    assert rows[3] == ['layers/kernel', '4 x 8', 'float32', '-, fsdp', 'yes', '32']
    assert rows[-1] == ['total', '96']


def test_evaluation_with_baselines():
    text = terminal.evaluation_line(RESULTS, BASELINES)
    assert text.endswith('1.752 bits/byte (xz 1.84, bigram 1.86, unigram 3.31)') and len(text) <= 102
    assert terminal.evaluation_line(RESULTS, {}).endswith('1.752 bits/byte')
    block = terminal.evaluation(RESULTS, BASELINES, 'validation').splitlines()
    assert [row.split()[0] for row in block[3:]] == ['this', 'xz', 'bigram', 'unigram']
    assert block[-1].count('█') == 40 and max(map(len, block)) <= 80
    assert '\x1b[' in terminal.evaluation(RESULTS, BASELINES, 'validation', colour=True)


def test_header_fits_80_columns():
    text = 'classes: ' + ', '.join(f'class-{i} {i}' for i in range(12))
    lines = terminal.note('rows', text).split('\n')
    assert len(lines) > 1 and max(map(len, lines)) <= 80
    assert lines[0].startswith('  rows       classes: class-0 0,') and all(line[:13].isspace() for line in lines[1:])
    assert ' '.join(line[13:] for line in lines) == text
