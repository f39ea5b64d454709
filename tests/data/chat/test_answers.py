import pytest

from lmtrain.data.chat import answers
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template

MARKS = {'bos_token': '<s>', 'eos_token': '</s>'}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Lines without special tokens, in which earlier reasoning is removed, as in Qwen 3.
THINKING = (
    "{% for m in messages %}{% set content = m.content %}{% if '/think ' in content and not loop.last %}"
    "{% set content = content.split('/think ')[-1] %}{% endif %}{{ m.role + '\\n' + content + '\\n' }}{% endfor %}"
    "{{ 'assistant\\n' if add_generation_prompt }}"
)
TALK = [
    {'role': 'user', 'content': 'sat on?'},
    {'role': 'assistant', 'content': 'the mat'},
    {'role': 'user', 'content': 'who?'},
    {'role': 'assistant', 'content': 'the cat'},
]


@pytest.fixture
def tokenizer(tmp_path, bpe):
    return bpe(tmp_path / 'model', tokenizer_config=MARKS)


def written(messages, tokenizer, source):
    """(the texts of a conversation with the trained spans in brackets, the method)."""
    trained = tuple(index for index, message in enumerate(messages) if message['role'] == 'assistant')
    result = answers.write(Conversation(messages, trained), tokenizer, Template(source, 'the template'), 'rows:1')
    texts = []
    for text, spans in result.texts:
        marked, end = '', 0
        for start, stop in spans:
            marked, end = f'{marked}{text.text[end:start]}[{text.text[start:stop]}]', stop
        texts.append(marked + text.text[end:])
    return texts, result.method


def test_answer_whose_only_end_is_after_the_last_message(tokenizer):
    source = (
        "{% for m in messages %}{{ m.role + ' ' + m.content + '\\n' }}{% endfor %}"
        "{{ 'assistant ' if add_generation_prompt else eos_token }}"
    )
    (first, second), method = written(TALK, tokenizer, source)
    assert first == 'user sat on?\nassistant [the mat\n</s>]'
    assert second == 'user sat on?\nassistant the mat\nuser who?\nassistant [the cat\n</s>]'
    assert method == 'separate'


def test_answer_with_common_prefix_when_rewritten(tokenizer):
    talk = [TALK[0], {'role': 'assistant', 'content': 'the cat /think the mat'}, *TALK[2:]]
    (first, second), method = written(talk, tokenizer, THINKING)
    assert first == 'user\nsat on?\nassistant\n[the cat /think the mat\n]'
    assert second == 'user\nsat on?\nassistant\nthe mat\nuser\nwho?\nassistant\n[the cat\n]'
    assert method == 'separate'


def test_generation_prompt_that_the_answer_lacks(tokenizer):
    cue = CHATML.replace("'<|im_start|>assistant\\n' }}{% endif", "'<|im_start|>assistant\\nthe cat' }}{% endif")
    (text,), method = written(TALK, tokenizer, cue)
    assert '<|im_start|>assistant\n[the mat<|im_end|>\n]' in text and method == 'whole'


def test_answer_before_any_question(tokenizer):
    """ShareGPT has conversations that the assistant begins."""
    asking = "{{ messages[0].role and '' }}" + CHATML
    (text,), method = written([TALK[1], *TALK[2:]], tokenizer, asking)
    assert text == (
        '<|im_start|>assistant\n[the mat<|im_end|>\n]'
        '<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n[the cat<|im_end|>\n]'
    )
    assert method == 'whole'


def test_system_text_moved_to_last_question(tokenizer):
    """Like Mistral's templates; the answer is trained after the prompt that generation uses."""
    source = (
        "{% set ask = messages | rejectattr('role', 'equalto', 'system') | list %}{% for m in ask %}"
        "{{ '<|im_start|>' + (messages[0].content + ' ' if loop.last and messages[0].role == 'system' else '') + "
        "m.content + '<|im_end|>' if m.role == 'user' else m.content + eos_token }}{% endfor %}"
    )
    (first, second), method = written([{'role': 'system', 'content': 'be'}, *TALK], tokenizer, source)
    assert first == '<|im_start|>be sat on?<|im_end|>[the mat</s>]'
    assert second == ('<|im_start|>sat on?<|im_end|>the mat</s><|im_start|>be who?<|im_end|>[the cat</s>]')
    assert method == 'separate'
