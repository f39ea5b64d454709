"""Progress in a file: a line for each trial, with the time that is left."""

import io

from lmtrain.compare import progress, trials


def test_a_file_has_a_line_for_each_trial_that_ran(small, monkeypatch):
    shared, selected = small('progress', ('zero_shot', 'few_shot'))
    listed, stream, clock = trials.listed(shared, selected), io.StringIO(), iter(range(0, 900, 30))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: float(next(clock)))
    display = progress.Display(shared, selected, len(listed), ['a note'], stream)
    finished = {'status': 'done', 'reason': '', 'selection': {'accuracy': 0.625}}
    display.end(listed[0], finished)  # by an earlier call: no line
    display.begin(listed[1])
    display.end(listed[1], finished)
    display.begin(listed[2])
    display.end(listed[2], finished | {'status': 'failed', 'reason': 'out of memory ' * 9})
    display.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == 'note: a note' and lines[-1] == 'the test rows are read now, once'
    assert lines[1] == '   2/3 few_shot, 4 rows, seed 1: 62.5 %  30s left'
    assert lines[2].startswith('   3/3 few_shot, 16 rows, seed 1: out of memory') and len(lines[2]) <= 80
    assert len(lines) == 4


def test_arms_that_cannot_run_are_named_at_the_start(small):
    shared, selected = small('skipped', ('zero_shot_chat', 'zero_shot'))
    stream = io.StringIO()
    progress.Display(shared, selected, 1, [], stream)
    assert 'zero_shot_chat: chat_template' in stream.getvalue()
