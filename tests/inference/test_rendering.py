"""Prompt and choices are encoded as one text, and all choices are scored from the same index."""

import functools

import numpy as np
import pytest

from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.data.tokenizers.subword import Bpe, learn_bpe
from lmtrain.inference import questions, rendering

BYTES = Bytes()
FORM = {'template': '{query} {gold}', 'choices': 'choices', 'answer': 'gold'}


@functools.cache
def merged():
    """A tokenizer with tokens that contain the end of a prompt and the beginning of a choice."""
    return Bpe(learn_bpe(['answer: (c) ' * 50, 'yes: no ' * 30], 300))


@pytest.mark.parametrize('context', ['it is the ans', 'it is: ', 'it is:', '', 'answer: ('])
def test_choices_are_scored_from_the_same_index(context):
    tokenizer, options = merged(), ('wer', 'c) no', 'wolf', 'yes')
    asked = questions.Question('here', context, options, 'wer')
    found = rendering.choices(tokenizer, '\n\n', asked, ())
    head = found.context_ids.tolist()
    assert head[0] == tokenizer.begin_id and tokenizer.begin_id not in head[1:]
    assert context.startswith(tokenizer.decode_bytes(head[1:]).decode())
    for ids, choice in zip(found.continuations, options, strict=True):
        assert head[1:] + ids.tolist() == tokenizer.encode(context + choice)
        assert len(ids)
    if context == 'it is the ans':  # 'answer' is one token: the choice alone would be scored by tokens nobody makes
        assert tokenizer.decode_bytes(found.continuations[0]).decode() == ' answer'


SHOWN = questions.Question('shown', 'Buy now: ', ('not', 'not spam'), 'not spam')


@pytest.mark.parametrize('count', [1, 2])
def test_an_end_is_scored_if_one_choice_begins_another(count):
    asked = questions.Question('here', 'Hello: ', ('not', 'not spam', 'spam'), 'not')
    context, continuations = rendering.choices(BYTES, '\n\n', asked, ())
    assert context.tolist() == [BYTES.begin_id, *b'Hello: ']
    ends = [[*choice.encode(), BYTES.end_id] for choice in asked.choices]
    assert [ids.tolist() for ids in continuations] == ends
    shown = [SHOWN] * count
    assert [ids.tolist() for ids in rendering.choices(BYTES, '', asked, shown).continuations] == ends
    context, continuations = rendering.choices(BYTES, '\n\n', asked, shown)
    assert context.tolist() == [BYTES.begin_id, *(b'Buy now: not spam\n\n' * count + b'Hello: ')]
    assert [ids.tolist() for ids in continuations] == [[*choice.encode(), *b'\n\n'] for choice in asked.choices]


def test_no_end_is_scored_if_no_choice_begins_another():
    for choices in (('not', 'nor', 'spam'), ('not', 'not')):
        asked = questions.Question('here', 'Hello: ', choices, 'not')
        for shown in ([], [SHOWN]):
            wholes = rendering.choices(BYTES, '\n', asked, shown)
            texts = [BYTES.decode([*wholes.context_ids[1:], *ids]) for ids in wholes.continuations]
            before = ''.join(each.context + each.answer + '\n' for each in shown) + 'Hello: '
            assert texts == [before + choice for choice in choices]


def test_a_prompt_has_one_begin_token_and_no_space_at_its_end():
    row = Row('rows:1', {'query': 'a b', 'gold': 'c'})
    ids, continuations = rendering.prompt(BYTES, '', questions.question(row, '{query} {gold}', 'gold', ()), ())
    assert (ids.tolist(), continuations) == ([BYTES.begin_id, *b'a b'], ())


def test_a_literal_begin_is_text():
    row = Row('rows:1', {'query': '<|endoftext|>', 'choices': ['<|endoftext|>', 'b'], 'gold': 0})
    asked = questions.question(row, **FORM)
    context, continuations = rendering.choices(merged(), '', asked, ())
    for ids in continuations:
        assert [*context, *ids].count(merged().begin_id) == 1


@pytest.mark.parametrize('separator', ['\n\n', ' ', ''])
@pytest.mark.parametrize('tokenizer', [BYTES, merged()], ids=['bytes', 'bpe'])
def test_demonstrations_that_rows_share_are_encoded_once(tokenizer, separator, monkeypatch):
    """And the ids are those of each text as a whole, also if a token lies across two demonstrations."""
    rng = np.random.default_rng(0)
    words = ['answer', ': (c)', 'yes', ': no', ' ', 'is', '\n']

    def drawn(number):
        context = ''.join(rng.choice(words, 6))
        return questions.Question(f'{number}', context, (' yes', ' no', '(c) no'), ' yes')

    shared, rows = [drawn(number) for number in range(20)], [drawn(number) for number in range(5)]
    encoded, encode = [], type(tokenizer).encode_batch

    def counted(self, texts):
        encoded.append(sum(map(len, texts)))
        return encode(self, texts)

    rendering._beginning.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), 'encode_batch', counted)
        fast = [rendering.choices(tokenizer, separator, row, shared) for row in rows]
        divided = rendering._beginning.cache_info().hits == len(rows) - 1
        cost = sum(encoded)
    monkeypatch.setattr(rendering, '_beginning', lambda *arguments: None)
    slow = [rendering.choices(tokenizer, separator, row, shared) for row in rows]
    for one, other in zip(fast, slow, strict=True):
        assert one.context_ids.tolist() == other.context_ids.tolist()
        assert [ids.tolist() for ids in one.continuations] == [ids.tolist() for ids in other.continuations]
    whole = sum(len(rendering.text_before(row, shared, separator)) for row in rows)
    assert divided and (separator != '\n\n' or cost < whole)  # four copies of every text without it


def test_a_token_across_two_demonstrations_is_not_divided():
    tokenizer = merged()
    assert len(tokenizer.encode('yes: no')) < len(tokenizer.encode('yes:')) + len(tokenizer.encode(' n')) + 1
    rendering._beginning.cache_clear()
    assert rendering._beginning(tokenizer, 'yes: n', 'o yes') is None
    assert rendering._beginning(tokenizer, 'yes:', ' no').tolist() == tokenizer.encode('yes:')
