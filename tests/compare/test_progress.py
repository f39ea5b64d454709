"""Progress in a file: a line for each trial, with the time that is left."""

import io
import itertools

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
    assert lines[0] == 'note: a note' and lines[-1] == 'each trial is tested now, once'
    assert lines[1] == '   2/3 few_shot, 4 rows, seed 1: 62.5 %  30s left, best: zero_shot 62.5 %'
    assert lines[2].startswith('   3/3 few_shot, 16 rows, seed 1: out of memory') and len(lines[2]) <= 80
    assert len(lines) == 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_best_arm_so_far_is_that_of_the_largest_size(small):
    shared, selected = small('best', ('zero_shot', 'few_shot', 'bm25'))
    by_name, stream = {arm.name: arm for arm in selected}, Terminal()
    display = progress.Display(shared, selected, 9, [], stream)

    def shown():
        return stream.getvalue().rpartition('\x1b[J')[2].splitlines()[-1]

    for name, size, seed, accuracy in (
        ('few_shot', 4, 1, 0.75),
        ('zero_shot', 0, 1, 0.5),
        ('bm25', 16, 1, 0.625),
        ('few_shot', 16, 1, 0.75),
        ('few_shot', 16, 2, 0.25),
    ):
        record = {'status': 'done', 'reason': '', 'selection': {'accuracy': accuracy}}
        display.end(trials.Trial(by_name[name], size, seed, 0), record)
        if size == 4:
            assert shown() == '1 of 9 trials, best: few_shot 75.0 % on selection rows'
        if (name, size) == ('bm25', 16):
            assert shown() == '3 of 9 trials, best: bm25 62.5 % on selection rows'  # no few_shot has 16 rows yet
    assert shown() == '5 of 9 trials, best: bm25 62.5 % on selection rows'  # few_shot has 50.0 % of two seeds
    display.end(trials.Trial(by_name['bm25'], 16, 2, 0), {'status': 'failed', 'reason': 'out of memory'})
    assert shown() == '6 of 9 trials, best: bm25 62.5 % on selection rows'


def test_the_name_of_the_best_arm_is_shortened_to_80_columns(small, monkeypatch):
    shared, selected = small('long_name', ('few_shot', 'bm25'))
    clock = itertools.count(0, 900)
    monkeypatch.setattr(progress.time, 'monotonic', lambda: float(next(clock)))
    by_name, stream = {arm.name: arm for arm in selected}, io.StringIO()
    display = progress.Display(shared, selected, 3, [], stream)
    done = {'status': 'done', 'reason': '', 'selection': {'accuracy': 0.5}}
    display.end(trials.Trial(by_name['few_shot']._replace(name='few_shot_of_many'), 16, 1, 0), done)
    others = [done | {'selection': {'accuracy': 0.25}}] * 2
    for seed, record in enumerate([*others, {'status': 'failed', 'reason': 'out of memory ' * 9}], start=1):
        trial = trials.Trial(by_name['bm25'], 16, seed, 0)
        display.begin(trial)
        display.end(trial, record)
    lines = stream.getvalue().splitlines()
    assert [line.partition(' %')[2] for line in lines[:2]] == [
        '  15m 00s left, best: few_shot_of_... 50.0 %',
        ', best: few_shot_of_many 50.0 %',
    ]
    assert max(map(len, lines)) == 80 and len(lines) == 3 and 'best' not in lines[2]


def test_arms_that_cannot_run_are_named_at_the_start(small):
    shared, selected = small('skipped', ('zero_shot_chat', 'zero_shot'))
    stream = io.StringIO()
    progress.Display(shared, selected, 1, [], stream)
    assert 'zero_shot_chat: chat_template' in stream.getvalue()
