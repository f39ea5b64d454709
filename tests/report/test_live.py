import io
import re

from lmtrain.report import live as live_line
from lmtrain.report import terminal
from lmtrain.runtime import progress

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


def line(width, values=VALUES, total=5000, **options):
    return live_line.fit(live_line.fields(1240, total, 0.248, values), width, 0.248, **options)


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
    stream = Terminal()
    live_line.Live(5000, stream).update(1240, 0.248, VALUES)
    assert stream.getvalue() == f'\r{line(89)}\x1b[K'  # some terminals wrap if the last column is filled


def test_terminal_line_is_rewritten(monkeypatch):
    monkeypatch.setenv('COLUMNS', '90')
    stream = Terminal()
    live = live_line.Live(100, stream)
    for step in range(1, 101):
        live.update(step, step / 100, VALUES)
        if step == 50:
            live.print('half')
    live.close()
    shown = [part.split('\r')[-1] for part in stream.getvalue().split('\n')]
    assert len(shown) == 3 and shown[0] == '\x1b[Khalf'
    assert '100/100 100%' in shown[1] and shown[2] == ''


def test_messages_appear_above_the_live_line(monkeypatch):
    monkeypatch.setenv('COLUMNS', '90')
    stream = Terminal()
    live = live_line.Live(2, stream)
    live.update(1, 0.5, VALUES)
    live.print('one')
    assert '1/2 50%' in stream.getvalue().split('one\n')[1]
    live.update(2, 1.0, VALUES)
    live.print('two')
    live.close()
    assert stream.getvalue().endswith('\x1b[K\ntwo\n')


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_slow_steps_are_shown_between_their_metrics(monkeypatch):
    """Every second on a terminal; in a log every 4 s at first, later at 5 % of the time so far."""
    monkeypatch.setattr(progress, 'TICK', 1e6)  # the test looks at the clock, not the thread
    monkeypatch.setenv('COLUMNS', '90')
    for stream, every in ((Terminal(), 1), (io.StringIO(), 4)):
        clock = Clock()
        live = live_line.Live(1000, stream, clock)
        live.update(1, 0.001, VALUES)
        shown = []
        for second in range(1, 41):
            clock.now, before = second, len(stream.getvalue())
            live.at(1 + second, (1 + second) / 1000)
            live.tick()
            if len(stream.getvalue()) > before:
                shown.append(second)
        assert shown == list(range(every, 41, every))
        assert '   41/1000' in stream.getvalue().replace(',', '') and '3m 25s left' in stream.getvalue()
        clock.now = 3600
        live.tick()
        before = len(stream.getvalue())
        clock.now = 3600 + 170
        live.tick()
        assert (len(stream.getvalue()) > before) == (every == 1)
        with progress.phase('evaluating'):  # which shows itself
            before, clock.now = len(stream.getvalue()), 7200
            live.tick()
            assert len(stream.getvalue()) == before
        live.close()


def test_lines_of_a_log_fit_80_columns():
    stream = io.StringIO()
    live = live_line.Live(10_000_000, stream)
    live.update(1, 0.1, VALUES | {'accuracy': 0.5, 'mfu': 0.4, 'loss': 12345.6})
    live.close()
    assert 60 < len(stream.getvalue().rstrip('\n')) <= 80 and '━' not in stream.getvalue()


def test_log_file_gets_a_line_per_5_percent_or_10_minutes():
    stream, clock = io.StringIO(), Clock()
    live = live_line.Live(1000, stream, clock)
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

    live = live_line.Live(10, Closed())
    live.update(1, 0.1, VALUES)
    live.print('nobody reads')
    live.close()


def test_terminal_without_unicode():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding='ascii')
    live_line.Live(10, stream).print(terminal.evaluation({'validation': RESULTS, 'baselines': BASELINES}))
    assert b'####' in raw.getvalue()
