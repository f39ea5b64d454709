"""Pairs as examples: columns, rows that are left out, the limit on their length, previews."""

import numpy as np
import pytest

from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError
from lmtrain.tasks import pairs, preference, reward


def row(number=0, **fields):
    return Row(f'rows.jsonl:{number}', {'prompt': 'q: ', 'chosen': 'yes', 'rejected': 'no'} | fields)


def encode(form, rows, task=preference, **options):
    return task.TASK.encode(rows, form(Bytes(), (), '', **options))


def test_both_sides_are_neighbours_whose_completions_count(form):
    encoded = encode(form, [row(), row(1, chosen='a')])
    assert [each.source for each in encoded.examples] == [0, 0, 1, 1]
    chosen, rejected = encoded.examples[:2]
    assert bytes(chosen.tokens[1:-1].tolist()) == b'q: yes' and bytes(rejected.tokens[1:-1].tolist()) == b'q: no'
    assert chosen.tokens[0] == chosen.tokens[-1] == 256
    np.testing.assert_array_equal(chosen.flat['loss_mask'], [0, 0, 0, 1, 1, 1, 1, 0])
    assert [each.values for each in (chosen, rejected)] == [{'scored': 1}, {'scored': 2}]
    assert encoded.notes == ['2 rows of prompt + chosen + rejected'] and not encoded.templated
    unread = encode(form, [row(id=7, margin=1.0), row(1, source='a')]).notes
    assert unread == ["2 rows of prompt + chosen + rejected (ignoring 'id', 'margin', 'source')"]
    assert encode(form, [row(id=7, margin=1.0)], reward).notes[0].endswith("(ignoring 'id')")


def test_equal_sides_and_empty_completions_are_counted(form):
    encoded = encode(form, [row(), row(1, rejected='yes'), row(2, rejected='yes'), row(3, chosen=' ')])
    assert [each.source for each in encoded.examples] == [0, 0]
    assert encoded.notes[1:] == [
        '2 rows left out, whose sides are equal: rows.jsonl:1, ...',
        '1 row left out, with an empty completion: rows.jsonl:3',
    ]


def test_completions_that_the_template_does_not_write_are_counted(form):
    """Before, one call of a tool refused all rows."""
    template = Template('{% for m in messages %}{{ m.content }}{% endfor %}', 'a template')
    user, call = {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': '', 'tool_calls': [{'name': 'f'}]}
    rows = [row(prompt=[user]), row(1, prompt=[user], rejected=[call])]
    encoded = preference.TASK.encode(rows, form(Bytes(), (), '')._replace(template=template))
    assert [each.source for each in encoded.examples] == [0, 0]
    assert encoded.notes[1:] == ['1 row left out, whose completion the template does not write: rows.jsonl:1']


def test_a_row_may_have_a_margin(form):
    encoded = encode(form, [row(), row(1, margin='2.5')], reward)
    assert [each.values['margin'].item() for each in encoded.examples] == [0, 0, 2.5, 2.5]
    assert '1 rows have a margin' in encoded.notes
    for margin in ('much', float('nan'), float('inf'), True, [1]):
        with pytest.raises(InputError, match=r"rows.jsonl:0: 'margin' is .*; it must be a finite number"):
            encode(form, [row(margin=margin)], reward)


@pytest.mark.parametrize(('task', 'unread'), [(preference, 1), (reward, 0)])
def test_long_pairs_lose_the_same_beginning_of_both_prompts(form, task, unread):
    long = row(prompt='0123456789', chosen='abc', rejected='d')
    size = 15 + 13 - 2 * unread
    whole = encode(form, [long], task, seq_len=size)
    assert sum(len(each.tokens) - unread for each in whole.examples) == size
    cut = encode(form, [long], task, seq_len=size - 5, policy='cut')
    assert [bytes(each.tokens[1:-1].tolist()) for each in cut.examples] == [b'3456789abc', b'3456789d']
    with pytest.raises(InputError, match=rf'rows.jsonl:0: {size} tokens, and data.seq_len is {size - 1}'):
        encode(form, [long], task, seq_len=size - 1)
    assert not encode(form, [long], task, seq_len=size - 1, policy='drop').examples
    none = encode(form, [long], task, seq_len=5, policy='cut')
    assert not none.examples and 'whose completions alone have more than data.seq_len = 5 tokens' in none.notes[-1]


def test_fields_have_fixed_names(form):
    for text, label in ((('a',), ''), ((), 'b')):
        with pytest.raises(InputError, match='leave it empty: the fields are prompt, chosen and rejected'):
            preference.TASK.encode([row()], form(Bytes(), text, label))


def test_preview_names_the_sides():
    tokens = np.array([[256, *b'ab', 256, 256, *b'ac', 256, 0]])
    batch = {'tokens': tokens, 'segment_ids': np.array([[1] * 4 + [2] * 4 + [0]])}
    batch['positions'] = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 0]])
    end = '<|endoftext|>'
    assert pairs.render(Bytes(), batch, 0) == f'chosen> {end}ab{end} rejected> {end}ac{end}~'
    assert 'chosen>' in pairs.legend(batch)
