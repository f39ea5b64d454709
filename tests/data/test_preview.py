import numpy as np

from lmtrain.data.preview import render_row
from lmtrain.data.tokenizers.base import Bytes

TOKENS = {
    'tokens': np.array([[*b'a cat\n', 0, 0, 0, 0], [0] * 10]),
    'segment_ids': np.array([[1] * 6 + [0] * 4, [0] * 10]),
}


def test_marks_are_inserted_at_tokens():
    assert render_row(Bytes(), TOKENS, 0) == 'a cat\\n~~~'
    assert render_row(Bytes(), TOKENS, 0, {2: '<'}, {2: '1>', 4: '>'}, ' => 5') == 'a <c1>at>\\n~~~ => 5'


def test_empty_row_has_no_end():
    assert render_row(Bytes(), TOKENS, 1, end=' => 5') == '~~~'


def test_stretches_and_rows_are_shortened():
    one = {'tokens': np.full((1, 900), ord('x')), 'segment_ids': np.ones((1, 900), int)}
    assert render_row(Bytes(), one, 0) == 'x' * 120 + ' ... ' + 'x' * 120
    assert render_row(Bytes(), one, 0, after={7: '|'}).startswith('x' * 8 + '|' + 'x' * 120 + ' ... ')
    many = render_row(Bytes(), one, 0, after=dict.fromkeys(range(900), '|'))
    assert many == ('x|' * 600) + ' ...'
