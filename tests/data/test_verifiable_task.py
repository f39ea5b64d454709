"""Generated rows: answers are right, wrong ones wrong, and a held-out prompt is never trained on."""

import re

import pytest

from lmtrain.data import verifiable_task
from lmtrain.data.rows import read_rows
from lmtrain.errors import InputError
from lmtrain.tasks.task_rows import TaskConfig, read_splits

PAIR = re.compile(r'\(\)|\[\]|\{\}')


def solves(task: str, prompt: str, answer: str) -> bool:
    """A verifier that shares no code with the generator."""
    text = prompt.split()[1]
    if task == 'sort':
        return sorted(text) == list(answer)
    whole = text + answer
    while (shorter := PAIR.sub('', whole)) != whole:
        whole = shorter
    return not whole and not re.search(r'[(\[{]', answer)


@pytest.mark.parametrize('task', verifiable_task.TASKS)
def test_answers_are_right_and_wrong_completions_are_wrong(task):
    rows = [row.fields for row in read_rows(f'generated:{task},rows=1000,wrong=0.3', '')]
    assert len({row['prompt'] for row in rows}) == len(rows) == 1000
    for row in rows:
        assert solves(task, row['prompt'], row['answer']) and row['chosen'] == row['answer']
        assert not solves(task, row['prompt'], row['rejected'])
        palindrome = row['answer'] == row['answer'][::-1]
        assert row['completion'] in (row['answer'], row['answer'][::-1]) or palindrome
        assert solves(task, row['prompt'], row['completion']) == row['label']
    assert 0.65 < sum(row['label'] for row in rows) / len(rows) < 0.75


@pytest.mark.parametrize('task', verifiable_task.TASKS)
def test_half_of_the_rejected_sides_have_other_mistakes(task):
    rows = {row.fields['prompt']: row.fields for row in read_rows(f'generated:{task}', '')}
    others = [row for row in rows.values() if row['rejected'] != row['answer'][::-1]]
    assert 0.4 * len(rows) < len(others) < 0.6 * len(rows) and all(row['rejected'] for row in others)
    # A model that reads the length, the set of characters or, of sorted digits, the order, does not know them all.
    for same in (len, set, lambda text: ''.join(sorted(text)) == text):
        share = sum(same(row['rejected']) == same(row['answer']) for row in others) / len(others)
        assert 0.1 < share < 0.9
    if task == 'sort':  # about half have the length and the order of an answer, and other digits
        in_form = [row for row in others if ''.join(sorted(row['rejected'])) == row['rejected']]
        assert sum(len(row['rejected']) == len(row['answer']) for row in in_form) > 0.45 * len(others)
    again = read_rows(f'generated:{task},rows=3000,wrong=0.5', '', split='train')
    assert all(row.fields['rejected'] == rows[row.fields['prompt']]['rejected'] for row in again)


def prompts(source: str, split: str = '') -> set[str]:
    return {row.fields['prompt'] for row in read_rows(source, '', split=split)}


def test_held_out_prompts_are_in_no_training_rows_of_other_settings():
    trained = prompts('generated:sort,seed=0', 'train') | prompts('generated:sort,seed=1,rows=3000,wrong=1', 'train')
    held_out = prompts('generated:sort,seed=2', 'test') | prompts('generated:sort,split=validation')
    assert not trained & held_out
    assert {verifiable_task.split_of(prompt) for prompt in held_out} == {'validation', 'test'}
    assert prompts('generated:sort,wrong=0.5') == prompts('generated:sort') != prompts('generated:sort,seed=1')


def test_a_task_reads_the_split_of_its_field():
    names = ('generated:brackets,rows=500',)
    files = dict.fromkeys(('train', 'validation', 'test'), names)
    config = TaskConfig('chat', files, ('prompt',), 'completion', (), 0, 4, False, 'error')
    rows = read_splits(config, {'root': '', 'validation': 0.0, 'test': 0.0}, [])
    assert sum(map(len, rows.values())) == 500
    for split, own in rows.items():
        assert {verifiable_task.split_of(row.fields['prompt']) for row in own} == {split}


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('generated:srt', "generated:sort, generated:brackets, did you mean 'sort'"),
        ('generated:sort,row=3', "'row' is none of rows, length, wrong, seed, split, did you mean 'rows'"),
        ('generated:sort,rows=x', "rows must be a number, not 'x'"),
        ('generated:sort,wrong=1.5', r'wrong must be in \[0, 1\], not 1.5'),
        ('generated:sort,split=all', "split must be train, validation or test, not 'all'"),
        ('generated:sort,length=1,rows=11', 'only 10 different prompts'),
    ],
)
def test_wrong_settings_are_named(source, message):
    with pytest.raises(InputError, match=message):
        read_rows(source, '')
