import numpy as np

from lmtrain.data import legend, render_row
from lmtrain.data.tokenizers.base import Bytes

END = '<|endoftext|>'


def batch(text, width=12, **columns):
    """One row of bytes between two ENDs and its padding."""
    ids = [256, *text.encode(), 256]
    real = np.arange(width) < len(ids) - 1
    column = {name: np.zeros((1, width), np.int32) for name in ('tokens', 'targets', 'segment_ids', 'positions')}
    column['tokens'][0, : len(ids) - 1], column['targets'][0, : len(ids) - 1] = ids[:-1], ids[1:]
    column['segment_ids'][0], column['positions'][0] = real, np.arange(width) * real
    return column | {name: np.array([values]) for name, values in columns.items()}


def test_a_text_that_is_learned_whole():
    mask = np.r_[np.ones(6), np.zeros(6)].astype(np.float32)
    found = batch('a\ncat', loss_mask=mask)
    assert render_row(Bytes(), found, 0) == f'|{END}a\\ncat~~~' and '[' not in legend(found)


def test_an_answer_and_its_end_stand_in_brackets():
    mask = np.zeros(12, np.float32)
    mask[2:6] = 1  # 'cat' and END
    found = batch('a cat', loss_mask=mask)
    assert render_row(Bytes(), found, 0) == f'|{END}a [cat{END}]~~~' and '[...] is learned' in legend(found)
    mask[5] = 0
    assert render_row(Bytes(), batch('a cat', loss_mask=mask), 0) == f'|{END}a [cat]~~~'


def test_two_conversations_of_a_row():
    mask = np.array([0, 1, 1, 0, 1, 1, 0, 0], np.float32)
    found = batch('ab', 8, loss_mask=mask)
    for name, values in {
        'tokens': [256, 97, 98],
        'targets': [97, 98, 256],
        'segment_ids': [2] * 3,
        'positions': [0, 1, 2],
    }.items():
        found[name][0, 3:6] = values
    assert render_row(Bytes(), found, 0) == f'|{END}a[b{END}]' * 2 + '~~'


def test_labels_of_each_kind():
    one = batch('cat', labels=1, label_weights=np.float32(1))
    del one['targets']
    assert render_row(Bytes(), one, 0, ('bad', 'good')) == f'{END}cat~~~ => good'
    assert render_row(Bytes(), one | {'labels': np.array([2.5])}, 0).endswith('~~~ => 2.5')
    two = {name: np.concatenate([values, values]) for name, values in one.items()} | {'labels': np.array([0, 1])}
    assert [render_row(Bytes(), two, row, ('bad', 'good')).split()[-1] for row in (0, 1)] == ['bad', 'good']
    weights = np.zeros(12, np.float32)
    weights[1] = 1
    tagged = one | {'labels': np.ones((1, 12), np.int32), 'label_weights': weights[None]}
    assert render_row(Bytes(), tagged, 0, ('O', 'B')) == f'{END}c{{B}}at~~~'
    weights[1:4] = 1
    asked = one | {'spans': np.array([[2, 3]]), 'label_weights': weights[None]}
    del asked['labels']
    assert render_row(Bytes(), asked, 0) == f'{END}{{c[at]}}~~~'
    asked['spans'] = np.array([[-1, -1]])
    assert render_row(Bytes(), asked, 0) == f'{END}{{cat}}~~~'
    assert all(legend(each) for each in (one, tagged, asked))


def test_hidden_tokens_stand_beside_what_is_wanted():
    hidden = batch('cat', loss_mask=np.array([1, 0], np.float32), select=np.array([2, 0]))
    hidden['targets'] = np.array([[ord('A'), 0]])
    assert render_row(Bytes(), hidden, 0) == f'{END}c[a>A]t~~~'


def test_long_stretches_are_shortened_and_empty_rows_shown():
    long = batch('x' * 900, 1000, loss_mask=np.r_[np.zeros(500), np.ones(401), np.zeros(99)].astype(np.float32))
    text = render_row(Bytes(), long, 0)
    assert len(text) < 600 and text.count(' ... ') == 2 and text.endswith(f'x{END}]~~~')
    empty = {name: np.zeros_like(values) for name, values in long.items()}
    assert render_row(Bytes(), empty, 0) == '~~~'
