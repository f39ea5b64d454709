"""The verb runs: a table of folders, its files, and errors in one line."""

import json
import os
import subprocess
import sys

import pytest

from launch import cli

CONFIG = {'seed': 0, 'adapt': {'method': 'full'}, 'optimizer': {'learning_rate': 1e-3}}
CONFIG |= {'data': {}, 'model': {}, 'budget': {}}  # sections that every run has


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Runs of two methods, one that was stopped, one that is broken, and a trial of a comparison."""
    monkeypatch.chdir(tmp_path)
    for name, method, loss in (('runs/a', 'full', 3.0), ('runs/b/c', 'lora', 1.5)):
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / 'config.json').write_text(json.dumps(CONFIG | {'adapt': {'method': method}}), encoding='utf-8')
        lines = [{'step': step, 'validation_loss': loss + 1 / step} for step in (1, 2, 4)]
        (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
        results = {'validation': {'loss': loss}, 'cost': {'steps': 4, 'flops': 1e9, 'seconds': 2.0}}
        (path / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    (tmp_path / 'runs' / 'a' / 'results.json').unlink()
    broken = tmp_path / 'runs' / 'broken'
    broken.mkdir()
    (broken / 'config.json').write_text('{', encoding='utf-8')
    (broken / 'metrics.jsonl').write_text('', encoding='utf-8')
    trial = tmp_path / 'runs' / 'which' / 'trials' / 'zero_shot' / 'n0-seed0'
    trial.mkdir(parents=True)
    (trial / 'trial.json').write_text('{"arm": "zero_shot", "status": "done"}', encoding='utf-8')
    (tmp_path / 'runs' / 'which' / 'config.json').write_text('{}', encoding='utf-8')
    return tmp_path


def test_table(folder, capsys):
    assert cli.main(['runs', 'runs']) == 0
    assert capsys.readouterr().out.splitlines() == [
        '                          method  state           loss  FLOPs  time',
        'a                         full    stopped at 4  3.2500',
        'b/c                       lora    finished      1.5000  1.00B    2s',
        'broken                            broken',
        '    config.json: invalid JSON, Expecting property name enclosed in double quotes',
        "    at column 2: '{'",
        'which/zero_shot/n0-seed0          finished',
        '',
        '4 runs: 2 finished, 1 stopped, 1 broken',
    ]


def test_only_the_folder_of_trials_is_left_out_of_a_name(folder, capsys):
    (folder / 'runs' / 'mytrials').mkdir()
    (folder / 'runs' / 'a').rename(folder / 'runs' / 'mytrials' / 'a')
    (folder / 'runs' / 'b' / 'c').rename(folder / 'runs' / 'b' / 'trials')
    assert cli.main(['runs', 'runs/mytrials', 'runs/b']) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ['b/trials', 'mytrials/a']


def test_flags(folder, capsys):
    argv = ['runs', 'runs/b', 'runs/a', '--sort=-loss', '--filter=loss<4', '--columns=loss,state']
    assert cli.main([*argv, '--to=a.json', '--plot=a.svg']) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[:3]] == [['loss', 'state'], ['a', '3.2500'], ['b/c', '1.5000']]
    assert out[-2:] == ['written: a.json', 'written: a.svg']
    assert [row['name'] for row in json.loads((folder / 'a.json').read_text(encoding='utf-8'))] == ['a', 'b/c']
    assert (folder / 'a.svg').stat().st_size > 1000
    assert cli.main(['runs', 'runs/a', '--columns=all', '--to=all.csv', '--plot=a.png', '--x=step']) == 0
    assert capsys.readouterr().out.startswith('   state           loss\na  stopped at 4  3.2500\n')
    head = (folder / 'all.csv').read_text(encoding='utf-8').splitlines()[0]
    assert 'optimizer.learning_rate' in head and 'validation.loss' in head


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'name a folder of runs: lmtrain runs FOLDER...'),
        (['gone'], 'gone is not a directory: name a folder of runs'),
        (['runs/which/trials/zero_shot/n0-seed0/../../..', '--filter=state=running'], 'no run fulfils'),
        (['empty'], 'no run in empty'),
        (['runs', '--sort=los'], "no run has a field 'los', did you mean 'loss'?"),
        (['runs', '--columns=name,lss'], "no run has a field 'lss'"),
        (['runs', '--to=a.txt'], '--to=a.txt: the name of the file ends with .csv or .json'),
        (['runs', '--plot=gone/a.png'], '--plot=gone/a.png: there is no directory gone'),
        (['gs://bucket/runs'], 'gs://bucket/runs'),
        (['runs', '--x=hours'], 'hours'),
    ],
)
def test_errors(folder, capsys, argv, message):
    (folder / 'empty').mkdir()
    assert cli.main(['runs', *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_table_needs_no_heavy_library(folder):
    code = (
        'import sys\nfrom launch import cli\ncode = cli.main(["runs", "runs"])\n'
        'print([name for name in ("jax", "numpy", "flax", "matplotlib", "scipy") if name in sys.modules], code)'
    )
    root = os.path.dirname(os.path.dirname(cli.__file__))
    environment = os.environ | {'PYTHONPATH': root}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, encoding='utf-8')
    assert done.stdout.endswith('[] 0\n'), done.stdout + done.stderr
