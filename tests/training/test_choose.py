"""The checkpoint and the member that a command reads if the user names none."""

import json

import pytest

from configs import base
from launch import model_flags
from lmtrain.training import choose, workdir

RISES = {10: 3.0, 20: 2.0, 30: 2.5}


def folder(path, losses, saved, members=(), **sweep):
    """The folder of a run with evaluations {step: loss or losses of members} and checkpoints of the steps `saved`."""
    config = base.get_config().to_dict()
    config['sweep'] |= sweep
    workdir.bind(path, config, {})
    lines = []
    for step, loss in losses.items():
        each = {'validation_loss_members': loss} if members else {}
        lines.append({'step': step, 'validation_loss': sum(loss) / len(loss) if members else loss} | each)
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for step in saved:
        (path / 'checkpoints' / str(step)).mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ('losses', 'saved', 'step'),
    [
        (RISES, (10, 20, 30), 'best'),
        ({10: 3.0, 20: 2.0, 30: 1.9}, (10, 20, 30), 'last'),  # it fell
        ({20: 2.0, 30: 2.5}, (20, 30), 'last'),  # measured twice
        (RISES, (30,), 'last'),  # nothing else is left
        (RISES, (10, 30), 'last'),  # the best that is left is worse than the last
        ({}, (30,), 'last'),
        ({10: 3.0, 20: 'nan', 30: 2.5}, (20, 30), 'last'),
    ],
)
def test_best_step_is_taken_if_the_loss_rose(tmp_path, losses, saved, step):
    choice = choose.choose(folder(tmp_path, losses, saved))
    assert choice.step == step and choice.member == 0
    assert len(choice.notes) == (step == 'best')


def test_named_step_is_taken(tmp_path):
    run = folder(tmp_path, RISES, (10, 20, 30))
    for step in ('last', 'best', 10):
        assert choose.choose(run, step) == (step, 0, ())


def test_choice_is_reported_in_a_line(tmp_path):
    (note,) = choose.choose(folder(tmp_path, RISES, (20, 30))).notes
    assert note == 'step 20, the best: validation loss 2.0000 (2.5000 after the last, 30; --step=last)'


def test_choice_of_a_policy_is_reported_as_its_reward(tmp_path):
    run = folder(tmp_path, {10: -0.5, 20: -0.75, 30: -0.25}, (20, 30))
    text = (run / 'metrics.jsonl').read_text(encoding='utf-8')
    (run / 'metrics.jsonl').write_text(text.replace('}', ', "validation_reward_error": 0.1}'), encoding='utf-8')
    (note,) = choose.choose(run).notes
    assert note == 'step 20, the best: validation reward 0.7500 (0.2500 after the last, 30; --step=last)'


def test_member_of_a_sweep_and_its_own_best_step(tmp_path):
    """By mean loss over its seeds the rate 0.1 is the best, although 0.2 has the member with the lowest loss."""
    losses = {10: [1.0, 1.5, 9.0, 9.0], 20: [2.0, 1.4, 9.0, 9.0], 30: [2.2, 1.6, 0.5, 9.0]}
    sweep = {'seeds': (0, 1), 'learning_rates': (0.1, 0.2)}
    run = folder(tmp_path, losses, (10, 20, 30), members=True, **sweep)
    choice = choose.choose(run)
    assert (choice.step, choice.member, len(choice.notes)) == (20, 1, 2)
    assert 'member 1 of the sweep, the best by validation: rate 0.1, seed 1' in choice.notes[0]
    assert choose.choose(run, member=0)[:2] == (10, 0) and choose.choose(run, member=2)[:2] == ('last', 2)
    assert choose.choose(run, 'best', 2)[:2] == (30, 2) and choose.choose(run, 10)[:2] == (10, 1)
    with pytest.raises(ValueError, match='member 4: the sweep has the members 0 to 3'):
        choose.choose(run, member=4)


def test_no_sweep_has_no_members(tmp_path):
    with pytest.raises(ValueError, match='member 1: .* is no sweep'):
        choose.choose(folder(tmp_path, RISES, (30,)), member=1)


def test_commands_print_the_choice(tmp_path, capsys):
    from absl import flags

    values = flags.FlagValues()
    model_flags.define(values)
    values(['lmtrain', f'--workdir={folder(tmp_path, RISES, (20, 30))}'])
    assert model_flags.from_flags(values) == (tmp_path, 'best', 0)
    assert 'step 20, the best' in capsys.readouterr().err
