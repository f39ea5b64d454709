"""A conversation: its prompts, its history, the context limit, and texts that name special tokens."""

import dataclasses

import pytest

from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.errors import InputError
from lmtrain.inference import sample
from lmtrain.inference.chat import Chat

TEMPLATE = Template(PLAIN, 'plain')


@pytest.fixture
def talk(computes, monkeypatch):
    """A conversation with a model of 64 positions that answers with `talk.answer`; its prompts are in `talk.asked`."""
    model, params, tokenizer = computes

    def stream(model, params, prompts, **settings):
        talk.asked.append(prompts[0])
        talk.settings = settings
        for byte in talk.answer.encode():
            yield 0, [byte], ''
        yield 0, [], 'stop'

    monkeypatch.setattr(sample, 'stream', stream)
    sampling = {'max_tokens': 16, 'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0}
    talk = Chat(model, params, tokenizer, TEMPLATE, end_ids=[256], system='be kind', **sampling)
    talk.answer, talk.asked = 'ok', []
    return talk


def text_of(ids):
    return bytes(token for token in ids if token < 256).decode()


def test_history_is_written_by_the_template(talk):
    assert talk.ask('one') == 'ok' and talk.ask('two') == 'ok'
    assert [text_of(ids) for ids in talk.asked] == ['be kind\none\n', 'be kind\none\noktwo\n']
    assert talk.asked[1].count(256) == 2  # the begin token, and the end of the first answer
    assert [message['content'] for message in talk.messages] == ['one', 'ok', 'two', 'ok']
    assert talk.finish_reason == 'stop' and talk.settings['end_ids'] == [256]


def test_reset_forgets_the_messages_and_keeps_the_system_text(talk):
    talk.ask('one')
    talk.reset()
    talk.ask('two')
    talk.system = ''
    talk.ask('three')
    assert [text_of(ids) for ids in talk.asked[1:]] == ['be kind\ntwo\n', 'two\nokthree\n']


def test_a_name_of_a_special_token_is_characters(talk):
    """In messages, in the system text, and in an answer of the model that is read again."""
    talk.system, talk.answer = '<|endoftext|>', 'a<|endoftext|>'
    assert talk.special_names('x <|endoftext|>') == ['<|endoftext|>'] and talk.special_names('x') == []
    talk.ask('<|endoftext|>')
    assert talk.asked[0].count(256) == 1 and text_of(talk.asked[0]).count('<|endoftext|>') == 2
    talk.system = ''
    talk.ask('b')
    assert talk.asked[1].count(256) == 2 and 'a<|endoftext|>b' in text_of(talk.asked[1])


def test_the_oldest_turns_are_dropped_when_the_context_is_full(talk):
    """64 positions, of which 16 are for the answer."""
    talk.ask('x' * 20)
    assert talk.dropped == 0
    talk.ask('y' * 20)  # 1 + 8 + 21 + 3 + 21 = 54 tokens, more than 64 + 1 - 16
    assert talk.dropped == 1 and text_of(talk.asked[-1]) == f'be kind\n{"y" * 20}\n'
    assert [message['content'] for message in talk.messages] == ['y' * 20, 'ok']
    talk.ask('z')
    assert talk.dropped == 0 and len(talk.messages) == 4
    talk.ask('w' * 40)
    assert talk.dropped == 2 and len(talk.messages) == 2


def test_a_message_that_is_too_long_changes_nothing(talk):
    talk.ask('one')
    with pytest.raises(InputError, match='the message with the system text has 70 tokens, and the context .* holds 64'):
        talk.stream('x' * 60)
    assert [message['content'] for message in talk.messages] == ['one', 'ok'] and len(talk.asked) == 1
    talk.ask('x' * 50)  # it fits without the room for an answer
    assert len(talk.asked[-1]) == 60


def test_an_answer_that_is_stopped_is_part_of_the_history(talk):
    talk.answer = 'abc'
    pieces = talk.stream('one')
    assert [next(pieces), next(pieces)] == ['a', 'b']
    pieces.close()
    assert [message['content'] for message in talk.messages] == ['one', 'ab'] and talk.finish_reason == ''
    talk.answer = 'é'
    pieces = talk.stream('two')  # stopped in its first character: the question is forgotten
    assert next(pieces) == ''
    pieces.close()
    talk.stream('three').close()
    assert [message['content'] for message in talk.messages] == ['one', 'ab']


def test_the_question_of_an_answer_that_failed_is_forgotten(talk, monkeypatch):
    def broken(*_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(sample, 'stream', broken)
    with pytest.raises(KeyboardInterrupt):
        talk.ask('one')
    assert talk.messages == []


def test_settings_and_models_are_checked_at_once(computes, talk):
    model, params, tokenizer = computes
    sampling = {'max_tokens': 0, 'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0}
    with pytest.raises(InputError, match=r'max_tokens=0 must lie in \[1'):
        Chat(model, params, tokenizer, TEMPLATE, end_ids=[], **sampling)
    encoder = dataclasses.replace(model, causal=False)
    masked = Chat(encoder, params, tokenizer, TEMPLATE, end_ids=[], **sampling | {'max_tokens': 1})
    with pytest.raises(InputError, match='it cannot continue a text'):
        masked.stream('a')


def test_the_model_answers(computes):
    """The same text as `sample.generate` makes of the same prompt, in pieces."""
    model, params, tokenizer = computes
    sampling = {'max_tokens': 12, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'seed': 3}
    talk = Chat(model, params, tokenizer, TEMPLATE, end_ids=[256], **sampling)
    pieces = list(talk.stream('ab'))
    ids = [256, *b'ab\n']
    (whole,) = sample.generate(model, params, [ids], end_ids=[256], vocab_size=257, **sampling)
    decode = tokenizer.streamer()
    decode(ids)
    assert len(pieces) > 1 and ''.join(pieces) == decode(whole.ids) == talk.messages[-1]['content']
