"""The choice on the selection rows."""

import json

import pytest

from lmtrain.compare import selection
from lmtrain.errors import NonFiniteOutput


def test_the_lowest_loss_is_chosen_and_of_equal_ones_the_first():
    tried = [{'step': step, 'loss': loss, 'accuracy': 0.1 * step} for step, loss in enumerate((0.7, 0.4, 0.4, 0.9))]
    assert selection.choose(tried)['step'] == 1


@pytest.mark.parametrize('broken', [float('nan'), float('inf'), None])
def test_candidates_that_diverged_are_not_chosen(broken):
    assert selection.choose([{'loss': broken}, {'loss': 3.0, 'step': 2}])['step'] == 2
    with pytest.raises(NonFiniteOutput, match='no candidate has a finite loss'):
        selection.choose([{'loss': broken}])


def test_only_evaluated_steps_with_a_checkpoint_are_candidates(tmp_path, monkeypatch):
    lines = [
        {'step': 2, 'validation_loss': 0.5, 'validation_loss_members': [0.4, 0.6]},
        {'step': 3, 'loss': 0.1},
        {'step': 4, 'validation_loss': 0.3, 'validation_loss_members': [0.2, 0.4]},
        {'step': 6, 'validation_loss': 0.1, 'validation_loss_members': [0.1, 0.1]},  # its checkpoint was removed
    ]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    monkeypatch.setattr(selection.checkpoint, 'steps', lambda folder: [2, 3, 4])
    own = selection.evaluated(tmp_path, (0.1, 0.01))
    assert [(each['step'], each['member'], each['learning_rate'], each['loss']) for each in own] == [
        (2, 0, 0.1, 0.4), (2, 1, 0.01, 0.6), (4, 0, 0.1, 0.2), (4, 1, 0.01, 0.4)
    ]  # fmt: skip
    lines[2]['validation_loss_members'] = ['nan', 0.4]  # a run of its own would have ended, without any candidate
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    assert [each['loss'] for each in selection.evaluated(tmp_path, (0.1, 0.01))] == [None, 0.6, None, 0.4]
    del lines[0]['validation_loss_members']  # of a run that is no sweep
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(lines[0]) + '\n', encoding='utf-8')
    assert [each['loss'] for each in selection.evaluated(tmp_path, (0.1,))] == [0.5]


def test_what_is_measured_is_no_part_of_the_choice():
    best = {'step': 4, 'temperature': 2.0, 'loss': 0.3, 'accuracy': 0.8, 'shots_mean': 5.5, 'dropped': 12, 'cut': 1}
    record = selection.outcome(best, [best], 20)
    assert record['chosen'] == {'step': 4, 'temperature': 2.0}
    measured = {'loss': 0.3, 'accuracy': 0.8, 'shots_mean': 5.5, 'dropped': 12, 'cut': 1}
    assert record['selection'] == {'rows': 20, **measured, 'candidates': [best]}
