"""The one function that starts lmtrain for experiments, and what it reads of a run."""

import pathlib
import sys

import pytest

from experiments import cli

ROOT = pathlib.Path(__file__).parents[2]


def test_overrides_follow_the_flags():
    argv = cli.command('train', '--workdir=w', config={'adapt.lora.rank': (('.*', 8),), 'budget.steps': 3})
    expected = ['train', '--workdir=w', "--config.adapt.lora.rank=(('.*', 8),)", '--config.budget.steps=3']
    assert argv == [sys.executable, '-m', 'launch.cli', *expected]


def test_output_and_exit_code_are_those_of_the_command(tmp_path):
    process = cli.start('configs', output=tmp_path / 'out.txt', prefix=['env', 'NO_COLOR=1'])
    assert process.wait() == 0 and 'quickstart' in (tmp_path / 'out.txt').read_text(encoding='utf-8')
    with pytest.raises(SystemExit) as caught:
        cli.run('unknown', output=tmp_path / 'out.txt')
    assert caught.value.code == 2


def test_a_line_that_is_being_written_is_skipped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    assert cli.json_lines(path) == []
    path.write_text('{"step": 1, "validation_loss": 2.5}\n{"step": 2}\n{"step": 3, "val', encoding='utf-8')
    assert [row['step'] for row in cli.json_lines(path)] == [1, 2]
    assert cli.validation_curve(tmp_path) == {1: 2.5}


def test_trials_are_counted_with_their_exit_codes():
    trials = [{'as_wanted': True, 'exit': -9}, {'as_wanted': False, 'exit': 42}, {'as_wanted': True, 'exit': -9}]
    row = cli.counted('kills', trials)
    assert row['figure'] == '2 of 3 (exit codes: 2 x -9, 1 x 42)' and row['reached'] is False


@pytest.mark.parametrize('folder', sorted(path.parent.name for path in ROOT.glob('experiments/*/results.json')))
def test_every_experiment_is_a_module_to_run(folder):
    assert (ROOT / 'experiments' / folder / '__main__.py').is_file()


def test_no_experiment_edits_the_search_path_or_starts_lmtrain_itself():
    for path in ROOT.glob('experiments/*/*.py'):
        text = path.read_text(encoding='utf-8')
        assert 'sys.path' not in text and "'launch.cli'" not in text, path
