"""The commands in docs/scale.md are valid."""

import pathlib
import re
import shlex

import pytest

from launch import cli, gke, local, recipe, slurm, tpu, train

PAGE = (pathlib.Path(__file__).parents[2] / 'docs' / 'scale.md').read_text()
LAUNCHERS = {'local': local, 'slurm': slurm, 'tpu': tpu, 'gke': gke}
COMMANDS = [shlex.split(line) for line in re.findall('^lmtrain (.*)$', PAGE, re.MULTILINE)]


@pytest.mark.parametrize('verb', LAUNCHERS)
def test_a_launcher_takes_its_command_and_train_what_follows(verb, monkeypatch, capsys):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    (words,) = [words for words in COMMANDS if words[0] == verb]
    assert cli.main([verb, '--print_only', *words[1:]]) == 0
    assert words[words.index('--') + 1 :][-1] in capsys.readouterr().out.replace("'", '')
    takes_the_rest(words[words.index('--') + 2 :])


def test_train_takes_its_command():
    (words,) = [words for words in COMMANDS if words[0] == 'train']
    takes_the_rest(words[1:])


def takes_the_rest(words):
    assert recipe.from_flags(cli.parse(train, words))


def test_links_exist():
    root = pathlib.Path(__file__).parents[2] / 'docs'
    assert all((root / link).exists() for link in re.findall(r'\]\((\.\./[^)]*)\)', PAGE))
