import io
import threading

import pytest

from lmtrain.runtime import progress


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def one_second(monkeypatch):
    """Phases are announced as outside of tests."""
    monkeypatch.setattr(progress, 'NOTICEABLE', 1.0)


@pytest.fixture
def slow(monkeypatch):
    """Threads never look at the clock: tests call `tick` themselves."""
    monkeypatch.setattr(progress, 'TICK', 1e6)


def run(stream, seconds, name='reading a.txt', **options):
    """What a phase of so many seconds writes, looked at twice a second; an item is done every second."""
    clock = Clock()
    with progress.on(progress.Screen(stream)), progress.phase(name, clock=clock, **options) as one:
        for half in range(2 * seconds):
            clock.now = half / 2
            one.done = half // 2
            one.tick()
        clock.now = seconds
    return stream.getvalue()


def test_each_yields_the_items_and_is_silent_for_a_fast_phase(capsys):
    assert list(progress.each(iter([1, 2]), 'reading')) == [1, 2]
    assert not progress.busy()
    assert capsys.readouterr() == ('', '')


def test_log_has_a_line_at_the_start_at_the_end_and_every_four_seconds(slow):
    lines = run(io.StringIO(), 10, total=10).splitlines()
    assert lines[0] == '  reading a.txt ...' and lines[-1] == '  reading a.txt: 10 s'
    assert lines[1:-1] == ['  reading a.txt: 50% of 10, 5 s', '  reading a.txt: 90% of 10, 9 s']
    assert run(io.StringIO(), 1) == ''
    assert run(io.StringIO(), 10, brief=True).splitlines() == ['  reading a.txt: 4, 4 s', '  reading a.txt: 8, 8 s']


def test_terminal_is_rewritten_at_every_look_and_left_clean(slow):
    shown = run(Terminal(), 4)
    assert shown.count('\r') >= 6 and shown.endswith('\r\x1b[K  reading a.txt: 4 s\n')


def test_lines_fit_the_terminal_and_80_columns(slow, monkeypatch):
    for columns in (40, 80, 200):
        monkeypatch.setenv('COLUMNS', str(columns))
        assert max(map(len, run(io.StringIO(), 10, name='reading ' + 'x' * 200).splitlines())) < min(columns, 81)


def test_inner_phase_is_the_one_that_is_shown(slow):
    stream, clock = io.StringIO(), Clock()
    with progress.on(progress.Screen(stream)), progress.phase('outer', clock=clock) as outer:
        with progress.phase('inner', clock=clock) as inner:
            clock.now = 2.0
            outer.tick()
            inner.tick()
        assert 'outer' not in stream.getvalue() and 'inner ...' in stream.getvalue()
        outer.tick()
    assert stream.getvalue().endswith('  outer ...\n  outer: 2 s\n')


def test_thread_ends_with_its_phase_and_looks_by_itself(monkeypatch):
    monkeypatch.setattr(progress, 'TICK', 0.001)
    monkeypatch.setattr(progress, 'NOTICEABLE', 0.0)
    stream, before = io.StringIO(), threading.active_count()
    ready = threading.Event()
    monkeypatch.setattr(progress.Phase, 'tick', lambda self, tick=progress.Phase.tick: (tick(self), ready.set()))
    with progress.on(progress.Screen(stream)), progress.phase('compiling'):
        assert ready.wait(60)
    assert threading.active_count() == before
    assert stream.getvalue().startswith('  compiling ...\n') and stream.getvalue().endswith('  compiling: 0 s\n')


def test_closed_stream_does_not_end_the_run():
    stream = io.StringIO()
    screen = progress.Screen(stream)
    stream.close()
    screen.print('nobody reads')
    screen.close()
