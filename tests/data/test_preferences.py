"""Rows of preferences: formats, what counts as the prompt, and invalid rows."""

import itertools
from unittest.mock import ANY

import numpy as np
import pytest

from lmtrain.data import preferences
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError

CHATML = Template(
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
    "{% endfor %}{{ '<a>' if add_generation_prompt else '' }}",
    'a template',
)
PLAINLY = Template(PLAIN, 'the plain template')
USER, GOOD, BAD = (
    {'role': role, 'content': text} for role, text in (('user', 'Hi'), ('assistant', 'Yes'), ('assistant', 'No'))
)
DIALOGUE = '\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2 + 2?\n\nAssistant:'


def row(**fields):
    return Row('rows.jsonl:7', fields)


def texts(pair):
    return [side.texts for side in (pair.chosen, pair.rejected)]


@pytest.mark.parametrize(
    ('fields', 'form', 'sides'),
    [
        (
            {'prompt': 'Hi ', 'chosen': 'Yes', 'rejected': 'No'},
            'prompt + chosen + rejected',
            [('Hi ', 'Yes'), ('Hi ', 'No')],
        ),
        (
            {'chosen': 'It is good', 'rejected': 'It is gone'},
            'chosen + rejected, texts without a prompt',
            [('It is ', 'good'), ('It is ', 'gone')],
        ),
        (
            {'chosen': f'{DIALOGUE} 4.', 'rejected': f'{DIALOGUE} 5.'},
            'hh-rlhf transcripts, unchanged',
            [(DIALOGUE, ' 4.'), (DIALOGUE, ' 5.')],
        ),
        (  # a system text is a message, but no turn of a transcript
            {'chosen': f'{DIALOGUE} 4.', 'rejected': f'{DIALOGUE} 5.', 'system': 'Be brief.'},
            'hh-rlhf transcripts, unchanged',
            [(DIALOGUE, ' 4.'), (DIALOGUE, ' 5.')],
        ),
    ],
)
def test_texts_are_split_into_prompt_and_completion(fields, form, sides):
    pair = preferences.read_pair(row(**fields), PLAINLY)
    assert pair.form == form and texts(pair) == sides


