"""Prompts as token ids: a text after the begin token, or the turns that a chat template renders."""

from collections.abc import Iterable
from typing import Any

from lmtrain.data import Tokenizer
from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.errors import InputError

Prompt = str | Conversation


def encode(prompt: Prompt, tokenizer: Tokenizer, template: Template | None = None, system: str = '') -> list[int]:
    """Token ids of a prompt; training rows, scoring and generation begin with the same ids.

    Args:
      prompt: a text, which with a template is one turn of the user; or the messages before an answer.
      template: chat template; None leaves a text unchanged.
      system: system text for prompts that begin with none; '' is none.

    InputError: messages or a system text without a template, or the template fails.
    """
    if template is None:
        if system or not isinstance(prompt, str):
            what = 'a system text' if system else 'a conversation'
            raise InputError(f'{what} needs a chat template: name one, or give each prompt as one text')
        return tokenizer.encode_prompt(prompt)
    if isinstance(prompt, str):
        return encoding.encode_prompt(prompt, tokenizer, template, system)
    own = prompt.messages[0]['role'] in ('system', 'developer')
    return encoding.encode_prompt(prompt.messages, tokenizer, template, '' if own else system, prompt.tools)


def before_answer(dialogue: Conversation, which: int | None = -1) -> tuple[Prompt, str]:
    """(the part of a conversation before an answer, the answer).

    Args:
      which: index into `dialogue.trained`, the messages that the loss covers, or into its trained texts. None: all
        messages of the assistant at the end, of which there may be none; the answer is then the first of them, or ''.

    IndexError: the conversation has no such answer.

    >>> messages = [{'role': 'user', 'content': '1 + 1?'}, {'role': 'assistant', 'content': '2'}]
    >>> before_answer(Conversation(messages, trained=(1,)))[1]
    '2'
    """
    messages = dialogue.messages
    if not messages:
        at = range(1, len(dialogue.texts), 2)[-1 if which is None else which]
        return ''.join(dialogue.texts[:at]), dialogue.texts[at]
    if which is None:
        end = max((i + 1 for i, message in enumerate(messages) if message['role'] != 'assistant'), default=0)
    else:
        end = dialogue.trained[which]
    answer = messages[end]['content'] if end < len(messages) else ''
    return dialogue._replace(messages=messages[:end], trained=()), answer


def shown(prompt: Prompt) -> str:
    """The text of a prompt that a report shows: the text itself, or the last of the messages."""
    return prompt if isinstance(prompt, str) else prompt.messages[-1]['content']


def special_names(prompts: Iterable[Prompt], tokenizer: Tokenizer) -> list[str]:
    """The names of special tokens that prompts contain as text; they are encoded as characters."""
    pattern = tokenizer.special_pattern
    matches = (match for prompt in prompts for text in _texts(prompt) for match in pattern.finditer(text))
    return list(dict.fromkeys(match[match.lastindex] for match in matches))


def _texts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [message['content'] for message in prompt.messages]
