import numpy as np

from lmtrain.data.tokenizers.base import Bytes
from lmtrain.tasks.token_preview import legend, render

END = '<|endoftext|>'


def batch(text, width=12, **columns):
    """One row of bytes between two ENDs and its padding."""
    ids = [256, *text.encode(), 256]
    real = np.arange(width) < len(ids) - 1
    column = {name: np.zeros((1, width), np.int32) for name in ('tokens', 'targets', 'segment_ids', 'positions')}
    column['tokens'][0, : len(ids) - 1], column['targets'][0, : len(ids) - 1] = ids[:-1], ids[1:]
    column['segment_ids'][0], column['positions'][0] = real, np.arange(width) * real
    return column | {name: np.array([values]) for name, values in columns.items()}


def test_text_without_masked_targets():
    mask = np.r_[np.ones(6), np.zeros(6)].astype(np.float32)
    shown = batch('a\ncat', loss_mask=mask)
    assert render(Bytes(), shown, 0) == f'|{END}a\\ncat~~~' and '[' not in legend(shown)


def test_answer_and_its_end_are_in_brackets():
    mask = np.zeros(12, np.float32)
    mask[2:6] = 1  # 'cat' and END
    shown = batch('a cat', loss_mask=mask)
    assert render(Bytes(), shown, 0) == f'|{END}a [cat{END}]~~~' and '[...] is learned' in legend(shown)
    mask[5] = 0
    assert render(Bytes(), batch('a cat', loss_mask=mask), 0) == f'|{END}a [cat]~~~'


def test_two_conversations_in_one_row():
    mask = np.array([0, 1, 1, 0, 1, 1, 0, 0], np.float32)
    shown = batch('ab', 8, loss_mask=mask)
    for name, values in {
        'tokens': [256, 97, 98],
        'targets': [97, 98, 256],
        'segment_ids': [2] * 3,
        'positions': [0, 1, 2],
    }.items():
        shown[name][0, 3:6] = values
    assert render(Bytes(), shown, 0) == f'|{END}a[b{END}]' * 2 + '~~'


def test_masked_tokens_are_shown_with_their_targets():
    masked = batch('cat', loss_mask=np.array([1, 0], np.float32), select=np.array([2, 0]))
    masked['targets'] = np.array([[ord('A'), 0]])
    assert render(Bytes(), masked, 0) == f'{END}c[a>A]t~~~'


def test_long_stretches_are_shortened_and_empty_rows_shown():
    long = batch('x' * 900, 1000, loss_mask=np.r_[np.zeros(500), np.ones(401), np.zeros(99)].astype(np.float32))
    text = render(Bytes(), long, 0)
    assert len(text) < 600 and text.count(' ... ') == 2 and text.endswith(f'x{END}]~~~')
    empty = {name: np.zeros_like(values) for name, values in long.items()}
    assert render(Bytes(), empty, 0) == '~~~'
