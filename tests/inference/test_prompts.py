"""Prompts begin with the same ids as training rows; names of special tokens in them are encoded as characters."""

import pytest

from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import Conversation, read
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import END, Bytes
from lmtrain.inference import prompts

PLAINLY = Template(PLAIN, 'the plain template')
MARKED = Template(
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    '{% if add_generation_prompt %}[assistant]{% endif %}',
    'a template',
)  # fmt: skip
BYTES = Bytes()


def message(role, content):
    return {'role': role, 'content': content}


def test_a_text_follows_the_begin_token_even_if_that_is_the_end_token():
    assert prompts.encode('ab', BYTES) == [256, 97, 98]
    assert prompts.encode('', BYTES) == [256]


def test_a_prompt_has_the_first_ids_of_a_training_row():
    """For texts without a template, the plain template, and a template with markers."""
    for template, dialogue in (
        (None, Conversation([], (), ('ab', 'cd'))),
        (PLAINLY, Conversation([message('user', 'ab'), message('assistant', 'cd')], (1,))),
        (MARKED, Conversation([message('system', 's'), message('user', 'ab'), message('assistant', 'cd')], (2,))),
    ):
        _, [(ids, learned, _)] = encoding.encode_conversation(dialogue, BYTES, template, 'a row')
        before, answer = prompts.before_answer(dialogue)
        assert prompts.encode(before, BYTES, template) == ids[: learned.index(True)] and answer == 'cd'
        assert ids[0] == BYTES.begin_id


def test_a_text_is_one_turn_of_the_user_after_the_system_message():
    expected = [256, *b'[system]be brief', 256, *b'[user]ab', 256, *b'[assistant]']
    assert prompts.encode('ab', BYTES, MARKED, 'be brief') == expected
    dialogue = Conversation([message('user', 'ab')])
    assert prompts.encode(dialogue, BYTES, MARKED, 'be brief') == expected
    own = Conversation([message('system', 'own'), message('user', 'ab')])
    assert prompts.encode(own, BYTES, MARKED, 'be brief') == prompts.encode(own, BYTES, MARKED)
    assert bytes(prompts.encode(own, BYTES, MARKED)[1:12]) == b'[system]own'
    own = Conversation([message('developer', 'own'), message('user', 'ab')])
    assert prompts.encode(own, BYTES, MARKED, 'be brief') == prompts.encode(own, BYTES, MARKED)


def test_a_template_receives_the_tools():
    source = '{% for tool in tools or [] %}{{ tool.name }}{% endfor %}: {{ messages[0].content }}'
    source += "{{ messages[1].content ~ eos_token if messages | length > 1 else '' }}"
    dialogue = Conversation([message('user', 'ab')], tools=[{'name': 'f'}, {'name': 'g'}])
    assert BYTES.decode(prompts.encode(dialogue, BYTES, Template(source, 'tools'))).removeprefix(END) == 'fg: ab'


@pytest.mark.parametrize(('prompt', 'system'), [('ab', 'be brief'), (Conversation([message('user', 'ab')]), '')])
def test_messages_without_a_template_are_rejected(prompt, system):
    with pytest.raises(ValueError, match='needs a chat template: name one'):
        prompts.encode(prompt, BYTES, None, system)


def test_final_answers_of_the_assistant_are_removed_if_there_are_any():
    user, answers = [message('user', 'a')], [message('assistant', 'b'), message('assistant', 'c')]
    for dialogue, answer in ((Conversation(user + answers, (2,)), 'b'), (Conversation(user), '')):
        prompt, removed = prompts.before_answer(dialogue, None)
        assert (prompt.messages, prompt.trained, removed) == (user, (), answer)
    assert prompts.before_answer(Conversation(answers), None)[0].messages == []


def test_the_part_before_an_answer():
    turns = [message(role, text) for role, text in zip(['user', 'assistant'] * 2, 'abcd')]
    _, dialogue = read(Row('r:1', {'messages': turns, 'tools': [{'name': 'f'}]}), (), '')
    last, answer = prompts.before_answer(dialogue)
    assert (last.messages, last.tools, answer) == (turns[:3], [{'name': 'f'}], 'd')
    first, answer = prompts.before_answer(dialogue, 0)
    assert (first.messages, answer, prompts.shown(first), prompts.shown('x')) == (turns[:1], 'b', 'a', 'x')
    assert prompts.shown(last) == 'c'
    with pytest.raises(IndexError):
        prompts.before_answer(Conversation(turns[:1], ()))
    texts = Conversation([], (), tuple('abcd'))  # b and d are answers
    assert [prompts.before_answer(texts, which) for which in (0, -1)] == [('a', 'b'), ('abc', 'd')]


def test_special_names_in_prompts_are_listed_once():
    dialogue = Conversation([message('system', f'a{END}'), message('user', 'b')])
    assert prompts.special_names([f'x{END}y{END}', dialogue], BYTES) == [END]
    assert prompts.special_names(['x', Conversation([message('user', '<|end')])], BYTES) == []
    assert prompts.encode(END, BYTES) == [256, *END.encode()]
