"""Prompt and choices are encoded as one text, and all choices are scored from the same index."""

import functools

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
    tokenizer, options = merged(), ('wer', 'c) no', 'werwolf', 'yes')
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