@pytest.mark.parametrize(
    ('fields', 'form'),
    [
        ({'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}, 'prompt + chosen + rejected as messages'),
        ({'prompt': [USER], 'chosen': GOOD, 'rejected': 'No'}, 'prompt + chosen + rejected as messages'),
        ({'prompt': 'Hi', 'chosen': [USER, GOOD], 'rejected': [USER, BAD]}, 'whole conversations'),
        (
            {
                'conversations': [{'from': 'human', 'value': 'Hi'}],
                'chosen': {'from': 'gpt', 'value': 'Yes'},
                'rejected': {'from': 'gpt', 'value': 'No'},
            },
            'prompt + chosen + rejected as messages',
        ),
        (
            {'chosen': '\n\nHuman: Hi\n\nAssistant: Yes', 'rejected': '\n\nHuman: Hi\n\nAssistant: No'},
            'hh-rlhf transcripts',
        ),
    ],
)
def test_messages_are_a_prompt_and_a_trained_answer(fields, form):
    pair = preferences.read_pair(row(**fields), CHATML)
    assert pair.form == form
    assert pair.chosen.messages == [USER, GOOD] and pair.rejected.messages == [USER, BAD]
    assert pair.chosen.trained == pair.rejected.trained == (1,)


SYSTEM = {'role': 'system', 'content': 'Be brief.'}
OTHER_SYSTEM = SYSTEM | {'content': 'Be kind.'}
CALL = {'role': 'assistant', 'content': '', 'tool_calls': [{'type': 'function', 'function': {'name': 'add'}}]}
RESULT = {'role': 'tool', 'content': '42'}


@pytest.mark.parametrize(
    ('prompt', 'begin', 'before'),
    [
        ([SYSTEM], [USER], [SYSTEM]),
        ([SYSTEM, USER], [USER], [SYSTEM]),
        ([SYSTEM, USER, CALL], [RESULT], [SYSTEM, USER, CALL]),
    ],
)
def test_prompt_precedes_sides_that_begin_with_no_answer(prompt, begin, before):
    """Before, the system text was lost, and of a call the question with it."""
    pair = preferences.read_pair(row(prompt=prompt, chosen=[*begin, GOOD], rejected=[*begin, BAD]), CHATML)
    assert pair.form == 'prompt + chosen + rejected as messages'
    assert pair.chosen.messages == [*before, *begin, GOOD] and pair.rejected.messages == [*before, *begin, BAD]
    assert pair.chosen.trained == pair.rejected.trained == (len(before) + 1,)


@pytest.mark.parametrize('prompt', ['Hi', ' Hi\n', [USER], [SYSTEM], [SYSTEM, USER], '', ' ', [], None])
def test_prompt_that_both_sides_repeat_is_read_once(prompt):
    pair = preferences.read_pair(row(prompt=prompt, chosen=[SYSTEM, USER, GOOD], rejected=[SYSTEM, USER, BAD]), CHATML)
    assert pair.form == 'whole conversations'
    assert pair.chosen.messages == [SYSTEM, USER, GOOD] and pair.rejected.messages == [SYSTEM, USER, BAD]


@pytest.mark.parametrize(
    'prompt', ['Q?', 'You are helpful', 7, [USER, GOOD], {'role': 'user', 'content': 'Q?'}, [SYSTEM, USER, GOOD]]
)
def test_whole_conversations_do_not_read_a_prompt_that_is_none_of_their_messages(prompt):
    fields = {'prompt': prompt, 'chosen': [OTHER_SYSTEM, USER, GOOD], 'rejected': [OTHER_SYSTEM, USER, BAD]}
    pair = preferences.read_pair(row(**fields), CHATML)
    assert pair.form == 'whole conversations'
    assert pair.chosen.messages == [OTHER_SYSTEM, USER, GOOD]
    notes = preferences.Notes()
    notes.count(pair.form, row(**fields), pair.chosen, preferences.SIDES)
    ignored = [] if isinstance(prompt, list) else ["'prompt'"]  # a list with one of their messages
    assert ('ignoring' in notes.lines()[0]) == bool(ignored)


def test_sides_that_begin_with_the_result_of_a_missing_call_are_refused():
    message = "rows.jsonl:7: 'rejected' begins with the result of a tool, and no message before it has the call"
    with pytest.raises(InputError, match=message):
        preferences.read_pair(row(prompt=[USER], chosen=[USER, GOOD], rejected=[RESULT, BAD]), CHATML)


QUESTION = [
    ({'question': 'Hi'}, []),
    ({'question': 'Hi', 'system': 'Be brief.', 'prompt': None}, ['Be brief.']),
    ({'question': 'Hi', 'system_prompt': 'Be brief.', 'system': ''}, ['Be brief.']),
    ({'instruction': 'Hi', 'input': ' ', 'id': 'x'}, []),
    ({'input': 'Hi', 'system': 'Be brief.'}, ['Be brief.']),
    ({'prompt': 'Hi', 'system': 'Be brief.'}, ['Be brief.']),
    ({'conversations': 'Hi', 'system': 'Be brief.'}, ['Be brief.']),
]


@pytest.mark.parametrize(('fields', 'system'), QUESTION)
def test_question_and_system_text_precede_the_answers(fields, system):
    """Before, such rows were 'texts without a prompt', or lost their system text."""
    before = [{'role': 'system', 'content': text} for text in system] + [USER]
    pair = row(**fields, chosen='Yes', rejected='No')
    form, *sides = preferences.read_pair(pair, CHATML)
    assert form == 'prompt + chosen + rejected as messages'
    assert [side.messages for side in sides] == [[*before, GOOD], [*before, BAD]]
    assert {side.trained for side in sides} == {(len(before),)}
    completion = row(**fields, completion='Yes', label=1)
    assert preferences.read_labelled(completion, CHATML)[1] == sides[0]
    # The row that is hashed has the prompt; one that has it already is not changed.
    for each in (pair, completion):
        changed = preferences.with_prompt(each)
        assert changed.fields['prompt'] == [USER] and preferences.with_prompt(changed) is changed
        assert [changed.fields.get('system')] == (system or [None])


@pytest.mark.parametrize(('fields', 'system'), QUESTION)
def test_question_without_template_is_written_like_the_plain_template(fields, system):
    pair, completion = row(**fields, chosen='Yes', rejected='No'), row(**fields, completion='Yes', label=1)
    form, *sides = preferences.read_pair(pair, None)
    assert form == 'prompt + chosen + rejected'
    assert [side.texts for side in sides] == [(''.join(f'{text}\n' for text in [*system, 'Hi']), 'Yes'), (ANY, 'No')]
    plain = preferences.read_pair(pair, PLAINLY)[1:]
    for side, written in zip(sides, plain, strict=True):
        encoded = preferences.encode(side, Bytes(), None, 'a row')
        assert encoded == preferences.encode(written, Bytes(), PLAINLY, 'a row')
    form, dialogue, _ = preferences.read_labelled(completion, None)
    assert (form, dialogue) == ('prompt + completion + label', sides[0])


@pytest.mark.parametrize('question', ['instruction', 'prompt'])
@pytest.mark.parametrize('turn', [['Who?', 'Me'], {'question': 'Who?', 'answer': 'Me'}])
def test_history_precedes_the_question(question, turn):
    fields = {question: 'Hi', 'history': [turn]}
    pair, completion = row(**fields, chosen='Yes', rejected='No'), row(**fields, completion='Yes', label=1)
    earlier = [{'role': 'user', 'content': 'Who?'}, {'role': 'assistant', 'content': 'Me'}]
    form, *sides = preferences.read_pair(pair, CHATML)
    assert form == 'prompt + chosen + rejected as messages'
    assert [side.messages for side in sides] == [[*earlier, USER, GOOD], [*earlier, USER, BAD]]
    assert {side.trained for side in sides} == {(3,)}  # and not the answer in the history
    assert preferences.read_labelled(completion, CHATML)[1] == sides[0]
    assert preferences.with_prompt(pair).fields['prompt'] == [*earlier, USER]
    form, plain, _ = preferences.read_pair(pair, None)
    assert (form, plain.texts) == ('prompt + chosen + rejected', ('Who?\nMe\nHi\n', 'Yes'))


def test_instruction_and_input_are_one_question():
    pair = preferences.read_pair(row(instruction='Add', input='2, 2', chosen='4', rejected='5'), CHATML)
    assert pair.chosen.messages[0] == {'role': 'user', 'content': 'Add\n\n2, 2'}
    with pytest.raises(InputError, match="rows.jsonl:7: 'question' has half of a surrogate pair"):
        preferences.read_pair(row(question='\ud800', chosen='4', rejected='5'), CHATML)


@pytest.mark.parametrize(
    'fields',
    [
        {'prompt': 'Hi', 'question': 'Who?', 'chosen': 'Yes', 'rejected': 'No'},
        {'prompt': 'Hi', 'system': ' ', 'chosen': 'Yes', 'rejected': 'No'},
        {'prompt': [USER], 'system': 'Be brief.', 'chosen': 'Yes', 'rejected': 'No'},
        {'chosen': 'Yes', 'rejected': 'No', 'system': 'Be brief.'},
        {'question': 'Hi', 'chosen': [USER, GOOD], 'rejected': [USER, BAD]},
        {'question': 'Hi', 'chosen': f'{DIALOGUE} 4.', 'rejected': f'{DIALOGUE} 5.', 'system': 'Be brief.'},
        {'prompt': 'Hi', 'completion': 'Yes', 'label': 1},
        {'prompt': 'Hi', 'chosen': 'Yes'},
    ],
)
def test_other_rows_are_hashed_as_they_are(fields):
    """So that runs on them are resumed."""
    each = row(**fields)
    assert preferences.with_prompt(each) is each


def test_tools_of_a_row_are_written_by_the_template():
    """On both sides; before, the template saw none."""
    template = Template('{% for tool in tools %}[{{ tool.name }}]{% endfor %}' + CHATML.source, 'a template')
    fields = {'prompt': [USER], 'tools': '[{"name": "add"}]'}
    pair = preferences.read_pair(row(**fields, chosen=[GOOD], rejected=[BAD]), template)
    _, completion, _ = preferences.read_labelled(row(**fields, completion=[GOOD], label=True), template)
    for dialogue in (*pair[1:], completion):
        prompt = preferences.encode(dialogue, Bytes(), template, 'rows.jsonl:7').prompt
        assert bytes(prompt[1:]).startswith(b'[add]<u>Hi')


@pytest.mark.parametrize('field', ['weight', 'train', 'training', 'loss'])
def test_answer_that_is_not_to_be_trained_is_context(field):
    """As in conversations; before, the field was ignored. The template does not see it."""
    bad, end = BAD | {field: 0}, [USER, GOOD | {field: True}]
    pair = preferences.read_pair(row(prompt=[USER], chosen=[bad, *end], rejected=[BAD]), CHATML)
    _, completion, _ = preferences.read_labelled(row(prompt=[USER], completion=[bad, *end], label=1), CHATML)
    whole = preferences.read_pair(row(chosen=[USER, bad, *end], rejected=[USER, BAD]), CHATML)
    for dialogue in (pair.chosen, completion, whole.chosen):
        assert dialogue.messages == [USER, BAD, USER, GOOD] and dialogue.trained == (3,)
    none = preferences.read_pair(row(prompt=[USER], chosen=[bad], rejected=[BAD]), CHATML)
    assert preferences.is_empty(none.chosen) and not preferences.is_empty(none.rejected)


def test_conversations_part_where_they_differ():
    other = [{'role': 'user', 'content': 'And?'}, {'role': 'assistant', 'content': 'So.'}]
    pair = preferences.read_pair(row(chosen=[USER, GOOD, *other], rejected=[USER, BAD]), CHATML)
    assert pair.chosen.trained == (1, 3) and pair.rejected.trained == (1,)
    end = [USER, GOOD, other[0]]
    pair = preferences.read_pair(row(chosen=[*end, other[1]], rejected=[*end, BAD]), CHATML)
    assert pair.chosen.trained == pair.rejected.trained == (3,)
    pair = preferences.read_pair(row(chosen=[USER, GOOD], rejected=[USER, GOOD, *other]), CHATML)
    assert pair.chosen.trained == (1,) and pair.rejected.trained == (1, 3)  # one side continues the other


@pytest.mark.parametrize(
    ('dialogue', 'prompt', 'completion'),
    [
        (preferences.Conversation([], (), ('ab', 'c')), [256, *b'ab'], [*b'c', 256]),
        (preferences.Conversation([USER, GOOD], (1,)), [256, *b'<u>Hi\n<a>'], [*b'Yes', 256]),
    ],
)
def test_completion_ends_with_one_end_token(dialogue, prompt, completion):
    text = preferences.encode(dialogue, Bytes(), CHATML if dialogue.messages else None, 'a row')
    assert (text.prompt, text.completion) == (prompt, completion) and all(text.trained)


@pytest.mark.parametrize('answer', ['{{ m.content }}|', '{% generation %}{{ m.content }}{% endgeneration %}|'])
def test_end_token_that_a_template_lacks_is_added(answer):
    """Also if the template writes something after the answer that is no part of it."""
    source = '{% for m in messages %}' + answer + '{% endfor %}'
    dialogue = preferences.Conversation([USER, GOOD], (1,))
    text = preferences.encode(dialogue, Bytes(), Template(source, 'a template'), 'a row')
    assert text.completion[-1] == 256 and bytes(text.completion[:3]) == b'Yes'
    if 'generation' in source:
        assert text.completion[3:] == [256] and all(text.trained)


def test_prompt_loses_its_beginning_but_its_first_token():
    text = preferences.EncodedCompletion([256, 1, 2, 3], [4, 256], [True, True])
    assert text.without_beginning(2).prompt == [256, 3] and text.without_beginning(0) == text
    assert text.without_beginning(3).prompt == [256] and text.without_beginning(4) is None


@pytest.mark.parametrize('label', [True, 1, 'True', ' true', '1'])
def test_desirable(label):
    form, dialogue, desirable = preferences.read_labelled(row(prompt='a', completion='b', label=label), None)
    assert desirable is True and dialogue.texts == ('a', 'b') and form == 'prompt + completion + label'
    assert preferences.read_labelled(row(prompt=[USER], completion=[BAD], label='false'), None)[2] is False


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'prompt': 'a', 'chosen': 'b'}, "rows.jsonl:7: no field 'rejected'; the fields there are: 'prompt', 'chosen'"),
        (
            {'prompt': 'a', 'chosen': 3, 'rejected': 'b'},
            "rows.jsonl:7: 'chosen' must be text or messages, not a number",
        ),
        ({'chosen': [GOOD], 'rejected': [BAD]}, "begin with an answer, and there is no field 'prompt'"),
        (
            {'prompt': [USER], 'chosen': [GOOD, USER], 'rejected': [BAD]},
            "last message of 'chosen' must be of the assistant",
        ),
        ({'prompt': 'a', 'chosen': '\ud800', 'rejected': 'b'}, "'chosen' has half of a surrogate pair"),
    ],
)
def test_invalid_pair_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        preferences.read_pair(row(**fields), CHATML)


