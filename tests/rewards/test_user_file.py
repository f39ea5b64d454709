"""A user's reward file: its signature, what it returns, and that it cannot hurt the run."""

import os
import pathlib
import re
import time

import pytest

from lmtrain.errors import InputError
from lmtrain.rewards import user_file

BATCH = (['p', 'q'], ['a', 'bb'], [{'answer': 'a'}, {'answer': 'b'}])


@pytest.fixture
def reward(tmp_path):
    opened = []

    def open_reward(source: str, seconds: float = 20.0, name: str = 'own.py'):
        file = tmp_path / name
        file.write_text(source, encoding='utf-8')
        opened.append(user_file.reward(file, seconds))
        return opened[-1].score

    yield open_reward
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    'source',
    [
        'def length(prompts, completions): return [len(text) for text in completions]',
        'import math\nfrom os.path import join\ndef length(a, b, rows=None): return tuple(map(len, b))',
        'def _help(x): return len(x)\ndef reward(p, c, **more): return (_help(x) for x in c)\ndef other(): pass',
        'import numpy\ndef length(p, c): return numpy.array([1, 2], numpy.float32)',
        'def length(p, c):\n  import os, sys\n  print("noise"); sys.stdout.flush(); os.write(1, b"{}"); return [1, 2]',
        'import sys\ndef length(p, c): return [1, 2] if sys.stdin.read() == "" else [0, 0]',
        'def length(questions, answers): return [len(text) for text in answers]',
        'def length(inputs, texts, scale=1.0): return [scale * len(text) for text in texts]',
        'def length(inputs, texts, words=None): return [len(text) for text in texts] if words is None else [0, 0]',
        'def length(x, y, words=None, *, rows): return [len(text) for text in y] if not words and rows else [0, 0]',
        'def length(x, y, scale=1.0, *, rows=None): return [scale * len(text) * len(rows) / 2 for text in y]',
    ],
)
def test_a_function_of_prompts_and_completions(reward, source, capfd):
    score = reward(source)
    assert score(*BATCH) == score(*BATCH) == [1.0, 2.0]
    assert capfd.readouterr() == ('', '')


def test_any_ending_of_the_name_will_do(reward):
    assert reward('def length(prompts, completions): return [3, 4]', name='own.reward')(*BATCH) == [3.0, 4.0]


@pytest.mark.parametrize('parameters', ['rows', 'rows=None', 'rows=()', 'r', 'x=2, rows=None', 'rows, /', '*, rows'])
def test_rows_are_the_third_argument(reward, parameters):
    name = 'r' if parameters == 'r' else 'rows'
    score = reward(f'def equal(p, c, {parameters}): return [x == row["answer"] for x, row in zip(c, {name})]')
    assert score(*BATCH) == [1.0, 0.0]


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('def f(prompts): pass', r'f\(prompts\) must take \(prompts, completions\)'),
        ('def f(p, c, *, key): pass', 'must take'),
        ('def f(p, c, rows, key): pass', 'must take'),
        ('def f(completions, **kwargs): pass', r'f\(completions, \*\*kwargs\) must take \(prompts, completions\)'),
        (
            'def reward(completions, prompts): pass',
            r'reward\(completions, prompts\) must take \(prompts, completions\).* completions come first',
        ),
        ('def f(completions, answer): pass', r'f\(completions, answer\) must take .* completions come first'),
        ('def f(texts, prompts): pass', 'completions come first'),
        ('def f(_completions, c, rows): pass', 'completions come first'),
        ('def f(answers, questions): pass', 'completions come first'),
        ('x = 1', 'expected one function .* there are: none'),
        ('def f(p, c): pass\ndef g(p, c): pass', 'or one called reward; there are: f, g'),
        ('def f(p, c)', 'SyntaxError'),
        ('\nimport missing_package', r"No module named 'missing_package' \(line 2\)"),
        ('import sys; sys.exit(3)', 'SystemExit: 3'),
        ('import os; os._exit(3)', 'the process ended with exit code 3'),
    ],
)
def test_a_file_without_a_reward_function_is_refused_at_the_start(reward, source, message):
    with pytest.raises(InputError, match=rf'own\.py: .*{message}'):
        reward(source)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r'config.reward.file: no such file: .*missing\.py'):
        user_file.reward(tmp_path / 'missing.py', 1.0)


FAULTS = [
    ('return [1.0]', 'returned 1 rewards for 2 completions'),
    ('return 1.0', 'returned float and not a list of 2 numbers'),
    ('raise KeyError("oh")', r"KeyError: 'oh' \(line 6\)"),
    ('import time; time.sleep(60)', 'time limit'),
    ('while True: pass', 'time limit'),
    ('import os; os.kill(os.getpid(), 11)', 'the process ended with SIGSEGV'),
    ('import sys; sys.exit()', 'SystemExit'),
]
LATER = (
    'calls = 0\ndef reward(p, c):\n  global calls\n  calls += 1\n  if calls == {call}:\n    {fault}\n  return [1, 2]'
)


@pytest.mark.parametrize(('fault', 'reason'), FAULTS)
def test_a_fault_is_an_error_at_first_and_a_counted_failure_later(reward, fault, reason):
    with pytest.raises(InputError, match=f'the first call failed: {reason}'):
        reward(LATER.format(call=1, fault=fault), 0.5)(*BATCH)
    score = reward(LATER.format(call=2, fault=fault), 0.5)
    assert score(*BATCH) == [1.0, 2.0]
    failed = score(*BATCH)
    assert len(failed) == 2 and all(isinstance(why, str) for why in failed)
    assert re.search(reason, failed[0])
    assert score(*BATCH) == [1.0, 2.0]


def test_the_first_call_of_a_run_that_continues_is_a_counted_failure(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text('def reward(p, c): raise KeyError("oh")', encoding='utf-8')
    each = user_file.reward(file, 20.0, strict=False)
    assert each.score(*BATCH) == ["KeyError: 'oh' (line 1)"] * 2
    each.close()


def test_single_entries_without_a_number(reward):
    score = reward('def f(p, c): return [None, [1]]')
    assert score(*BATCH) == ['returned None', 'list is not a number']


def test_writes_stay_in_a_folder_that_is_removed(reward, tmp_path):
    score = reward('import os\ndef f(p, c):\n  open("own.txt", "w").write("x")\n  return [len(os.listdir(".")), 0]')
    assert score(*BATCH) == [1.0, 0.0]
    assert os.listdir(tmp_path) == ['own.py'] and not pathlib.Path('own.txt').exists()


def test_close_kills_what_the_file_started(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(
        'import subprocess\ndef f(p, c): return [subprocess.Popen(["sleep", "60"]).pid] * 2', encoding='utf-8'
    )
    each = user_file.reward(file, 20.0)
    pid = int(each.score(*BATCH)[0])
    each.close()
    deadline = time.monotonic() + 20
    while pathlib.Path(f'/proc/{pid}').exists() and 'Z' not in pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8'):
        assert time.monotonic() < deadline
        time.sleep(0.01)
