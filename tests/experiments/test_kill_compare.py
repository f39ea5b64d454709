"""What the experiment compares after a kill, and how it counts the starts of trials."""

from experiments.kill_compare import __main__ as kill_compare


def test_only_times_are_taken_from_the_uninterrupted_comparison():
    whole = {'trials': [{'loss': 1.0, 'ledger': {'device_seconds': 5.0, 'train_flops': 7}, 'interrupted': False}]}
    own = {'trials': [{'loss': 1.0, 'ledger': {'device_seconds': 6.0, 'train_flops': 7}, 'interrupted': True}]}
    assert kill_compare.with_values_of(own, whole) == whole
    own['trials'][0]['ledger']['train_flops'] = 8
    assert kill_compare.with_values_of(own, whole) != whole
    assert kill_compare.with_values_of({'trials': []}, whole) == {'trials': []}


def test_a_finished_trial_that_is_run_again_is_counted():
    kill = {'what': 'kill 0', 'exit': -9, 'equal_results': True, 'equal_report': True, 'finished_and_run_again': []}
    fine = kill | {'starts': {'a': 1, 'b': 2, 'c': 1}}
    again = kill | {'starts': {'a': 2, 'b': 1}, 'finished_and_run_again': ['a']}
    twice = kill | {'starts': {'a': 2, 'b': 2}, 'equal_report': False}
    control = {'what': 'not killed', 'equal_results': True, 'equal_report': True}
    rows = kill_compare.figures([kill_compare.judged(trial) for trial in (fine, again, twice, control)])
    assert [row['figure'] for row in rows] == ['2 of 3 (exit codes: 3 x -9)', '1 of 3 (exit codes: 3 x -9)', '1 of 1']


def test_starts_and_ends_of_trials_are_read_from_their_files(tmp_path):
    folder = tmp_path / 'run' / 'trials' / 'head' / 'n16-seed1'
    folder.mkdir(parents=True)
    (folder / 'digest.txt').write_text('abc', encoding='utf-8')
    name = 'trials/head/n16-seed1'
    assert kill_compare.begun(tmp_path) == {name: (folder / 'digest.txt').stat().st_mtime_ns}
    assert kill_compare.finished(tmp_path) == {}
    (folder / 'trial.json').write_text('{}', encoding='utf-8')
    assert kill_compare.finished(tmp_path) == {name: b'{}'}