@pytest.mark.parametrize('label', ['good', 2, -1, 0.5, [True]])
def test_label_that_is_no_boolean_is_refused(label):
    with pytest.raises(InputError, match=r"rows.jsonl:7: 'label' is .*; it must be true \(desirable\) or false"):
        preferences.read_labelled(row(prompt='a', completion='b', label=label), None)


def test_notes_count_rows_and_name_the_first():
    notes = preferences.Notes()
    notes.forms['pairs'] += 3
    for place in ('a:1', 'a:2'):
        notes.skip('with an empty completion', Row(place, {}))
    assert notes.lines() == ['3 rows of pairs', '2 rows left out, with an empty completion: a:1, ...']


@pytest.mark.parametrize(
    ('fields', 'unread'),
    [
        ({'query': '2 + 2?', 'id': 7, 'empty': '', 'null': None, 'none': []}, ['query', 'id']),
        ({'prompt': 'Hi', 'conversations': 'Hello', 'question': 'Who?'}, ['conversations', 'question']),
        ({'question': 'Hi', 'system_prompt': 'Be brief.', 'history': [['Who?', 'Me']]}, []),
        ({'question': 'Hi', 'system_prompt': 'Be kind.', 'system': 'Be brief.'}, ['system_prompt']),
        ({'instruction': 'Add', 'input': '2, 2', 'history': 'long'}, ['history']),
        ({'prompt': 'Hi', 'system': 'Be brief.'}, []),
        ({'prompt': [USER], 'system': 'Be brief.'}, []),
        ({'prompt': [USER], 'tools': [{'name': 'add'}]}, []),
        ({'prompt': 'Hi', 'tools': [{'name': 'add'}]}, ['tools']),
        ({'prompt': [SYSTEM, USER], 'system': 'Be kind.', 'question': 'Who?'}, ['system', 'question']),
        ({'system': 'Be brief.'}, ['system']),
    ],
)
@pytest.mark.parametrize('template', [CHATML, None])
def test_header_names_the_fields_that_are_not_read(fields, unread, template):
    """Before, a row whose question has an unknown name was trained without it, and without a word."""
    pair = row(**fields, chosen='Yes', rejected='No', margin=1.0)
    completion = row(**fields, completion='Yes', label=1)
    for names in (preferences.SIDES, (*preferences.SIDES, 'margin')):
        notes, (form, chosen, _) = preferences.Notes(), preferences.read_pair(pair, template)
        notes.count(form, pair, chosen, names)
        expected = unread + (['margin'] if 'margin' not in names else [])
        ignoring = f' (ignoring {", ".join(map(repr, expected))})' if expected else ''
        assert notes.lines() == [f'1 rows of {form}{ignoring}']
    if 'prompt' in fields:
        notes, (form, dialogue, _) = preferences.Notes(), preferences.read_labelled(completion, template)
        notes.count(form, completion, dialogue, ('completion', 'label'))
        assert list(notes.unread[form]) == unread


