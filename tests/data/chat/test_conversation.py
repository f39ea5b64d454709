"""Rows as conversations: formats, the fields of other data sets, messages, and invalid rows."""

import datetime
import decimal
import itertools

import pytest

from lmtrain.data.chat.conversation import (
    ANSWERS,
    QUESTIONS,
    Conversation,
    read,
    recognise_format,
    with_known_fields,
)
from lmtrain.data.rows import Row
from lmtrain.inference import questions

TALK = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
KNOWN = [('prompt', 'completion'), ('instruction', 'output')]  # formats with names of their own
CALL = [{'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}]
CALL = {'type': 'function', 'function': {'name': 'f', 'arguments': {'x': 1}}}


def read_fields(text=(), label='', **fields):
    return read(Row('rows.jsonl:7', fields), text, label)


@pytest.mark.parametrize(
    ('fields', 'form', 'messages'),
    [
        ({'messages': TALK}, 'messages', TALK),
        ({'instruction': 'a', 'input': '', 'output': 'b'}, 'alpaca', TALK),
        ({'instruction': 'a', 'input': 'c', 'output': 'b'}, 'alpaca', [{'role': 'user', 'content': 'a\n\nc'}, TALK[1]]),
        ({'instruction': 'a', 'output': 'b', 'messages': None}, 'alpaca', TALK),
        ({'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]}, 'sharegpt', TALK),
        ({'conversations': TALK}, 'sharegpt', TALK),
        (
            {
                'conversations': [
                    {'from': 'human', 'value': 'a', 'loss': None},
                    {'from': 'observation', 'value': 'sun'},
                    {'from': 'function_call', 'value': '{"name": "f", "arguments": {"x": 1}}'},
                ]
            },
            'sharegpt',
            [TALK[0], {'role': 'tool', 'content': 'sun'}, {'role': 'assistant', 'content': '', 'tool_calls': [CALL]}],
        ),
        ({'messages': [{'from': 'user', 'value': 'a'}, TALK[1]]}, 'messages', TALK),
        ({'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}, TALK[1]]}, 'messages', TALK),
        # UltraChat and No Robots have a field `prompt` besides the messages.
        ({'prompt': 'a', 'prompt_id': '1', 'messages': TALK}, 'messages', TALK),
        ({'prompt': 'a', 'completion': 'b', 'output': 'c', 'messages': TALK}, 'messages', TALK),
        *[
            ({q: 'a', a: 'b'}, f'{q} + {a}', TALK)
            for q, a in itertools.product(QUESTIONS, ANSWERS)
            if (q, a) not in KNOWN
        ],
        ({'question': 'a', 'answer': 'b', 'id': 3}, 'question + answer', TALK),
        (
            {'instruction': 'a', 'input': 'c', 'response': 'b'},
            'instruction + input + response',
            [{'role': 'user', 'content': 'a\n\nc'}, TALK[1]],
        ),
        ({'input': '', 'instruction': 'a', 'response': 'b'}, 'instruction + input + response', TALK),
        ({'instruction': 'a', 'output': 'b', 'answer': 'c'}, 'alpaca', TALK),
        ({'system': 'be', 'messages': TALK}, 'messages', [{'role': 'system', 'content': 'be'}, *TALK]),
        (
            {'system': 'be', 'messages': [{'role': 'system', 'content': 'own'}, *TALK]},
            'messages',
            [{'role': 'system', 'content': 'own'}, *TALK],
        ),
    ],
)
def test_format_is_recognised(fields, form, messages):
    name, conversation = read_fields(**fields)
    assert (name, conversation.messages, conversation.trained) == (form, messages, (len(messages) - 1,))


SYSTEM = {'role': 'system', 'content': 'be'}
JOINED = [{'role': 'user', 'content': 'a\n\nc'}, TALK[1]]


@pytest.mark.parametrize(
    ('fields', 'messages', 'unread'),
    [
        # Dolly, OpenOrca, LLaMA-Factory, OpenHermes
        ({'instruction': 'a', 'context': 'c', 'response': 'b', 'category': 'qa'}, JOINED, ['category']),
        ({'instruction': 'a', 'input': '', 'context': 'c', 'output': 'b'}, JOINED, []),
        ({'id': 't0.1', 'system_prompt': 'be', 'question': 'a', 'response': 'b'}, [SYSTEM, *TALK], ['id']),
        (
            {'instruction': 'a', 'output': 'b', 'system': 'be', 'history': [['c', 'd'], ['e', 'f']]},
            [
                SYSTEM,
                *({'role': role, 'content': text} for role, text in zip(['user', 'assistant'] * 2, 'cdef')),
                *TALK,
            ],
            [],
        ),
        ({'conversations': TALK, 'system_prompt': 'be', 'idx': 3, 'topic': None}, [SYSTEM, *TALK], ['idx']),
        ({'messages': TALK, 'system_prompt': 'be', 'system': None}, [SYSTEM, *TALK], []),
    ],
)
def test_fields_of_other_data_sets_are_read(fields, messages, unread):
    original = Row('rows.jsonl:7', fields)
    assert read(original, (), '')[1] == Conversation(
        messages, tuple(index for index, message in enumerate(messages) if message['role'] == 'assistant')
    )
    known = with_known_fields(original)
    assert (
        known.fields.items()
        >= {name: value for name, value in fields.items() if name != 'history' and value not in (None, '')}.items()
    )
    assert known.fields != fields and with_known_fields(known) is known
    assert recognise_format(known)[1] == unread


@pytest.mark.parametrize(
    ('fields', 'unread'),
    [
        ({'messages': TALK, 'prompt': 'a', 'prompt_id': '1', 'tools': [{'name': 'f'}]}, ['prompt', 'prompt_id']),
        ({'messages': [SYSTEM, *TALK], 'system_prompt': 'c', 'system': 'd'}, ['system_prompt', 'system']),
        ({'conversations': [{'from': 'system', 'value': 'be'}, *TALK], 'system_prompt': 'c'}, ['system_prompt']),
        ({'messages': TALK, 'context': 'c', 'history': [['c', 'd']]}, ['context', 'history']),
        ({'instruction': 'a', 'output': 'b', 'answer': 'c', 'history': []}, ['answer']),
        ({'instruction': 'a', 'input': 'i', 'output': 'b', 'context': 'c'}, ['context']),
        ({'instruction': 'a', 'output': 'b', 'context': {'title': 'c'}, 'history': ['c']}, ['context', 'history']),
        ({'question': 'a', 'answer': 'b', 'context': 'c', 'system': ''}, ['context']),
        ({'question': 'a', 'answer': 'b', 'system': 'c', 'system_prompt': 'd'}, ['system_prompt']),
        (
            {'prompt': 'a', 'completion': 'b', 'system': 'c', 'system_prompt': 'd', 'tools': [{'name': 'f'}]},
            ['system', 'system_prompt', 'tools'],
        ),
        ({'prompt': TALK, 'completion': TALK, 'system': 'c', 'tools': [{'name': 'f'}]}, ['system']),
        ({'prompt': 'a', 'question': 'b', 'answer': 'c', 'system_prompt': 'd'}, None),
    ],
)
def test_other_fields_are_not_read_and_rows_are_hashed_as_they_are(fields, unread):
    """So that runs on them are resumed."""
    original = Row('rows.jsonl:7', fields)
    assert with_known_fields(original) is original
    assert unread is None or recognise_format(original)[1] == unread


def test_turn_of_the_history_is_text():
    history = [['c', 'd'], ['\ud800', 'f']]
    with pytest.raises(ValueError, match=r"rows.jsonl:7: 'history' \[1\] has half of a surrogate pair"):
        read_fields(instruction='a', output='b', history=history)


def test_prompt_and_completion_are_unchanged():
    assert read_fields(prompt='a ', completion='b', id=3) == ('prompt + completion', Conversation([], (), ('a ', 'b')))
    form, conversation = read_fields(prompt=TALK, completion=TALK)
    assert (conversation.messages, conversation.trained) == (TALK + TALK, (3,))


def test_named_fields_are_used():
    fields = {'question': 'a?', 'hint': 'h', 'answer': 'b', 'messages': TALK, 'chosen': [*TALK, *TALK]}
    assert read_fields(('question', 'hint'), 'answer', **fields) == (
        'question + hint + answer',
        Conversation([], (), ('a?\n\nh', 'b')),
    )
    assert read_fields(('chosen',), '', **fields)[1].messages == TALK + TALK
    with pytest.raises(ValueError, match="rows.jsonl:7: no field 'rejected'"):
        read_fields(('rejected',), '', **fields)


@pytest.mark.parametrize('content', [{}, {'content': None}, {'content': ''}])
def test_answer_with_tool_calls_only(content):
    conversation = read_fields(messages=[TALK[0], {'role': 'assistant', 'tool_calls': CALL} | content])[1]
    assert conversation.messages[1] == {'role': 'assistant', 'content': '', 'tool_calls': CALL}
    assert conversation.trained == (1,)


def test_tool_results_are_not_trained():
    call, result = {'role': 'assistant', 'tool_calls': CALL}, {'role': 'tool', 'content': '{"sum": 3}'}
    assert read_fields(messages=[TALK[0], call, result, TALK[1]])[1].trained == (1, 3)


def test_null_fields_are_ignored():
    conversation = read_fields(messages=[TALK[0] | {'tool_calls': None, 'name': None}, TALK[1] | {'weight': None}])[1]
    assert conversation.messages == TALK and conversation.trained == (1,)


@pytest.mark.parametrize('tools', [[{'name': 'f'}], '[{"name": "f"}]'])
def test_tools_as_json_text(tools):
    assert read_fields(messages=TALK, tools=tools)[1].tools == [{'name': 'f'}]


@pytest.mark.parametrize('tools', [None, [], '', ' ', '[]', 'null'])
def test_empty_tools_are_none(tools):
    assert read_fields(messages=TALK, tools=tools)[1].tools is None


@pytest.mark.parametrize('name', ['weight', 'train', 'training', 'loss'])
@pytest.mark.parametrize(('value', 'trained'), [(0, (3,)), (False, (3,)), (0.0, (3,)), (1, (1, 3)), (True, (1, 3))])
def test_answers_excluded_by_weight_or_train(name, value, trained):
    conversation = read_fields(messages=[TALK[0] | {name: 0}, TALK[1] | {name: value}, *TALK])[1]
    assert conversation.trained == trained and conversation.messages == TALK + TALK
    turns = [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b', name: value}, *TALK]
    assert read_fields(conversations=turns)[1] == conversation


def test_messages_and_tools_may_have_values_of_parquet():
    """Dates, decimals and bytes, such as the timestamps of WildChat."""
    values = {'time': datetime.datetime(2026, 1, 31), 'price': decimal.Decimal('0.5'), 'raw': b'x'}
    talk = [message | values for message in TALK]
    row = Row('a.parquet: row 1', {'messages': talk, 'tools': [values]})
    assert read(row, (), '')[1] == Conversation(talk, (1,), tools=[values])
    asked = questions.question(row, '', '', ())
    assert asked.messages == (talk[0],) and '"2026-01-31 00:00:00"' in asked.context


@pytest.mark.parametrize(
    ('fields', 'error'),
    [
        (
            {'prompt': 'a', 'completion': 'b', 'instruction': 'c', 'output': 'd'},
            "two formats: 'prompt' of prompt \\+ completion, 'completion' .*, 'instruction' of alpaca",
        ),
        ({'prompt': 'a', 'question': 'b', 'answer': 'c'}, "two formats: 'prompt', 'question'. Remove one"),
        ({'question': 'a', 'answer': 'b', 'target': 'c'}, "two formats: 'answer', 'target'. Remove one"),
        ({'messages': TALK, 'conversations': TALK}, "two formats: 'messages' of messages, 'conversations' of sharegpt"),
        ({'prompt': 'a', 'id': 1}, "'prompt' needs a field completion, response, .*; there are 'prompt', 'id'"),
        ({'answer': 'a'}, "'answer' needs a field prompt, question, .*config.task.text"),
        (
            {'body': 'a'},
            "the fields 'body' belong to no known format .*: rename them to question and answer, .*config.task.text",
        ),
        ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}, 'configs/dpo.py .*task.text=prompt and task.label=chosen'),
        ({'chosen': TALK, 'rejected': TALK}, 'preferences: .*configs/reward_model.py.*task.text=chosen trains'),
        ({'messages': []}, "'messages' must be an array of at least one message, not an empty one"),
        ({'messages': 'hi'}, "'messages' must be an array of at least one message, not text"),
        ({'messages': ['hi']}, r"'messages' \[0\]: expected an object, not 'hi'"),
        ({'messages': [{'role': 'user'}]}, r"'messages' \[0\]: expected an object with 'role' and 'content'"),
        ({'messages': [TALK[0], {'role': 'assistant', 'content': None}]}, r'\[1\]: expected an object with'),
        ({'messages': [{'role': 'user|><s', 'content': ''}]}, r"\[0\]: 'role' is 'user\|><s', which is none of system"),
        ({'messages': [{'role': ['user'], 'content': 'a'}]}, r"\[0\]: 'role' is \['user'\], which is none of system"),
        ({'messages': [{'from': {'a': 1}, 'value': 'a'}]}, r"\[0\]: 'from' is {'a': 1}, which is none of human"),
        ({'messages': [{'role': 'user', 'content': 3}]}, r"\[0\]: 'content' must be text, not a number"),
        (
            {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}, {'type': 'image_url'}]}]},
            r"\[0\]: 'content' \[1\] is a part of type 'image_url'; only parts of type 'text' are read: remove it",
        ),
        ({'messages': [{'role': 'user', 'content': [{}]}]}, r"\[0\]: 'content' \[0\] is a part of type None; only"),
        ({'messages': [{'from': 'user', 'value': ['a']}]}, r"\[0\]: 'value' \[0\] is text; only parts of type 'text'"),
        (
            {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': None}]}]},
            r"\[0\]: 'content' \[0\]: 'text' must be text, not null",
        ),
        ({'messages': [TALK[0] | {'name': 'b\ud800'}]}, r'\[0\] has half of a surrogate pair'),
        ({'messages': TALK, 'tools': '{'}, "'tools': invalid JSON"),
        ({'messages': TALK, 'tools': ['f']}, "'tools' must be an array of objects"),
        ({'messages': TALK, 'tools': [{'name': '\ud800'}]}, "'tools' has half of a surrogate pair"),
        ({'conversations': [{'from': 'robot', 'value': 'a'}]}, r"\[0\]: 'from' is 'robot', which is none of human"),
        ({'conversations': [{'value': 'a'}]}, r"\[0\]: expected an object .* 'from' and 'value'"),
        (
            {'conversations': [{'from': 'function_call', 'value': 'f(1)'}]},
            r"\[0\]: 'value' of a function_call: invalid JSON",
        ),
        (
            {'conversations': [{'from': 'function_call', 'value': '[{"name": "f"}]'}]},
            r"\[0\]: 'value' of a function_call needs an object with 'name' and 'arguments'",
        ),
        ({'prompt': 'a', 'completion': 'b\ud800'}, 'half of a surrogate pair'),
        ({'messages': [TALK[0], TALK[1] | {'weight': 0.5}]}, r"\[1\]: 'weight' is 0.5; it must be 0 or 1"),
        ({'messages': [TALK[0], TALK[1] | {'train': 'no'}]}, r"\[1\]: 'train' is 'no'; it must be 0 or 1"),
        ({'messages': [TALK[0] | {'train': True}, TALK[1]]}, r"\[0\]: 'train' is True on a message of 'user'"),
        ({'messages': [TALK[0], TALK[1] | {'train_detail': []}]}, r"\[1\]: 'train_detail' is not supported"),
        ({'messages': [TALK[0], TALK[1] | {'masked': True}]}, r"\[1\]: 'masked' is not supported.*\"train\": false"),
    ],
)
def test_invalid_rows_are_named(fields, error):
    with pytest.raises(ValueError, match=f'rows.jsonl:7.*{error}'):
        read_fields(**fields)
