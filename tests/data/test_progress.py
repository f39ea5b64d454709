import io
import sys

from lmtrain.data.progress import progress_bar


def test_no_bar_outside_of_a_terminal():
    items = [1, 2]
    assert progress_bar(items, 'reading') is items


def test_bar_on_a_terminal_yields_the_items(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, 'stderr', Terminal())
    assert list(progress_bar(iter([1, 2]), 'reading', 2)) == [1, 2]