def test_empty_completions():
    empty = [
        ({'prompt': 'a', 'chosen': ' \n', 'rejected': 'b'}, True),
        ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}, False),
    ]
    for fields, expected in empty:
        assert preferences.is_empty(preferences.read_pair(row(**fields), None).chosen) is expected
    blank = preferences.Conversation([USER, GOOD | {'content': ' '}], (1,))
    assert preferences.is_empty(blank)
    for content in ({'tool_calls': [{}]}, {'reasoning': 'Hm'}):
        assert not preferences.is_empty(blank._replace(messages=[USER, GOOD | {'content': ''} | content]))
    for other in ({'model': 'm', 'weight': 1}, {'tool_calls': []}):  # say nothing
        assert preferences.is_empty(blank._replace(messages=[USER, GOOD | {'content': ''} | other]))


def test_turns_of_the_user_between_two_answers_of_a_transcript_are_not_trained():
    """Before, all that follows the first answer that differs was the completion."""
    begin = '\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: a\n\nAssistant:'
    chosen, rejected = f'{begin} b\n\nHuman: c\n\nAssistant: d', f'{begin} e'
    for system in ({}, {'system': 'Be brief.'}):
        pair = preferences.read_pair(row(chosen=chosen, rejected=rejected, **system), None)
        assert texts(pair) == [(begin, ' b', '\n\nHuman: c\n\nAssistant:', ' d'), (begin, ' e')]
    tokenizer = Bytes()
    encoded = preferences.encode(pair.chosen, tokenizer, None, 'here')
    trained = [token for token, each in zip(encoded.completion, encoded.trained, strict=True) if each]
    assert trained == [*b' b d', tokenizer.end_id]
    assert encoded.prompt == [tokenizer.begin_id, *begin.encode()] and encoded.size == 2 + len(chosen)
    blank = preferences.read_pair(row(chosen=f'{begin} \n\nHuman: c\n\nAssistant:', rejected=rejected), None)
    assert preferences.is_empty(blank.chosen) and not preferences.is_empty(blank.rejected)


