"""Every fault can be applied to the sources, and its module has tests that mirror it."""

import pathlib

import pytest

from experiments.mutants import run
from experiments.mutants.faults import EQUIVALENT, FAULTS

ROOT = pathlib.Path(__file__).parents[2]


def test_every_fault_can_be_applied():
    problems = []
    for module, faults in FAULTS.items():
        text = (ROOT / module).read_text(encoding='utf-8')
        if not run.mirror(module):
            problems.append(f'{module}: no test file mirrors it')
        for what, old, new in faults:
            assert old != new, (module, what)
            if text.count(old) != 1:
                problems.append(f'{module}, {what}: {old!r} occurs {text.count(old)} times')
    assert not problems, 'quote the lines as they are now, or remove the faults:\n' + '\n'.join(problems)


def test_the_list_is_long_and_names_each_fault_once():
    names = [(module, what) for module, faults in FAULTS.items() for what, *_ in faults]
    assert len(set(names)) == len(names) >= 150
    assert EQUIVALENT.keys() <= set(names)


@pytest.mark.slow
def test_fault_is_applied_tested_and_reverted(tmp_path):
    """A small repository with one test, one fault that it sees and one that it does not."""
    (tmp_path / 'lmtrain').mkdir()
    (tmp_path / 'lmtrain' / '__init__.py').touch()  # else the installed package is imported
    (tmp_path / 'tests').mkdir()
    source = 'def double(x):\n    """Twice x."""\n    return 2 * x\n'
    (tmp_path / 'lmtrain' / 'tree.py').write_text(source, encoding='utf-8')
    test = 'from lmtrain import tree\n\n\ndef test_double():\n    assert tree.double(3) == 6\n'
    (tmp_path / 'tests' / 'test_tree.py').write_text(test, encoding='utf-8')
    seen = run.judge(tmp_path, 'lmtrain/tree.py', ('three times', '2 * x', '3 * x'))
    assert seen['code'] == 1 and seen['by'].endswith('::test_double')
    assert run.judge(tmp_path, 'lmtrain/tree.py', ('another word', 'Twice', 'Double'))['code'] == 0
    assert (tmp_path / 'lmtrain' / 'tree.py').read_text(encoding='utf-8') == source
    with pytest.raises(ValueError, match="'gone' stands 0 times"):
        run.judge(tmp_path, 'lmtrain/tree.py', ('gone', 'absent', 'there'))


def test_rates_leave_equivalent_faults_out(monkeypatch):
    trials = [{'module': 'lmtrain/tree.py', 'fault': str(number), 'detected': number != 7} for number in range(151)]
    trials.append({'module': 'launch/tpu.py', 'fault': 'same', 'detected': False})
    monkeypatch.setitem(run.EQUIVALENT, ('launch/tpu.py', 'same'), 'the value is not read')
    whole, lmtrain = run.figures(trials)
    assert whole['figure'] == lmtrain['figure'] == '150 of 151, 99.3 %'
    assert whole['reached'] is True and lmtrain['reached'] is None
    for trial in trials[:20]:
        trial['detected'] = False
    assert run.figures(trials)[0]['reached'] is False
