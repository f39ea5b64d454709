"""results.json: what it says about the arms and the rows."""

import json

from lmtrain.compare import results, trials


def record(arm, size, seed, **fields):
    about = {'arm': arm, 'kind': 'train', 'size': size, 'seed': seed, 'status': 'done', 'reason': '', 'blocks': []}
    return about | {'folder': f'trials/{arm}/n{size}-seed{seed}', 'test': None} | fields


def test_status_of_an_arm(small):
    shared, [arm] = small('status', ('head',))
    good, bad = record('head', 4, 1), record('head', 16, 1, status='failed', reason='no memory')
    own = results._arm(shared, arm, [good])
    assert (own['status'], own['reason'], own['kind']) == ('done', '', 'train')
    assert own['overrides'] == {'adapt.method': 'head'} and own['learning_rates'] == [3e-3, 1e-2, 3e-2]
    assert results._arm(shared, arm, [good, bad])['status'] == 'partial'
    assert results._arm(shared, arm, [bad])['status'] == 'failed'
    assert results._arm(shared, arm, [bad])['reason'] == 'no memory'
    assert results._arm(shared, arm, [])['status'] == 'skipped'


def test_the_majority_is_the_share_of_the_most_frequent_class_of_the_training_rows(small):
    shared, [arm] = small('majority', ('head',), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    labels = [row.fields['label'] for row in shared.task.train]
    frequent = max(shared.task.classes, key=labels.count)
    other = next(name for name in shared.task.classes if name != frequent)
    folder = shared.folder / trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{'answer': frequent}, {'answer': other}, {'answer': other}, {'answer': other}]
    (folder / 'predictions.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    about = results._task(shared, [record('head', 4, 1, test={'loss': 1.0}, rows_used=3)], ['a note'])
    assert about['majority'] == 0.25 and about['chance'] == 1 / 3
    assert about['notes'][-2:] == [
        'a note',
        'head: of 4 training rows, 3 are used: the others are longer than data.seq_len',
    ]
    assert results._task(shared, [record('head', 4, 1)], [])['majority'] is None