def test_several_turns_of_one_role_in_a_transcript_are_one():
    """A template that requires alternating roles refused all rows because of 13 of 4,624 sides of hh-rlhf."""
    begin = '\n\nHuman: Hi\n\nHuman: there\n\nAssistant:'
    chosen, rejected = f'{begin} Yes\n\nAssistant:\n\nAssistant: sir', f'{begin} No'
    pair = preferences.read_pair(row(chosen=chosen, rejected=rejected), CHATML)
    assert pair.form == 'hh-rlhf transcripts, several turns of one role merged'
    user = {'role': 'user', 'content': 'Hi\n\nthere'}
    assert pair.chosen.messages == [user, GOOD | {'content': 'Yes\n\nsir'}] and pair.chosen.trained == (1,)
    assert pair.rejected.messages == [user, BAD]
    for template in (None, PLAINLY):  # writes them as they are
        pair = preferences.read_pair(row(chosen=chosen, rejected=rejected), template)
        assert pair.form == 'hh-rlhf transcripts, unchanged'
        assert [''.join(side.texts) for side in pair[1:]] == [chosen, rejected]


def test_real_transcripts(shared):
    """All of a file of hh-rlhf: every row is read, and both sides begin with the same prompt in most of them."""
    from lmtrain.data.rows import read_rows

    file = shared / 'preference' / 'hh-rlhf' / 'harmless-base.test.jsonl.gz'
    if not file.is_file():
        pytest.skip(f'no {file}')
    pairs = [preferences.read_pair(each, None) for each in read_rows(str(file), '')]
    assert len(pairs) == 2312 and {pair.form for pair in pairs} == {'hh-rlhf transcripts, unchanged'}
    same = [pair.chosen.texts[0] == pair.rejected.texts[0] for pair in pairs]
    assert np.mean(same) > 0.99
    assert sum(preferences.is_empty(side) for pair in pairs for side in pair[1:]) == 4
    several = [side.texts for pair in pairs for side in pair[1:] if len(side.texts) > 2]
    by_template = [preferences.read_pair(each, CHATML) for each in read_rows(str(file), '')]
    roles = [[message['role'] for message in side.messages] for pair in by_template for side in pair[1:]]
    assert not any(one == other for each in roles for one, other in itertools.pairwise(each))
    assert sum('merged' in pair.form for pair in by_template) == 9
    assert len(several) == 5 and not any('\n\nHuman:' in text for each in several for text in each[1::2])
