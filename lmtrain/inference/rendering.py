"""Questions as token ids: the text or the turns before an answer, and the choices that may follow."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.errors import InputError
from lmtrain.inference import prompts
from lmtrain.inference.likelihood import TokenPrompt, common_length
from lmtrain.inference.questions import Question


def text_before(question: Question, demonstrations: Sequence[Question], separator: str, instruction: str = '') -> str:
    """Instruction, demonstrations and the text up to the answer. InputError: one of them is a conversation."""
    for each in (question, *demonstrations):
        if each.messages:
            raise InputError(
                f'{each.place}: a conversation needs a chat template: name one, or a template with fields of the row'
            )
    first = [instruction] if instruction else []
    return separator.join([*first, *(each.context + each.answer for each in demonstrations), question.context])


def prompt(
    tokenizer: Tokenizer,
    separator: str,
    question: Question,
    demonstrations: Sequence[Question],
    instruction: str = '',
) -> TokenPrompt:
    """BEGIN and the prompt, without continuations.

    A space at its end is removed: it is part of the next word's token.
    """
    text = text_before(question, demonstrations, separator, instruction).rstrip(' ')
    ids = prompts.encode(text, tokenizer)
    return TokenPrompt(np.array(ids, np.int32))


def turns(question: Question, demonstrations: Sequence[Question], system: str) -> Conversation:
    """The messages up to the answer: turns of the demonstrations, then of the question; one system message, first.

    A question in one text is one turn of the user, without the whitespace at its end that would precede the answer.
    """
    first = [{'role': 'system', 'content': system}] if system else []
    messages: list[dict] = []
    for each in (*demonstrations, question):
        own = list(each.messages) or [{'role': 'user', 'content': each.context.rstrip()}]
        if own[0]['role'] in ('system', 'developer'):
            own, first = own[1:], [own[0]]
        messages += own
        if each is not question:
            messages.append({'role': 'assistant', 'content': each.answer.strip()})
    return Conversation(first + messages, (len(first + messages),), tools=question.tools)


def prompt_chat(
    tokenizer: Tokenizer, template: Template, system: str, question: Question, demonstrations: Sequence[Question]
) -> TokenPrompt:
    """The conversation up to the answer of the assistant, without continuations."""
    return TokenPrompt(np.array(prompts.encode(turns(question, demonstrations, system), tokenizer, template), np.int32))


def choices_chat(
    tokenizer: Tokenizer, template: Template, system: str, question: Question, demonstrations: Sequence[Question]
) -> TokenPrompt:
    """The conversation up to the answer, rendered as in training, and each choice as its answer.

    The token that ends the answer is scored too: it distinguishes 'no' from the beginning of 'not'.
    """
    before = turns(question, demonstrations, system)
    wholes, start = [], None
    for choice in question.choices:
        answer = {'role': 'assistant', 'content': choice.strip()}
        dialogue = before._replace(messages=[*before.messages, answer])
        _, [(ids, learned, _)] = encoding.encode_conversation(dialogue, tokenizer, template, question.place)
        scored = np.flatnonzero(learned)
        wholes.append(np.array(ids[: scored[-1] + 1], np.int32))
        start = int(scored[0]) if start is None else min(start, int(scored[0]))
    return _split(wholes, min(start, *map(len, wholes)))


def choices(
    tokenizer: Tokenizer,
    separator: str,
    question: Question,
    demonstrations: Sequence[Question],
    instruction: str = '',
) -> TokenPrompt:
    """BEGIN and the prompt, and the choices as continuations.

    Prompt and choice are encoded as one text, because a token may contain the end of one and the beginning of the other
    (' ' + 'yes', or ':' + ')'). All choices are scored from the first index at which one of their encodings, or that of
    the prompt alone, differs from another. Before it all have the same tokens, and after it all have the same rest of
    the prompt and then a choice, so their log-likelihoods are comparable.

    If the tokens of one choice begin those of another ('not' and 'not spam'), the first would be at least as likely as
    the second whatever the prompt is. All choices of this question are then scored with an end: the separator, which
    follows the answers of the demonstrations, or without demonstrations (or with an empty separator) the end token, as
    in training on prompts and completions. Other questions are scored without an end.
    """
    text = text_before(question, demonstrations, separator, instruction)

    def encode(end: str) -> list[np.ndarray]:
        texts = [text, *(text + choice + end for choice in question.choices)]
        if len(demonstrations) < 2:
            return tokenizer.encode_batch(texts)
        last = demonstrations[-1].context + demonstrations[-1].answer + separator
        return _encode(tokenizer, text[: len(text) - len(last) - len(question.context)], last, texts)

    alone, *wholes = encode('')
    if _one_begins_another(wholes):
        if demonstrations and separator:
            alone, *wholes = encode(separator)
        else:
            wholes = [np.append(whole, tokenizer.end_id) for whole in wholes]
    common = min(common_length(alone, whole) for whole in wholes)
    if any(len(whole) == common for whole in wholes):
        raise InputError(f'{question.place}: a choice of {question.choices} adds no token to the prompt')
    return _split([np.insert(whole, 0, tokenizer.begin_id) for whole in wholes], 1 + common)


def _one_begins_another(texts: Sequence[np.ndarray]) -> bool:
    """Whether the ids of one text are a proper prefix of those of another.

    >>> _one_begins_another([np.array([5, 6]), np.array([7]), np.array([5])]), _one_begins_another([np.array([5])] * 2)
    (True, False)
    """
    ordered = sorted({tuple(ids.tolist()) for ids in texts})  # what begins a text precedes the texts that it begins
    return any(other[: len(one)] == one for one, other in itertools.pairwise(ordered))


def _encode(tokenizer: Tokenizer, beginning: str, last: str, texts: Sequence[str]) -> list[np.ndarray]:
    """`tokenizer.encode_batch` of texts that have `beginning + last` in common; the beginning is encoded once."""
    head = _beginning(tokenizer, beginning, last)
    if head is None:
        return tokenizer.encode_batch(texts)
    rests = (tokenizer.encode_inside(text[len(beginning) :]) for text in texts)
    return [np.concatenate([head, np.array(rest, np.int32)]) for rest in rests]


@functools.lru_cache(maxsize=128)
def _beginning(tokenizer: Tokenizer, beginning: str, last: str) -> np.ndarray | None:
    """The ids of a beginning, if a text can be divided after it; None if a token lies across, or depends on both parts.

    The division has the same text on both sides, `beginning` and `last`, in whatever follows: a tokenizer that divides
    this text there divides all of them.
    """
    head, whole = tokenizer.encode_batch([beginning, beginning + last])
    is_whole = np.array_equal(np.concatenate([head, tokenizer.encode_inside(last)]), whole)
    return head if is_whole else None


def _split(wholes: Sequence[np.ndarray], start: int) -> TokenPrompt:
    """Texts that are equal before `start`, or before an earlier index, as a context and its continuations."""
    start = min(start, *(common_length(wholes[0], whole) for whole in wholes))
    return TokenPrompt(wholes[0][:start].astype(np.int32), tuple(whole[start:].astype(np.int32) for whole in wholes))
