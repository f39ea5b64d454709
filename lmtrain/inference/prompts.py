"""How a model is prompted: a text as it stands behind the begin token, or turns written by a chat template."""

from collections.abc import Iterable
from typing import Any

from lmtrain.data import Tokenizer
from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.errors import InputError

Prompt = str | Conversation


def encode(prompt: Prompt, tokenizer: Tokenizer, template: Template | None = None, system: str = '') -> list[int]:
    """Ids of a prompt, int; training rows, scoring and generation begin in the same way.

    Args:
      prompt: a text, which with a template is one user's turn; or the messages before an answer.
      template: of chats; None leaves a text as it stands.
      system: a text of the system for prompts that begin with none; '' is none.

    Raises ValueError if there are messages or a system text but no template, or if the template fails.
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


def before_answer(dialogue: Conversation, which: int = -1) -> tuple[Prompt, str]:
    """(what stands before an answer, the answer) of a conversation; `which` of those that are learned, the last one.

    Raises IndexError if it has no answer.
    """
    if not dialogue.messages:
        return dialogue.texts
    at = dialogue.trained[which]
    return dialogue._replace(messages=dialogue.messages[:at], trained=()), dialogue.messages[at]['content']


def shown(prompt: Prompt) -> str:
    """What a person reads of a prompt: the text, or the last of the messages."""
    return prompt if isinstance(prompt, str) else prompt.messages[-1]['content']


def special_names(prompts: Iterable[Prompt], tokenizer: Tokenizer) -> list[str]:
    """The names of special tokens that prompts contain; they are read as characters."""
    pattern = tokenizer.special_pattern
    matches = (match for prompt in prompts for text in _texts(prompt) for match in pattern.finditer(text))
    return list(dict.fromkeys(match[match.lastindex] for match in matches))


def _texts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [message['content'] for message in prompt.messages]
